"""A decision made before anything is edited: what to insert and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from xai_insert.errors import ShapeUnknownError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, Shape, Value
from xai_insert.locate.layout import Rectangle, Side, drawn_in
from xai_insert.options import Options
from xai_insert.tasks.base import Found


def unmasked(masked: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What the model gives under a mask, for methods that compare it with nothing."""
    del whole
    return masked


@dataclass(frozen=True)
class Masking:
    """A map as its definition has it: the class scores when the features are multiplied by a mask.

    Attributes:
        features: the masked values.
        mask: the mask of one position (row-major in the grid), for features of a shape; broadcasts against them.
        read: the class scores `[B, K]`, of what the model gives under a mask and without one.
        is_small: whether the map varies little beside the scores, so that it is judged by how much it varies.
    """

    features: Sequence[Value]
    mask: Callable[[Sequence[int], int], npt.NDArray[Any]]
    read: Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[Any]] = unmasked
    is_small: bool = False


@dataclass(frozen=True)
class Derivative:
    """What a map is made of that is not class scores under masks.

    Attributes:
        target: by what the derivative is taken.
        raw: handle of the unscaled map `[B, k, h, w]`.
        gradient: handle of the derivatives, of the target's sizes, with an axis of classes before them if several.
        formula: features and derivatives to the maps, `[B, ...]` and `[k, B, ...]` to `[k, B, cells]`.
        scores: handle of the scores `[B, K]` whose derivatives they are.
        beside: handles of what else the formula is given.
        batch_axis: of the target.
    """

    target: Value
    raw: Any
    gradient: Any
    formula: Callable[..., npt.NDArray[Any]]
    scores: Any
    beside: Sequence[Any] = ()
    batch_axis: int = 0


@dataclass(frozen=True)
class Output:
    """An output to be added beside the saliency map.

    Attributes:
        handle: its value in the edited model.
        dtype: NumPy name of its element type.
        shape: its sizes.
    """

    handle: Any
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Branch:
    """What a plan has added to a model.

    Attributes:
        plan: the plan that was carried out.
        raw: handle of the unscaled map, of `plan.map_shape`; before `spread`, where there is one; None if there is no
            map.
        scores: handle of the class scores, where the map is defined by masking.
        classes: handle of the numbers `[B, K]` of the classes that have a map; None if all have.
        outputs: further outputs, by name.
        spread: puts scaled maps of the classes that are present where `plan.map_shape` has them; None if all are there.
        derivatives: what a map that is made of derivatives was computed from; empty for others.
        arranged: makes maps of `plan.map_shape` of `raw`, where that is of another; None if it is not.
        in_bytes: scales the raw map to bytes by what the model itself says of its values; None scales each map by its
            own minimum and maximum.
        is_sized: whether what was added is for one height and width of the image.
    """

    plan: Plan
    raw: Any
    scores: Any = None
    classes: Any = None
    outputs: Mapping[str, Output] = field(default_factory=dict)
    spread: Callable[[Any], Any] | None = None
    derivatives: Sequence[Derivative] = ()
    arranged: Callable[[Any], Any] | None = None
    in_bytes: Callable[[Any], Any] | None = None
    is_sized: bool = True


@dataclass(frozen=True)
class Plan(ABC):
    """A decision.

    Attributes:
        found: what the map explains.
        method: the saliency method, never `auto`.
        form: how it is computed.
        reason: why in this form.
        map_shape: shape of `saliency_map`, height and width last, in the order of the feature map (see `Found.frame`);
            None where a size follows the input; empty if there is to be no map.
        mflops: extra work per image in millions of floating-point operations; None if a size is unknown.
    """

    found: Found
    method: str
    form: Form
    reason: str
    map_shape: Shape
    mflops: float | None

    @property
    def keep_float32(self) -> bool:
        """Whether the branch drowns in rounding where the runtime computes in half precision."""
        return False

    def work_for(self, count: int) -> float | None:
        """`mflops` with the maps of `count` classes alone; None where those are not for choice, or chosen already."""
        del count
        return None

    @property
    def may_follow(self) -> bool:
        """Whether the same plan may serve any size of the image, if the model does."""
        return False

    @property
    def keeps_batch(self) -> bool:
        """Whether the branch is for the batch that the model has while it is added, open or not."""
        return False

    @property
    def asks_another_size(self) -> bool:
        """Whether the plan may serve any size of the image, which a plan for another size tells."""
        return False

    def for_any_size(self, other: Plan) -> Plan:
        """This plan, for any size of the image if `other`, that for twice its height and width, is the same."""
        del other
        return self

    def following(self, closed: Plan, graph: Graph, open_graph: Graph, sides: tuple[Side, ...]) -> Plan:
        """This plan, made for open sides, with the sizes of its grid taken from those of the image.

        Args:
            closed: the plan for the one size that the model has.
            graph: the model of that size.
            open_graph: the model with open sizes.
            sides: how they follow from them; empty where they are to be read off the feature map itself.

        Raises:
            ShapeUnknownError: it would be slower than for one size.
        """
        del closed, graph, open_graph, sides
        return self

    @property
    def wants_sizes(self) -> bool:
        """Whether, of a model with open sides, it cannot be carried out, or stands in for a better one."""
        return False

    def of_any_size(self, graph: Graph, sized: Graph, other: tuple[Graph, Plan], options: Options) -> Plan:
        """This plan, made for one size of an image with open sides, for any.

        Args:
            graph: the model with open sides.
            sized: the same at the size that this plan is for.
            other: the same at another size, and the plan for that.
            options: what the user has chosen.

        Raises:
            ShapeUnknownError: it is for that size alone.
        """
        del graph, sized, other, options
        raise ShapeUnknownError("the map is for one size of the image")

    @abstractmethod
    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        """Add the branch, without outputs."""

    @abstractmethod
    def uses(self) -> frozenset[str]:
        """Names of the options that this plan goes by, beside those that every plan does."""

    def describe(self) -> dict[str, Any]:
        """What was found, as fields of a `Report`."""
        return self.found.describe()

    def rectangle(self) -> Rectangle | None:
        """Where in the image its map is drawn: top, left, bottom, right, as fractions; None for all of it.

        Raises:
            MisplacedMapError: what it is made of lies in several parts of the image.
        """
        return drawn_in(self.found.placed())

    @abstractmethod
    def metadata(self, options: Options) -> dict[str, str]:
        """What the model says about its map, beyond version, task, method and form."""

    def masking(self, options: Options) -> Masking | None:
        """What the raw map must equal; None for a method that masks nothing."""
        del options
        return None

    def without_closed_form(self, graph: Graph, reason: str) -> Plan | None:
        """The plan to take where the closed form turns out not to do, for `reason`; None if there is no other."""
        del graph, reason
        return None
