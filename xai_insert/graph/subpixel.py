"""Finer rows and columns that are made from channels, as a sub-pixel layer does."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.axes import Axes, Axis, Kind, Sizes, line, moved, other, regroup


def interleaved(axes: Axes) -> Axes:
    """Axes after a reshape, with the cells that channels were made into (a sub-pixel layer) as finer rows and columns.

    Only where rows and columns each have one part of the same channels beside them, equally large.
    """
    found = [index for index, axis in enumerate(axes) if len(axis) > 1 and axis[0].origin.is_place]
    count = _beside_both([axes[index] for index in found])
    sides = [line(axes[index][:1]) for index in found]
    if not count or None in sides:
        return axes
    made, ratio = list(axes), 1 / count
    for index, side in zip(found, sides, strict=True):
        if side is not None and side.size is not None:
            made[index] = moved(side, side.size * count, ratio, (ratio - 1) / 2)
    return tuple(made)


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
