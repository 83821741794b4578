"""How many classes a list of instances knows, read off the layer that scores them."""

from __future__ import annotations

from dataclasses import dataclass

from xai_insert.graph.cuts import makers
from xai_insert.graph.operators import Softmax
from xai_insert.graph.traits import PRODUCTS
from xai_insert.graph.view import Node, Op, Value


@dataclass(frozen=True)
class ClassHead:
    """The layer that scores classes.

    Attributes:
        logits: what its softmax or sigmoid reads.
        axis: the axis of classes, where they compete.
        width: number of scores, a background among them if there is one.
        is_exclusive: whether the scores compete (softmax), so that one of them is the background.
    """

    logits: Value
    axis: int
    width: int
    is_exclusive: bool


def find_class_head(scores: Value) -> ClassHead | None:
    """Walk back from the scores of instances to the softmax or sigmoid that made them.

    Only values of floats are followed, so that indices (of a suppression, of the best) lead nowhere, and no further
    than the first layer with weights. A softmax beside a sigmoid makes box sides from a distribution. None if nothing
    or more than one thing is found.
    """
    ends = makers(scores, lambda node: _makes_scores(node) or has_weights(node), _may_be_float)
    heads = [head for node in ends if _makes_scores(node) and (head := _head_of(node)) is not None]
    independent = [head for head in heads if not head.is_exclusive]
    heads = independent or heads
    return heads[0] if len({head.width for head in heads}) == 1 else None


def _makes_scores(node: Node) -> bool:
    return node.op in (Op.SOFTMAX, Op.SIGMOID)


def _may_be_float(value: Value) -> bool:
    return "int" not in value.dtype and value.dtype != "bool"


def has_weights(node: Node) -> bool:
    """Whether a node is a linear layer or a convolution with stored weights."""
    weight = node.operand(1)
    return node.op in PRODUCTS and weight is not None and weight.is_constant


def _head_of(node: Node) -> ClassHead | None:
    logits = node.read(0)
    if node.op is Op.SOFTMAX:
        axis = node.record(Softmax).axes[0]
        width = None if logits.shape is None else logits.shape[axis]
        return None if width is None or width < 2 else ClassHead(logits, axis, width, is_exclusive=True)
    widths = _layer_widths(logits)
    return ClassHead(logits, -1, widths.pop(), is_exclusive=False) if len(widths) == 1 else None


def _layer_widths(logits: Value) -> set[int]:
    """Numbers of output channels of the layers that made the logits, one layer for each scale."""
    layers = makers(logits, has_weights, _may_be_float)
    widths = {layer.output.sizes[1 if layer.op is Op.CONV else -1] for layer in layers}
    return {width for width in widths if width is not None}
