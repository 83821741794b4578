"""Sides of boxes, in whatever format they are given."""

from __future__ import annotations

from xai_insert.graph.ops import Ops, V
from xai_insert.layouts.boxes import BoxFormat
from xai_insert.methods.shaping import scalar


def box_sides(op: Ops[V], boxes: V, meaning: BoxFormat, axis: int) -> list[V]:
    """Left, top, right and bottom of boxes whose coordinates lie along `axis`, which stays with size 1."""
    a, b, c, d = (op.slice(boxes, axis, index, index + 1) for index in range(4))
    if meaning == "xyxy":
        return [a, b, c, d]
    if meaning == "yxyx":
        return [b, a, d, c]
    if meaning == "xywh":
        return [a, b, op.add(a, c), op.add(b, d)]
    half = scalar(op, 0.5)
    c, d = op.mul(c, half), op.mul(d, half)
    return [op.sub(a, c), op.sub(b, d), op.add(a, c), op.add(b, d)]
