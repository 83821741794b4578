"""Sizes and their words; without NumPy, which the command line does not wait for."""

from __future__ import annotations

from collections.abc import Iterable

Shape = tuple[int | None, ...]
"""Sizes of a value; None where the size is not known before the model runs."""


_INTEGERS = frozenset({"int16", "int32", "int64"})
_RANK, _COLOURS = 4, 3


def holds_pixels(shape: Shape | None, dtype: str) -> bool:
    """Whether a value of whole numbers may hold pixels: bytes, or wider integers with three colours (MoveNet)."""
    is_wide = dtype in _INTEGERS and shape is not None and len(shape) == _RANK
    return dtype == "uint8" or (is_wide and shape is not None and _COLOURS in (shape[1], shape[3]))


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
