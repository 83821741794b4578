"""Shapes that stay symbolic where the model's are, and constants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xai_insert.graph.ops import Ops, Size, Surgeon, V
from xai_insert.graph.view import Op, Value, fixed, volume
from xai_insert.locate.layout import FeatureMap


def scalar(op: Ops[V], value: float, dtype: str = "float32") -> V:
    """A constant of shape `[]`."""
    return op.constant(np.array(value, dtype))


def minimum(op: Ops[V], a: V, b: V) -> V:
    """The smaller of both."""
    minus = scalar(op, -1.0)
    return op.mul(op.maximum(op.mul(a, minus), op.mul(b, minus)), minus)


def magnitude(op: Ops[V], a: V) -> V:
    """Without the sign."""
    return op.maximum(a, op.mul(a, scalar(op, -1.0)))


def size_of(op: Ops[V], handle: V, value: Value, axis: int) -> Size:
    """One size: an int where it is known, else read off the value while the model runs."""
    static = None if value.shape is None else value.shape[axis]
    return op.size(handle, axis) if static is None else static


def grid_sizes(surgeon: Surgeon[V], handle: V, feature: FeatureMap) -> list[Size]:
    """Height and width of the grid; for tokens those of the map that they were made of."""
    op = surgeon.ops
    if len(feature.grid_axes) == 2:
        return [size_of(op, handle, feature.value, axis) for axis in feature.grid_axes]
    if feature.sides:
        return [size_of(op, surgeon.handle(value), value, axis) for value, axis in feature.sides]
    return list(fixed(feature.grid))


def reshape(op: Ops[V], x: V, sizes: Sequence[Size]) -> V:
    """Reshape, with the one size that is not an int left to be inferred: no shape arithmetic at run time."""
    dynamic = [index for index, size in enumerate(sizes) if not isinstance(size, int)]
    if len(dynamic) == 1 and -1 not in [size for size in sizes if isinstance(size, int)]:
        sizes = [-1 if index in dynamic else size for index, size in enumerate(sizes)]
    return op.reshape(x, sizes)


def positions(op: Ops[V], feature: V, layout: FeatureMap) -> V:
    """Number of grid cells as a float32 scalar."""
    count = volume([layout.shape[axis] for axis in layout.grid_axes])
    if count is not None:
        return scalar(op, float(count))
    total: V | None = None
    for axis in layout.grid_axes:
        side = op.cast(op.size(feature, axis), "float32")
        total = side if total is None else op.mul(total, side)
    if total is None:
        raise ValueError("a feature map has a grid")
    return total


def part_of(surgeon: Surgeon[V], value: Value, axis: int, start: int, end: int) -> V:
    """A slice of a value; where a Concat made the value, read before it, which spares a copy."""
    node = value.producer
    if node is not None and node.op is Op.CONCAT and node.attrs.get("axis") == axis:
        low = 0
        for part in node.inputs:
            size = None if part is None or part.shape is None else part.shape[axis]
            if part is None or size is None:
                break
            if low <= start and end <= low + size:
                return part_of(surgeon, part, axis, start - low, end - low)
            low += size
    handle = surgeon.handle(value)
    return handle if (start, end) == (0, value.sizes[axis]) else surgeon.ops.slice(handle, axis, start, end)
