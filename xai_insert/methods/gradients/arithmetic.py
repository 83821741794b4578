"""Derivatives of sums, products, powers, and of what chooses between operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xai_insert.graph.view import number_of
from xai_insert.methods.gradients.step import Gradients, Rule, Step


def _each(factor: Callable[[Step[Any], int], Any]) -> Rule:
    """A rule from the factor of each operand; a factor of None is one."""

    def rule(step: Step[Any]) -> Gradients:
        made = {}
        for index in step.wanted:
            partial = factor(step, index)
            whole = step.gradient if partial is None else step.op.mul(step.gradient, partial)
            made[index] = step.fitted(whole, index)
        return made

    return rule


def _difference(step: Step[Any], index: int) -> Any:
    return None if index == 0 else step.number(-1.0)


def _product(step: Step[Any], index: int) -> Any:
    return step.operand(1 - index)


def _quotient(step: Step[Any], index: int) -> Any:
    op, below = step.op, step.operand(1)
    if index == 0:
        return op.div(step.number(1.0), below)
    return op.div(op.mul(step.operand(0), step.number(-1.0)), op.mul(below, below))


def _power(step: Step[Any], index: int) -> Any:
    op, base = step.op, step.operand(0)
    if index == 1:
        return op.mul(op.power(base, step.operand(1)), op.function("log", base))
    exponent = number_of(step.node.operand(1))
    if exponent is None:
        computed = step.operand(1)
        return op.mul(computed, op.power(base, op.sub(computed, step.number(1.0))))
    if exponent in (1.0, 2.0):
        return op.mul(base, step.number(2.0)) if exponent == 2.0 else None
    return op.mul(op.power(base, step.number(exponent - 1)), step.number(exponent))


def _mean(step: Step[Any], index: int) -> Any:
    del index
    return step.number(1 / len(step.node.inputs))


def _squared_difference(step: Step[Any], index: int) -> Any:
    op = step.op
    return op.mul(op.sub(step.operand(index), step.operand(1 - index)), step.number(2.0))


def _extreme(sign: float) -> Callable[[Step[Any], int], Any]:
    """The larger or smaller of two; of equals half to each, as PyTorch does."""

    def factor(step: Step[Any], index: int) -> Any:
        if len(step.node.inputs) != 2:
            raise step.refusal(f"it has {len(step.node.inputs)} operands")
        op, own, other = step.op, step.operand(index), step.operand(1 - index)
        more = op.greater(own, other) if sign > 0 else op.greater(other, own)
        return op.add(more, op.mul(op.equal(own, other), step.number(0.5)))

    return factor


def _choice(step: Step[Any], index: int) -> Any:
    mask = step.op.cast(step.operand(0), "float32")
    return mask if index == 1 else step.op.sub(step.number(1.0), mask)


def _where(step: Step[Any]) -> Gradients:
    floats = frozenset(step.wanted - {0})
    return {index: step.fitted(step.op.mul(step.gradient, _choice(step, index)), index) for index in floats}


def _remainder(step: Step[Any]) -> Gradients:
    if step.wanted != {0}:
        raise step.refusal("what it divides by is computed")
    return {0: step.fitted(step.gradient, 0)}


RULES: Mapping[str, Rule] = {
    "add": _each(lambda step, index: None),
    "sum": _each(lambda step, index: None),
    "sub": _each(_difference),
    "mul": _each(_product),
    "div": _each(_quotient),
    "pow": _each(_power),
    "mean": _each(_mean),
    "squareddifference": _each(_squared_difference),
    "max": _each(_extreme(1.0)),
    "min": _each(_extreme(-1.0)),
    "where": _where,
    "mod": _remainder,
    "floormod": _remainder,
}
"""By function."""
