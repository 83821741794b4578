"""Features that a region head or queries read, where a detector has no class score at locations."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.axes import has_place
from xai_insert.graph.cuts import activations, cut_values, region
from xai_insert.graph.operators import FusedAttention, OfRegions, Sampled, Softmax
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.detector import Regions
from xai_insert.locate.frontier import find_heads
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.levels import coarsest_map
from xai_insert.locate.outputs import query_boxes
from xai_insert.locate.places import Places, find_places


def region_feature(graph: Graph, images: Sequence[Value]) -> Regions | None:
    """The map that a region head pools from; the coarsest, last in the graph, where it pools from several."""
    pooled = _pooled(graph, images)
    if not pooled:
        return None
    places = find_places(graph)
    maps = [feature for value in pooled if (feature := places.map_of(value)) is not None and feature.channel_axis == 1]
    if not maps:
        return None
    readers = f"region head over {len(maps)} level{'s' if len(maps) > 1 else ''}"
    return Regions(_coarsest(maps), readers, has_region_head=True)


def _coarsest(maps: Sequence[FeatureMap]) -> FeatureMap:
    """The map with the fewest cells; the last one where some have an open size."""
    if any(feature.positions is None for feature in maps):
        return maps[-1]
    return min(maps, key=lambda feature: feature.positions or 0)


def _pooled(graph: Graph, images: Sequence[Value]) -> list[Value]:
    """The maps of the image that regions are pooled from."""
    dependent = activations(graph, images)
    poolings = [node for node in graph.nodes if node.op is Op.ROI_ALIGN and _lists(node, dependent)]
    read = dict.fromkeys(node.read(index) for node in poolings for index in node.record(OfRegions).features)
    return [value for value in read if value in dependent and value.rank == 4]


def pools_regions(graph: Graph, images: Sequence[Value]) -> bool:
    """Whether a model pools regions that it finds itself, or several of an image."""
    dependent = activations(graph, images)
    return any(node.op is Op.ROI_ALIGN and _lists(node, dependent) for node in graph.nodes)


def _lists(node: Node, dependent: set[Value]) -> bool:
    """Whether regions are a list; of one that is given, the scores are those of the image."""
    features = {node.read(index) for index in node.record(OfRegions).features}
    given = dependent.isdisjoint(value for value in node.operands if value not in features)
    return not given or node.output.sizes[:1] != (1,)


def drawn_maps(graph: Graph, images: Sequence[Value], masks: Value) -> list[FeatureMap]:
    """What lies in the image as masks do: they themselves, or what their regions are pooled from."""
    found = find_places(graph).map_of(masks)
    if found is not None:
        return [found]
    regions = region_feature(graph, images)
    return [] if regions is None else [regions.feature]


def encoder_feature(graph: Graph, images: Sequence[Value]) -> Regions | None:
    """The last map or tokens with a grid through which every path to the boxes of queries goes.

    None where heads of locations alone give the outputs: behind them lie coordinates and scores, no features, and no
    query reads what lies before them.
    """
    if not query_boxes(graph):
        return None
    places = find_places(graph)
    for output in of_queries(graph, images):
        for value in reversed(cut_values(graph, list(images), output)):
            feature = _as_map(places, value)
            if feature is not None and not _is_pooled(graph, feature.value, output, places):
                return Regions(feature, "queries")
    return None


def _is_pooled(graph: Graph, feature: Value, output: Value, places: Places) -> bool:
    """Whether nothing is asked of a map, but heads stand side by side behind its pool."""
    way = region(graph, [feature], [output])
    pools = [node for node in way if node.op in (Op.REDUCE, Op.POOL) and not places.is_placed(node.output)]
    return bool(pools) and not any(isinstance(node.kind, (Softmax, FusedAttention)) for node in way)


def of_queries(graph: Graph, images: Sequence[Value]) -> list[Value]:
    """The outputs that the image reaches by other ways than through heads of locations.

    What queries look at is no head, though it is given as well, as the memory of an encoder is.
    """
    heads = {head.value for head in find_heads(graph, images) if not _is_looked_at(graph, head.value)}
    reached = set(images)
    for node in graph.nodes:
        if node.op is not Op.SHAPE and any(operand in reached for operand in node.inputs):
            reached.update(value for value in node.outputs if value not in heads)
    return [value for value in graph.outputs if value in reached]


def _is_looked_at(graph: Graph, value: Value) -> bool:
    """Whether attention behind a value weighs its places, or samples it at some."""
    dependent, places = activations(graph, [value]), find_places(graph)
    return any(_looks(node, places) for node in graph.nodes if not dependent.isdisjoint(node.inputs))


def _looks(node: Node, places: Places) -> bool:
    if not isinstance(node.kind, Softmax):
        return isinstance(node.kind, (FusedAttention, Sampled))
    axes = places.traced.get(node.output, ())
    return len(axes) > 2 and any(has_place(axes[axis]) for axis in node.kind.axes)


def _as_map(places: Places, value: Value) -> FeatureMap | None:
    if value.producer is None or "float" not in value.dtype:
        return None
    feature = coarsest_map(places, value)
    return feature if feature is not None and min(size or 2 for size in feature.grid) > 1 else None
