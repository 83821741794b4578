"""Models of several image inputs: a plan for each, where each has a feature map of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from xai_insert.errors import AmbiguousModelError, MisplacedMapError, XaiInsertError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph, Value
from xai_insert.locate.inputs import image_inputs, image_size, outputs_of_image, watching
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
        sharing: plans for further image inputs of which this one's map is as well; only their places are asked.
    """

    graph: Graph
    plan: Plan
    suffix: str = ""
    sharing: tuple[Planned, ...] = ()

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
        MisplacedMapError: one map would serve, but the inputs lie in it in different ways.
        XaiInsertError: see `make_plan`.
    """
    views = watching(graph, options.input)
    if len(views) == 1:
        return [Planned(views[0], make_plan(loaded, views[0], options))]
    plans = [found for index, view in enumerate(views) if (found := _alone(loaded, view, options, index)) is not None]
    targets = _targets(plans) if len(plans) == len(views) else 0
    if targets > 1:
        return plans
    sharing = tuple(plans[1:]) if targets else ()
    _require_one_place(plans[:1], sharing)
    try:
        plan = make_plan(loaded, graph, options)
        _require_common_output(views)
        return [Planned(graph, plan, sharing=sharing or _laid_alike(views, plan))]
    except XaiInsertError as err:
        if targets == 1:  # one map of inputs of several sizes, which is drawn over the first
            return [replace(plans[0], sharing=sharing)]
        if plans:
            names = ", ".join(repr(item.input) for item in plans)
            err.args = (f"no map is of all image inputs: {err}; of the image inputs, --input NAME explains {names}",)
        raise


def _laid_alike(views: Sequence[Graph], plan: Plan) -> tuple[Planned, ...]:
    """The plan for the further images of the size of the first: where these take part in a map, they must lie alike."""
    first, *others = views
    size = image_size(image_inputs(first)[0])
    return tuple(Planned(view, plan) for view in others if image_size(image_inputs(view)[0]) == size)


def _require_common_output(views: Sequence[Graph]) -> None:
    """Refuse one map of images that lead to outputs of their own, as of two models in one file.

    Raises:
        AmbiguousModelError: no output is of two of them.
    """
    reached = [set(outputs_of_image(view)) for view in views]
    if sum(map(len, reached)) == len(set[Value]().union(*reached)):
        raise AmbiguousModelError("each leads to outputs of its own")


def _require_one_place(first: Sequence[Planned], sharing: Sequence[Planned]) -> None:
    """Refuse a map of several inputs in which one lies at other places than the first.

    Raises:
        MisplacedMapError: there is such an input.
    """
    for one, other in product(first, sharing):
        for a, b in zip(one.plan.found.placed(), other.plan.found.placed(), strict=True):
            if not a.frame.lies_as(b.frame, a.grid):
                raise MisplacedMapError(
                    f"{a.value.describe()} is made of the image inputs {one.input!r} and {other.input!r}, which lie in "
                    "it in different ways (one is turned, moved or cut before they meet), so that no map is of both; "
                    "--input NAME explains one of them"
                )


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
    return [item if plan is None else replace(item, plan=plan) for item, plan in found]


def _suffix(index: int) -> str:
    return "" if index == 0 else f"_{index + 1}"
