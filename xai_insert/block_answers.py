"""What changed blocks of an image change in a map, and whether that is at the blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from xai_insert.image_blocks import DEAF, FEWEST_CELLS, Cell, Floats, Window, averaged, cells_at
from xai_insert.locate.layout import FeatureMap

FEWEST_BLOCKS = 4  # that lie in the image; one less if all are sharp
REACH = 1.5  # cells between the block and what changes most
ENOUGH = 0.75  # of the blocks
CLEAR = 2.0  # the largest change over the median one, from which on blocks count
_SHARP = 6.0  # likewise, from which on they contradict without more
_SEVERAL = 4  # channels, not all of which are still by chance
_LITTLE = 0.5  # of the largest change
_FLOOR = 0.3  # of the largest change, so that cells that never change are not the first
_HELD = 12.0  # contrast where all change lies around one cell, and most cells do not change at all


@dataclass(frozen=True)
class Answer:
    """What one block of the image changed in one map.

    Attributes:
        block: first and last row, and first and last column, of the cells at the block.
        change: how much each cell changed, averaged over as many cells as a block has, `[h, w]`, 1 at most.
        found: the cell that changed most, as compared with what other blocks changed.
        middle: the middle of the cells that changed much; in a window any of them may change most.
        contrast: by how much more than the median one.
        may_be_still: whether a cell at the block may stay what it was by chance, as one of few channels may.
    """

    block: tuple[Cell, Cell]
    change: Floats
    found: Cell
    middle: Cell
    contrast: float
    may_be_still: bool

    @property
    def own(self) -> float:
        """How much the cells at the block changed, the one that did most."""
        rows, columns = (slice(low, high + 1) for low, high in self.block)
        return float(self.change[rows, columns].max(initial=0))

    @property
    def is_near(self) -> bool:
        """Whether what changed most is at the block; the fewer cells, the less it may be off."""
        return not self.is_deaf and (self._is_at(self.found) or self._is_at(self.middle))

    @property
    def is_deaf(self) -> bool:
        """Whether the cells at the block hardly changed, as where all lie a cell beside their place."""
        return self.own < DEAF and not self.may_be_still

    @property
    def is_beside(self) -> bool:
        """Whether another cell changed most, where that is not by chance."""
        return not self.may_be_still and any(self._gaps(self.found))

    def finds_as(self, other: Answer) -> bool:
        """Whether another change of the same block changed the same cell most."""
        return self._are_within([abs(a - b) for a, b in zip(self.found, other.found, strict=True)])

    def _is_at(self, cell: Cell) -> bool:
        return self._are_within(self._gaps(cell))

    def _are_within(self, gaps: Sequence[int]) -> bool:
        return all(gap <= min(REACH, size / FEWEST_CELLS) for gap, size in zip(gaps, self.change.shape, strict=True))

    def _gaps(self, cell: Cell) -> list[int]:
        return [max(low - at, at - high, 0) for at, (low, high) in zip(cell, self.block, strict=True)]

    @property
    def is_sure(self) -> bool:
        """Whether what changed most is at the block and stands out sharply."""
        return self.contrast >= _SHARP and not self.is_deaf and self._is_at(self.found)

    @property
    def is_far(self) -> bool:
        """Whether what changed most is elsewhere, and stands out sharply or the cells at the block changed little."""
        is_clear = self.contrast >= _SHARP or self.own < _LITTLE
        return is_clear and all(max(self._gaps(cell)) > REACH for cell in (self.found, self.middle))

    def __str__(self) -> str:
        return f"{tuple(low for low, _ in self.block)} changed {self.found}"


def clear_ones(given: Sequence[Answer]) -> list[Answer]:
    """The answers that count, if most do."""
    clear = [answer for answer in given if answer.contrast >= CLEAR]
    return clear if len(clear) >= max(ENOUGH * len(given), FEWEST_BLOCKS) else []


def hold_for_most(given: Sequence[Answer], test: Callable[[Answer], bool]) -> bool:
    """Whether there are answers that count, and something holds for most of them."""
    clear = clear_ones(given)
    return bool(clear) and sum(map(test, clear)) >= ENOUGH * len(clear)


def are_beside(given: Sequence[Answer]) -> bool:
    """Whether most blocks changed another cell most: blocks that lie inside of a cell tell whether it sees them."""
    return hold_for_most(given, lambda answer: answer.is_beside)


def are_deaf(given: Sequence[Answer]) -> bool:
    """Whether the cells at most blocks hardly changed, where others did."""
    return hold_for_most(given, lambda answer: answer.is_deaf)


def are_enough(given: Sequence[Answer]) -> bool:
    """Whether these blocks prove the place by themselves, whatever another one would say."""
    sharp = len(given) >= FEWEST_BLOCKS - 1 and all(answer.is_sure for answer in given)
    return sharp or (
        len(given) >= FEWEST_BLOCKS and all(answer.contrast >= CLEAR and answer.is_near for answer in given)
    )


def answers_of(windows: Sequence[Window], changes: Sequence[Floats], feature: FeatureMap) -> list[Answer]:
    """What each block changed of one map's cells, `[h, w]`, as compared with what the others did."""
    found, may_be_still = [], (feature.channels or _SEVERAL) < _SEVERAL
    blocks = [cells_at(window, feature, changes[0].shape) for window in windows]
    means = [averaged(change, block) for change, block in zip(changes, blocks, strict=True)]
    shares = [mean / (mean.max() or 1.0) for mean in means]
    for index, (block, share) in enumerate(zip(blocks, shares, strict=True)):
        others = [other for number, other in enumerate(shares) if number != index]
        relative = share / (np.mean(others, axis=0) + _FLOOR) if others else share
        row, column = np.unravel_index(int(relative.argmax()), relative.shape)
        peak, median = (int(row), int(column)), float(np.median(relative))
        contrast = float(relative.max()) / median if median > 0 else _held(share, peak, block) * _HELD
        found.append(Answer(block, share, peak, _middle(share, peak), contrast, may_be_still))
    return found


def _middle(change: Floats, peak: Cell) -> Cell:
    """The middle of the cells that changed much, if they lie together; the one that changed most if they do not."""
    excess = np.maximum(change - 0.25 * change.max(), 0)
    rows, columns = (np.flatnonzero(excess.any(axis=other)) for other in (1, 0))
    if not len(rows) or np.count_nonzero(excess) < (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / 2:
        return peak
    middle = [np.searchsorted(total, total[-1] / 2) for total in (np.cumsum(excess.sum(axis=axis)) for axis in (1, 0))]
    return int(middle[0]), int(middle[1])


def _held(change: Floats, top: Cell, block: tuple[Cell, Cell]) -> float:
    """How much of all change lies around the cell that changes most, in 0..1; where most cells do not change at all."""
    reach = [high - low + 2 for low, high in block]
    rows, columns = (slice(max(at - far, 0), at + far + 1) for at, far in zip(top, reach, strict=True))
    total = float(change.sum())
    return float(change[rows, columns].sum()) / total if total > 0 else 0.0
