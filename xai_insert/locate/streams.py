"""The last maps by which a derivative says something."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xai_insert.graph.cuts import activations, region
from xai_insert.graph.operators import FusedAttention, Joined, Norm, Parts, Pointwise, Slices, Softmax
from xai_insert.graph.view import Graph, Op, Value
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
            if may_be and (found := map_of(value)) is not None and found.grid not in latest:
                latest[found.grid] = found
        if isinstance(node.kind, (Softmax, FusedAttention)) or any(value in attended for value in node.outputs):
            attended.update(value for value in node.operands)
    return _joint(graph, images, logits, {found.value: found for found in latest.values()})


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
        found = places.map_of(value, others=True)
        attends = any(isinstance(node.kind, (Softmax, FusedAttention)) for node in region(graph, [value], [logits]))
        if attends and found is not None and found.grid == entry.grid:
            return found
    return entry


def _norms_of(value: Value) -> list[Value]:
    """The results of the norms that read a value, its parts or it beside others, with their scale and bias."""
    found: list[Value] = []
    seen: set[Value] = set()
    stack = [value]
    while stack:
        for use in stack.pop().uses:
            result = use.node.output
            if isinstance(use.node.kind, Norm):
                found.append(_scaled(result))
            elif isinstance(use.node.kind, _MOVING) and result not in seen:
                seen.add(result)
                stack.append(result)
    return found


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
    met: list[FeatureMap] = []
    seen: set[Value] = set()
    stack = [logits]
    while stack:
        value = stack.pop()
        if value in seen or value not in reached:
            continue
        seen.add(value)
        if value in maps:
            met.append(maps[value])
        elif value.producer is None:
            return []
        elif value.producer.op is not Op.SHAPE:
            stack += value.producer.operands
    for found in met:
        behind = activations(graph, [found.value])
        if any(other.value in behind for other in met if other is not found):
            return []
    return sorted(met, key=lambda found: found.positions or 0, reverse=True)
