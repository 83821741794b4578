"""Per-map scaling of raw saliency to bytes, and the values that it scales."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.ops import Ops, V
from xai_insert.graph.view import Shape, volume
from xai_insert.methods.shaping import scalar
from xai_insert.methods.tensor import Tensor

_ELEMENT, _MOST_BYTES = 4, 1 << 26  # of float32 maps that are scaled at once
_TINY = 1e-6
"""Stands for the span of a map that is nowhere below its threshold: everything is far over it."""


def to_bytes(op: Ops[V], saliency: V, axes: Sequence[int]) -> V:
    """Scale each map by its own minimum and maximum: `floor(255 * (s - min) / (max - min))`.

    Args:
        op: operations.
        saliency: float32, any range.
        axes: the spatial axes; every other axis counts maps.

    Returns:
        uint8, 0..255; a constant map gives zeros.
    """
    s, low = Tensor(op, saliency), Tensor(op, op.reduce(saliency, "min", axes))
    span = Tensor(op, op.reduce(saliency, "max", axes)) - low
    # Dividing by 1 where the span is 0 needs no small epsilon, which would vanish in half precision.
    share = (s - low) / Tensor(op, op.nonzero_or(span.handle, scalar(op, 1.0)))
    return op.cast((share * 255.0).floor().handle, "uint8")


def to_bytes_in_parts(op: Ops[V], saliency: V, shape: Shape) -> V:
    """`to_bytes`, some classes after others where the maps are large, since it holds a few arrays of their size.

    Args:
        op: operations.
        saliency: float32, any range.
        shape: its sizes, classes second, the spatial axes last; None where a size is unknown.

    Returns:
        uint8, 0..255; a constant map gives zeros.
    """
    axes = map_axes(len(shape))
    size, count = volume(shape[1:]), shape[1]
    if size is None or count is None or size * _ELEMENT <= _MOST_BYTES:
        return op.in_planes(saliency, lambda maps: to_bytes(op, maps, axes))
    step = max(1, count * _MOST_BYTES // (size * _ELEMENT))
    parts = [op.slice(saliency, 1, first, min(first + step, count)) for first in range(0, count, step)]
    return op.concat([to_bytes(op, part, axes) for part in parts], 1)


def map_axes(rank: int) -> tuple[int, ...]:
    """The axes of one map among those of `saliency_map`: rows and columns, before them time in `[B, K, t, h, w]`."""
    return tuple(range(2 if rank == 5 else rank - 2, rank))


def to_bytes_by_threshold(op: Ops[V], saliency: V, threshold: float) -> V:
    """Scale maps so that a threshold is half of the scale: `floor(255 * clip((s - low) / (2 * (threshold - low))))`.

    `low` is 0, or the least value of the map where that is negative.

    Args:
        op: operations.
        saliency: float32 `[B, K, h, w]`, any range.
        threshold: the value that becomes 127.5.

    Returns:
        uint8, 0..255; all that is twice as far from `low` as the threshold, or farther, is 255.
    """
    one, zero = scalar(op, 1.0), scalar(op, 0.0)
    low = op.sub(zero, op.maximum(op.sub(zero, op.reduce(saliency, "min", (2, 3))), zero))
    span = op.mul(op.sub(scalar(op, threshold), low), scalar(op, 2.0))
    share = op.div(op.sub(saliency, low), op.nonzero_or(span, scalar(op, _TINY)))
    least = op.sub(one, op.maximum(op.sub(one, share), zero))  # the lesser of 1 and the share
    return op.cast(op.floor(op.mul(least, scalar(op, 255.0))), "uint8")


def least_and_greatest(op: Ops[V], saliency: V, rank: int) -> V:
    """The least and the greatest value of each map, `[..., 1, 2]`, of raw maps `[..., h, w]` of `rank` axes."""
    axes = map_axes(rank)
    return op.concat([op.reduce(saliency, "min", axes), op.reduce(saliency, "max", axes)], rank - 1)
