"""Rows and columns of more cells, or fewer: interpolated, repeated, or made from channels as a sub-pixel layer does."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.axes import Axes, Axis, Kind, Origin, Sizes, axis_size, line, moved, other, regroup, unplaced


def resized(origin: Origin, size: int, *, corners: bool) -> Axis:
    """Rows or columns interpolated to another number of cells."""
    before = origin.size or size
    if corners:
        return moved(origin, size, (before - 1) / max(size - 1, 1), 0.0)
    ratio = before / size
    return moved(origin, size, ratio, (ratio - 1) / 2)


def with_size(axis: Axis, size: int | None, *, corners: bool) -> Axis:
    """An axis of which a resize makes `size` cells."""
    if size is not None and size == axis_size(axis):
        return axis
    origin = line(axis)
    if origin is not None and size and origin.size:
        return resized(origin, size, corners=corners)
    return axis if size is None and origin is None else unplaced(axis, size)


def interleaved(axes: Axes) -> Axes:
    """Axes after a reshape, with what lies beside each cell as cells of finer rows and columns.

    Copies of the cell, or those that channels were made into (a sub-pixel layer): only where rows and columns each have
    one part of the same channels beside them, equally large.
    """
    axes = tuple(map(_repeated, axes))
    found = [index for index, axis in enumerate(axes) if len(axis) > 1 and axis[0].origin.is_place]
    count = _beside_both([axes[index] for index in found])
    sides = [line(axes[index][:1]) for index in found]
    if not count or None in sides:
        return axes
    made = list(axes)
    for index, side in zip(found, sides, strict=True):
        if side is not None:
            made[index] = _finer(side, count)
    return tuple(made)


def _repeated(axis: Axis) -> Axis:
    """An axis with the copies of each of its cells beside it as cells of their own."""
    origin = line(axis[:1])
    if len(axis) != 2 or origin is None or axis[1].origin.kind is not Kind.COPIES or not axis[1].size:
        return axis
    return _finer(origin, axis[1].size)


def _finer(origin: Origin, count: int) -> Axis:
    """Rows or columns with so many cells in place of each."""
    size, ratio = None if origin.size is None else origin.size * count, 1 / count
    return moved(origin, size, ratio, (ratio - 1) / 2)


def _beside_both(pairs: Sequence[Axis]) -> int | None:
    """How large the parts of channels beside rows and beside columns are, if they are of one and equally large."""
    if [len(pair) for pair in pairs] != [2, 2]:
        return None
    first, second = (pair[1] for pair in pairs)
    is_of_one = first.origin is second.origin and first.size == second.size and first.origin.kind is Kind.OTHER
    return first.size if is_of_one else None


def folded(axes: Axes, sides: tuple[int, int], shape: Sizes) -> Axes | None:
    """Axes `[N, C, H, W]` of blocks `[N, C * sides, cells]` that are laid beside one another; None if sizes tell not.

    As of a sub-pixel layer, what lies where in a block is made from its channels.
    """
    batch, channels, *area = shape if len(shape) == 4 else [None] * 4
    counts = [None if size is None or size % side else size // side for size, side in zip(area, sides, strict=True)]
    if len(axes) != 3 or channels is None or None in counts:
        return None
    apart = regroup(axes, [batch, channels * sides[0] * sides[1], *counts])
    made: list[Axis] = []
    for axis, size, side in zip(apart[2:], area, sides, strict=True):
        origin, ratio = line(axis), 1 / side
        made.append(other(size) if origin is None else moved(origin, size, ratio, (ratio - 1) / 2))
    return (apart[0], other(channels), *made)
