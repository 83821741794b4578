"""Vectors that end in a norm over their own elements, as embeddings do and no scores of classes."""

from __future__ import annotations

from xai_insert.graph.operators import Norm, Pointwise, Reduction, UnitNorm
from xai_insert.graph.traits import ARITHMETIC, ARRANGES, CUTS_OUT, ROOTS, UNCHANGED
from xai_insert.graph.view import Node, Op, Value

ARRANGED = UNCHANGED | ARRANGES | CUTS_OUT | {Op.EXPAND}
"""What leaves the elements of a vector as they are."""
_OF_A_LENGTH = ARRANGED | ROOTS
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
        if node.op in ARRANGED:
            node = node.read(0).producer
        elif node.op in ARITHMETIC and len(varying) == 1:
            node = varying[0].producer
        else:
            return False
    return False


def _is_length(value: Value) -> bool:
    """Whether a value is the root of a sum or mean of squares, or one over it; a sum alone is that of a softmax."""
    is_root, node = False, value.producer
    while node is not None and (node.op in _OF_A_LENGTH or _is_reciprocal(node)):
        is_root |= _takes_root(node)
        node = next((operand.producer for operand in node.computed), None)
    if node is None or not isinstance(node.kind, Reduction):
        return False
    return is_root or node.kind.mode in _SQUARES


def _takes_root(node: Node) -> bool:
    return node.op is Op.POW or (isinstance(node.kind, Pointwise) and node.kind.function == "sqrt")


def _is_reciprocal(node: Node) -> bool:
    return node.op is Op.DIV and node.read(0).is_constant
