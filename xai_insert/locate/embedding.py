"""Whether a vector is an embedding, which is compared with others, or scores of classes."""

from __future__ import annotations

from xai_insert.graph.operators import Norm, Pointwise, Reduction, UnitNorm
from xai_insert.graph.pattern import maker
from xai_insert.graph.traits import ARITHMETIC, ARRANGES, CUTS_OUT, JUDGES, PRODUCTS, ROOTS, UNCHANGED
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.logits import Logits

_ARRANGED = UNCHANGED | ARRANGES | CUTS_OUT | {Op.EXPAND}
_OF_A_LENGTH = _ARRANGED | ROOTS
_SQUARES = ("l2", "sumsquare")


def is_normalised(value: Value) -> bool:
    """Whether a vector ends in a norm over its own elements, as no scores of classes do.

    By its length (written out or in one operation) or by mean and variance; a stored factor and offset may follow.
    """
    node = value.producer
    while node is not None:
        if isinstance(node.kind, (Norm, UnitNorm)):
            return True
        varying = node.computed
        if node.op in (Op.DIV, Op.MUL) and len(varying) == 2:
            return any(_is_length(operand) for operand in varying)
        if node.op in _ARRANGED:
            node = node.read(0).producer
        elif node.op in ARITHMETIC and len(varying) == 1:
            node = varying[0].producer
        else:
            return False
    return False


def holds_direction(value: Value) -> bool:
    """Whether a vector is joined of parts of which one, not all, is divided by its length: a pose, no classes."""
    node = maker(value, _ARRANGED)
    if node is None or node.op is not Op.CONCAT:
        return False
    return 0 < sum(is_normalised(part) for part in node.operands) < len(node.operands)


def _is_length(value: Value) -> bool:
    """Whether a value is the root of a sum or mean of squares, or one over it; a sum alone is that of a softmax."""
    is_root, node = False, value.producer
    while node is not None and (node.op in _OF_A_LENGTH or _is_reciprocal(node)):
        is_root |= node.op is Op.POW or (isinstance(node.kind, Pointwise) and node.kind.function == "sqrt")
        node = next((operand.producer for operand in node.computed), None)
    if node is None or not isinstance(node.kind, Reduction):
        return False
    return is_root or node.attrs.get("mode") in _SQUARES


def _is_reciprocal(node: Node) -> bool:
    return node.op is Op.DIV and node.read(0).is_constant


def may_be_embedding(graph: Graph, logits: Logits) -> bool:
    """Whether structure leaves open what a vector is: nothing compares its elements, and no bias is added to each."""
    node: Node | None = graph.outputs[list(graph.output_names).index(logits.output_name)].producer
    while node is not None and node.output is not logits.value:
        if node.op in JUDGES:
            return False
        source = node.operand(0)
        node = None if source is None else source.producer
    made = maker(logits.value, _ARRANGED)
    if made is None:
        return False
    if made.op in PRODUCTS:
        return made.operand(2) is None
    return made.op is not Op.ADD or not made.stored
