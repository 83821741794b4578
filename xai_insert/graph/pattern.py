"""Patterns that several searches share: operators that are looked past, a layer with its bias."""

from __future__ import annotations

from collections.abc import Container

from xai_insert.graph.view import Node, Op, Value


def before(value: Value, passed: Container[Op]) -> Value:
    """What a value was before the operators in `passed`, along their first operands."""
    while (node := value.producer) is not None and node.op in passed:
        value = node.read(0)
    return value


def maker(value: Value, passed: Container[Op] = ()) -> Node | None:
    """The nearest operator that is not in `passed`; None where a constant or an input of the model comes first."""
    return before(value, passed).producer


def layer_of(value: Value) -> Node | None:
    """The operator that gives a value, before a bias is added to it."""
    node = value.producer
    if node is not None and node.op is Op.ADD:
        return next((operand.producer for operand in node.computed), None)
    return node
