"""Per-map scaling of raw saliency to bytes, and the values that it scales."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.ops import Ops, V
from xai_insert.methods.shaping import scalar
from xai_insert.methods.tensor import Tensor


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


def least_and_greatest(op: Ops[V], saliency: V, rank: int) -> V:
    """The least and the greatest value of each map, `[..., 1, 2]`, of raw maps `[..., h, w]` of `rank` axes."""
    axes = (rank - 2, rank - 1)
    return op.concat([op.reduce(saliency, "min", axes), op.reduce(saliency, "max", axes)], rank - 1)
