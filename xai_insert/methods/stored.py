"""Values of a longer batch that meet stored ones: rows written over some of them, and products with stored rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xai_insert.graph.axes import Axes, has_batch, other
from xai_insert.graph.items import present
from xai_insert.graph.operators import Product, Scattered, ScatteredApart, Window
from xai_insert.graph.ops import Ops, Surgeon
from xai_insert.graph.view import Node, constant_of, fixed, volume
from xai_insert.methods.axes import has_tokens, width

V = TypeVar("V")

Places = npt.NDArray[np.intp]
_MOST_PLACES = 1 << 16


def weighed(surgeon: Surgeon[V], node: Node, vectors: V, dims: Axes) -> tuple[V, Axes] | None:
    """A product of stored rows with vectors that are columns, as scores of prompts are; None if a node is none.

    Args:
        surgeon: the model being edited.
        node: the product.
        vectors: its second operand, of the longer batch.
        dims: the axes of these.
    """
    stored, kind = node.read(0), node.record(Product)
    if not stored.is_constant or stored.rank != 2 or len(dims) != 2 or kind.transpose_a:
        return None
    mixed, columns = dims[::-1] if kind.transpose_b else dims
    if node.operand(2) is not None or width(mixed) is None:
        return None
    op, rows = surgeon.ops, surgeon.handle(stored)
    product = op.matmul_transposed(rows, vectors) if kind.transpose_b else op.matmul(rows, vectors)
    return product, (other(fixed(stored.sizes)[0]), columns)


def is_linear(node: Node) -> bool:
    """Whether a convolution with stored weights is a linear layer, of a 1x1 grid: `[samples, channels, 1, 1]`."""
    source, weight = node.read(0), node.read(1)
    if not weight.is_constant or weight.axis_count != source.axis_count or weight.sizes[1] != source.sizes[1]:
        return False
    are_single = volume(weight.sizes[2:]) == volume(source.sizes[2:]) == 1
    return are_single and not node.record(Window).may_pad


def as_product(surgeon: Surgeon[V], node: Node, source: V) -> V:
    """A convolution that is a linear layer as one; `source` is what it reads."""
    op, given = surgeon.ops, node.operand(2)
    out_channels, in_channels, *window = fixed(node.read(1).sizes)
    weight = op.reshape(surgeon.handle(node.read(1)), [out_channels, in_channels])
    scores = op.matmul_transposed(op.reshape(source, [-1, in_channels]), weight)
    scores = scores if given is None else op.add(scores, surgeon.handle(given))
    return op.reshape(scores, [-1, out_channels, *window])


def written(op: Ops[V], node: Node, old: V, new: V, dims: Axes) -> tuple[V, Axes] | None:
    """What a node makes of each sample that writes elements over those at stored places (`scores[:, i] = ...`).

    Args:
        op: to write it with.
        node: the scatter, of a model of one image.
        old: what it writes over: stored, or of the longer batch.
        new: what it writes, of the longer batch.
        dims: the axes of that.

    Returns:
        The result as `[samples, elements]`, and its axes; None if its places are computed, or not those of one image.
    """
    places, sizes = _places(node), node.output.sizes
    if places is None or not _is_of_images(dims):
        return None
    total = volume(sizes) or 0
    chosen = _choice(places, total)
    kept = op.mul(op.reshape(old, [-1, total]), op.constant(1 - chosen.sum(axis=0, keepdims=True)))
    result = op.add(kept, op.matmul(op.reshape(new, [-1, places.size]), op.constant(chosen)))
    if len(sizes) == 1:
        return result, ((*dims[0][:1], *other(total)),)
    return (result, (dims[0][:1], *map(other, fixed(sizes[1:])))) if sizes[0] == 1 else None


def _is_of_images(dims: Axes) -> bool:
    """Whether the batch comes first, and no token has an axis."""
    return has_batch(dims[0][:1]) and not any(has_tokens(dim) or has_batch(dim) for dim in (dims[0][1:], *dims[1:]))


def _choice(places: Places, total: int) -> npt.NDArray[np.float32]:
    """`[places, total]`: one where an element goes."""
    chosen = np.zeros((places.size, total), np.float32)
    chosen[np.arange(places.size), places] = 1
    return chosen


def _places(node: Node) -> Places | None:
    """Where in the flat result each element goes that a scatter writes; None if it is not stored, or told twice."""
    kind, new = node.kind, node.read(2).sizes
    indices = constant_of(node.read(1), _MOST_PLACES)
    if not isinstance(kind, (Scattered, ScatteredApart)) or indices is None or not _is_plain(node, kind.is_plain):
        return None
    flat = np.arange(volume(node.read(0).sizes) or 0).reshape(fixed(node.read(0).sizes))
    places = _named(flat, indices) if kind.axis is None else _along(flat, indices, fixed(new), kind.axis)
    return places if places is not None and len(np.unique(places)) == places.size == volume(new) else None


def _is_plain(node: Node, is_plain: bool) -> bool:
    """Whether elements of known number, and not too many, are lost where others are written."""
    sizes = [volume(node.read(index).sizes) for index in (0, 2)]
    return is_plain and None not in sizes and math.prod(present(sizes)) <= _MOST_PLACES


def _named(flat: Places, indices: npt.NDArray[Any]) -> Places | None:
    """The places in `flat` that indices of its first axes name, those of the other axes with them."""
    if not indices.ndim or not 0 < indices.shape[-1] <= flat.ndim:
        return None
    return np.asarray(flat[tuple(np.moveaxis(indices, -1, 0))]).reshape(-1)


def _along(flat: Places, indices: npt.NDArray[Any], new: Sequence[int], axis: int) -> Places | None:
    """The places in `flat` of elements whose index along one axis is given for each."""
    if indices.shape != tuple(new):
        return None
    at = list(np.indices(new))
    at[axis] = indices
    return np.asarray(flat[tuple(at)]).reshape(-1)
