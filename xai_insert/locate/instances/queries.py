"""Queries with class scores and masks, as Mask2Former and its kin give them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from xai_insert.errors import AmbiguousModelError
from xai_insert.graph.cuts import activations
from xai_insert.graph.pattern import before
from xai_insert.graph.traits import ARRANGES, SAME, SQUASHES
from xai_insert.graph.view import Graph, Op, Value
from xai_insert.layouts.boxes import are_shares
from xai_insert.locate.instances.classes import has_weights
from xai_insert.locate.instances.kinds import QueryInstances, Sample

_AFTER_LINEAR = SAME | ARRANGES | SQUASHES | {Op.ADD, Op.SLICE, Op.GATHER}


def find_queries(graph: Graph, samples: Sequence[Sample], num_classes: int | None) -> QueryInstances | None:
    """Class scores and masks of the same queries; None if the outputs are not such.

    Args:
        graph: the model.
        samples: its outputs for a sample image.
        num_classes: the number of classes if the user has given it; tells whether one score means no object.

    Raises:
        AmbiguousModelError: several outputs fit equally well.
    """
    pairs = _pairs(graph, samples)
    if not pairs:
        return None
    if len(pairs) > 1:
        listed = "; ".join(f"{scores.describe()} with {masks.describe()}" for scores, masks in pairs)
        raise AmbiguousModelError(f"several outputs could be class scores and masks of queries: {listed}")
    scores, masks = pairs[0]
    shares = are_shares(scores.array)
    sums_to_one = shares and bool(np.allclose(scores.array.sum(axis=-1), 1.0, atol=1e-2))
    has_no_object = num_classes != scores.shape[2] if num_classes is not None else sums_to_one or not shares
    return QueryInstances(scores, has_no_object, shares, masks, are_shares(masks.array))


def _pairs(graph: Graph, samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Class scores and masks that may be of the same queries."""
    floats = [sample for sample in samples if sample.is_float]
    return _last(graph, [(scores, masks) for masks in floats for scores in floats if _may_pair(scores, masks)])


def _last(graph: Graph, pairs: list[tuple[Sample, Sample]]) -> list[tuple[Sample, Sample]]:
    """The pairs without those of hidden states; of these the ones that a layer reads out, if there are any."""
    found = {sample for pair in pairs for sample in pair}
    inner = {sample for sample in found if _leads_to_another(graph, sample, found)}
    pairs = [pair for pair in pairs if inner.isdisjoint(pair)]
    return [pair for pair in pairs if _is_read_out(pair[0].value)] or pairs


def _may_pair(scores: Sample, masks: Sample) -> bool:
    if len(masks.shape) != 4 or masks.shape[1] == 1:  # one is a depth map, and a pose beside it
        return False
    if 1 in masks.shape[2:]:  # a box for all classes
        return False
    if len(scores.shape) != 3 or scores.shape[:2] != masks.shape[:2] or scores.shape[2] == 1:
        return False
    return not _are_boxes(scores) and not _of_classes(scores, masks)


def _leads_to_another(graph: Graph, sample: Sample, found: Iterable[Sample]) -> bool:
    """Whether another output is made from this one: a hidden state that the model also gives."""
    source = before(sample.value, SAME)
    dependent = activations(graph, [source])
    return any(before(other.value, SAME) is not source and other.value in dependent for other in found)


def _is_read_out(value: Value) -> bool:
    """Whether a linear layer made it, as it makes class scores, and no residual sum or norm, as they make states."""
    node = value.producer
    while node is not None:
        if has_weights(node):
            return True
        if node.op not in _AFTER_LINEAR or len(node.computed) != 1:
            return False
        node = node.computed[0].producer
    return False


def _are_boxes(sample: Sample) -> bool:
    return sample.shape[2] == 4 and are_shares(sample.array)


def _of_classes(scores: Sample, boxes: Sample) -> bool:
    """Whether what could be masks are boxes: one for each class, that of the background there or not."""
    classes, columns = boxes.shape[2:]
    return columns == 4 and abs(classes - scores.shape[2]) <= 1
