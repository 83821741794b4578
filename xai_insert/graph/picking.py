"""Elements taken at stored indices: which of them are a run, a reversal, a roll or another order of one grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from xai_insert.graph.axes import Axis, Kind, Origin, axis_size, coarse, line, moved, of, other, parts_of, unplaced
from xai_insert.graph.cutting import cut, rolled, turned


def picked(axis: Axis, indices: Sequence[int]) -> Axis:
    """What is left of an axis of which the elements at `indices` are taken, in their order."""
    count = len(indices)
    if count == 0:
        return other(0)
    steps = {b - a for a, b in pairwise(indices)}
    if len(steps) <= 1 and (step := next(iter(steps), 1)) != 0:
        return cut(axis, indices[0], count, step)
    if len(parts_of(axis)) > 1:
        return other(count)
    if axis_size(axis) == count and _is_line(axis) and _is_roll(indices):
        return of(rolled(axis[0].origin, indices[0]))
    found = _reordered(axis, indices)
    if found is None and axis_size(axis) == count and sorted(indices) == list(range(count)):
        return _shuffled(axis, indices)
    return found or unplaced(axis, count)


def _is_line(axis: Axis) -> bool:
    """Whether an axis is all of the rows, the columns or the frames."""
    return len(axis) == 1 and axis[0].origin.is_place and axis[0].step == 1


def _is_roll(indices: Sequence[int]) -> bool:
    """Whether these are all places from one on, and from the first on again behind the last."""
    return all(index == (place + indices[0]) % len(indices) for place, index in enumerate(indices))


def unfolded(axis: Axis, indices: Sequence[int] | None, sizes: Sequence[int | None]) -> tuple[Axis, Axis] | None:
    """Rows or columns read window by window, as an unfold writes it: an axis of windows, and one within each.

    The axis with the larger step is that of the windows.
    """
    origin = line(axis)
    if indices is None or origin is None or len(sizes) != 2 or len(indices) < 2:
        return None
    first, second = ((size or 0) for size in sizes)
    steps = _steps(indices, first, second) if first * second == len(indices) else None
    if steps is None:
        return None
    down, across = steps
    if abs(down) > abs(across):
        return moved(origin, first, down, indices[0] + across * (second - 1) / 2), other(second)
    return other(first), moved(origin, second, across, indices[0] + down * (first - 1) / 2)


def _steps(indices: Sequence[int], rows: int, columns: int) -> tuple[int, int] | None:
    """The steps from row to row and from column to column of a table of indices; None if they vary or are alike."""
    down = indices[columns] - indices[0] if rows > 1 else 0
    across = indices[1] - indices[0] if columns > 1 else 0
    wanted = [indices[0] + down * i + across * j for i in range(rows) for j in range(columns)]
    return (down, across) if wanted == [*indices] and abs(down) != abs(across) else None


def _reordered(axis: Axis, indices: Sequence[int]) -> Axis | None:
    """Tokens of a grid read in another order: rows or columns turned round, or the columns before the rows."""
    lines = [origin for digit in axis if (origin := coarse(digit)) is not None and origin.size]
    if len(axis) != 2 or len(lines) < 2 or axis_size(axis) != len(indices):
        return None
    a, b = lines
    cells = np.arange(len(indices)).reshape(a.size or 0, b.size or 0)
    return _directions(a, b, cells, indices) or _directions(b, a, cells.T, indices)


def _directions(first: Origin, second: Origin, cells: npt.NDArray[np.intp], indices: Sequence[int]) -> Axis | None:
    """Two lines in the directions in which indices go through their cells; None if they go otherwise."""
    for one, two in product((1, -1), repeat=2):
        if np.array_equal(cells[::one, ::two].ravel(), indices):
            return (*of(_directed(first, one)), *of(_directed(second, two)))
    return None


def _directed(origin: Origin, direction: int) -> Origin:
    return origin if direction == 1 else turned(origin)


def _shuffled(axis: Axis, indices: Sequence[int]) -> Axis:
    """Cells in any other order, which a second one may put right again."""
    inner, order = axis, tuple(indices)
    if len(axis) == 1 and axis[0].origin.kind is Kind.SHUFFLED and axis[0].size == axis[0].origin.size:
        inner, order = axis[0].origin.parts[0], tuple(axis[0].origin.order[index] for index in indices)
    if order == tuple(range(len(order))):
        return inner
    return of(Origin(Kind.SHUFFLED, len(order), parts=(inner,), order=order))
