"""Counting the work that a branch adds."""

from __future__ import annotations

from xai_insert.graph.view import Node, Op, volume


def mega(flops: int | None) -> float | None:
    """Millions, rounded for people."""
    return None if flops is None else round(flops / 1e6, 3)


def flops_of(node: Node, batch: int) -> int:
    """Multiplications and additions of a linear layer or convolution, per image; other operations count nothing."""
    out = volume([size or 1 for size in node.output.shape or ()]) or 0
    weight = node.operand(1)
    if node.op is Op.CONV and weight is not None and weight.shape is not None:
        per_output = (volume(weight.shape) or 0) // max(_out_channels(node), 1)
        return 2 * out * per_output // batch
    source = node.operand(0)
    if node.op is Op.MATMUL and source is not None and source.shape is not None and len(source.shape) > 1:
        inner = source.shape[-2 if node.attrs["transpose_a"] else -1] or 0
        return 2 * out * inner // batch
    return 0


def _out_channels(node: Node) -> int:
    shape = node.output.shape or ()
    return (shape[1] or 0) if len(shape) > 1 else 0
