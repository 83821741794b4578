"""Which sizes of a value follow the batch, from inference with two batches.

Through the sizes of a reshape that an exporter computes from those of its operand, inference does not see as long as
one of them is open.
"""

from __future__ import annotations

from xai_insert.graph.view import Shape

TRIED = (2, 3)
"""Two batches that few models have for another size."""


def common(shape: Shape, other: Shape | None) -> Shape:
    """The sizes that two batches leave the same, None for the others; `shape` if the other is of another rank."""
    if other is None or len(other) != len(shape):
        return shape
    return tuple(a if a == b else None for a, b in zip(shape, other, strict=True))
