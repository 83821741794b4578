"""Softmaxes behind scores: one operator, or written out as exponentials over their sum."""

from __future__ import annotations

from xai_insert.graph.along import along, reduces
from xai_insert.graph.operators import Pointwise
from xai_insert.graph.pattern import before
from xai_insert.graph.traits import ARRANGES, SAME, UNCHANGED
from xai_insert.graph.view import Node, Op, Value, number_of


def is_softmax(value: Value) -> bool:
    """Whether an output is a softmax of several scores, of whatever type."""
    shares = before(value, UNCHANGED)
    return shares.made_by(Op.SOFTMAX) is not None or written_out(shares) is not None


def written_out(value: Value) -> Value | None:
    """The scores of which a value is a softmax in several operators, `exp(s - max(s)) / sum(exp(s - max(s)))`."""
    powers = _over_their_sum(value)
    raised = None if powers is None else _made(powers, "exp")
    return None if raised is None else _without_greatest(raised.read(0))


def shares_along(value: Value) -> int | None:
    """The axis along which elements are shares of one, as a softmax gives them; None if they are not."""
    node = value.made_by(Op.SOFTMAX)
    if node is not None or written_out(value) is None:
        return None if node is None else along(node.kind)
    totals = (_total(operand) for operand in value.producer.operands) if value.producer else ()
    return next((along(node.kind) for node in totals if node is not None), None)


def _total(value: Value) -> Node | None:
    """The sum that a value is, or one over which it is."""
    node = before(_inverted(value) or value, SAME | ARRANGES).producer
    return node if node is not None and reduces(node.kind, "sum") else None


def _over_their_sum(value: Value) -> Value | None:
    """What is divided by its own sum."""
    node = _made(value, "div") or _made(value, "mul")
    if node is None or len(node.computed) < 2:
        return None
    shared, divisor = (before(operand, SAME) for operand in node.computed[:2])
    total = _inverted(divisor) if node.op is Op.MUL else divisor
    return shared if total is not None and _reduced(total, "sum") is shared else None


def _inverted(value: Value) -> Value | None:
    """Of what a value is one over, as either format writes it."""
    if (node := _made(value, "reciprocal")) is not None:
        return node.read(0)
    node = _made(value, "div")
    return node.operand(1) if node is not None and number_of(node.read(0)) == 1 else None


def _without_greatest(value: Value) -> Value:
    """Scores from which the greatest was taken, so that no exponential is too large; else the value itself."""
    node = _made(value, "sub")
    if node is None or len(node.computed) < 2:
        return value
    scores, greatest = (before(operand, SAME) for operand in node.computed)
    return scores if _reduced(greatest, "max") is scores else value


def _reduced(value: Value, mode: str) -> Value | None:
    """Of what a value is the sum, or the greatest."""
    node = before(value, SAME | ARRANGES).producer
    return before(node.read(0), SAME) if node is not None and reduces(node.kind, mode) else None


def _made(value: Value, function: str) -> Node | None:
    """What makes a value, if it computes this function element by element."""
    node = value.producer
    return node if node is not None and isinstance(node.kind, Pointwise) and node.kind.function == function else None
