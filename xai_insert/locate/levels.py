"""Levels of a feature pyramid whose locations were joined along one token axis."""

from __future__ import annotations

from dataclasses import dataclass

from xai_insert.graph.cuts import region
from xai_insert.graph.view import Graph, Node, Op, Value, volume
from xai_insert.locate.inputs import image_inputs, image_size

_MOST_STRETCHED = 2.0  # grids have the image's proportions, up to rounding and padding


@dataclass(frozen=True)
class Level:
    """One grid of a head.

    Attributes:
        start: index of its first location along the token axis; 0 for a grid with two axes.
        height: None where it follows the input.
        width: likewise.
        grid_axes: axes of height and width, or the one axis of the tokens.
    """

    start: int
    height: int | None
    width: int | None
    grid_axes: tuple[int, ...]

    @property
    def cells(self) -> int | None:
        return volume((self.height, self.width))


def token_levels(graph: Graph, tokens: Value, count: int | None) -> tuple[Level, ...]:
    """Grids of the levels behind `tokens` of `count` locations: the nearest Concat of flattened maps upstream.

    Empty if there is none: the tokens are queries, or their number is not known.
    """
    if count is None:
        return ()
    images = image_inputs(graph)
    size = image_size(images[0])
    for node in reversed(region(graph, images, [tokens])):
        if node.op is Op.CONCAT and node.attrs.get("axis") is not None:
            grids = _joined_grids(node, count)
        elif node.op is Op.RESHAPE:
            grids = [grid] if (grid := _flattened(node, count)) else []
        else:
            continue
        if grids and all(_has_proportions(grid, size) for grid in grids):
            levels, start = [], 0
            for height, width in grids:
                levels.append(Level(start, height, width, (1,)))
                start += height * width
            return tuple(levels)
    return ()


def joined_tokens(graph: Graph, tokens: Value, count: int | None) -> tuple[int, int, int] | None:
    """Start, height and width of a grid among `count` tokens that may hold class or query tokens as well.

    The coarsest, where several levels are joined; None if the tokens hold no grid, or several beside other tokens.
    """
    levels = token_levels(graph, tokens, count)
    if levels:
        coarsest = min(levels, key=lambda level: level.cells or 0)
        return coarsest.start, coarsest.height or 0, coarsest.width or 0
    if count is None:
        return None
    images = image_inputs(graph)
    for node in reversed(region(graph, images, [tokens])):
        axis = node.attrs.get("axis") if node.op is Op.CONCAT else None
        shape = node.output.shape
        if axis is None or shape is None or len(shape) != 3 or shape[axis] != count:
            continue
        start, found = 0, []
        for part in node.inputs:
            cells = None if part is None or part.shape is None else part.shape[axis]
            if part is None or cells is None:
                return None
            grid = None if part.is_constant else _grid_of(part, cells)
            if grid is not None and _has_proportions(grid, image_size(images[0])):
                found.append((start, *grid))
            start += cells
        if len(found) == 1:
            return found[0]
    return None


def _has_proportions(grid: tuple[int, int], image: tuple[int, int] | None) -> bool:
    if image is None:
        return True
    stretch = (grid[0] * image[1]) / (grid[1] * image[0])
    return 1 / _MOST_STRETCHED < stretch < _MOST_STRETCHED


def _joined_grids(node: Node, count: int) -> list[tuple[int, int]]:
    axis = node.attrs["axis"]
    shape = node.output.shape
    if shape is None or shape[axis] != count:
        return []
    grids = []
    for part in node.inputs:
        if part is None or part.shape is None or (cells := part.shape[axis]) is None:
            return []
        grid = _grid_of(part, cells)
        if grid is None:
            return []
        grids.append(grid)
    return grids


def _grid_of(value: Value, cells: int) -> tuple[int, int] | None:
    """Height and width of the map that `value` flattens, found through whatever keeps the order of locations."""
    seen: Value | None = value
    for _ in range(16):
        node = None if seen is None else seen.producer
        if node is None:
            return None
        if node.op is Op.RESHAPE and (grid := _flattened(node, cells)):
            return grid
        seen = next((v for v in node.inputs if v is not None and not v.is_constant), None)
    return None


def _flattened(node: Node, cells: int) -> tuple[int, int] | None:
    source = node.read(0).shape
    result = node.output.shape
    if source is None or result is None or len(source) != 4 or cells not in result or len(result) > 3:
        return None
    for pair in ((2, 3), (1, 2)):
        height, width = source[pair[0]], source[pair[1]]
        if height is not None and width is not None and height * width == cells and min(height, width) > 1:
            return height, width
    return None
