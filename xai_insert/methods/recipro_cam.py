"""Recipro-CAM: the class scores of the feature map with all but one position set to zero.

Byun and Lee, "Recipro-CAM: Fast gradient-free visual explanations for convolutional neural networks", 2022,
https://arxiv.org/abs/2209.14074. With F the feature map and F^(p) its copy that keeps position p alone,
`S[k, p] = head_k(F^(p))`.

The definition runs the head h*w times. Where the head begins by collapsing the grid it never has to: the collapse of
F^(p) is known in closed form, and the rest of the head runs once, on all positions as rows of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from xai_insert.errors import ShapeUnknownError, TargetNotFoundError
from xai_insert.graph.axes import other
from xai_insert.graph.cuts import region
from xai_insert.graph.masks import Masks
from xai_insert.graph.operators import Product
from xai_insert.graph.ops import Ops, Surgeon, V
from xai_insert.graph.view import Graph, Node, Op, Value, fixed
from xai_insert.locate.collapse import Collapse, GridEnd
from xai_insert.locate.layout import FeatureMap
from xai_insert.methods.batching import Batched, Batcher
from xai_insert.methods.masked_runs import class_count, run_masks, run_open_masks
from xai_insert.methods.shaping import batch_size, before_transpose, grid_sizes, positions, rerun, reshape, scalar
from xai_insert.methods.top_classes import ClassChoice, choose_maps, chosen_scores, last_layer

MOST_RUNS = 8192  # of the rest of the model


def recipro_cam(
    surgeon: Surgeon[V],
    graph: Graph,
    feature: FeatureMap,
    ends: Sequence[GridEnd],
    logits: Value,
    choice: ClassChoice[V] | None = None,
    read: Callable[[Value], V] | None = None,
) -> V:
    """Exact Recipro-CAM from the closed form of each grid end.

    Args:
        surgeon: the model being edited.
        graph: its view.
        feature: the target, float `[B, C, h, w]`, `[B, h, w, C]`, `[B, N, C]`, `[B, C, N]` or `[N, B, C]`.
        ends: the nodes that end the grid, none of kind `TOKEN` or `OTHER`.
        logits: class scores `[B, K]`.
        choice: the classes whose maps are wanted; None for all.
        read: gives the values with the grid, in place of the model's own; for some of the images only, say.

    Returns:
        float32 `[B, K, h, w]`, raw scores.

    Raises:
        CannotFreeBatchError: the head mixes its batch axis with others.
    """
    op = surgeon.ops
    read = read or surgeon.handle
    rows = {end.result: _collapsed(surgeon, graph, feature, end, read) for end in ends}
    layer = None if choice is None else last_layer(surgeon, logits, class_count(logits))
    x = read(feature.value)
    batch = batch_size(surgeon, x, feature)
    sides = grid_sizes(surgeon, x, feature)
    classes = class_count(logits)
    cells = -1 if feature.positions is None else feature.positions
    if choice is not None and layer is not None:
        before = region(graph, list(rows), [layer.source])
        if before or layer.source in rows:
            inputs = _on_rows(surgeon, before, rows, layer.source, feature.positions or 1)
            chosen = chosen_scores(surgeon, layer, choice, inputs, (batch, cells), classes)
            return reshape(op, chosen, [batch, choice.count, *sides])
    scores = _on_rows(surgeon, region(graph, list(rows), [logits]), rows, logits, feature.positions or 1)
    by_position = reshape(op, scores, [batch, cells, classes])
    maps = reshape(op, op.transpose(by_position, (0, 2, 1)), [batch, classes, *sides])
    return maps if choice is None else choose_maps(surgeon, maps, choice, (None, classes, *feature.grid))


def masked_runs(
    surgeon: Surgeon[V],
    graph: Graph,
    feature: FeatureMap,
    logits: Value,
    beside: Sequence[FeatureMap] = (),
    at_once: int | None = None,
) -> V:
    """Recipro-CAM by its definition: the rest of the model runs once per position.

    Serves any head and any target.

    Args:
        surgeon: the model being edited.
        graph: its view.
        feature: the target, a cut value; if it is tokens, their grid must be known.
        beside: maps of the same grid that are masked with it, where only all together lie on every path.
        logits: class scores `[B, K]`.
        at_once: see `run_masks`.

    Returns:
        float32 `[B, K, h, w]`, raw scores.

    Raises:
        ShapeUnknownError: the grid follows the size of the image.
        TargetNotFoundError: the grid has so many positions that their runs would take too long.
    """
    features = [feature.value, *(item.value for item in beside)]
    if None in feature.grid:
        if len(feature.grid_axes) == len(feature.grid):
            return run_open_masks(surgeon, graph, feature, features[1:], logits, at_once)
        raise ShapeUnknownError(
            f"masked runs from {feature.value.describe()} need a grid of known size: --input-shape NAME:1,3,224,224 "
            "gives it to a classifier; a reader of text, with scores for each step along the image, has no map at all"
        )
    require_few_runs(feature)
    maps, sides = run_masks(surgeon, graph, features, cell_masks(feature), logits, at_once), fixed(feature.grid)
    return maps if len(sides) == 2 else surgeon.ops.reshape(maps, [-1, class_count(logits), *sides])


def cell_masks(feature: FeatureMap) -> Masks:
    """A mask for each cell of a grid of known size, which keeps that one."""
    sides = fixed(feature.grid)
    sizes = [1] * len(feature.shape)
    masked = sides if len(feature.grid_axes) > 1 else fixed([feature.shape[feature.grid_axes[0]]])
    for axis, side in zip(feature.grid_axes, masked, strict=True):
        sizes[axis] = side
    rows, columns = (np.eye(side, dtype=np.float32) for side in (math.prod(sides) // sides[-1], sides[-1]))
    return Masks(rows, columns, sizes, feature.prefix)


def require_few_runs(feature: FeatureMap) -> None:
    """Refuse a map of so many positions that their runs would take too long.

    Raises:
        TargetNotFoundError: it is one.
    """
    if (feature.positions or 0) > MOST_RUNS:
        raise TargetNotFoundError(
            f"{feature.value.describe()} has {feature.positions} positions, and the rest of the model would run once "
            f"for each; choose a layer with a coarser grid (at most {MOST_RUNS} positions) with --target-layer"
        )


def _collapsed(surgeon: Surgeon[V], graph: Graph, feature: FeatureMap, end: GridEnd, read: Callable[[Value], V]) -> V:
    """What `end.result` is for each masked copy, `[B*P, ...]`."""
    if end.kind in (Collapse.LINEAR, Collapse.CONV):
        return _weighted(surgeon, end, read)
    op = surgeon.ops
    source = end.source
    kept = _rows(surgeon, feature, end, read)
    x = read(source)
    layout = FeatureMap(source, 0, end.grid_axes, (None,) * len(end.grid_axes), sides=feature.sides)
    rest = _elsewhere(surgeon, graph, feature, end)
    if end.kind is Collapse.MEAN:
        count = positions(surgeon, x, layout)
        kept = op.div(kept, count) if rest is None else op.add(op.div(op.sub(kept, rest), count), rest)
    elif end.kind is Collapse.MAX:
        kept = op.maximum(kept, scalar(op, 0.0) if rest is None else rest)
    elif rest is not None:
        others = op.sub(positions(surgeon, x, layout), scalar(op, 1.0))
        kept = op.add(kept, op.mul(rest, others))
    return op.reshape(kept, [-1, *fixed(end.result.sizes[1:])])


def _on_rows(surgeon: Surgeon[V], nodes: Sequence[Node], rows: Mapping[Value, V], result: Value, copies: int = 1) -> V:
    """Run the head of a pooled classifier on one row per image and position.

    Args:
        surgeon: the model being edited.
        nodes: the head, in topological order.
        rows: for each pooled value `[B, ...]` its rows `[B*P, ...]`.
        result: the value to compute, `[B, ...]` in the model.
        copies: P, for heads that read what is not masked as well; 1 if it is not known.

    Returns:
        `result` for every row, `[B*P, ...]`.

    Raises:
        CannotFreeBatchError: an operation mixes the batch axis with others.
    """
    batcher = Batcher(surgeon, next(iter(rows)).sizes[0], copies=copies)
    for value, handle in rows.items():
        batcher.made[value] = Batched(handle, (batcher.batch, *map(other, fixed(value.sizes[1:]))))
    return batcher.run(nodes, result)


def _rows(surgeon: Surgeon[V], feature: FeatureMap, end: GridEnd, read: Callable[[Value], V]) -> V:
    """What the end reads as one row per image and position, `[B*P, C]`."""
    source = end.source
    batch = int(0 in end.grid_axes)
    others = [axis for axis in range(len(source.sizes)) if axis not in (batch, *end.grid_axes)]
    perm = (batch, *end.grid_axes, *others)
    width = math.prod(fixed([source.sizes[axis] for axis in others]))
    if (turned := None if source is feature.value else before_transpose(source)) is not None:
        source, perm = turned[0], tuple(turned[1][axis] for axis in perm)  # often the rows are there already
    x = read(source)
    if perm != tuple(range(len(perm))):
        x = surgeon.ops.transpose(x, perm)
    return surgeon.ops.reshape(x, [-1, width])


def _elsewhere(surgeon: Surgeon[V], graph: Graph, feature: FeatureMap, end: GridEnd) -> V | None:
    """What `end.source` holds at the masked positions, `[1, C]`: the operations since the feature map, fed with zero.

    None if it holds zero there, being the feature map itself in some layout.
    """
    nodes = region(graph, [feature.value], [end.source])
    if all(node.op in (Op.RESHAPE, Op.TRANSPOSE) for node in nodes):
        return None
    op = surgeon.ops
    channels = fixed([feature.channels])[0]
    sizes = [channels if axis == feature.channel_axis else 1 for axis in range(len(feature.shape))]
    zero = np.zeros(sizes, np.float32)
    made: dict[Value, V] = {feature.value: op.constant(zero)}
    for node in nodes:
        outputs = rerun(surgeon, node, made)
        made.update(zip(node.outputs, outputs, strict=True))
    return op.reshape(made[end.source], [1, -1])


def _weighted(surgeon: Surgeon[V], end: GridEnd, read: Callable[[Value], V]) -> V:
    """A layer that weighs every position on its own: `W_p F_p + b`, with `W_p` the slice that position p meets."""
    op = surgeon.ops
    source, node = end.source, end.result.producer
    if node is None:
        raise ValueError("a grid ends in a node")
    bias = node.operand(2)
    sizes = fixed(source.sizes[1:])
    grid = [axis - 1 for axis in end.grid_axes]
    others = [axis for axis in range(len(sizes)) if axis not in grid]
    result = fixed(end.result.sizes[1:])
    out, cells, width = (math.prod(part) for part in (result, [sizes[a] for a in grid], [sizes[a] for a in others]))
    w = surgeon.handle(node.read(1))
    if end.kind is Collapse.LINEAR and not node.record(Product).transpose_b:
        w = op.transpose(w, (1, 0))
    slices = _by_cell(op, w, (out, cells, width), cells_last=grid[0] > others[0])
    x = op.transpose(read(source), (*end.grid_axes, *(a + 1 for a in others), 0))
    by_position = op.matmul(slices, op.reshape(x, [cells, width, -1]))
    rows = op.reshape(op.transpose(by_position, (2, 0, 1)), [-1, out])
    if bias is not None:
        rows = op.add(rows, surgeon.handle(bias))
    return op.reshape(rows, [-1, *result])


def _by_cell(op: Ops[V], weight: V, sizes: tuple[int, int, int], *, cells_last: bool) -> V:
    """`[out, C, h, w]` as `[P, out, C]`: a constant that the runtime folds when it compiles.

    Where the grid comes last, as the transpose of a matrix, which folds several times faster than one of four axes.
    """
    out, cells, width = sizes
    if cells_last:
        slices = op.transpose(op.reshape(weight, [out * width, cells]), (1, 0))
    else:
        slices = op.transpose(op.reshape(weight, [out, cells, width]), (1, 0, 2))
    return op.reshape(slices, [cells, out, width])
