"""Proof that a grid of open size covers the image, whatever the size."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.errors import MisplacedMapError
from xai_insert.locate.layout import FeatureMap

_INSET = 0.75  # cells between the edges of the image and of the grid, as layers without padding leave them; corners on
# corners leave half a cell of the coarser grid
_DRIFT, _REST = 1.5, 0.25  # cells by which all of a grid is moved, as one finer than the layers that moved it; and left


def require_cover(features: Sequence[FeatureMap], grids: Sequence[tuple[int, ...]], sides: Sequence[int]) -> None:
    """Refuse a grid of open size that shows a part of the image, or padding: how much, would differ with the size.

    Behind the last cell there may be the rest of a side that is no multiple of cells.

    Args:
        features: the maps.
        grids: their height and width for an image of `sides`.
        sides: height and width.

    Raises:
        MisplacedMapError: a map has another place at each size.
    """
    for feature, grid in zip(features, grids, strict=True):
        frame, is_plane = feature.frame, len(feature.grid_axes) == 2  # of tokens, a row has nobody knows how many
        if is_plane and frame.rectangle is None and frame.lines is not None:
            turned = sides[::-1] if frame.transposed else sides
            for (stride, offset), grain, cells, side in zip(frame.lines, frame.grains, grid, turned, strict=True):
                ends = sorted((offset, offset + stride * (cells - 1)))
                _require_side(feature, abs(stride), max(1.0, grain / abs(stride)), ends, side)


def _require_side(feature: FeatureMap, stride: float, coarse: float, ends: Sequence[float], side: int) -> None:
    """Refuse one side of a grid that leaves out more than an inset of `coarse` cells, and is no drift."""
    before = (ends[0] + 0.5) / stride - 0.5
    behind = (side - ends[-1] - 0.5) / stride - 0.5
    is_drift = abs(before + behind) <= _REST and abs(before) <= _DRIFT
    inset = _INSET * coarse
    if not is_drift and (abs(before) > inset or not -inset <= behind <= 1 + inset):
        raise MisplacedMapError(
            f"{feature.value.describe()} does not cover an image of open size: at {side} pixels it leaves out "
            f"{before:.1f} cells before its first and {behind:.1f} behind its last one (below zero: a padding); give "
            "the size with --input-shape"
        )
