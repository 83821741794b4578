"""Boxes and the numbers beside them, in NumPy: how they are written, what they cover, what looks like a share."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BoxFormat = Literal["xyxy", "yxyx", "cxcywh", "xywh"]
BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)
_ROUNDING = 1e-5
"""How far a share may lie outside of 0..1: a runtime's sigmoid may give 1.0000001."""


def corners(boxes: Floats, meaning: BoxFormat) -> Floats:
    """Left, top, right and bottom, `[..., 4]`, of boxes in another format."""
    a, b, c, d = np.moveaxis(boxes, -1, 0)
    if meaning == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif meaning == "xywh":
        c, d = a + c, b + d
    elif meaning == "yxyx":
        a, b, c, d = b, a, d, c
    return np.stack([a, b, c, d], axis=-1)


def overlap(boxes: Floats, other: Floats) -> Floats:
    """Intersection over union of each of `boxes` `[M, 4]` with one box `[4]`, all as corners; 0 where one is empty."""
    sides = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = [np.prod(np.maximum(item[..., 2:] - item[..., :2], 0), axis=-1) for item in (boxes, other)]
    union = areas[0] + areas[1] - common
    return np.where((areas[0] > 0) & (areas[1] > 0), common / np.where(union > 0, union, 1), 0.0)


def are_shares(array: npt.NDArray[Any]) -> bool:
    """Whether every element lies in 0..1, but for rounding."""
    return not array.size or bool(array.min() >= -_ROUNDING and array.max() <= 1 + _ROUNDING)


def are_whole(array: npt.NDArray[Any]) -> bool:
    """Whether every element is a whole number, of whatever type."""
    return array.dtype.kind in "iu" or bool(np.array_equal(array, np.floor(array)))
