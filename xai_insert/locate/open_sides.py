"""Places in images of open height and width, read off two sizes of them where tokens lose what the sides are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from xai_insert.errors import XaiInsertError
from xai_insert.graph.axes import Axes, has_place, is_elsewhere
from xai_insert.graph.common import Common
from xai_insert.graph.trace import Traced, trace
from xai_insert.graph.view import Graph, Node, Op, Shape, Value, volume

logger = logging.getLogger(__name__)

_OBLONG = ((224, 448), (448, 672))
"""Heights and widths of images that models take whose patches, windows and strides have usual sizes."""
_SQUARE = ((224, 224), (448, 448))
"""The same for models that take no others: DPT counts the rows of its tokens by a root."""

_Sides = Mapping[Value, tuple[int, int]]
_Sized = dict[Any, tuple[Shape, Axes]]
"""Sizes and axes of values at one size of the image, by what the format calls them."""


def are_lost(graph: Graph, sides: _Sides, traced: Traced) -> bool:
    """Whether cells lie at places that nothing tells, of an image whose height or width follows the input."""
    is_open = any(image.sizes[axis] is None for image, axes in sides.items() for axis in axes)
    return is_open and (_are_elsewhere(traced) or any(_lies_nowhere(value, traced) for value in graph.outputs))


def _are_elsewhere(traced: Traced) -> bool:
    return any(is_elsewhere(axis) for axes in traced.values() for axis in axes)


def _lies_nowhere(value: Value, traced: Traced) -> bool:
    """Whether an output of several open sizes has no place in the image."""
    return value.sizes[1:].count(None) > 1 and not any(map(has_place, traced.get(value, ())))


def common_of_sizes(graph: Graph, sides: _Sides) -> Traced | None:
    """What the axes of two sizes of the image have in common: known sizes tell what a reshape of tokens gives back.

    So they tell sizes that follow no side, of which inference with open ones has lost sight. None where the model does
    not take such sizes, or the file leaves none open.
    """
    if graph.at_sizes is None:
        return None
    found = max((_at_sizes(graph, sides, tried) for tried in (_OBLONG, _SQUARE)), key=_told)
    return _joined(graph, *found) if found else None


def _joined(graph: Graph, smaller: _Sized, larger: _Sized) -> Traced:
    """The axes that two sizes of the image have in common; values get the sizes that both leave the same."""
    common, traced = Common(), Traced()
    for value in graph.values:
        first, second = smaller.get(value.native), larger.get(value.native)
        if first is not None and second is not None and len(first[0]) == len(second[0]) == value.rank:
            value.shape = tuple(one if one == two else None for one, two in zip(first[0], second[0], strict=True))
            traced[value] = common.axes(first[1], second[1])
    return traced


def _at_sizes(graph: Graph, sides: _Sides, tried: Sequence[tuple[int, int]]) -> Sequence[_Sized]:
    """Sizes and axes of values at each of two sizes of the image; nothing where the model does not take them."""
    try:
        found = [_at_size(graph, sides, size) for size in tried]
    except XaiInsertError as err:
        logger.info("places of open sides are not read at %s: %s", tried, err)
        return ()
    return found if all(found) else ()


def _told(found: Sequence[_Sized]) -> int:
    """Of how many values all sizes but the batch are told: of fewer where inference fails on the way."""
    return sum(None not in shape[1:] for known in found for shape, _ in known.values())


def _at_size(graph: Graph, sides: _Sides, tried: tuple[int, int]) -> _Sized:
    """Sizes and axes of values where the open sides of images are so long; nothing if some contradict one another."""
    assert graph.at_sizes is not None
    with graph.at_sizes({image: _pixels(image, axes, tried) for image, axes in sides.items()}) as sized:
        if any(map(_contradicts, sized.nodes)):
            return {}
        images = {value: sides[image] for value in sized.inputs for image in sides if value.native == image.native}
        return {value.native: (value.sizes, axes) for value, axes in trace(sized, images).items()}


def _pixels(image: Value, axes: tuple[int, int], tried: tuple[int, int]) -> dict[int, int]:
    """How long the open sides of an image shall be, by their axes."""
    return {axis: size for axis, size in zip(axes, tried, strict=True) if image.sizes[axis] is None}


def _contradicts(node: Node) -> bool:
    """Whether a reshape gives another number of elements than it reads, whatever the batch is."""
    if node.op is not Op.RESHAPE or not node.output.rank or not node.read(0).rank:
        return False
    before, after = (volume(value.sizes[1:]) for value in (node.read(0), node.output))
    return before is not None and after is not None and 0 not in (before % (after or 1), after % (before or 1))
