"""What moves in a value behind the heads of a detector, and how it lies in rows and columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Element = tuple[int, ...]

MOVED = 1e-3


def differs(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which elements have moved; all where other ones were selected."""
    if before.shape != after.shape:
        return np.ones(before.shape, bool)
    moved = np.asarray(before != after)
    if moved.any():  # few of very many
        old, new = before[moved].astype(np.float64), after[moved].astype(np.float64)
        with np.errstate(invalid="ignore"):
            close = np.abs(new - old) <= MOVED * np.maximum(1.0, np.abs(old))
        moved[moved] = ~close & ~(np.isnan(old) & np.isnan(new))
    return moved


def places_of(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """What `np.argwhere` gives, ten times as fast where few of very many are chosen."""
    return np.stack(np.unravel_index(np.flatnonzero(chosen), chosen.shape or (1,)), axis=1)


@dataclass(frozen=True)
class Listed:
    """What moves in a list of locations with all channels at one of them.

    Attributes:
        index: which of the observed values it is.
        length: how many rows it has.
        rows: those of the location.
        columns: what moves in them.
    """

    index: int
    length: int
    rows: frozenset[int]
    columns: frozenset[Element]


@dataclass(frozen=True)
class Stirred:
    """What moves in a value with all channels at one location.

    Attributes:
        count: how many elements.
        columns: where they lie along axes that have nothing to do with the location.
        rows: where they lie along the others.
        axes: these others.
        single: how many of the rows do not say what another does.
    """

    count: int
    columns: frozenset[Element]
    rows: frozenset[Element]
    axes: tuple[int, ...]
    single: int


def spread_of(base: npt.NDArray[Any], one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Stirred | None:
    """What moves at one location; None if nothing does.

    Args:
        base: what is observed.
        one: the same, all channels at that location moved.
        other: the same of another location, which tells columns from rows.
    """
    moves = differs(base, one)
    elements, others = places_of(moves), places_of(differs(base, other))
    if not len(elements):
        return None
    free = np.array([np.array_equal(np.unique(a), np.unique(b)) for a, b in zip(elements.T, others.T, strict=True)])
    rows = [tuple(map(int, row)) for row in elements[:, ~free]]
    times = _times(rows, zip(base[moves], one[moves], strict=True)) if base.shape == one.shape else 1
    columns, apart = frozenset(tuple(map(int, at)) for at in elements[:, free]), frozenset(rows)
    return Stirred(len(elements), columns, apart, tuple(map(int, np.flatnonzero(~free))), len(apart) // times)


def _times(rows: Sequence[Element], moves: Iterable[tuple[Any, Any]]) -> int:
    """How often each row stands there, by what its elements were and have become; 1 if not all equally often."""
    said: dict[Element, list[tuple[Any, Any]]] = {}
    for row, move in zip(rows, moves, strict=True):
        said.setdefault(row, []).append(move)
    counts = set(Counter(map(tuple, said.values())).values())
    return counts.pop() if len(counts) == 1 else 1
