"""Whether a vector is an embedding, which is compared with others, or scores of classes."""

from __future__ import annotations

from xai_insert.graph.operators import Norm, Pointwise, Reduction, UnitNorm
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.logits import Logits

_ARRANGED = frozenset(
    {Op.IDENTITY, Op.CAST, Op.RESHAPE, Op.TRANSPOSE, Op.GATHER, Op.SLICE, Op.SPLIT, Op.QUANTIZE, Op.EXPAND}
)
_OF_A_LENGTH = _ARRANGED | {Op.CLIP, Op.ADD, Op.POW, Op.ELEMENTWISE}
_SCORES = frozenset({Op.SOFTMAX, Op.SIGMOID, Op.TOPK, Op.ARGMAX})
_SQUARES = ("l2", "sumsquare")


def is_normalised(value: Value) -> bool:
    """Whether a vector ends in a norm over its own elements, as no scores of classes do.

    By its length (written out or in one operation) or by mean and variance; a stored factor and offset may follow.
    """
    node = value.producer
    while node is not None:
        if isinstance(node.kind, (Norm, UnitNorm)):
            return True
        varying = [operand for operand in node.inputs if operand is not None and not operand.is_constant]
        if node.op in (Op.DIV, Op.MUL) and len(varying) == 2:
            return any(_is_length(operand) for operand in varying)
        if not (node.op in _ARRANGED or (node.op in (Op.ADD, Op.SUB, Op.MUL, Op.DIV) and len(varying) == 1)):
            return False
        node = (node.read(0) if node.op in _ARRANGED else varying[0]).producer
    return False


def _is_length(value: Value) -> bool:
    """Whether a value is the root of a sum or mean of squares, or one over it; a sum alone is that of a softmax."""
    is_root, node = False, value.producer
    while node is not None and (node.op in _OF_A_LENGTH or (node.op is Op.DIV and node.read(0).is_constant)):
        is_root |= node.op is Op.POW or (isinstance(node.kind, Pointwise) and node.kind.function == "sqrt")
        varying = [operand for operand in node.inputs if operand is not None and not operand.is_constant]
        node = varying[0].producer if varying else None
    if node is None or not isinstance(node.kind, Reduction):
        return False
    return is_root or node.attrs.get("mode") in _SQUARES


def may_be_embedding(graph: Graph, logits: Logits) -> bool:
    """Whether structure leaves open what a vector is: nothing compares its elements, and no bias is added to each."""
    node: Node | None = graph.outputs[list(graph.output_names).index(logits.output_name)].producer
    while node is not None and node.output is not logits.value:
        if node.op in _SCORES:
            return False
        source = node.operand(0)
        node = None if source is None else source.producer
    node = logits.value.producer
    while node is not None and node.op in _ARRANGED:
        node = node.read(0).producer
    if node is None:
        return False
    if node.op in (Op.MATMUL, Op.CONV):
        return node.operand(2) is None
    return node.op is not Op.ADD or not any(value is not None and value.is_constant for value in node.inputs)
