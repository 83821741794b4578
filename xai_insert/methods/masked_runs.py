"""Running the rest of a network once per mask: many masks at once where its batch can be lengthened.

The masks of one run are samples of a longer batch, see `xai_insert.methods.batching`. As many are run at once as keep
the activations within a bound, and the runs follow one another in a loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Protocol

import numpy as np

from xai_insert.errors import CannotFreeBatchError, ShapeUnknownError
from xai_insert.graph.axes import other
from xai_insert.graph.cuts import region
from xai_insert.graph.masks import Masks
from xai_insert.graph.ops import Ops, Surgeon, V
from xai_insert.graph.view import Graph, Node, Value, fixed, volume
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.logits import vector_size
from xai_insert.methods.batching import Batched, Batcher
from xai_insert.methods.rehearsal import STAND_IN, Rehearsal
from xai_insert.methods.shaping import as_vector, grid_sizes, rerun, size_of

logger = logging.getLogger(__name__)

_MOST_BYTES = 1 << 28
_AT_ONCE = 8  # more gain nothing by themselves, and leave the processor's caches; see benchmarks/cost/masked_batch.py


class Read(Protocol[V]):
    """Makes class scores of what a run of the rest of the network ends in."""

    @property
    def classes(self) -> int:
        """Their number."""

    def scores(self, given: V, many: int) -> V:
        """Scores `[rows, K]` of rows `given`, `many` masks of each image side by side; written in the loop."""


def run_masks(
    surgeon: Surgeon[V],
    graph: Graph,
    features: Sequence[Value],
    masks: Masks,
    logits: Value,
    at_once: int | None = None,
    read: Read[V] | None = None,
) -> V:
    """The class scores for each mask on `features`, laid out as maps.

    Args:
        surgeon: the model being edited.
        graph: its view.
        features: the masked values.
        masks: a mask for each position; each broadcasts against every feature.
        logits: class scores `[B, K]`, or what `read` makes such of.
        at_once: how many masks are run at once, at most; None for 8, or as many as keep
            activations within 256 MB.
        read: makes class scores of what a run ends in; None where it ends in them.

    Returns:
        float32 `[B, K, h, w]`, raw scores.
    """
    op = surgeon.ops
    count, classes = len(masks), class_count(logits) if read is None else read.classes
    nodes = region(graph, features, [logits])
    begins_with_batch = len(masks.sizes) < len(features[0].sizes) or masks.sizes[0] == 1
    many = many_at_once(nodes, features, logits, count, at_once) if begins_with_batch else 1
    runs = math.ceil(count / many)
    rank = len(features[0].sizes)
    scores_of = partial(scores_of_run, surgeon, features, nodes, many, logits, read=read)

    def body(run: V | None) -> V:
        return scores_of(masks=_masks(surgeon.ops, masks, runs, many, run, rank))

    scores = body(None) if runs == 1 else surgeon.repeat(runs, body, classes)
    by_class = op.transpose(op.reshape(scores, [runs, -1, many, classes]), (1, 3, 0, 2))
    flat = op.reshape(by_class, [-1, classes, runs * many])
    if runs * many > count:
        flat = op.slice(flat, 2, 0, count)
    return op.reshape(flat, [-1, classes, *masks.grid])


def run_open_masks(
    surgeon: Surgeon[V],
    graph: Graph,
    feature: FeatureMap,
    beside: Sequence[Value],
    logits: Value,
    at_once: int | None = None,
) -> V:
    """Likewise where the grid follows the image: a mask for each cell, as many as there are while the model runs.

    Args:
        surgeon: the model being edited.
        graph: its view.
        feature: the masked value, with the axes of a grid.
        beside: what is masked with it.
        logits: class scores `[B, K]`.
        at_once: how many masks are run at once, at most.

    Returns:
        float32 `[B, K, h, w]`, of clips `[B, K, t, h, w]`: raw scores.
    """
    op, classes, features = surgeon.ops, class_count(logits), [feature.value, *beside]
    nodes = region(graph, features, [logits])
    many = many_at_once(nodes, features, logits, None, at_once)
    sides = grid_sizes(surgeon, surgeon.handle(feature.value), feature)
    count = reduce(op.mul, [as_vector(op, n) for n in sides])
    together = op.constant(np.array([many], np.int64))
    runs = op.div(op.add(count, op.constant(np.array([many - 1], np.int64))), together)
    scores_of = partial(scores_of_run, surgeon, features, nodes, many, logits)

    def body(run: V) -> V:
        return scores_of(_open_masks(surgeon, feature, many, run))

    scores = surgeon.repeat(runs, body, classes)
    by_class = op.transpose(op.reshape(scores, [runs, -1, many, classes]), (0, 2, 1, 3))
    flat = op.reshape(by_class, [op.mul(runs, together), -1, classes])
    if many > 1:
        flat = op.gather(flat, op.numbers(count))
    return op.reshape(op.transpose(flat, (1, 2, 0)), [-1, classes, *sides])


def many_at_once(
    nodes: Sequence[Node], features: Sequence[Value], logits: Value, count: int | None, at_once: int | None
) -> int:
    """How many of `count` masks on `features` are run at once; None for a grid that follows the image."""
    many = at_once or max(1, min(_AT_ONCE, _MOST_BYTES // _bytes(nodes)))
    if count is not None:  # runs of one size; masks beyond the last are of no cell
        many = math.ceil(count / math.ceil(count / min(count, many)))
    if many > 1 and (obstacle := _obstacle(features, nodes, logits)) is not None:
        logger.info("masks run one by one: %s", obstacle)
        many = 1
    return many


def class_count(logits: Value) -> int:
    """K of `[B, K]`, whatever axes of size 1 stand around."""
    return fixed([vector_size(logits.sizes)])[0]


def _bytes(nodes: Sequence[Node]) -> int:
    """What the largest of these operations reads and writes, for the batch of one run."""

    def size(value: Value | None) -> int:
        return 0 if value is None or value.is_constant else 4 * (volume([n or 1 for n in value.shape or ()]) or 1)

    return max(sum(map(size, (*node.inputs, *node.outputs))) for node in nodes)


def _obstacle(features: Sequence[Value], nodes: Sequence[Node], logits: Value) -> str | None:
    """Why the rest of the network cannot run on many masks at once; None if it can."""
    rank, batch = len(features[0].sizes), features[0].sizes[0]
    if any(len(value.sizes) != rank or value.sizes[0] != batch for value in features):
        return "the masked values differ in rank or batch"
    try:
        _scores_of_many(Rehearsal(), features, nodes, STAND_IN, 2, logits)
    except (CannotFreeBatchError, ShapeUnknownError) as err:
        return str(err)
    return None


def scores_of_run(
    surgeon: Surgeon[V],
    features: Sequence[Value],
    nodes: Sequence[Node],
    many: int,
    logits: Value,
    masks: V,
    read: Read[V] | None = None,
) -> V:
    """Scores of every image with the masks of one run, `[rows, K]`."""
    if many == 1:
        scores = _scores_of_one(surgeon, features, nodes, masks, logits)
    else:
        scores = _scores_of_many(surgeon, features, nodes, masks, many, logits)
    return surgeon.ops.reshape(scores, [-1, class_count(logits)]) if read is None else read.scores(scores, many)


def _scores_of_one(surgeon: Surgeon[V], features: Sequence[Value], nodes: Sequence[Node], mask: V, logits: Value) -> V:
    made = {feature: surgeon.ops.mul(surgeon.handle(feature), mask) for feature in features}
    for node in nodes:
        made.update(zip(node.outputs, rerun(surgeon, node, made), strict=True))
    return made[logits]


def _scores_of_many(
    surgeon: Surgeon[V], features: Sequence[Value], nodes: Sequence[Node], masks: V, many: int, logits: Value
) -> V:
    """Scores of every image with every mask, the masks of an image side by side."""
    op = surgeon.ops
    batcher = Batcher(surgeon, features[0].sizes[0], copies=many)
    for feature in features:
        handle = surgeon.handle(feature)
        sizes = [size_of(op, handle, feature, axis) for axis in range(1, len(feature.sizes))]
        alone = op.unsqueeze(handle, [1]) if None in feature.sizes[1:] else op.reshape(handle, [-1, 1, *sizes])
        masked = op.reshape(op.mul(alone, op.unsqueeze(masks, [0])), [-1, *sizes])
        batcher.made[feature] = Batched(masked, (batcher.batch, *map(other, feature.sizes[1:])))
    return batcher.run(nodes, logits)


def _open_masks(surgeon: Surgeon[V], feature: FeatureMap, many: int, run: V) -> V:
    """The masks of one run, computed from the sizes of the feature map; those beyond the last cell are zero."""
    op, handle = surgeon.ops, surgeon.handle(feature.value)
    first = op.mul(run, op.constant(np.array(many, np.int64)))
    positions = op.add(op.constant(np.arange(many, dtype=np.int64)), first)
    rank, sides = len(feature.shape), []
    for axis in reversed(feature.grid_axes):  # the last runs fastest
        side = op.size(handle, axis)
        above, place = op.div(positions, side), positions
        if axis != feature.grid_axes[0]:  # whose numbers go on beyond the last cell
            place = op.sub(positions, op.mul(above, side))
        place = op.reshape(place, [many, *[1] * (rank - 1)])
        cells = op.reshape(op.numbers(side), [-1 if index == axis else 1 for index in range(rank)])
        sides.append(op.equal(place, cells))
        positions = above
    return reduce(op.mul, sides)


def _masks(op: Ops[V], masks: Masks, runs: int, many: int, run: V | None, rank: int) -> V:
    """The masks of one run, one behind the other, of `rank` axes each; None stands for the only run."""
    height, width = masks.grid
    beyond = np.zeros((math.ceil(runs * many / width) - height, height), np.float32)
    positions = op.constant(np.arange(many, dtype=np.int64))
    if run is not None:
        positions = op.add(op.mul(run, op.constant(np.array(many, np.int64))), positions)
    wide = op.constant(np.array(width, np.int64))
    row = op.div(positions, wide)
    column = op.sub(positions, op.mul(row, wide))
    down = op.gather(op.constant(np.concatenate([masks.rows, beyond])), row)
    across = op.gather(op.constant(masks.columns), column)
    cells = op.mul(op.reshape(down, [many, height, 1]), op.reshape(across, [many, 1, width]))
    cells = op.reshape(cells, [many, height * width])
    ends = [np.ones((many, length), np.float32) for length in (masks.prefix, masks.suffix)]
    before, behind = ([op.constant(end)] if end.size else [] for end in ends)
    if before or behind:
        cells = op.concat([*before, cells, *behind], 1)
    sizes = [*([1] * (rank - len(masks.sizes))), *masks.sizes]
    return op.reshape(cells, [many, *sizes[1:]] if sizes[0] == 1 else sizes)
