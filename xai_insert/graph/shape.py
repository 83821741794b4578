"""Sizes and their words; without NumPy, which the command line does not wait for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Shape = tuple[int | None, ...]
"""Sizes of a value; None where the size is not known before the model runs."""


_INTEGERS = frozenset({"int16", "int32", "int64"})
_RANK, _COLOURS = 4, 3


def holds_pixels(shape: Shape | None, dtype: str) -> bool:
    """Whether a value of whole numbers may hold pixels: bytes, or wider integers with three colours (MoveNet)."""
    is_wide = dtype in _INTEGERS and shape is not None and len(shape) == _RANK
    return dtype == "uint8" or (is_wide and shape is not None and _COLOURS in (shape[1], shape[3]))


def completed(before: Sequence[int | None] | None, shape: Sequence[int | None]) -> Sequence[int | None]:
    """A shape with one unknown size less, where the sizes before a reshape tell it."""
    if before is None or sum(size is None for size in shape) != 1 or None in before:
        return shape
    total, rest = (math.prod(size for size in sizes if size is not None) for sizes in (before, shape))
    if not rest or total % rest:
        return shape
    return [total // rest if size is None else size for size in shape]


def with_open(sizes: Iterable[int | None]) -> list[int]:
    """Sizes as formats store them: -1 for one that is not known."""
    return [-1 if size is None else size for size in sizes]


def format_shape(shape: Shape | None) -> str:
    """`[1, 512, ?, ?]`."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def format_grid(grid: Shape) -> str:
    """`7x7`."""
    return "x".join("?" if size is None else str(size) for size in grid)
