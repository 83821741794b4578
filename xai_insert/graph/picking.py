"""Elements taken at stored indices: which of them are a run, a reversal, a roll or another order of one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from xai_insert.graph.axes import Axis, Origin, axis_size, coarse, cut, of, other, parts_of, rolled


def picked(axis: Axis, indices: Sequence[int]) -> Axis:
    """What is left of an axis of which the elements at `indices` are taken, in their order."""
    count, size = len(indices), axis_size(axis)
    if count == 0:
        return other(0)
    steps = {b - a for a, b in pairwise(indices)}
    if len(steps) <= 1 and (step := next(iter(steps), 1)) != 0:
        return cut(axis, indices[0], count, step)
    parts = parts_of(axis)
    if len(parts) > 1:
        return other(count)
    if size == count and len(axis) == 1 and axis[0].origin.is_place and axis[0].step == 1:
        by = indices[0]
        if all(index == (place + by) % count for place, index in enumerate(indices)):
            return of(rolled(axis[0].origin, by))
    return _reordered(axis, indices) or other(count)


def _reordered(axis: Axis, indices: Sequence[int]) -> Axis | None:
    """Tokens of a grid read in another order: rows or columns turned round, or the columns before the rows."""
    lines = [coarse(digit) for digit in axis]
    if len(axis) != 2 or None in lines or axis_size(axis) != len(indices):
        return None
    a, b = (origin for origin in lines if origin is not None)
    if not a.size or not b.size:
        return None
    for first, second, outer in ((a.size, b.size, True), (b.size, a.size, False)):
        for one in (1, -1):
            for two in (1, -1):
                firsts = range(first)[::one]
                seconds = range(second)[::two]
                if outer:
                    wanted = (i * second + j for i in firsts for j in seconds)
                else:
                    wanted = (i * first + j for j in firsts for i in seconds)
                if all(x == y for x, y in zip(indices, wanted, strict=True)):
                    ends = (_turned(a, one), _turned(b, two)) if outer else (_turned(b, one), _turned(a, two))
                    return (*of(ends[0]), *of(ends[1]))
    return None


def _turned(origin: Origin, direction: int) -> Origin:
    if direction == 1:
        return origin
    last = origin.offset + origin.stride * ((origin.size or 1) - 1)
    return replace(origin, stride=-origin.stride, offset=last, whole=None, start=0, coarser={})
