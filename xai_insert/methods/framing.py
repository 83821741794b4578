"""Maps put into the frame of the image: transposed, turned round or rolled back where the model's own map is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xai_insert.graph.ops import Ops, V
from xai_insert.graph.view import Shape, fixed
from xai_insert.locate.layout import Frame


def straightened(op: Ops[V], maps: V, shape: Shape, frame: Frame) -> tuple[V, Shape]:
    """Maps whose rows and columns are those of the image, and their shape.

    Args:
        op: writes the operations.
        maps: `[..., h, w]` in the order of the feature map.
        shape: its sizes.
        frame: how the feature map lies in the image.

    Raises:
        ShapeUnknownError: an axis runs backwards whose size follows the input.
    """
    last = len(shape) - 2
    if frame.times_last:
        maps = op.transpose(maps, (*range(last - 1), last + 1, last - 1, last))
        shape = (*shape[: last - 1], shape[last + 1], shape[last - 1], shape[last])
    for index in (0, 1):
        if frame.rolled[index] or frame.flipped[index]:
            order = frame.order(index, fixed([shape[last + index]])[0]) or []
            maps = _reordered(op, maps, len(shape), last + index, order)
    if frame.transposed:
        maps = op.transpose(maps, (*range(last), last + 1, last))
        shape = (*shape[:last], shape[last + 1], shape[last])
    return maps, shape


def _reordered(op: Ops[V], maps: V, rank: int, axis: int, order: Sequence[int]) -> V:
    perm = (axis, *(other for other in range(rank) if other != axis))
    back = tuple(perm.index(other) for other in range(rank))
    return op.transpose(op.gather(op.transpose(maps, perm), op.constant(np.array(order, np.int64))), back)
