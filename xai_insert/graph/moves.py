"""Following elements that are moved but not changed: from a value to the rows of an output that were chosen of it."""

from __future__ import annotations

from collections.abc import Iterator

from xai_insert.graph.along import along, reduces
from xai_insert.graph.view import Node, Op, Value

_FIRST = frozenset({Op.RESHAPE, Op.TRANSPOSE, Op.SLICE, Op.SPLIT, Op.GATHER, Op.TAKE, Op.IDENTITY, Op.EXPAND})


def moved(node: Node) -> tuple[Value, ...]:
    """The operands whose elements the first output of a node holds, in another order or some of them only."""
    if node.op in _FIRST or node.op is Op.TOPK or is_maximum(node):
        return (node.read(0),)
    if node.op is Op.CONCAT:
        return node.operands
    if node.op is Op.SELECT:
        return node.read(1), node.read(2)
    if node.op is Op.CAST and node.output.dtype == node.read(0).dtype:
        return (node.read(0),)
    return ()


def is_maximum(node: Node) -> bool:
    """Whether a node takes the largest element along the last axis."""
    rank = node.inputs[0].rank if node.inputs and node.inputs[0] is not None else None
    return reduces(node.kind, "max") and rank is not None and along(node.kind) == rank - 1


def moved_into(value: Value) -> Iterator[Value]:
    """Values some of whose elements `value` may hold unchanged, itself first, then the nearest."""
    queue, seen = [value], {value}
    while queue:
        current = queue.pop(0)
        yield current
        node = current.producer
        if node is None or (current.index > 0 and node.op is not Op.SPLIT):
            continue
        for operand in moved(node):
            if operand not in seen:
                seen.add(operand)
                queue.append(operand)
