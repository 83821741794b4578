"""The head of a two-stage detector that classifies regions: its features, its class scores, and the regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xai_insert.errors import UnsupportedTaskError
from xai_insert.graph.cuts import activations, cut_values, makers
from xai_insert.graph.moves import moved_into
from xai_insert.graph.operators import OfRegions
from xai_insert.graph.trace import trace
from xai_insert.graph.traits import ARITHMETIC, PRODUCTS, SAME, SQUASHES
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.boxes import ReportedBoxes
from xai_insert.locate.classifier import first_without_place
from xai_insert.locate.collapse import GridEnd, closed_ends, feature_before, grid_ends
from xai_insert.locate.detector import Regions
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.places import Places

_BEHIND_LOGITS = SQUASHES | SAME | {Op.RESHAPE}
_BOX = 4
_COLUMNS = range(_BOX, 9)  # of a list of boxes
_WANTED = "--per-box wants a two-stage detector that reports class scores of its regions"


@dataclass(frozen=True)
class RegionHead:
    """What classifies P regions.

    Attributes:
        feature: what is pooled from each region, `[P, C, m, n]`, the last with a grid.
        ends: the nodes that end its grid, all of them with a closed form.
        logits: class scores `[P, K]`.
        scores: their softmax or sigmoid, `[P, K]` or with axes of size 1 around; reported ones are elements of it.
        scored: outputs that hold elements of `scores`, moved but not changed.
        regions: left, top, right and bottom, `[P, 4]`.
        map: what the regions are pooled from and is explained as a whole, `[N, C, h, w]`.
        scale: its cells for one unit of the regions' coordinates.
        refiners: linear layers behind which the regions become boxes, one or more values `[P, 4]` or `[P, 4 * K]`.
    """

    feature: FeatureMap
    ends: tuple[GridEnd, ...]
    logits: Value
    scores: Value
    scored: tuple[Value, ...]
    regions: Value
    map: Value
    scale: float
    refiners: tuple[Value, ...]


@dataclass(frozen=True)
class RegionReport:
    """How a two-stage detector reports.

    Attributes:
        head: what classifies the regions.
        grid: height and width of its map.
        boxes: the boxes among the outputs; `scale` gives the units of the regions.
        scores: the output with their scores, `[M]`, `[N, M]`, or that with the boxes.
        score_column: column of the score in an output with boxes; None where the scores have an output of their own.
    """

    head: RegionHead
    grid: tuple[int, int]
    boxes: ReportedBoxes
    scores: Value
    score_column: int | None


def find_region_head(graph: Graph, found: Regions) -> RegionHead:
    """Locate what classifies the regions.

    Args:
        graph: the model.
        found: the map that is explained as a whole.

    Raises:
        UnsupportedTaskError: it is not built so that a map of each region has a closed form.
    """
    pools = [node for node in graph.nodes if node.op is Op.ROI_ALIGN]
    pooled = [node.output for node in pools]
    scores, scored = _scores(graph, activations(graph, pooled))
    logits = _logits(scores)
    cuts = cut_values(graph, pooled, logits)
    if not cuts:
        raise UnsupportedTaskError(f"{_WANTED}; {logits.describe()} does not depend on them")
    places = Places(trace(graph, dict.fromkeys(pooled, (2, 3))))
    ends = tuple(grid_ends(first_without_place(cuts, places), activations(graph, pooled), places))
    feature = _feature(graph, ends, places)
    pools = makers(feature.value, lambda node: node.op is Op.ROI_ALIGN, lambda value: value.rank == feature.value.rank)
    return RegionHead(
        feature=feature,
        ends=ends,
        logits=logits,
        scores=scores,
        scored=scored,
        regions=_regions(pools),
        map=found.value,
        scale=_scale(graph, found),
        refiners=_refiners(graph, pools, scores),
    )


def _scores(graph: Graph, dependent: set[Value]) -> tuple[Value, tuple[Value, ...]]:
    """The class scores of the regions, and the outputs that hold some of them."""
    found: dict[Value, list[Value]] = {}
    for output in (output for output in graph.outputs if output.rank in (1, 2, 3)):
        for value in moved_into(output):
            if value in dependent and _may_be_scores(value):
                found.setdefault(value, []).append(output)
    if len(found) != 1:
        listed = ", ".join(value.describe() for value in found) or "none"
        raise UnsupportedTaskError(f"{_WANTED}; outputs hold elements of {listed}")
    scores, outputs = next(iter(found.items()))
    return scores, tuple(outputs)


def _may_be_scores(value: Value) -> bool:
    return value.made_by(*SQUASHES) is not None and value.rank in (2, 3)


def _logits(scores: Value) -> Value:
    """The value `[P, K]` under the softmax or sigmoid."""
    value = scores
    while (node := value.made_by(*_BEHIND_LOGITS)) is not None:
        source = node.read(0)
        if source.shape is None or source.shape[-1:] != scores.sizes[-1:] or (value is not scores and value.rank == 2):
            break
        value = source
    if value.rank != 2 or value.sizes[1] is None or value is scores:
        raise UnsupportedTaskError(f"{_WANTED}; {scores.describe()} is no list of regions with class scores")
    return value


def _feature(graph: Graph, ends: Sequence[GridEnd], places: Places) -> FeatureMap:
    found = [feature_before(end, places) for end in ends] if all(end.grid_axes for end in ends) else []
    features = {item.value: item for item in found}
    if len(features) != 1:
        kinds = ", ".join(map(str, ends)) or "nothing"
        raise UnsupportedTaskError(f"{_WANTED}, from one pooled feature each; the grid ends in {kinds}")
    feature = next(iter(features.values()))
    obstacle = closed_ends(graph, ends, feature, places) or _open_sizes(feature)
    if obstacle is not None:
        raise UnsupportedTaskError(f"--per-box: the maps of regions have no closed form: {obstacle}")
    return feature


def _open_sizes(feature: FeatureMap) -> str | None:
    is_open = feature.positions is None or feature.channels is None
    return f"the sizes of {feature.value.describe()} are not known" if is_open else None


def _regions(pools: Sequence[Node]) -> Value:
    """The last value `[P, 4]` from which all pools take their regions."""
    shared: dict[Value, None] | None = None
    for node in pools:
        before = moved_into(node.read(1))
        fitting = [v for v in before if v.rank == 2 and v.sizes[1] == _BOX and (shared is None or v in shared)]
        shared = dict.fromkeys(fitting)
    if not shared:
        raise UnsupportedTaskError(f"{_WANTED}; no list of regions was found that all levels take theirs from")
    return next(iter(shared))


def _scale(graph: Graph, found: Regions) -> float:
    for node in graph.nodes:
        kind = node.kind
        if not isinstance(kind, OfRegions) or kind.scale is None:
            continue
        if any(node.read(index) is found.value for index in kind.features):
            return kind.scale
    raise UnsupportedTaskError(f"{_WANTED}; the scale of {found.value.describe()} is not known")


def _refiners(graph: Graph, pools: Sequence[Node], scores: Value) -> tuple[Value, ...]:
    """The last linear layers on the way from the pooled features to outputs that may be boxes."""
    dependent = activations(graph, [node.output for node in pools])

    def refines(node: Node) -> bool:
        return node.op in PRODUCTS and node.output in dependent

    def is_way(value: Value) -> bool:
        return value in dependent and value is not scores

    boxes = filter(may_be_boxes, graph.outputs)
    found = (_with_bias(node.output) for output in boxes for node in makers(output, refines, is_way))
    return tuple(dict.fromkeys(found))


def may_be_boxes(output: Value) -> bool:
    """Whether an output may hold boxes, with a score and a label beside them or not."""
    if output.rank not in (2, 3) or "float" not in output.dtype:
        return False
    columns = output.sizes[-1]
    return columns is None or columns in _COLUMNS


def _with_bias(product: Value) -> Value:
    """The result of a linear layer, where its bias and factors follow as operations of their own."""
    value = product
    while len(value.uses) == 1:
        node = value.uses[0].node
        if node.op not in ARITHMETIC or not node.stored:
            break
        value = node.output
    return value
