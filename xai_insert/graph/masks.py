"""The masks of masked runs, as small factors from which each is computed while the model runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Masks:
    """A mask for each position of a grid, row by row.

    That of row r and column c is 1 for the `prefix` elements before the grid and for those behind it, and
    `rows[r, i] * columns[c, j]` for its cell (i, j). A table of all of them would have as many elements as the
    square of the grid.

    Attributes:
        rows: float32 `[h, h]`.
        columns: float32 `[w, w]`.
        sizes: those of one mask, which broadcasts against what is masked.
        prefix: how many elements come before the grid.
    """

    rows: npt.NDArray[np.float32]
    columns: npt.NDArray[np.float32]
    sizes: Sequence[int]
    prefix: int = 0

    @property
    def suffix(self) -> int:
        """How many elements come behind the grid."""
        return math.prod(self.sizes) - self.prefix - len(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width."""
        return len(self.rows), len(self.columns)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)
