"""The mean score of each class over the pixels that a segmenter gives it, in the graph and in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from xai_insert.graph.operators import Window
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Node, fixed
from xai_insert.locate.layout import FeatureMap
from xai_insert.methods.shaping import scalar

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RegionMeans(Generic[V]):
    """Reads runs under masks: for class k the mean of its scores over the pixels that it wins without one.

    A resize at the end is left out of the runs: `sum over M_k of R z_k = z_k . R^T M_k`.

    Attributes:
        surgeon: the model being edited.
        ends: what a run ends in: the scores of each pixel, or what is resized to them.
        classes: their number, K.
        shares: how much each cell of `ends` counts for each class, `[B, K, h, w]`.
    """

    surgeon: Surgeon[V]
    ends: FeatureMap
    classes: int
    shares: V

    def scores(self, given: V, many: int) -> V:
        """`[B * many, K]` of scores `given` of each cell, `many` runs of an image side by side."""
        op, cells = self.surgeon.ops, int(np.prod(fixed(self.ends.grid)))
        shares = op.reshape(self.surgeon.within(self.shares), [-1, 1, self.classes, cells])
        runs = op.reshape(first_channels(self.surgeon, given, self.ends), [-1, many, self.classes, cells])
        return op.reshape(op.reduce(op.mul(runs, shares), "sum", (3,)), [-1, self.classes])


def mean_of_region(pixels: FeatureMap, masked: Array, whole: Array) -> Array:
    """The definition, `[B, K]`: of the scores of each pixel under a mask and without one."""
    perm = (0, pixels.channel_axis, *pixels.grid_axes)
    runs, scores = masked.transpose(perm), whole.transpose(perm)
    wins = scores == scores.max(axis=1, keepdims=True)
    count = wins.sum(axis=(2, 3))
    return np.asarray((runs.astype(np.float64) * wins).sum(axis=(2, 3)) / np.maximum(count, 1))


def shares_of(surgeon: Surgeon[V], pixels: FeatureMap, sides: Sequence[Matrix] | None) -> tuple[V, V]:
    """How much each cell counts in the mean over a class's pixels, `[B, K, h, w]`, and the number of these.

    Args:
        surgeon: the model being edited.
        pixels: the scores of each pixel.
        sides: the resize that makes pixels of cells, along rows and along columns; None where these are the pixels.
    """
    op = surgeon.ops
    wins, count = won(surgeon, pixels)
    wins = wins if sides is None else over_cells(surgeon, wins, sides)
    return op.div(wins, op.nonzero_or(count, scalar(op, 1.0))), count


def won(surgeon: Surgeon[V], pixels: FeatureMap) -> tuple[V, V]:
    """Which class has which pixel, `[B, K, H, W]`, and how many each has, `[B, K, 1, 1]`."""
    op = surgeon.ops
    scores = first_channels(surgeon, surgeon.handle(pixels.value), pixels)
    wins = op.equal(scores, op.reduce(scores, "max", (1,)))
    return wins, op.reduce(wins, "sum", (2, 3))


def first_channels(surgeon: Surgeon[V], handle: V, layout: FeatureMap) -> V:
    """A map as `[B, K, h, w]`."""
    perm = (0, layout.channel_axis, *layout.grid_axes)
    return handle if perm == (0, 1, 2, 3) else surgeon.ops.transpose(handle, perm)


def over_cells(surgeon: Surgeon[V], wins: V, sides: Sequence[Matrix]) -> V:
    """What a resize spreads over pixels, collected again: `R^T M`, by the resize along rows and along columns."""
    op, (down, across) = surgeon.ops, sides
    return op.matmul(op.matmul(op.constant(down.T.copy()), wins), op.constant(across))


def by_neighbours(surgeon: Surgeon[V], layer: Node, kind: Window, shares: V) -> V:
    """What a convolution says of each pixel, weighed by `shares` `[B, K, h, w]` and laid where it is read.

    Place p speaks for the pixel `p - o` by the weights at o of the kernel alone, `w_k[o] . f_p`; the sum over o of what
    it says, times the share of that pixel.
    """
    op, maps, weights = surgeon.ops, surgeon.handle(layer.read(0)), surgeon.stored(layer, 1)
    sides, result = fixed(layer.read(0).sizes[2:]), fixed(layer.read(1).sizes[:2])
    pads, kernel = kind.pads_begin or (0, 0), kind.kernel or (1, 1)
    before = [(size - 1) * apart - pad for size, apart, pad in zip(kernel, kind.dilations, pads, strict=True)]
    around = op.pad(shares, [0, 0, *before], [0, 0, *pads])
    total: V | None = None
    for tap in np.ndindex(*kernel):
        here, weight = around, weights
        for axis, (place, apart, side, pad, first) in enumerate(
            zip(tap, kind.dilations, sides, pads, before, strict=True), 2
        ):
            start = first + pad - place * apart
            here = op.slice(here, axis, start, start + side)
            weight = op.slice(weight, axis, place, place + 1)
        said = op.mul(op.conv1x1(maps, op.reshape(weight, [*result, 1, 1])), here)
        total = said if total is None else op.add(total, said)
    if total is None:
        raise ValueError("a kernel has weights")
    return total
