"""What is watched behind the heads of a detector: values that depend on each location alone, up to a selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xai_insert.graph.along import reduces
from xai_insert.graph.cuts import activations, walk
from xai_insert.graph.traits import ARRANGES, MIXES_PLACES, RANKS, SAME, UNCHANGED, WITH_BODIES
from xai_insert.graph.view import Graph, Node, Op, Value, number_of
from xai_insert.locate.frontier import Head, is_learned

_COUNTED_IN = (100.0, 255.0)
"""What shares are multiplied by, to be per cent or bytes."""
_JOINS = UNCHANGED | ARRANGES | {Op.CONCAT, Op.ELEMENTWISE}


@dataclass(frozen=True)
class Observed:
    """A value after the heads, where what each of their channels does can be watched.

    Attributes:
        value: decoded scores or boxes of every location.
        by_magnitude: whether the largest elements are picked: it holds scores.
        is_output: whether it is an output of the model.
        heads: the heads whose locations it follows; others may reach it through a selection.
        behind: what is made of the best of its elements and of which these are, if anything is.
        counted_in: what shares are multiplied by that it holds beside boxes; 1 if they are shares of one.
    """

    value: Value
    by_magnitude: bool
    is_output: bool
    heads: frozenset[Value]
    behind: frozenset[Value] = frozenset()
    counted_in: float = 1.0


def observed_values(graph: Graph, images: Sequence[Value], heads: Sequence[Head]) -> list[Observed]:
    """Values that depend on each location of the heads alone and are read by what selects among locations.

    In topological order; the heads themselves are among them where a model gives them raw.
    """
    local, by_magnitude = local_values(graph, activations(graph, images), heads)
    outputs = {_uncounted(value) for value in graph.outputs if value in local}
    return [
        Observed(
            value, by_magnitude.get(value, False), value in outputs, reached, _behind_best(graph, value), _factor(value)
        )
        for value, reached in local.items()
        if (value in outputs or value in by_magnitude) and "float" in value.dtype
    ]


def _behind_best(graph: Graph, value: Value) -> frozenset[Value]:
    """What reads the best of a value's elements, or which they are: labels, and scores that no other class lowers."""
    best = [use.node.output for use in value.uses if _takes_best(use.node)]
    return frozenset(activations(graph, best)) if best else frozenset()


def _takes_best(node: Node) -> bool:
    return node.op in RANKS or reduces(node.kind, "max")


def _uncounted(value: Value) -> Value:
    """What an output gives in whole numbers, before it was rounded: of small shares something is left there."""
    found, before = value, value
    while (node := before.producer) is not None and _counts_in(node):
        before = node.read(0)
        is_same = node.op in SAME and "float" in node.output.dtype
        found = found if is_same else before
    return found if "float" in found.dtype else value


def _counts_in(node: Node) -> bool:
    if node.op is Op.DIV:  # back from per cent
        return number_of(node.read(1)) in _COUNTED_IN
    return node.op in UNCHANGED or node.type == "Round"


def _factor(value: Value) -> float:
    """What shares are multiplied by before they are joined with others to make a value; 1 if they are not."""
    joined = walk([value], lambda item: _joined(item.producer))
    found = [number_of(node.read(1)) for item in joined if (node := item.producer) is not None and node.op is Op.MUL]
    return next((by for by in found if by is not None and by in _COUNTED_IN), 1.0)


def _joined(node: Node | None) -> Sequence[Value]:
    return () if node is None or node.op not in _JOINS else node.operands


def local_values(
    graph: Graph, dependent: set[Value], heads: Sequence[Head]
) -> tuple[dict[Value, frozenset[Value]], dict[Value, bool]]:
    """Values that depend on each location of some heads alone, with these heads; and what selects among them.

    Args:
        graph: the model.
        dependent: values that depend on the image.
        heads: its heads.

    Returns:
        The values in topological order; and for those that a selection reads, whether by magnitude.
    """
    local: dict[Value, frozenset[Value]] = {head.value: frozenset([head.value]) for head in heads}
    by_magnitude: dict[Value, bool] = {}
    for node in graph.nodes:
        if node.op is Op.SHAPE:
            continue
        read = [operand for operand in node.operands if operand in local]
        if not read or any(output in local for output in node.outputs):
            continue
        if selects(node, dependent):
            for operand in read:
                by_magnitude[operand] = by_magnitude.get(operand, False) or _by_magnitude(node, operand)
        else:
            local.update(dict.fromkeys(node.outputs, frozenset().union(*(local[operand] for operand in read))))
    return local, by_magnitude


def reshapes_between(graph: Graph, heads: Sequence[Head], end: Value) -> list[Value]:
    """Values on the way from heads to `end`, where classes and locations may still have axes of their own."""
    starts = {head.value for head in heads}
    behind = activations(graph, starts)
    way: set[Value] = {end}
    for node in reversed(graph.nodes):
        if not way.isdisjoint(node.outputs):
            way.update(behind.intersection(node.operands))
    made = [value for node in graph.nodes for value in node.outputs if value in behind & way - starts]
    return [value for value in made if "float" in value.dtype]


def selects(node: Node, dependent: set[Value]) -> bool:
    """Whether a node mixes locations or chooses among them, so that what follows it is not of one location."""
    if node.op in MIXES_PLACES:
        return True
    if node.op is Op.REDUCE:
        return reduces(node.kind, "max", "min")
    if node.op in (Op.GATHER, Op.TAKE, Op.SCATTER):
        index = node.operand(1)
        return index is not None and index in dependent
    if node.op is Op.MATMUL and all(operand in dependent for operand in node.inputs[:2]):
        return True
    return is_learned(node) or node.type in WITH_BODIES


def _by_magnitude(node: Node, operand: Value) -> bool:
    if node.op is Op.NMS:
        return operand is node.operand(1)
    return node.op is Op.COMPARE or _takes_best(node)
