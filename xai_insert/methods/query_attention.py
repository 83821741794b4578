"""Query attention: the map of one reported box, the places that its query attends to in the last decoder layer.

Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020 (arXiv 2005.12872), figure 6, draws the same
weights. Deformable attention (Zhu et al., ICLR 2021, arXiv 2010.04159) reads a few points of each level; where they
are is found by sampling the coordinates of the cells in place of the features, so that it does not matter how the model
samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CannotFreeBatchError
from xai_insert.graph.cuts import region
from xai_insert.graph.operators import FusedAttention
from xai_insert.graph.ops import Ops, Surgeon, V
from xai_insert.graph.view import Graph, Op, Value, constant_of, fixed, volume
from xai_insert.locate.attention import Attention
from xai_insert.locate.query_attention import DenseLook, QueryReport, SampledLook, Sampling
from xai_insert.locate.query_scores import ReportedScores
from xai_insert.methods.shaping import known_or_read, operands_again, rerun, reshape, scalar, transposed_again
from xai_insert.methods.tensor import Tensor

_TINY = 1e-6
_HIDDEN = 1e9  # taken off the scores of tokens that a mask hides


def query_maps(surgeon: Surgeon[V], graph: Graph, report: QueryReport) -> V:
    """Where the query of each reported box looks, `[B, M, h * w]` float32, 0 or above: attention, mean over heads.

    A dense attention has a weight for each token. A point of a deformable one is laid on the finest level at its place
    in the image, its weight spread over the four nearest cells as bilinear sampling reads them; what lies outside
    counts as far as cells at the border are read.

    Args:
        surgeon: the model being edited.
        graph: its view.
        report: the queries and their attention.
    """
    op, look = surgeon.ops, report.look
    if isinstance(look, DenseLook):
        shares = op.reduce(dense_shares(surgeon, graph, look, report.queries), "mean", [1])
        cells = look.height * look.width
        return of_boxes(surgeon, report, op.reshape(shares, [-1, report.queries, cells]), cells)
    points = _sampled(surgeon, graph, look, report.queries)
    across, down, weights = (of_boxes(surgeon, report, item, _points(look)) for item in points)
    maps = laid(op, across, down, weights, (look.height, look.width))
    return op.reshape(maps, [*_leading(op, maps), look.height * look.width])


def of_boxes(surgeon: Surgeon[V], report: QueryReport, values: V, width: int) -> V:
    """Rows of `[B, Q, width]` in the order of the boxes."""
    op = surgeon.ops
    if report.rows is None:
        return values
    return op.take(values, op.expand(_rows(surgeon, report), [1, 1, width]), 1)


def class_scores(surgeon: Surgeon[V], scores: ReportedScores) -> V:
    """The class scores of each box, `[B, M, K]` in 0..1; K is 1 where the model gives the best one alone."""
    op = surgeon.ops
    x, sizes = surgeon.handle(scores.value), scores.value.sizes
    if len(sizes) == 2:
        return op.unsqueeze(x, [2])
    width = fixed(sizes[2:])[0]
    if scores.start:
        x = op.slice(x, 2, scores.start, width)
    if scores.activation is not None:
        x = op.softmax(x, 2) if scores.activation == "softmax" else op.sigmoid(x)
    return op.slice(x, 2, 0, width - scores.start - 1) if scores.no_object else x


def box_query_maps(surgeon: Surgeon[V], report: QueryReport, maps: V) -> V:
    """The map of each reported box, `[B, M, h, w]`: `query_maps` times the best class score, where that is told."""
    op = surgeon.ops
    if report.scores is not None:
        maps = op.mul(maps, op.reduce(class_scores(surgeon, report.scores), "max", [2]))
    return _on_grid(op, maps, report.boxes.sizes[1], report)


def class_query_maps(surgeon: Surgeon[V], report: QueryReport, scores: ReportedScores, maps: V) -> V:
    """The map of each class, `[B, K, h, w]`: `query_maps` times the class's scores, summed over the queries."""
    op = surgeon.ops
    by_class = op.transpose(class_scores(surgeon, scores), (0, 2, 1))
    return _on_grid(op, op.matmul(by_class, maps), scores.classes, report)


def _on_grid(op: Ops[V], maps: V, rows: int | None, report: QueryReport) -> V:
    return reshape(op, maps, [-1, known_or_read(op, maps, 1, rows), *report.grid])


def _rows(surgeon: Surgeon[V], report: QueryReport) -> V:
    """The query of each reported box, int64 `[B, M, 1]`: their numbers taken as the model takes their rows."""
    op, node = surgeon.ops, report.rows
    assert node is not None
    source = surgeon.handle(node.read(0))
    numbers = np.arange(report.queries, dtype=np.float32).reshape(1, -1, 1)
    numbered = op.add(op.mul(source, scalar(op, 0.0)), op.constant(numbers))
    operands = [numbered, *(None if v is None else surgeon.handle(v) for v in node.inputs[1:])]
    return op.cast(op.slice(surgeon.copy(node, operands)[0], 2, 0, 1), "int64")


def dense_shares(surgeon: Surgeon[V], graph: Graph, look: DenseLook, queries: int, *, as_met: bool = False) -> V:
    """Attention to the tokens of the grid: `[B, heads, Q, h * w]`; with `as_met` what meets the values."""
    op, item = surgeon.ops, look.attention
    rank, cells = len(item.value.sizes if as_met else item.query.sizes), look.height * look.width
    if item.is_fused:
        shares = _fused(surgeon, look, queries)
    else:
        shares = _again(surgeon, graph, item, item.weights if as_met else item.shares)
        shares = part_of_axis(op, shares, rank - 2, look.first_row, queries, item.queries)
    shares = part_of_axis(op, shares, rank - 1, look.first_token, cells, item.value.sizes[-2])
    return op.reshape(shares, [-1, look.heads, queries, cells])


def _half(surgeon: Surgeon[V], value: Value) -> V:
    """Half of a value, which a scale may have made."""
    node = value.made_by(Op.MUL)
    scales = [] if node is None else [item for item in node.operands if item.is_constant and volume(item.sizes) == 1]
    if node is None or len(scales) != 1 or (scale := constant_of(scales[0])) is None:
        return surgeon.ops.mul(transposed_again(surgeon, value), scalar(surgeon.ops, 0.5))
    (source,) = (item for item in node.operands if item is not scales[0])
    return surgeon.ops.mul(transposed_again(surgeon, source), surgeon.ops.constant(scale * scale.dtype.type(0.5)))


def _again(surgeon: Surgeon[V], graph: Graph, item: Attention, wanted: Value | None) -> V:
    """The shares, or what is made of them, once more.

    A runtime that merges the model's attention must find it read by nothing else. For the same reason query and key
    are read before they are transposed, and the product is not the model's own: of half the query, and then doubled,
    which changes no bit. Half is taken in one product with the query's scale: of two, one behind the other, beside that
    of the key, onnxruntime makes a graph that does not load.
    """
    op = surgeon.ops
    assert wanted is not None
    made = {item.key: transposed_again(surgeon, item.key)}
    for node in region(graph, [item.query, item.key], [wanted]):
        operands = operands_again(surgeon, node, made)
        is_product = node.op is Op.MATMUL and node.read(0) is item.query
        if is_product:
            operands[0] = _half(surgeon, item.query)
        results = surgeon.copy(node, operands)
        made.update(zip(node.outputs, [op.mul(results[0], scalar(op, 2.0))] if is_product else results, strict=True))
    return made[wanted]


def _fused(surgeon: Surgeon[V], look: DenseLook, queries: int) -> V:
    """What a fused attention gives each token, at the rows of the queries."""
    op, item = surgeon.ops, look.attention
    node, rank = item.node, len(item.query.sizes)
    kind = node.record(FusedAttention)
    if kind.is_causal:
        raise CannotFreeBatchError(f"the attention {node.name!r} is causal")
    scale = kind.factor(fixed(item.query.sizes[-1:])[0])
    query = transposed_again(surgeon, item.query)
    query = part_of_axis(op, query, rank - 2, look.first_row, queries, item.queries)
    scores = op.matmul_transposed(op.mul(query, scalar(op, scale)), transposed_again(surgeon, item.key), rank)
    mask = node.operand(3)
    if mask is None:
        return op.softmax(scores)
    handle, sizes = surgeon.handle(mask), mask.sizes
    if len(sizes) > 1 and sizes[-2] != 1:
        handle = part_of_axis(op, handle, len(sizes) - 2, look.first_row, queries, sizes[-2])
    if "float" not in mask.dtype:
        handle = op.mul(op.sub(op.cast(handle, "float32"), scalar(op, 1.0)), scalar(op, _HIDDEN))
    return op.softmax(op.add(scores, handle))


def part_of_axis(op: Ops[V], x: V, axis: int, start: int, count: int, size: int | None) -> V:
    """Some elements along an axis of `size`; `x` itself if these are all."""
    return x if (start, count) == (0, size) else op.slice(x, axis, start, start + count)


def _points(look: SampledLook) -> int:
    """Points of all heads and levels."""
    return look.heads * fixed(look.weights.sizes[3:])[0]


def _sampled(surgeon: Surgeon[V], graph: Graph, look: SampledLook, queries: int) -> tuple[V, V, V]:
    """Column, row (in cells of the finest level) and weight of every point, `[B, Q, heads * points]` each."""
    op = surgeon.ops
    read = [sampled_places(surgeon, graph, item, (look.height, look.width)) for item in look.samplings]
    points = fixed(look.weights.sizes[3:])[0]
    joined = op.concat(read, 3) if len(read) > 1 else read[0]

    def by_query(x: V) -> V:
        """`[B * heads, 1, Q, points]` to `[B, Q, heads * points]`."""
        x = op.transpose(op.reshape(x, [-1, look.heads, queries, points]), (0, 2, 1, 3))
        return op.reshape(x, [-1, queries, look.heads * points])

    across, down, share = (by_query(op.slice(joined, 1, channel, channel + 1)) for channel in range(3))
    weights = op.mul(by_query(surgeon.handle(look.weights)), op.mul(share, scalar(op, 1.0 / look.heads)))
    return (*in_cells(op, across, down, share), weights)


def in_cells(op: Ops[V], across: V, down: V, share: V) -> tuple[V, V]:
    """Column and row of points, of their sums over the cells that are read and how much of them was read."""
    inside = op.maximum(share, scalar(op, _TINY))
    return op.div(across, inside), op.div(down, inside)


def sampled_places(surgeon: Surgeon[V], graph: Graph, item: Sampling, grid: tuple[int, int]) -> V:
    """What the model reads at its points of a level whose cells hold their column, their row and 1 in its channels.

    Args:
        surgeon: the model being edited.
        graph: its view.
        item: the points.
        grid: in whose cells columns and rows count.
    """
    op, source = surgeon.ops, item.source
    channels = fixed(source.sizes[1:2])[0]
    rows, columns = (_centres(a, b) for a, b in zip((item.height, item.width), grid, strict=True))
    # Widened while the model runs, so that the file stores no map.
    parts = [op.expand(op.constant(columns.reshape(1, 1, 1, -1)), [1, 1, item.height, 1])]
    parts.append(op.expand(op.constant(rows.reshape(1, 1, -1, 1)), [1, 1, 1, item.width]))
    parts.append(op.expand(op.constant(np.ones([1, 1, 1, 1], np.float32)), [1, 1, item.height, item.width]))
    if channels > len(parts):
        beside = [1, channels - len(parts), item.height, item.width]
        parts.append(op.expand(op.constant(np.zeros([1, 1, 1, 1], np.float32)), beside))
    sizes = fixed(source.sizes[1:])
    images = op.numbers(op.size(surgeon.handle(source), 0))  # of another batch too, if the model is given one
    nothing = op.reshape(op.mul(op.cast(images, "float32"), scalar(op, 0.0)), [-1, *[1] * len(sizes)])
    stored = op.add(op.reshape(op.concat(parts, 1), [1, *sizes]), nothing)
    made: dict[Value, V] = {source: stored}
    for node in region(graph, [source], [item.result]):
        made.update(zip(node.outputs, rerun(surgeon, node, made), strict=True))
    return made[item.result]


def _centres(count: int, finest: int) -> npt.NDArray[np.float32]:
    """Centres of `count` cells, in cells of the finest level."""
    return ((np.arange(count, dtype=np.float32) + 0.5) * np.float32(finest / count) - 0.5).astype(np.float32)


def laid(op: Ops[V], across: V, down: V, weights: V, grid: tuple[int, int]) -> V:
    """Points `[B, M, points]` laid on a grid, `[B, M, h, w]`."""

    def near(places: V, count: int) -> Tensor[V]:
        return (Tensor(op, places).unsqueeze([3]) - np.arange(count)).tent()

    rows = near(down, grid[0]) * Tensor(op, op.unsqueeze(weights, [3]))
    return op.matmul(op.transpose(rows.handle, (0, 1, 3, 2)), near(across, grid[1]).handle)


def _leading(op: Ops[V], maps: V) -> Sequence[V]:
    return [op.size(maps, 0), op.size(maps, 1)]
