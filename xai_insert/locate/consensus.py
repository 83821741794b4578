"""Frames that stand in the batch of a network of images, whose scores are averaged: temporal segment networks.

Wang et al., "Temporal Segment Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016, call the mean
the segmental consensus.
"""

from __future__ import annotations

from dataclasses import dataclass

from xai_insert.graph.along import reduces
from xai_insert.graph.axes import Axes, Kind, Origin, coarse
from xai_insert.graph.operators import Reduction
from xai_insert.graph.traits import ARRANGES, SAME
from xai_insert.graph.view import Node, Value
from xai_insert.locate.places import Places

_THROUGH = ARRANGES | SAME


@dataclass(frozen=True)
class Consensus:
    """The mean over frames that makes the class scores.

    Attributes:
        scores: those of each frame, `[N * T, K]`.
        times: the frames.
        count: T.
        batch: N; None where it is open.
    """

    scores: Value
    times: Origin
    count: int
    batch: int | None


def find_consensus(logits: Value, places: Places) -> Consensus | None:
    """The consensus before class scores `[N, K]`; None where they are no mean over the frames of a clip."""
    value, is_mean = logits, False
    while True:
        folded = folded_times(places.traced.get(value, ()))
        if folded is not None and value.rank == 2:
            return None if not is_mean or folded.size is None else _consensus(value, folded, folded.size, logits)
        node = value.producer
        if node is None:
            return None
        if not is_mean and _is_mean(node):
            if not _is_over_times(node, places):
                return None
            is_mean = True
        elif node.op not in _THROUGH:
            return None
        value = node.read(0)


def _is_mean(node: Node) -> bool:
    return reduces(node.kind, "mean")


def _is_over_times(mean: Node, places: Places) -> bool:
    gone = [places.traced.get(mean.read(0), ())[axis : axis + 1] for axis in mean.record(Reduction).axes or ()]
    return len(gone) == 1 and [axis[0].origin.kind for axis in gone[0] if len(axis) == 1] == [Kind.TIME]


def _consensus(scores: Value, times: Origin, count: int, logits: Value) -> Consensus:
    return Consensus(scores, times, count, logits.sizes[0])


def folded_times(axes: Axes) -> Origin | None:
    """The frames that stand in the first axis, behind the clips of the batch."""
    if not axes or len(axes[0]) != 2 or axes[0][0].origin.kind is not Kind.BATCH:
        return None
    origin = coarse(axes[0][1])
    return origin if origin is not None and origin.kind is Kind.TIME and not origin.roll else None
