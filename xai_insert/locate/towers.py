"""What leads to a class score at one location alone: layers that read a few cells around each."""

from __future__ import annotations

from dataclasses import dataclass

from xai_insert.graph.cuts import region
from xai_insert.graph.operators import BatchNorm, Pointwise, Window
from xai_insert.graph.view import Graph, Node, Op, Value


@dataclass(frozen=True)
class Tower:
    """Layers without strides before a head.

    Attributes:
        source: the map that they begin with, `[B, C, h, w]`.
        result: what they give, of the same height and width.
        nodes: they themselves, in order.
        reach: cells on each side of a location that its result depends on.
    """

    source: Value
    result: Value
    nodes: tuple[Node, ...]
    reach: int


def find_tower(graph: Graph, result: Value) -> Tower:
    """The layers from the map on that something else reads too, or from where the layers read more than a few cells."""
    best, reach = Tower(result, result, (), 0), 0
    value = result
    while (node := value.producer) is not None and _is_local(node):
        before = _source(graph, node)
        if before is None or before.sizes[2:] != result.sizes[2:] or None in before.sizes[1:]:
            break
        between = region(graph, [before], [value])
        reach += sum(map(_reach, between))
        inside = {*best.nodes, *between}
        best = Tower(before, result, tuple(sorted(inside, key=graph.order.__getitem__)), reach)
        if best.reach and _is_read_elsewhere(before, inside):
            break
        value = before
    return best


def _is_read_elsewhere(value: Value, inside: set[Node]) -> bool:
    """Whether another node reads a value than these, for more than its sizes."""
    return any(use.node not in inside and use.node.op is not Op.SHAPE for use in value.uses)


def _source(graph: Graph, node: Node) -> Value | None:
    """The one value that a node's result is made of, behind an activation written in parts."""
    given = node.computed
    if len(given) == 1:
        return given[0]
    for value in given:  # a gate: one operand is a function of the other
        nodes = [item for other in given if other is not value for item in region(graph, [value], [other])]
        if nodes and all(isinstance(item.kind, Pointwise) and _reads_alone(item) for item in nodes):
            return value
    return None


def _reads_alone(node: Node) -> bool:
    return len(node.computed) == 1


def _is_local(node: Node) -> bool:
    if isinstance(node.kind, (Pointwise, BatchNorm)):
        return True
    return isinstance(node.kind, Window) and _is_even(node.kind)


def _is_even(kind: Window) -> bool:
    """Whether a convolution leaves every cell in its place."""
    if kind.pool is not None or kind.transposed or kind.kernel is None:
        return False
    if len(kind.kernel) != 2 or set(kind.strides) != {1}:
        return False
    sides = [(size - 1) * dilation for size, dilation in zip(kind.kernel, kind.dilations, strict=True)]
    begin = tuple(side // 2 for side in sides) if kind.pads_begin is None else kind.pads_begin
    return sides[0] == sides[1] and all(2 * pad == side for pad, side in zip(begin, sides, strict=True))


def _reach(node: Node) -> int:
    kind = node.kind
    return (kind.kernel[0] - 1) * kind.dilations[0] // 2 if isinstance(kind, Window) and kind.kernel else 0
