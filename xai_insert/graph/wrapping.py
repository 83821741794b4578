"""Cells that are put around an axis; of a circular padding they are copies of the cells at its other end."""

from __future__ import annotations

import math
from dataclasses import replace

from xai_insert.graph.axes import Axis, Kind, Origin, Turn, axis_size, line, moved, of, unplaced


def with_edges(axis: Axis, size: int | None, begin: int | None, mode: str) -> Axis:
    """An axis of `size` with what a padding puts around it, `begin` cells before it."""
    is_batch = bool(axis) and axis[0].origin.kind is Kind.BATCH
    if is_batch or (size is not None and size == axis_size(axis) and not begin):
        return axis
    origin = line(axis)
    if origin is None or begin is None:
        return axis if begin == 0 and size is None else unplaced(axis, size)
    return _circular(origin, size, begin) if mode == "wrap" else moved(origin, size, 1.0, -begin)


def _circular(origin: Origin, size: int | None, begin: int) -> Axis:
    """Rows or columns that go on at their other end on both sides."""
    if not origin.size or size is None:
        return unplaced(of(origin), size)
    return _laid(origin, size, origin.offset - begin * origin.stride, _turn_of(origin))


def _laid(origin: Origin, size: int, offset: float, turn: Turn) -> Axis:
    return of(replace(origin, size=size, offset=offset, roll=0, whole=None, start=0, coarser={}, turn=turn))


def reaches_out(origin: Origin) -> bool:
    """Whether some cells are copies of those at the other end."""
    return origin.turn is not None and {*_turns(origin, origin.turn)} != {0}


def _turns(origin: Origin, turn: Turn) -> tuple[int, int]:
    """How often the first and the last cell have gone around."""
    low, length = turn
    last = origin.offset + origin.stride * ((origin.size or 1) - 1)
    return math.floor((origin.offset - low) / length), math.floor((last - low) / length)


def _turn_of(origin: Origin) -> Turn:
    """After what length rows or columns that go on at their other end come again, and from where."""
    if origin.turn is not None and reaches_out(origin):
        return origin.turn
    stride, size = abs(origin.stride), origin.size or 1
    last = origin.offset + origin.stride * (size - 1)
    return min(origin.offset, last) - stride / 2, stride * size


def circular(one: Origin | None, two: Origin | None) -> Axis | None:
    """Neighbours of which one is a whole, and the other the cells with which it goes on at its other end."""
    if one is None or two is None or not one.size or not two.size or one.stride <= 0:
        return None
    if (one.kind, one.stride, one.grain) != (two.kind, two.stride, two.grain):
        return None
    whole = _whole_of(one, two)
    if whole is None:
        return None
    turn = _turn_of(whole)
    around = (one.offset + one.stride * one.size - two.offset) / turn[1]
    if abs(around - round(around)) * turn[1] > one.stride / 4:
        return None
    first = one.offset if whole is one else two.offset - one.stride * one.size
    return _laid(whole, one.size + two.size, first, turn)


def _whole_of(one: Origin, two: Origin) -> Origin | None:
    """Which of two neighbours goes on at its other end."""
    if two.whole is one or reaches_out(one):
        return one
    return two if one.whole is two else None


def cut_around(origin: Origin, start: int, count: int | None, step: int) -> Axis:
    """A part of rows or columns with copies around: as many cells as there are without these are the whole, rolled."""
    if origin.turn is None or count is None:
        return unplaced(of(origin), count)
    found = replace(
        origin,
        size=count,
        stride=origin.stride * step,
        offset=origin.offset + origin.stride * start,
        whole=origin if step == 1 else None,
        start=start,
        coarser={},
    )
    first, last = _turns(found, origin.turn)
    if first == last:
        return of(replace(found, offset=found.offset - first * origin.turn[1]))
    covered = abs(found.stride) * count - origin.turn[1]
    if abs(covered) < abs(found.stride) / 4 and found.stride > 0:
        return _rolled(found, origin.turn)
    return of(found) if covered > 0 else unplaced(of(origin), count)


def _rolled(found: Origin, turn: Turn) -> Axis:
    """As many cells as make one turn."""
    low, length = turn
    after = (found.offset - low) % length
    roll = math.floor(after / found.stride)
    offset = low + after - roll * found.stride
    return of(replace(found, offset=offset, roll=roll, whole=None, start=0, turn=None))
