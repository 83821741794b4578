"""Sizes and their words; without NumPy, which the command line does not wait for."""

from __future__ import annotations

Shape = tuple[int | None, ...]
"""Sizes of a value; None where the size is not known before the model runs."""


def format_shape(shape: Shape | None) -> str:
    """`[1, 512, ?, ?]`."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def format_grid(grid: Shape) -> str:
    """`7x7`."""
    return "x".join("?" if size is None else str(size) for size in grid)
