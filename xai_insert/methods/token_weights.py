"""What each token keeps in each masked sample, computed while the model runs: for one grid, or for any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from xai_insert.graph.ops import Ops, Size, Surgeon, V
from xai_insert.graph.view import fixed
from xai_insert.locate.layout import FeatureMap
from xai_insert.methods.kernels import Kernel, kernel_factors
from xai_insert.methods.shaping import as_vector, counted, grid_sizes, product_of, scalar
from xai_insert.methods.tensor import Tensor


@dataclass(frozen=True)
class TokenCounts(Generic[V]):
    """How many tokens there are: ints where the grid is known, else read off the model while it runs.

    Attributes:
        sides: of the grid of the patches.
        patches: how many these are.
        tokens: how many with those before and behind them.
        before: of these, those before the patches.
        behind: and those behind them.
    """

    sides: Sequence[Size]
    patches: Size
    tokens: Size
    before: int
    behind: int

    @property
    def are_known(self) -> bool:
        """Whether they are for one size of the image."""
        return isinstance(self.patches, int)


def token_counts(surgeon: Surgeon[V], target: FeatureMap, behind: int) -> TokenCounts[V]:
    """The counts of tokens with the grid of `target`, and `behind` others behind it."""
    op, before, others = surgeon.ops, target.prefix, target.prefix + behind
    if None not in target.grid:
        sides = fixed(target.grid)
        patches = product_of(op, sides)
        return TokenCounts(sides, patches, patches + others, before, behind)
    open_sides = grid_sizes(surgeon, surgeon.handle(target.value), target)
    patches = product_of(op, open_sides)
    tokens = op.add(patches, op.constant(np.array([others], np.int64))) if others else patches
    return TokenCounts(open_sides, patches, tokens, before, behind)


def token_weights(op: Ops[V], counts: TokenCounts[V], target: FeatureMap, kernel: Kernel) -> V:
    """`patch_weights`, `[N, T]`, from its two small factors, so that the model file stores no such table."""
    product = _product_of_known(op, target, kernel) if counts.are_known else _product(op, counts, kernel)
    patches = op.reshape(product, [counts.patches, counts.patches])
    around = [_ones(op, patches, counts, number) if number else None for number in (counts.before, counts.behind)]
    return op.concat([part for part in (around[0], patches, around[1]) if part is not None], 1)


def weights_of_one(op: Ops[V], counts: TokenCounts[V], kernel: Kernel, number: V) -> V:
    """The row of `token_weights` of one patch, `[1, T]`; `number` is an int64 scalar."""
    width = counts.sides[1]
    columns = as_vector(op, width)
    row = op.div(number, columns)
    place = row, op.sub(number, op.mul(row, columns))
    down, across = (
        _near(op, counted(op, side), op.cast(at, "float32"), kernel)
        for side, at in zip(counts.sides, place, strict=True)
    )
    cells = op.reshape(op.mul(op.reshape(down, [-1, 1]), op.reshape(across, [1, -1])), [1, -1])
    before, behind = ([op.constant(np.ones((1, n), np.float32))] if n else [] for n in (counts.before, counts.behind))
    return op.concat([*before, cells, *behind], 1) if before or behind else cells


def _product_of_known(op: Ops[V], target: FeatureMap, kernel: Kernel) -> V:
    rows, columns = kernel_factors(fixed(target.grid), kernel, times_last=target.frame.times_last)
    h, w = len(rows), len(columns)
    return op.mul(op.constant(rows.reshape(h, 1, h, 1)), op.constant(columns.reshape(1, w, 1, w)))


def _product(op: Ops[V], counts: TokenCounts[V], kernel: Kernel) -> V:
    """Likewise for any grid, `[h, w, h, w]`."""
    rows, columns = (counted(op, side) for side in counts.sides)
    down, across = (_near(op, cells, op.unsqueeze(cells, [1]), kernel) for cells in (rows, columns))
    return op.mul(op.unsqueeze(down, [1, 3]), op.unsqueeze(across, [0, 2]))


def _near(op: Ops[V], cells: V, places: V, kernel: Kernel) -> V:
    """One axis of the kernel around `places`: 1/2 there and 1/4 beside them, or 1 there alone."""
    apart = Tensor(op, cells) - Tensor(op, places)
    return apart.tent().handle if kernel == "point" else ((apart * 0.5).tent() * 0.5).handle


def _ones(op: Ops[V], patches: V, counts: TokenCounts[V], number: int) -> V:
    """Whole weights of tokens beside the patches, `[N, number]`."""
    if isinstance(counts.patches, int):
        return op.expand(op.constant(np.ones((1, 1), np.float32)), [counts.patches, number])
    nothing = op.mul(op.slice(patches, 1, 0, 1), scalar(op, 0.0))
    return op.add(nothing, op.constant(np.ones((1, number), np.float32)))
