"""Choosing instances among many rows, in bounded memory and for any number of images."""

from __future__ import annotations

import numpy as np

from xai_insert.graph.ops import Ops, V
from xai_insert.methods.shaping import scalar
from xai_insert.methods.tensor import Tensor, tensor

MOST_INSTANCES = 300
"""Rows kept of an image, best first: what the packages that train such models keep."""
MOST_OVERLAP = 0.7
"""Intersection over union above which the lower of two boxes of a class is dropped."""


def strongest(op: Ops[V], columns: V, count: int, ranked: V, most: int | None = MOST_INSTANCES) -> tuple[V, V]:
    """The columns that count, as many for each image as the one with most needs, but at least one.

    Args:
        op: operations.
        columns: float32 `[B, C, A]`.
        count: C.
        ranked: score of each column, 0 where it does not count, `[B, A]`.
        most: columns of an image, at most; None for no limit.

    Returns:
        Columns `[B, C, M]` and their scores `[B, M]`, best first, filled up with columns of score 0.
    """
    number = op.reduce(op.greater(ranked, scalar(op, 0.0, "float32")), "sum", [1])
    number = op.maximum(op.reduce(number, "max", [0]), scalar(op, 1.0, "float32"))
    if most is not None:
        number = Tensor(op, number).at_most(tensor(op, float(most))).handle
    scores, indices = op.top(ranked, op.reshape(op.cast(number, "int64"), [1]))
    every_row = op.constant(np.zeros((1, count, 1), np.int64))
    return op.take(columns, op.add(op.unsqueeze(indices, [1]), every_row), 2), scores


def kept_locations(op: Ops[V], boxes: V, scores: V, best: V, threshold: float) -> V:
    """1 for locations that greedy suppression keeps, else 0, float32 `[B, A]`.

    Args:
        op: operations.
        boxes: corners, float32 `[B, A, 4]`.
        scores: float32 `[B, K, A]`, 0 but for each location's own class.
        best: score of each location's own class, `[B, A]`.
        threshold: least score.
    """
    kept = op.suppress(boxes, scores, MOST_INSTANCES, MOST_OVERLAP, threshold)
    places = op.concat([op.slice(kept, 1, 0, 1), op.slice(kept, 1, 2, 3)], 1)
    return op.mark(op.mul(best, scalar(op, 0.0, "float32")), places)
