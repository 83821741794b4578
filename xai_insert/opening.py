"""Inserting into a model of one size in a way that its map follows, should it be given another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xai_insert.errors import XaiInsertError
from xai_insert.formats.backend import LoadedModel
from xai_insert.formats.guard import RAISED
from xai_insert.graph.view import Graph, Shape, Value, fixed
from xai_insert.locate.inputs import image_inputs, sized_axes
from xai_insert.locate.layout import FeatureMap, Frame, Side
from xai_insert.options import Options
from xai_insert.tasks.choose import make_plan
from xai_insert.tasks.plan import Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A model whose image has an open height and width, or an open batch, and the plan for it.

    Attributes:
        graph: its view.
        plan: the plan.
        follows: whether the sides are open, not the batch alone.
    """

    graph: Graph
    plan: Plan
    follows: bool


def for_any_size(fresh: Callable[[], LoadedModel], graph: Graph, plan: Plan, options: Options) -> Plan:
    """A plan that is for one size of the image, or the same for any where it is made alike for twice that size.

    Args:
        fresh: loads the model.
        graph: its view.
        plan: the plan.
        options: what it goes by.
    """
    images = image_inputs(graph)
    if not plan.asks_another_size or any(None in image.sizes for image in images):
        return plan
    try:
        larger = fresh()
        view = larger.view()
        axes = {image: sized_axes(image) for image in image_inputs(view)}
        if not larger.open_sizes(axes):
            return plan
        larger.fix_sizes({image.name: _twice(image.sizes, own) for image, own in axes.items()})
        return plan.for_any_size(make_plan(larger, larger.view(), options))
    except (XaiInsertError, *RAISED) as err:
        logger.info("the maps of boxes are for one size of the image: %s", err)
        return plan


def _twice(sizes: Shape, axes: Sequence[int]) -> Shape:
    return tuple(None if size is None else size * 2 if axis in axes else size for axis, size in enumerate(sizes))


def opened_sizes(
    loaded: LoadedModel, graph: Graph, plan: Plan, options: Options, *, sides: bool = True
) -> Opened | None:
    """Open the sides of the image for the time of the insertion, so that the map follows a later reshape.

    The batch alone where the plan is for one size of the image, but would be for one batch as well, and where `sides`
    is False. None, and nothing is open, where the model, the format or the plan is for the sizes that there are.
    """
    opened = _opened(loaded, graph, plan, options, follows=True) if sides and plan.may_follow else None
    return opened or (_opened(loaded, graph, plan, options, follows=False) if plan.keeps_batch else None)


def _opened(loaded: LoadedModel, graph: Graph, plan: Plan, options: Options, *, follows: bool) -> Opened | None:
    axes = _axes_to_open(graph, plan, follows=follows)
    if axes is None or not loaded.open_sizes(axes):
        return None
    try:
        open_graph = loaded.view()
        other = make_plan(loaded, open_graph, options)
        if _choice(other) == _choice(plan):
            found = _following(loaded, graph, plan, open_graph, other) if follows else other
            return Opened(open_graph, found, follows)
    except XaiInsertError as err:
        logger.info("the map is for one size of the image: %s", err)
    loaded.close_sizes()
    return None


def _axes_to_open(graph: Graph, plan: Plan, *, follows: bool) -> dict[Value, tuple[int, ...]] | None:
    """The axes of the image inputs that are opened: rows and columns, and the batch; None where one is open already."""
    images = image_inputs(graph)
    axes: dict[Value, tuple[int, ...]] = {image: sized_axes(image) if follows else (0,) for image in images}
    if any(image.sizes[axis] is None for image, own in axes.items() for axis in own):
        return None
    if plan.keeps_batch and follows:
        return {image: (0, *own) for image, own in axes.items()}
    return axes


def _following(loaded: LoadedModel, graph: Graph, plan: Plan, open_graph: Graph, other: Plan) -> Plan:
    closed, placed = image_inputs(graph)[0], plan.found.placed()
    pixels, sides = [closed.sizes[axis] for axis in sized_axes(closed)], None
    if None not in pixels and placed:
        sides = _sides(loaded, image_inputs(open_graph)[0], fixed(pixels), placed[0], other.found.placed()[0].value)
    return other.following(plan, graph, open_graph, sides or ())


def _sides(
    loaded: LoadedModel, image: Value, pixels: Sequence[int], closed: FeatureMap, value: Value
) -> tuple[Side, ...] | None:
    """How the sides of a grid follow from those of the image; None where they do not follow by whole strides.

    Layers of a stride s give `(n + plus) // s` cells, one behind the other too.
    """
    whole = _whole_strides(closed.frame)
    if whole is None or not len(whole) == len(pixels) == len(closed.grid_axes):
        return None
    axes = sized_axes(image)

    def cells(sizes: Sequence[int]) -> list[int] | None:
        found = loaded.sizes_at(value, {image: dict(zip(axes, sizes, strict=True))})
        return None if found is None else fixed([found[axis] for axis in closed.grid_axes])

    plus = _plus(whole, pixels, fixed(closed.grid), cells)
    if plus is None:
        return None
    far = [2 * n + 1 for n in pixels]
    if cells(far) != [(n + more) // stride for n, more, stride in zip(far, plus, whole, strict=True)]:
        return None
    return tuple(Side(image, *item) for item in zip(axes, plus, whole, strict=True))


def _whole_strides(frame: Frame) -> list[int] | None:
    """Frames and pixels from one cell to the next; None where these are no whole numbers."""
    lines = (*(() if frame.times is None else (frame.times,)), *(frame.lines or ()))
    return None if any(stride < 1 or stride % 1 for stride, _ in lines) else [int(stride) for stride, _ in lines]


def _plus(
    strides: Sequence[int],
    pixels: Sequence[int],
    counts: Sequence[int],
    cells: Callable[[Sequence[int]], list[int] | None],
) -> list[int] | None:
    """See `_sides`: how many pixels more leave the number of cells as it is, by halving."""
    low, high = [0] * len(strides), [stride - 1 for stride in strides]
    while low != high:
        middle = [(a + b + 1) // 2 for a, b in zip(low, high, strict=True)]
        found = cells([n + more for n, more in zip(pixels, middle, strict=True)])
        if found is None:
            return None
        for index, (size, known) in enumerate(zip(found, counts, strict=True)):
            if size == known:
                low[index] = middle[index]
            else:
                high[index] = middle[index] - 1
    return [s * (n + 1) - 1 - p - k for s, n, p, k in zip(strides, counts, pixels, low, strict=True)]


def _choice(plan: Plan) -> tuple[object, ...]:
    """What a plan explains and how: with open sides, a pool of one window may look as if it kept a grid."""
    return plan.method, plan.form, plan.reason, [feature.value.name for feature in plan.found.placed()]
