"""The arithmetic of boxes, written into a graph."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.ops import Ops, V
from xai_insert.layouts.boxes import BoxFormat, intersection_over_union, sides
from xai_insert.methods.tensor import Tensor, tensor

TINY = 1e-12
"""The least that is divided by."""


def box_sides(op: Ops[V], boxes: V, meaning: BoxFormat, axis: int) -> list[Tensor[V]]:
    """Left, top, right and bottom of boxes whose coordinates lie along `axis`, which stays with size 1."""
    columns = [Tensor(op, op.slice(boxes, axis, index, index + 1)) for index in range(4)]
    is_centre = meaning == "cxcywh"
    return sides(columns, meaning, tensor(op, 0.5) if is_centre else 0.5)


def overlap_of(one: Sequence[Tensor[V]], other: Sequence[Tensor[V]]) -> Tensor[V]:
    """Intersection over union of `[B, M, 1]` and `[B, 1, L]` sides: `[B, M, L]`; 0 where a box is empty."""
    zero = tensor(one[0].op, 0.0)
    found: Tensor[V] = intersection_over_union(one, other, Tensor.at_least, Tensor.at_most, zero, TINY)
    return found
