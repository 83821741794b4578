"""Plans for images of any size, made at two sizes of them: transformers, whose tokens nothing counts beforehand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from xai_insert.errors import XaiInsertError
from xai_insert.feeds import DEFAULT_SIZE
from xai_insert.graph.items import only
from xai_insert.graph.view import Graph, Value
from xai_insert.locate.inputs import image_axes, image_inputs
from xai_insert.options import Options
from xai_insert.tasks.plan import Plan

logger = logging.getLogger(__name__)

_TRIED = ((DEFAULT_SIZE, DEFAULT_SIZE), (448, 672))
"""Heights and widths: that of the proofs, at which the branch is written, and another, at which it must be the same."""


def plan_of_any_size(graph: Graph, options: Options, make: Callable[[Graph], Plan]) -> Plan | None:
    """The plan that `make` gives at each of two sizes, if it serves any; None where the sides of no image are open.

    Args:
        graph: the model with open sides.
        options: what the user has chosen.
        make: the plan for a model of one size.
    """
    images = [image for image in image_inputs(replace(graph, watched=None)) if _open_axes(image)]
    if graph.at_sizes is None or not images:
        return None
    found: list[tuple[Graph, Plan]] = []
    try:
        for tried in _TRIED:
            pixels = {image: {axis: tried[number] for number, axis in _open_axes(image).items()} for image in images}
            with graph.at_sizes(pixels) as view:
                sized = replace(view, watched=_same(graph.watched, view))
                found.append((sized, make(sized)))
        (sized, plan), other = found
        return plan.of_any_size(graph, sized, other, options)
    except XaiInsertError as err:
        logger.info("the map does not follow the size of the image: %s", err)
        return None


def _open_axes(image: Value) -> dict[int, int]:
    """The axes of rows (0) and columns (1) that are open."""
    return {number: axis for number, axis in enumerate(image_axes(image)) if image.sizes[axis] is None}


def _same(watched: Value | None, view: Graph) -> Value | None:
    return None if watched is None else only([value for value in view.inputs if value.native == watched.native])
