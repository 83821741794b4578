"""Rows of boxes: in which order locations stand in them, and which one is a reported box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from xai_insert.layouts.boxes import overlap
from xai_insert.locate.boxes import DecodedLevel
from xai_insert.locate.detector import ClassLevel
from xai_insert.probe.heads import Array

_SAME = 0.98  # intersection over union of a reported box with the decoded one that it is
_FOLLOWS = 0.6  # correlation with the location from which on a number is a coordinate
_FEWEST_CELLS = 16  # that tell it from chance


def orders(rows: Mapping[int, npt.NDArray[np.intp]], cells: int, anchors: int) -> Iterator[tuple[int, bool]]:
    """The first row, and whether anchors come before locations, of orders in which locations moved those rows.

    Anchors larger than the image may be cut off to all of it, and do not move: the latest first row goes before others.
    """
    if not all(map(len, rows.values())):
        return
    for step, stride in ((anchors, 1), (1, cells))[: 1 if anchors == 1 else 2]:
        several = stride * np.arange(anchors)
        for start in rows[0][0] - several:
            if start >= 0 and all(np.isin(found - start - at * step, several).all() for at, found in rows.items()):
                yield int(start), stride != 1


def cell_places(height: int, width: int) -> Array:
    """Column and row of each location, `[h * w, 2]`."""
    rows, columns = np.divmod(np.arange(height * width), width)
    return np.stack([columns, rows], axis=-1).astype(np.float64)


def follow_places(values: Array, height: int, width: int) -> bool:
    """Whether two values of each location grow with its column or its row, as coordinates do and sizes do not."""
    if height * width < _FEWEST_CELLS:
        return False
    spreads = (values - values.mean(0), cell_places(height, width) - cell_places(height, width).mean(0))
    common = np.einsum("pi,pj->ij", *spreads)
    norms = np.outer(*(np.sqrt((spread**2).sum(0)) for spread in spreads))
    return bool((np.abs(common) > _FOLLOWS * norms + 1e-9).any())


def choices(levels: Sequence[Sequence[DecodedLevel]], counts: Sequence[int]) -> Iterator[list[DecodedLevel]]:
    """One value for all levels, of `counts` rows each, or, where there is none, each level's own."""
    for candidate in levels[0]:
        chosen = _in_one_value(candidate, levels, counts)
        if len(chosen) == len(levels):
            yield chosen
    if len(levels) > 1:
        for ranked in zip(*levels, strict=False):
            if len({level.value for level in ranked}) == len(levels):
                yield list(ranked)


def _in_one_value(
    candidate: DecodedLevel, levels: Sequence[Sequence[DecodedLevel]], counts: Sequence[int]
) -> list[DecodedLevel]:
    """The rows of each level in one value, the first that no level before has; fewer if a level has none there."""
    chosen = list[DecodedLevel]()
    for options, count in zip(levels, counts, strict=True):
        same = [o for o in options if o.value is candidate.value and o.row_axis == candidate.row_axis]
        taken = [range(o.start, o.start + size) for o, size in zip(chosen, counts, strict=False)]
        chosen += [o for o in same if not _meet(range(o.start, o.start + count), taken)][:1]
    return chosen


def _meet(rows: range, taken: Sequence[range]) -> bool:
    """Whether some of these rows are taken."""
    return any(rows.start < other.stop and other.start < rows.stop for other in taken)


def matches(reads: Sequence[Array], wanted: Sequence[Array], bounds: tuple[float, float] | None) -> list[int] | None:
    """The first row of each report that is the wanted box, cut off at the bounds; None if one report lacks it."""
    found = []
    for boxes, box in zip(reads, wanted, strict=True):
        goal = box if bounds is None else np.clip(box, 0, np.array(bounds * 2))
        with np.errstate(over="ignore", invalid="ignore"):
            rows = np.flatnonzero(overlap(boxes, goal) > _SAME)
        if not len(rows):
            return None
        found.append(int(rows[0]))
    return found


def grid_sides(item: ClassLevel) -> tuple[int, int]:
    """Rows and columns of a level, 0 where they are not known."""
    return item.level.height or 0, item.level.width or 0
