"""The last maps of a model in which no single map lies on every path from the image to the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xai_insert.graph.cuts import activations, region
from xai_insert.graph.operators import FusedAttention, Softmax
from xai_insert.graph.view import Graph, Op, Value
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.stages import is_sum


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
            attended.update(value for value in node.inputs if value is not None)
    return _joint(graph, images, logits, {found.value: found for found in latest.values()})


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
            stack += [operand for operand in value.producer.inputs if operand is not None]
    for found in met:
        behind = activations(graph, [found.value])
        if any(other.value in behind for other in met if other is not found):
            return []
    return sorted(met, key=lambda found: found.positions or 0, reverse=True)
