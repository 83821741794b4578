"""Gathers and scatters of a value from its first element to its last: views of strides, as exporters write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.graph.operators import Regroup
from xai_insert.graph.view import Node, Op, Value, constant_of, volume

_ROWS = 5
_DEPTH = 12


def is_identity_gather(data: Value | None, indices: Value | None) -> bool:
    """Whether a Gather takes every element of a vector in order: a reshape that exporters write for strided views."""
    if (
        data is None
        or indices is None
        or data.rank != 1
        or indices.shape is None
        or data.shape != (volume(indices.shape),)
    ):
        return False
    return _counts_up(indices)


def is_identity_scatter(data: Value | None, indices: Value | None, updates: Value | None) -> bool:
    """Whether a Scatter writes all elements of a vector over another: what is left of `x[:] = y`."""
    if data is None or indices is None or updates is None or data.rank != 1 or None in data.sizes:
        return False
    return data.shape == updates.shape == (volume(indices.sizes),) and _counts_up(indices)


def _counts_up(indices: Value) -> bool:
    order = constant_of(indices, limit=1 << 20)
    return order is not None and np.array_equal(order.reshape(-1), np.arange(order.size))


def counts_rows(indices: Value, width: int) -> bool:
    """Whether indices are 0, 1, 2, ... for each of any number of rows of `width` elements, row after row.

    They must be a counted range times a constant, plus constants: what holds of a few rows then holds of all.
    """
    found = _of_rows(indices, _DEPTH)
    return found is not None and np.array_equal(found.reshape(-1), np.arange(_ROWS * width))


def _of_rows(value: Value, depth: int) -> npt.NDArray[Any] | None:
    """What a value holds if the range that it is made of counts `_ROWS`; None if it is made otherwise."""
    node = value.producer
    if value.is_constant or node is None or depth == 0:
        return constant_of(value, limit=1 << 20)
    if node.type == "Range":
        return np.arange(_ROWS) if _is_in_steps_of_one(node) else None
    parts = [part for operand in node.operands if (part := _of_rows(operand, depth - 1)) is not None]
    return _computed(node, parts) if len(parts) == len(node.operands) else None


def _is_in_steps_of_one(node: Node) -> bool:
    """Whether a range counts from 0 on, in steps of 1."""
    bounds = [constant_of(node.read(index)) for index in (0, 2)]
    return [None if bound is None else bound.reshape(-1).tolist() for bound in bounds] == [[0], [1]]


def _computed(node: Node, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    """What a node makes of its operands, if it is one of those that write places down."""
    if node.op is Op.ADD:
        return np.asarray(parts[0] + parts[1])
    if node.op is Op.MUL and node.stored:
        return np.asarray(parts[0] * parts[1])
    if isinstance(node.kind, Regroup) and node.kind.new_axes:
        return np.expand_dims(parts[0], node.kind.new_axes)
    return parts[0] if node.op in (Op.CAST, Op.IDENTITY) else None
