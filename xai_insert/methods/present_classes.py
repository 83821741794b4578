"""Maps of the classes that are present alone, spread over all classes once they are bytes.

A segmenter knows some 80 classes and finds a few of them. What has to be done with every pixel of a map is done for
those few; the others are rows of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import numpy as np

from xai_insert.graph.ops import Ops, Size, V


@dataclass(frozen=True)
class PresentClasses(Generic[V]):
    """The classes that have instances in one image at least; C of them.

    Attributes:
        weights: of the instances, float32 `[B, 1 + C, M]`; the first row is of no class, zeros.
        rows: int64 `[B * K]`: the row of `[B * (1 + C), ...]` of each class, the first for an absent one.
        classes: K.
    """

    weights: V
    rows: V
    classes: int

    def spread(self, op: Ops[V], maps: V) -> V:
        """`[B, 1 + C, h, w]` to `[B, K, h, w]`."""
        height, width = op.size(maps, 2), op.size(maps, 3)
        picked = op.gather(op.reshape(maps, [-1, height, width]), self.rows)
        return op.reshape(picked, [-1, self.classes, height, width])


def present_classes(op: Ops[V], weights: V, classes: int, batch: Size) -> PresentClasses[V]:
    """Choose the classes with instances.

    Args:
        op: operations.
        weights: of each instance in each class's map, float32 `[B, K, M]`, 0 or above.
        classes: K.
        batch: B.
    """
    # Whole numbers throughout: half precision would count wrongly beyond 256.
    largest = op.reshape(op.reduce(weights, "max", [2]), [batch, classes])
    present = op.cast(op.greater(largest, op.constant(np.zeros(1, np.float32))), "int64")
    falling = op.constant(np.arange(classes, 0, -1, dtype=np.int64).reshape(1, classes))
    first = op.add(op.mul(op.slice(present, 1, 0, 1), _whole(op, 0)), _whole(op, classes + 1))
    most = op.reduce(op.reduce(present, "sum", [1]), "max", [0])
    count = op.add(op.reshape(most, [1]), _whole(op, 1))
    _, order = op.top(op.concat([first, op.mul(present, falling)], 1), count)
    numbers = op.constant(np.arange(1, classes + 1, dtype=np.int64).reshape(1, 1, classes))
    rows = op.mul(op.cumulative(present, 1), present)
    if batch != 1:
        image = op.sub(op.cumulative(op.add(op.mul(first, _whole(op, 0)), _whole(op, 1)), 0), _whole(op, 1))
        rows = op.add(rows, op.mul(image, count))
    chosen = op.matmul(op.equal(op.unsqueeze(order, [2]), numbers), weights)
    return PresentClasses(chosen, op.reshape(rows, [-1]), classes)


def _whole(op: Ops[V], number: int) -> V:
    return op.constant(np.array([number], np.int64))
