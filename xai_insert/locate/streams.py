"""The last maps by which a derivative says something."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xai_insert.graph.cuts import activations, region, walk
from xai_insert.graph.operators import FusedAttention, Joined, Norm, Parts, Pointwise, Slices, Softmax
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.places import Places
from xai_insert.locate.stages import is_sum
from xai_insert.locate.transformer import attended_tokens

_MOVING = (Slices, Parts, Joined)


def last_maps(
    graph: Graph,
    images: Sequence[Value],
    logits: Value,
    map_of: Callable[[Value], FeatureMap | None],
    *,
    reads_token: bool,
) -> list[FeatureMap]:
    """The last map of each grid, if together they lie on every path and none feeds another; else none.

    Args:
        graph: the model.
        images: its image inputs.
        logits: the class scores.
        map_of: a value as a feature map; None if it is none.
        reads_token: whether the head takes class tokens: a map must then feed an attention, or its cells tell nothing,
            and be a sum with what its block read, or class tokens pass it by.
    """
    latest: dict[tuple[int | None, ...], FeatureMap] = {}
    attended: set[Value] = set()
    for node in reversed(region(graph, images, [logits])):
        if node.op is Op.SHAPE:
            continue
        for value in node.outputs:
            may_be = not reads_token or (value in attended and is_sum(node))
            if may_be and (found := map_of(value)) is not None:
                latest.setdefault(found.grid, found)
        if _attends(node) or any(value in attended for value in node.outputs):
            attended.update(node.operands)
    return _joint(graph, images, logits, {found.value: found for found in latest.values()})


def _attends(node: Node) -> bool:
    return isinstance(node.kind, (Softmax, FusedAttention))


def normed(graph: Graph, images: Sequence[Value], logits: Value, entry: FeatureMap, places: Places) -> FeatureMap:
    """What the last attention reads of the tokens that enter its block, where that is a norm of them; else these.

    A norm takes no notice of the size of a token, so the derivative by a token that is read through a norm alone is at
    a right angle to it: their product, summed over channels, is zero. Where the head takes class tokens, patches are
    read by the last attention only, whatever passes it by.
    """
    behind = activations(graph, [entry.value])
    groups = attended_tokens(graph, images, logits, places)
    attended = groups[-1][1] if groups else entry.value
    is_of_entry = attended is not entry.value and attended in behind and attended.shape == entry.value.shape
    for value in [attended] if is_of_entry else _norms_of(entry.value):
        found = places.any_map_of(value)
        attends = any(map(_attends, region(graph, [value], [logits])))
        if attends and found is not None and found.grid == entry.grid:
            return found
    return entry


def _norms_of(value: Value) -> list[Value]:
    """The results of the norms that read a value, its parts or it beside others, with their scale and bias."""
    moved = walk([value], lambda item: [use.node.output for use in item.uses if isinstance(use.node.kind, _MOVING)])
    readers = [use.node for item in moved for use in item.uses]
    return [_scaled(node.output) for node in readers if isinstance(node.kind, Norm)]


def _scaled(result: Value) -> Value:
    """A norm with the scale and the bias behind it."""
    while len(result.uses) == 1 and isinstance((node := result.uses[0].node).kind, Pointwise):
        if not all(operand is result or (operand is not None and operand.is_constant) for operand in node.inputs):
            break
        result = node.output
    return result


def _joint(graph: Graph, images: Sequence[Value], logits: Value, maps: dict[Value, FeatureMap]) -> list[FeatureMap]:
    """Those that a walk back from the scores meets first."""
    reached = activations(graph, images)

    def before(value: Value) -> Sequence[Value]:
        node = None if value in maps or value.made_by(Op.SHAPE) else value.producer
        return [operand for operand in node.operands if operand in reached] if node is not None else ()

    way = list(walk([value for value in [logits] if value in reached], before))
    met = [maps[value] for value in way if value in maps]
    if any(value.producer is None for value in way if value not in maps) or _feed_each_other(graph, met):
        return []
    return sorted(met, key=lambda found: found.positions or 0, reverse=True)


def _feed_each_other(graph: Graph, maps: Sequence[FeatureMap]) -> bool:
    """Whether a map depends on another of them."""
    behind = [value for found in maps for value in activations(graph, [found.value]) - {found.value}]
    return not {found.value for found in maps}.isdisjoint(behind)
