"""ODAM of detectors with queries: the map of one box by the derivative of its query's score.

Zhao and Chan 2023, https://arxiv.org/abs/2304.06354: `ReLU(sum_c g_c F_c)`. F are the values that the last attention of
the queries to the image reads, `v`; in head h, query q takes the share `a[q, h, p]` of place p. Behind that attention
every query is by itself, so one walk back from all scores gives each query's derivative `d` by what it has read, and

    g[q, h, p] = a[q, h, p] d[q, h],    sum_c g_c F_c = sum_h a[q, h, p] (d[q, h] . v[h, p])

A deformable attention reads a few points of each level; its shares lie on the four cells around each.
"""

from __future__ import annotations

from xai_insert.errors import UnsupportedTaskError
from xai_insert.graph.cuts import activations, region
from xai_insert.graph.operators import FusedAttention, Product, Window
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Graph, Node, Op, Value, fixed, volume
from xai_insert.locate.query_attention import DenseLook, QueryReport, SampledLook
from xai_insert.locate.query_scores import ReportedScores
from xai_insert.methods.gradients.pullback import pullback
from xai_insert.methods.query_attention import dense_shares, in_cells, laid, of_boxes, part_of_axis, sampled_places
from xai_insert.methods.shaping import known_or_read, reshape, scalar


def odam_of_queries(surgeon: Surgeon[V], graph: Graph, report: QueryReport, looks: V | None = None) -> V:
    """The map of each reported box, `[B, M, h, w]` float32: by the score of the best class of its query.

    Args:
        surgeon: the model being edited.
        graph: its view.
        report: the queries and their attention.
        looks: not used: their attention, mean over heads.

    Raises:
        NoDerivativeError: a layer behind the attention has no rule.
        UnsupportedTaskError: the scores of the queries are not found, or queries meet behind the attention.
    """
    del looks
    op, look, scores = surgeon.ops, report.look, report.of_queries
    if scores is None:
        raise UnsupportedTaskError(f"ODAM wants the class scores of each query: {report.untold or 'found none'}")
    read = look.attention.result if isinstance(look, DenseLook) else look.result
    squashed = scores.value.made_by(Op.SIGMOID)
    source = squashed.read(0) if squashed else scores.value
    if meeting := _meeting(graph, read, source):
        raise UnsupportedTaskError(f"queries may meet behind their last look at the image, in {meeting.name!r}")
    (gradient,) = pullback(surgeon, graph, [read], {source: _seed(surgeon, scores)})
    if isinstance(look, DenseLook):
        maps = _dense(surgeon, graph, look, report.queries, gradient)
    else:
        maps = _sampled(surgeon, graph, look, report.queries, gradient)
    height, width = report.grid
    maps = of_boxes(surgeon, report, op.reshape(maps, [-1, report.queries, height * width]), height * width)
    rows = report.boxes.sizes[1]
    return reshape(op, maps, [-1, known_or_read(op, maps, 1, rows), height, width])


def _meeting(graph: Graph, read: Value, scores: Value) -> Node | None:
    """An operation behind the attention in which queries may meet."""
    reached = activations(graph, [read])
    for node in region(graph, [read], [scores]):
        kind = node.kind
        is_met = isinstance(kind, Product) and all(value in reached for value in node.inputs[:2])
        is_wide = isinstance(kind, Window) and volume(kind.kernel or (None,)) != 1
        if is_met or is_wide or isinstance(kind, FusedAttention):
            return node
    return None


def _seed(surgeon: Surgeon[V], scores: ReportedScores) -> V:
    """1 at the best class of each query, `[B, Q, W]`."""
    op, width = surgeon.ops, fixed(scores.value.sizes[2:])[0]
    end = width - scores.no_object
    x = part_of_axis(op, surgeon.handle(scores.value), 2, scores.start, end - scores.start, width)
    best = op.equal(x, op.reduce(x, "max", [2]))
    if (scores.start, end) == (0, width):
        return best
    return op.pad(best, [0, 0, scores.start], [0, 0, width - end])


def _dense(surgeon: Surgeon[V], graph: Graph, look: DenseLook, queries: int, gradient: V) -> V:
    op, item, cells = surgeon.ops, look.attention, look.height * look.width
    rank, width = len(item.value.sizes), fixed(item.value.sizes[-1:])[0]
    values = part_of_axis(op, surgeon.handle(item.value), rank - 2, look.first_token, cells, item.value.sizes[-2])
    values = op.reshape(values, [-1, look.heads, cells, width])
    gradient = part_of_axis(op, gradient, rank - 2, look.first_row, queries, item.result.sizes[-2])
    gradient = op.reshape(gradient, [-1, look.heads, queries, width])
    slope = op.mul(dense_shares(surgeon, graph, look, queries, as_met=True), op.matmul_transposed(gradient, values, 4))
    return op.maximum(op.reduce(slope, "sum", [1]), scalar(op, 0.0))


def _sampled(surgeon: Surgeon[V], graph: Graph, look: SampledLook, queries: int, gradient: V) -> V:
    """Of each level on its own grid, resized to the finest and added up."""
    op, total, start = surgeon.ops, None, 0
    width = fixed(look.result.sizes[1:2])[0]
    gradient = op.transpose(op.reshape(gradient, [-1, width, queries]), (0, 2, 1))
    weights = surgeon.handle(look.weights)
    for item in look.samplings:
        points, cells = fixed(item.result.sizes[3:])[0], item.height * item.width
        places = sampled_places(surgeon, graph, item, (item.height, item.width))
        across, down, share = (
            op.reshape(op.slice(places, 1, channel, channel + 1), [-1, queries, points]) for channel in range(3)
        )
        own = op.reshape(op.slice(weights, 3, start, start + points), [-1, queries, points])
        start += points
        shares = laid(op, *in_cells(op, across, down, share), op.mul(own, share), (item.height, item.width))
        shares = op.reshape(shares, [-1, look.heads, queries, cells])
        values = op.reshape(surgeon.handle(item.source), [-1, width, cells])
        slope = op.reshape(op.matmul(gradient, values), [-1, look.heads, queries, cells])
        made = op.maximum(op.reduce(op.mul(shares, slope), "sum", [1]), scalar(op, 0.0))
        made = op.reshape(made, [-1, queries, item.height, item.width])
        if (item.height, item.width) != (look.height, look.width):
            made = op.resize(made, look.height, look.width)
        total = made if total is None else op.add(total, made)
    assert total is not None  # there is a level
    return total
