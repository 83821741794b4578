"""Boxes and the numbers beside them: how they are written, what they cover, what looks like a share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BoxFormat = Literal["xyxy", "yxyx", "cxcywh", "xywh"]
BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)
_ROUNDING = 1e-5
"""How far a share may lie outside of 0..1: a runtime's sigmoid may give 1.0000001."""


def sides(columns: Iterable[Any], meaning: BoxFormat, half: Any = 0.5) -> list[Any]:
    """Left, top, right and bottom of boxes from the four numbers that say where they are.

    Args:
        columns: anything that can be added and multiplied: arrays, or values of a graph that is being written.
        meaning: how they describe a box.
        half: 1/2 of their kind.
    """
    a, b, c, d = columns
    if meaning == "xyxy":
        return [a, b, c, d]
    if meaning == "yxyx":
        return [b, a, d, c]
    if meaning == "xywh":
        return [a, b, a + c, b + d]
    c, d = c * half, d * half
    return [a - c, b - d, a + c, b + d]


def intersection_over_union(
    one: Sequence[Any], other: Sequence[Any], at_least: Callable[..., Any], at_most: Callable[..., Any],
    zero: Any = 0.0, tiny: float = 1e-300,
) -> Any:  # fmt: skip
    """What two boxes share of what they cover together; 0 where one is empty.

    Args:
        one: its four sides, arrays or values of a graph; they are broadcast against those of the other.
        other: the other's.
        at_least: the larger of two of their kind.
        at_most: the smaller.
        zero: 0 of their kind.
        tiny: the least that is divided by.
    """

    def length(start: Any, end: Any) -> Any:
        return at_least(end - start, zero)

    def area(box: Sequence[Any]) -> Any:
        return length(box[0], box[2]) * length(box[1], box[3])

    across = length(at_least(one[0], other[0]), at_most(one[2], other[2]))
    common = across * length(at_least(one[1], other[1]), at_most(one[3], other[3]))
    return common / at_least(area(one) + area(other) - common, tiny)


def corners(boxes: Floats, meaning: BoxFormat) -> Floats:
    """Left, top, right and bottom, `[..., 4]`, of boxes in another format."""
    return np.stack(sides(np.moveaxis(boxes, -1, 0), meaning), axis=-1)


def overlap(boxes: Floats, other: Floats) -> Floats:
    """Intersection over union of each of `boxes` `[M, 4]` with one box `[4]`, all as corners; 0 where one is empty."""
    found: Floats = intersection_over_union([*boxes.T], [*other], np.maximum, np.minimum)
    return found


def are_shares(array: npt.NDArray[Any]) -> bool:
    """Whether every element lies in 0..1, but for rounding."""
    return not array.size or bool(array.min() >= -_ROUNDING and array.max() <= 1 + _ROUNDING)


def are_whole(array: npt.NDArray[Any]) -> bool:
    """Whether every element is a whole number, of whatever type."""
    return array.dtype.kind in "iu" or bool(np.array_equal(array, np.floor(array)))
