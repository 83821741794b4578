"""Axes of products in a region that runs on many samples: of what is computed, or with stored weights."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.axes import Axes, has_batch, other
from xai_insert.graph.operators import Contracted, FusedAttention, Product
from xai_insert.graph.view import Node
from xai_insert.methods.axes import alike, has_tokens, is_shared, meets, width


def product_dims(kind: Product, a: Axes, b: Axes) -> Axes | None:
    """Axes of a matrix product of two values of the longer batch; None if it mixes batch or tokens.

    Tokens may be its rows or its columns, not both: of those that are not read out, the products would be missing.
    """
    if len(a) != len(b) or kind.transpose_a or not meets(a[:-2], b[:-2]):
        return None
    summed, columns = b[:-3:-1] if kind.transpose_b else b[-2:]
    if width(a[-1]) is None or width(summed) is None:
        return None
    if has_batch(a[-2]) or has_batch(columns):  # samples of a batch of one
        return None
    return None if has_tokens(a[-2]) and has_tokens(columns) else (*a[:-1], columns)


def contracted_dims(node: Node, dims: Axes) -> Axes | None:
    """Axes of an Einsum of a value of the longer batch with stored weights; None if it mixes batch or tokens."""
    labels = node.record(Contracted).labels
    if labels is None:
        return None
    own, weight, result = labels
    alone = {label: dim for label, dim in zip(own, dims, strict=True) if label in result and label not in weight}
    mixed = [dim for label, dim in zip(own, dims, strict=True) if label not in alone]
    if any(width(dim) is None for dim in mixed):
        return None
    sizes = zip(result, node.output.sizes, strict=True)
    return tuple(alone.get(label, other(size)) for label, size in sizes)


def attended_dims(node: Node, parts: Sequence[Axes]) -> Axes | None:
    """Axes of a fused attention of a query, a key and a value of the longer batch; None if it mixes them.

    Each stays within a sample, and the masks are the same for all of these.
    """
    if len(parts) < 3 or not node.record(FusedAttention).is_plain:
        return None
    query = parts[0]
    if not all(_is_within(part, query) for part in parts):
        return None
    masks = [mask for mask in node.inputs[3:] if mask is not None]
    return (*query[:-1], parts[2][-1]) if all(is_shared(mask, query) for mask in masks) else None


def _is_within(part: Axes, query: Axes) -> bool:
    """Whether an operand of an attention has the query's samples, and tokens and features apart from them."""
    return alike(part[:-2], query[:-2]) and all(width(dim) is not None for dim in part[-2:])
