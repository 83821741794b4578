"""Shapes that stay symbolic where the model's are, and constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce

import numpy as np

from xai_insert.graph.along import along
from xai_insert.graph.operators import Permutation
from xai_insert.graph.ops import Ops, Size, Surgeon, V
from xai_insert.graph.view import Node, Op, Value, fixed, volume
from xai_insert.locate.layout import FeatureMap, Side


def scalar(op: Ops[V], value: float, dtype: str = "float32") -> V:
    """A constant of shape `[]`."""
    return op.constant(np.array(value, dtype))


def size_of(op: Ops[V], handle: V, value: Value, axis: int) -> Size:
    """One size: an int where it is known, else read off the value while the model runs."""
    return known_or_read(op, handle, axis, None if value.shape is None else value.shape[axis])


def known_or_read(op: Ops[V], handle: V, axis: int, known: int | None) -> Size:
    """The size of an axis, if it is known, else what is read off it while the model runs."""
    return op.size(handle, axis) if known is None else known


def as_vector(op: Ops[V], size: Size) -> V:
    """A size as what runs is measured in: int64 `[1]`."""
    return op.constant(np.array([size], np.int64)) if isinstance(size, int) else size


def batch_size(surgeon: Surgeon[V], handle: V, feature: FeatureMap) -> Size:
    """The batch, left to be inferred where the grid is known, so that the model can still be reshaped to another."""
    if feature.positions is not None:
        return -1
    images = [side.value for side in feature.sides if side.value.producer is None]
    return surgeon.ops.size(surgeon.handle(images[0]) if images else handle, 0)


def grid_sizes(surgeon: Surgeon[V], handle: V, feature: FeatureMap) -> list[Size]:
    """Height and width of the grid; for tokens those of the map that they were made of."""
    if feature.sides:
        return [_side(surgeon, side) for side in feature.sides]
    if len(feature.grid_axes) > 1:
        return [size_of(surgeon.ops, handle, feature.value, axis) for axis in feature.grid_axes]
    return list(fixed(feature.grid))


def _side(surgeon: Surgeon[V], side: Side) -> Size:
    op = surgeon.ops
    size = size_of(op, surgeon.handle(side.value), side.value, side.axis)
    if isinstance(size, int):
        return (size + side.plus) // side.over
    plus, over = (op.constant(np.array([number], np.int64)) for number in (side.plus, side.over))
    size = op.add(size, plus) if side.plus else size
    return op.div(size, over) if side.over > 1 else size


def product_of(op: Ops[V], sizes: Iterable[Size]) -> Size:
    """The product of sizes: an int if all are."""
    known, read = 1, list[V]()
    for size in sizes:
        if isinstance(size, int):
            known *= size
        else:
            read.append(size)
    if not read:
        return known
    return reduce(op.mul, read if known == 1 else [*read, op.constant(np.array([known], np.int64))])


def sum_of(op: Ops[V], sizes: Iterable[Size]) -> Size:
    """The sum of sizes: an int if all are."""
    known, read = 0, list[V]()
    for size in sizes:
        if isinstance(size, int):
            known += size
        else:
            read.append(size)
    if not read:
        return known
    return reduce(op.add, [*read, op.constant(np.array([known], np.int64))] if known else read)


def as_number(op: Ops[V], size: Size, more: float = 0.0) -> V:
    """A size and `more` as float32: a constant of shape `[]` where it is known."""
    if isinstance(size, int):
        return scalar(op, size + more)
    number = op.number(size)
    return op.add(number, scalar(op, more)) if more else number


def counted(op: Ops[V], size: Size) -> V:
    """0, 1, 2, ... up to but without a size, float32."""
    is_known = isinstance(size, int)
    return op.constant(np.arange(size, dtype=np.float32)) if is_known else op.cast(op.numbers(size), "float32")


def copied(op: Ops[V], x: V, times: Size, before: int, behind: int) -> V:
    """`[..., B, 1, ...]` with that axis of size 1 repeated; so many axes stand `before` B and `behind` it."""
    if isinstance(times, int):
        return op.expand(x, [1] * before + [1, times] + [1] * behind)
    nothing = op.mul(counted(op, times), scalar(op, 0.0))
    return op.add(x, op.reshape(nothing, [-1] + [1] * behind))


def reshape(op: Ops[V], x: V, sizes: Sequence[Size]) -> V:
    """Reshape, with the one size that is not an int left to be inferred: no shape arithmetic at run time."""
    dynamic = [index for index, size in enumerate(sizes) if not isinstance(size, int)]
    if len(dynamic) == 1 and -1 not in [size for size in sizes if isinstance(size, int)]:
        sizes = [-1 if index in dynamic else size for index, size in enumerate(sizes)]
    return op.reshape(x, sizes)


def positions(surgeon: Surgeon[V], feature: V, layout: FeatureMap) -> V:
    """Number of grid cells as a float32 scalar."""
    op = surgeon.ops
    count = volume([layout.shape[axis] for axis in layout.grid_axes])
    if count is not None:
        return scalar(op, float(count))
    total: V | None = None
    read = len(layout.grid_axes) == len(layout.sides)
    for index, axis in enumerate(layout.grid_axes):
        size = _side(surgeon, layout.sides[index]) if read else op.size(feature, axis)
        side = as_number(op, size)
        total = side if total is None else op.mul(total, side)
    if total is None:
        raise ValueError("a feature map has a grid")
    return total


def total(op: Ops[V], parts: Iterable[V]) -> V:
    """The sum of parts, of which there is one at least, each added when it is made."""
    return reduce(op.add, parts)


def before_transpose(value: Value) -> tuple[Value, tuple[int, ...]] | None:
    """What a transpose that makes a value reads, and its order of axes; None where none makes it.

    Branches read there: a runtime may merge the transpose with what else the model does with the value.
    """
    node = value.made_by(Op.TRANSPOSE)
    order = None if node is None else node.record(Permutation).perm
    return None if node is None or order is None else (node.read(0), order)


def transposed_again(surgeon: Surgeon[V], value: Value) -> V:
    """A value, by a transpose of the branch's own where one makes it."""
    found = before_transpose(value)
    return surgeon.handle(value) if found is None else surgeon.ops.transpose(surgeon.handle(found[0]), found[1])


def part_of(surgeon: Surgeon[V], value: Value, axis: int, start: int, end: int) -> V:
    """A slice of a value; where a Concat made the value, read before it, which spares a copy."""
    node = value.made_by(Op.CONCAT)
    for low, part in [] if node is None or along(node.kind) != axis else _parts(node, axis):
        if low <= start and end <= low + (part.sizes[axis] or 0):
            return part_of(surgeon, part, axis, start - low, end - low)
    handle = surgeon.handle(value)
    return handle if (start, end) == (0, value.sizes[axis]) else surgeon.ops.slice(handle, axis, start, end)


def _parts(node: Node, axis: int) -> Iterator[tuple[int, Value]]:
    """What a Concat joins, each with the place where it begins, as far as that is known."""
    low = 0
    for part in node.inputs:
        size = None if part is None or part.shape is None else part.shape[axis]
        if part is None or size is None:
            return
        yield low, part
        low += size


def rerun(surgeon: Surgeon[V], node: Node, made: Mapping[Value, V]) -> Sequence[V]:
    """A node's results of what was made in place of some values, and of the model's own others."""
    operands = operands_again(surgeon, node, made)
    return surgeon.copy(node, operands)


def operands_again(surgeon: Surgeon[V], node: Node, made: Mapping[Value, V]) -> list[V | None]:
    """A node's operands: what was made in place of some values, and the model's own others."""
    return [v if v is None else made[v] if v in made else surgeon.handle(v) for v in node.inputs]
