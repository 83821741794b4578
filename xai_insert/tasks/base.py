"""What a task is: what it finds in a model, or why the model is not one of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from xai_insert.errors import UnsupportedTaskError, XaiInsertError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph, Value
from xai_insert.locate.classifier import Wanted
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.locate.places import Places, find_places
from xai_insert.options import Options


@dataclass(frozen=True)
class Study:
    """A model that is looked at.

    Attributes:
        loaded: the unedited model; its runtime answers what structure alone leaves open.
        graph: its view.
        options: what the user has chosen.
        wanted: what the method that was asked for reads.
    """

    loaded: LoadedModel
    graph: Graph
    options: Options
    wanted: Wanted = Wanted.ANY

    @cached_property
    def places(self) -> Places:
        """Where the model's values lie in its image; followed once for all tasks."""
        return find_places(self.graph)


@dataclass(frozen=True)
class NotMine:
    """Why a model does not do a task.

    Attributes:
        reason: what was wanted and what was found; said to the user if no task knows the model and none of a higher
            rank has a reason. Empty if other tasks' reasons say all.
        error: the class of the error to say it with.
    """

    reason: str
    error: type[XaiInsertError] = UnsupportedTaskError


@dataclass(frozen=True)
class Found(ABC):
    """What a task found in a model: all that its methods share.

    Attributes:
        task: name of the task, as reports and metadata have it.
        methods: its methods, in the order in which they are tried where none was asked for.
        kin: those of which the model decides, whichever of them was asked for.
    """

    task: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    kin: ClassVar[frozenset[str]] = frozenset()

    @property
    def frame(self) -> Frame:
        """How the map that a method gives lies in the image."""
        return Frame()

    may_be_empty: ClassVar[bool] = False
    """Whether a map may rightly have one value only, where nothing is found in an image."""

    def placed(self) -> Sequence[FeatureMap]:
        """The maps whose place in the image is asked of the model itself."""
        return ()

    def pooled(self) -> Value | None:
        """The value `[B, C, ...]`, of further sizes 1, that `feature_vector` gives; None if there is none."""
        return None

    def features(self) -> Sequence[FeatureMap]:
        """The maps whose means over their locations, side by side, `feature_vector` gives where nothing is pooled."""
        return ()

    def describe(self) -> dict[str, Any]:
        """What was found, as fields of a `Report`."""
        return {}


class Task(ABC):
    """A task; each is a file in `xai_insert/tasks/known` that registers one as `TASK`.

    Attributes:
        rank: place in the walk over all tasks, the lowest first; the last one's reason is what the user reads if no
            task knows the model.
        takes: those options of `xai_insert.options.DECIDING` that its models go by.
    """

    rank: ClassVar[int]
    takes: ClassVar[frozenset[str]] = frozenset()

    def is_likely(self, study: Study) -> bool:
        """Whether a strong sign speaks for this task, so that it is asked before those without one."""
        del study
        return False

    @abstractmethod
    def recognise(self, study: Study) -> Found | NotMine:
        """What was found, or why this is not such a model.

        Raises:
            XaiInsertError: it is one, and something about it is in the way or left open.
        """
