"""Where the queries of a detector look: the last attention of each reported box's query to places of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from xai_insert.graph.along import along, reduces
from xai_insert.graph.axes import Axis, Digit, Origin, axis_size, parts_of
from xai_insert.graph.items import only, present
from xai_insert.graph.operators import Sampled
from xai_insert.graph.traits import ARRANGES, SAME
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.attention import Attention, find_attentions
from xai_insert.locate.inputs import outputs_of_image
from xai_insert.locate.outputs import query_boxes
from xai_insert.locate.places import Place, Places, find_places
from xai_insert.locate.query_scores import ReportedScores, are_scores, chosen_scores, scores_beside

WANTED = (
    "detectors with class scores at every location, with a head that classifies regions, or with "
    "queries whose attention to the image can be followed"
)
_BOX = 4
_LEAST_WIDTH = 3  # of what is sampled: two coordinates and how much was read
_KEEPING = ARRANGES | SAME


@dataclass(frozen=True)
class DenseLook:
    """Attention of queries to every token of one grid.

    Attributes:
        attention: the attention.
        first_row: the first query among its rows.
        first_token: the first token of the grid among its keys.
        heads: how many.
        height: of the grid.
        width: likewise.
    """

    attention: Attention
    first_row: int
    first_token: int
    heads: int
    height: int
    width: int


@dataclass(frozen=True)
class Sampling:
    """Points of one level that are read.

    Attributes:
        source: the map that is read, `[N * heads, d, h, w]` or `[N * heads, d, h * w]`.
        result: what is read, `[N * heads, d, Q, points]`.
        height: h.
        width: w.
    """

    source: Value
    result: Value
    height: int
    width: int


@dataclass(frozen=True)
class SampledLook:
    """Deformable attention of queries to a few computed points of one or more levels.

    Attributes:
        samplings: in the order of the points.
        weights: of the points of all levels, `[N * heads, 1, Q, points]`.
        result: the sum over the points, `[N * heads, d, Q]`, perhaps with a last axis of size 1.
        heads: how many.
        height: of the finest level, on which all points are laid.
        width: likewise.
    """

    samplings: tuple[Sampling, ...]
    weights: Value
    result: Value
    heads: int
    height: int
    width: int


@dataclass(frozen=True)
class QueryReport:
    """What the map of each reported box is made of.

    Attributes:
        boxes: the output with the boxes.
        queries: Q.
        rows: the node that chooses the reported rows among those of the queries; None where each query reports one.
        look: where the queries look.
        scores: their class scores; None where they cannot be told.
        untold: why not.
        of_queries: the class scores `[N, Q, K]` of all queries; None where they are not found.
    """

    boxes: Value
    queries: int
    rows: Node | None
    look: DenseLook | SampledLook
    scores: ReportedScores | None
    untold: str = ""
    of_queries: ReportedScores | None = None

    @property
    def grid(self) -> tuple[int, int]:
        return self.look.height, self.look.width


def find_query_report(graph: Graph, num_classes: int | None = None, scores: str | None = None) -> QueryReport | str:
    """Follow the rows of the boxes back to the queries and to their last attention to the image.

    The result is the reason where no such attention was found: which detectors have one, and what this one lacks.

    Args:
        graph: the model.
        num_classes: the number of classes, if the user has given it; tells whether one score means no object.
        scores: name of the output that the user says to hold the class scores.

    Raises:
        UnknownNameError: no output has that name.
    """
    places = find_places(graph)
    named = None if scores is None else graph.chosen(scores)[0][1]
    boxes = _boxes(graph, named)
    looks = list(_looks(graph, places))
    for origin, look in looks:
        for output in boxes:
            beside = partial(scores_beside, graph, _first(output, boxes), num_classes, named)
            found = _report(graph, places, output, origin, look, beside)
            if found is not None:
                return found
    seen = f"{len(looks)} attentions to places of the image" if looks else "no attention to places of the image"
    return f"{WANTED}; found {seen}, and none whose rows are those of the boxes"


def _boxes(graph: Graph, named: Value | None) -> list[Value]:
    """The outputs that may hold the boxes of queries, but for what is said or seen to be their scores."""
    four = [value for value in query_boxes(graph) if value is not named or (value.sizes[2] or 0) > _BOX]
    return [value for value in four if not are_scores(value)] or four


def _first(output: Value, boxes: Sequence[Value]) -> list[Value]:
    return [output, *(value for value in boxes if value is not output)]


def _report(
    graph: Graph,
    places: Places,
    output: Value,
    origin: Origin,
    look: DenseLook | SampledLook,
    beside: Callable[[], tuple[ReportedScores | None, str]],
) -> QueryReport | None:
    """Boxes of each query of a look, or of chosen ones; None if an output is neither."""
    if _is_of_each(graph, places, output, origin):
        scores, untold = beside()
        return QueryReport(output, origin.size or 0, None, look, scores, untold, scores)
    chosen = _choice(places, output, origin)
    if chosen is None:
        return None
    scores, untold = chosen_scores(graph, output)
    every = None if scores is None else _behind(places, scores.value, origin)
    return QueryReport(output, origin.size or 0, chosen, look, scores, untold, every)


def _is_of_each(graph: Graph, places: Places, boxes: Value, origin: Origin) -> bool:
    """Whether boxes, or what stands beside them, have a row for each of an origin."""
    beside = [other for other in outputs_of_image(graph) if other.rank == 3 and other.sizes[1] == boxes.sizes[1]]
    return any(_is_of(places, value, origin) for value in beside)


def _is_of(places: Places, value: Value, origin: Origin) -> bool:
    axes = places.traced.get(value, ())
    return len(axes) > 1 and _position(axes[1], origin) == 0 and axis_size(axes[1]) == origin.size


def _position(axis: Axis, origin: Origin) -> int | None:
    """Where the whole of an origin begins in an axis, in which others may stand beside it."""
    start = 0
    for part in parts_of(axis):
        only = _only(part)
        if only is not None and only.origin is origin and only.step == 1 and only.size == origin.size:
            return start
        size = axis_size(part)
        if size is None:
            return None
        start += size
    return None


def _only(axis: Axis) -> Digit | None:
    """What an axis is made of, beside a batch of one; None if of several."""
    several = [digit for digit in axis if digit.size != 1]
    return only(several)


def _choice(places: Places, output: Value, origin: Origin) -> Node | None:
    """The node that takes rows of `origin` at computed indices, on the way to an output."""
    stack, seen = [output], {output}
    while stack:
        node = stack.pop().producer
        if node is None:
            continue
        if _takes_by_computed(node):
            source = node.read(0)
            if source.rank == node.output.rank == 3 and _is_of(places, source, origin):
                return node
            continue
        following = [value for value in dict.fromkeys(node.computed) if value not in seen]
        seen.update(following)
        stack += following
    return None


def _takes_by_computed(node: Node) -> bool:
    """Whether a node takes elements at indices that the model computes."""
    source, indices = node.operand(0), node.operand(1)
    return node.op in (Op.GATHER, Op.TAKE) and None not in (source, indices) and not node.read(1).is_constant


def _behind(places: Places, chosen: Value, origin: Origin) -> ReportedScores | None:
    """The class scores of all queries, among which the best were taken."""
    value = chosen
    while (node := value.producer) is not None and node.computed:
        value = node.read(0)
        if value.rank == 3 and _is_of(places, value, origin):
            return ReportedScores(value)
    return None


def _looks(graph: Graph, places: Places) -> Iterator[tuple[Origin, DenseLook | SampledLook]]:
    """Every attention to places of the image with the origins that its rows may be, the last first."""
    dense = {item.node: item for item in find_attentions(graph.nodes)}
    for node in reversed(graph.nodes):
        if node in dense:
            yield from _dense(places, dense[node])
        elif node.op is Op.MUL:
            yield from _sampled(places, node)


def _dense(places: Places, item: Attention) -> Iterator[tuple[Origin, DenseLook]]:
    heads, rows = _heads(places, item), places.traced.get(item.result, ())
    found = _key_grid(places, item)
    if found is None or len(rows) < 2 or heads is None:
        return
    (height, width), prefix = found
    for part in parts_of(rows[-2]):
        for digit in part:
            first = _position(rows[-2], digit.origin)
            if first is not None and not digit.origin.is_place:
                yield digit.origin, DenseLook(item, first, prefix, heads, height, width)


def _key_grid(places: Places, item: Attention) -> tuple[tuple[int, int], int] | None:
    """The grid of an attention's keys, upright and of known size, and how many tokens stand before it."""
    place = places.of(item.key)
    if place is None or place.axes != (item.key_axis,) or not _is_upright(places, place):
        return None
    height, width = place.grid
    if height is None or width is None or place.prefix is None:
        return None
    return (height, width), place.prefix


def _heads(places: Places, item: Attention) -> int | None:
    sizes = item.query.sizes
    return sizes[1] if len(sizes) == 4 else places.beside_images(item.key)


def _is_upright(places: Places, place: Place) -> bool:
    return places.frame_of(place).is_upright


def _sampled(places: Places, node: Node) -> Iterator[tuple[Origin, SampledLook]]:
    """The look of a product of what was sampled, `[N * heads, d, Q, points]`, with a weight for each point."""
    if node.output.rank != 4 or not _is_summed_over_points(node.output):
        return
    for samples, weights in ((node.read(0), node.read(1)), (node.read(1), node.read(0))):
        queries = _queries_of(places, samples, weights)
        levels = () if queries is None else _levels(places, samples)
        heads = places.beside_images(levels[0].source) if levels else None
        if heads is not None and queries is not None:
            finest = max(levels, key=lambda item: item.height * item.width)
            result = node.output.uses[0].node.output
            yield queries.origin, SampledLook(levels, weights, result, heads, finest.height, finest.width)


def _queries_of(places: Places, samples: Value, weights: Value) -> Digit | None:
    """The queries that weigh samples, each its own."""
    if not _are_weighted(samples, weights):
        return None
    rows = places.traced.get(weights, ())
    return _only(rows[2]) if len(rows) == samples.rank else None


def _are_weighted(samples: Value, weights: Value) -> bool:
    """Whether values have the sizes of what was sampled, and of one weight for all channels of a point."""
    return samples.rank == weights.rank == 4 and weights.sizes[1] == 1 and (samples.sizes[1] or 0) >= _LEAST_WIDTH


def _levels(places: Places, samples: Value) -> tuple[Sampling, ...]:
    """The maps that were sampled; none where one of them is not told."""
    found = [_sampling(places, part) for part in _side_by_side(samples)]
    levels = tuple(present(found))
    return levels if len(levels) == len(found) else ()


def _is_summed_over_points(value: Value) -> bool:
    kind = value.uses[0].node.kind if len(value.uses) == 1 else None
    return kind is not None and reduces(kind, "sum") and along(kind) == 3


def _side_by_side(value: Value) -> Sequence[Value]:
    """What was joined along the points of `[N, d, Q, points]`, or stacked before them and then flattened."""
    flat, node = value.made_by(Op.RESHAPE), value.made_by(Op.CONCAT)
    if flat is not None and flat.read(0).sizes[:3] == value.sizes[:3]:
        return _side_by_side(flat.read(0))
    if node is not None and along(node.kind) == 3:
        return [part for operand in node.operands for part in _side_by_side(operand)]
    return [value]


def _sampling(places: Places, value: Value) -> Sampling | None:
    """What a value `[N, d, Q, points]` was read from: the last map on the way along its channels."""
    width, current = value.sizes[1], value
    for _ in range(64):
        place = places.of(current)
        if place is not None and current.rank in (3, 4):
            (height, across) = place.grid
            if height is None or across is None or not _is_sampled_map(places, current, place):
                return None
            return Sampling(current, value, height, across)
        source = _read(current.producer, width)
        if source is None:
            return None
        current = source
    return None


def _is_sampled_map(places: Places, value: Value, place: Place) -> bool:
    """Whether a value is an upright map behind its channels, and holds nothing else."""
    if place.prefix or place.suffix or place.axes != ((2, 3) if value.rank == 4 else (2,)):
        return False
    return _is_upright(places, place)


def _read(node: Node | None, width: int | None) -> Value | None:
    """The operand whose channels a node leaves apart: what is sampled, not where or how much."""
    if node is None:
        return None
    if isinstance(node.kind, Sampled) or node.op in _KEEPING | {Op.TAKE, Op.GATHER}:
        return node.read(0)
    if node.op in (Op.MUL, Op.ADD):
        fitting = [v for v in node.operands if v.axis_count > 1 and v.sizes[1] == width]
        return fitting[0] if fitting else None
    return None
