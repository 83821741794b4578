"""Counting the work that a branch adds."""

from __future__ import annotations

from collections.abc import Container

from xai_insert.graph.operators import Product
from xai_insert.graph.view import Node, Op, Shape, volume
from xai_insert.locate.logits import Logits
from xai_insert.methods.rehearsal import Rehearsal
from xai_insert.methods.top_classes import last_layer


def mega(flops: int | None) -> float | None:
    """Millions, rounded for people."""
    return None if flops is None else round(flops / 1e6, 3)


def flops_of(node: Node, batch: int) -> int:
    """Multiplications and additions of a linear layer or convolution, per image; other operations count nothing."""
    per_element = _per_element(node)
    return 0 if per_element is None else 2 * (volume([size or 1 for size in _sizes(node)]) or 0) * per_element // batch


def _per_element(node: Node) -> int | None:
    """Multiplications for one element of the result; None where they do not count."""
    source, weight = node.operand(0), node.operand(1)
    if node.op is Op.CONV and weight is not None and weight.shape is not None:
        return (volume(weight.shape) or 0) // max(_out_channels(node), 1)
    if isinstance(node.kind, Product) and source is not None and source.axis_count > 1:
        return source.sizes[-2 if node.kind.transpose_a else -1] or 0
    return None


def work_by_class(head: Container[Node], logits: Logits, positions: int | None) -> float:
    """Millions of operations for each class in the last layer, at all positions; 0 where it is not chosen from.

    Args:
        head: the operations that run at each position.
        logits: the class scores.
        positions: how many there are; None if that is unknown.
    """
    layer = last_layer(Rehearsal(), logits.value, logits.classes)
    if layer is None or layer.node not in head or positions is None:
        return 0.0
    return 2e-6 * positions * (layer.weight.sizes[1 if layer.is_transposed else 0] or 0)


def of_chosen(mflops: float | None, by_class: float, logits: Logits, count: int | None) -> float | None:
    """Of the work for all classes, that for `count` of them; see `work_by_class`."""
    if mflops is None or count is None:
        return mflops
    return round(mflops - by_class * (logits.classes - min(count, logits.classes)), 3)


def _sizes(node: Node) -> Shape:
    return node.output.shape or ()


def _out_channels(node: Node) -> int:
    shape = _sizes(node)
    return (shape[1] or 0) if len(shape) > 1 else 0
