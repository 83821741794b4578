"""Proof that a grid of open size covers the image, whatever the size."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.errors import MisplacedMapError
from xai_insert.locate.layout import FeatureMap

_INSET = 0.75  # cells between the edges of the image and of the grid, as layers without padding leave them
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
        is_plane = len(feature.grid_axes) == 2  # of tokens, how many there are in a row is not known here
        if is_plane and feature.frame.rectangle is None and feature.frame.lines is not None:
            turned = sides[::-1] if feature.frame.transposed else sides
            for (stride, offset), cells, side in zip(feature.frame.lines, grid, turned, strict=True):
                _require_side(feature, abs(stride), sorted((offset, offset + stride * (cells - 1))), side)


def _require_side(feature: FeatureMap, stride: float, ends: Sequence[float], side: int) -> None:
    before = (ends[0] + 0.5) / stride - 0.5
    behind = (side - ends[-1] - 0.5) / stride - 0.5
    is_drift = abs(before + behind) <= _REST and abs(before) <= _DRIFT
    if not is_drift and (abs(before) > _INSET or not -_INSET <= behind <= 1 + _INSET):
        raise MisplacedMapError(
            f"{feature.value.describe()} does not cover an image of open size: at {side} pixels it leaves out "
            f"{before:.1f} cells before its first and {behind:.1f} behind its last one (below zero: a padding); give "
            "the size with --input-shape"
        )
