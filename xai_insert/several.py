"""Models of several image inputs: a plan for each, where each has a feature map of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xai_insert.errors import XaiInsertError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph
from xai_insert.locate.inputs import image_inputs, watching
from xai_insert.options import Options
from xai_insert.tasks.choose import make_plan
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.plan import Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """What is to be inserted for one image input.

    Attributes:
        graph: the view that watches the input, or all of them.
        plan: the plan.
        suffix: of the names of what is added: nothing for the first, `_2` for the second.
    """

    graph: Graph
    plan: Plan
    suffix: str = ""

    @property
    def input(self) -> str:
        """Name of the image input."""
        return image_inputs(self.graph)[0].name

    @property
    def place(self) -> int:
        """Number of the input among those of its size and type."""
        image = image_inputs(self.graph)[0]
        before = self.graph.inputs[: list(self.graph.inputs).index(image)]
        return sum((value.shape, value.dtype) == (image.shape, image.dtype) for value in before)


def planned(loaded: LoadedModel, graph: Graph, options: Options) -> list[Planned]:
    """A plan for the image input that was chosen, or for each that has a feature map of its own.

    Where inputs meet before the last feature map, that map is of all of them, and one plan serves.

    Raises:
        XaiInsertError: see `make_plan`.
    """
    views = watching(graph, options.input)
    if len(views) == 1:
        return [Planned(views[0], make_plan(loaded, views[0], options))]
    plans = [found for index, view in enumerate(views) if (found := _alone(loaded, view, options, index)) is not None]
    targets = _targets(plans) if len(plans) == len(views) else 0
    if targets > 1:
        return plans
    try:
        return [Planned(graph, make_plan(loaded, graph, options))]
    except XaiInsertError as err:
        if targets == 1:  # one map of inputs of several sizes, which is drawn over the first
            return plans[:1]
        if plans:
            names = ", ".join(repr(item.input) for item in plans)
            err.args = (f"{err}; of the image inputs, --input NAME explains {names}",)
        raise


def _targets(plans: Sequence[Planned]) -> int:
    """How many maps classifiers are explained at; 0 if not all are classifiers."""
    found = [item.plan.found for item in plans]
    classifiers = [item for item in found if isinstance(item, FoundClassifier)]
    if len(classifiers) < len(found):
        return 0
    return len({tuple(feature.value for feature in item.placed()) for item in classifiers})


def _alone(loaded: LoadedModel, view: Graph, options: Options, index: int) -> Planned | None:
    try:
        return Planned(view, make_plan(loaded, view, options), _suffix(index))
    except XaiInsertError as err:
        logger.info("no map for each image input: %s", err)
        return None


def beside(items: Sequence[Planned]) -> list[dict[str, Any]]:
    """For reports, what is inserted for the second image input and those behind it; empty if one map serves all."""
    return [
        {
            "output": f"saliency_map{item.suffix}",
            "input": item.input,
            "shape": item.plan.map_shape,
            "form": item.plan.form.value,
            "target": item.plan.describe()["target"],
        }
        for item in items[1:]
    ]


def without_closed_form(items: Sequence[Planned], reason: str) -> list[Planned] | None:
    """The plans to take where a closed form turns out not to do; None if there are no others."""
    found = [(item, item.plan.without_closed_form(item.graph, reason)) for item in items]
    if all(plan is None for _, plan in found):
        return None
    return [item if plan is None else Planned(item.graph, plan, item.suffix) for item, plan in found]


def _suffix(index: int) -> str:
    return "" if index == 0 else f"_{index + 1}"
