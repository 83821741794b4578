"""Running the rest of a network on many samples at once, whatever batch its export has baked in.

The region behind a collapse (or behind an attention) is copied node by node with a longer batch: one sample per image
and masked position. Reshapes are written anew from the axes that they move, so a batch of one that stands as a
constant in the model is no obstacle. Behind an attention only the read-out rows are kept of the token axis: their own
mask weight is one, so whatever else they meet (the residual, a parallel branch) is that of the ordinary run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from xai_insert.errors import CannotFreeBatchError
from xai_insert.graph.along import along, stretch
from xai_insert.graph.axes import Axes, has_batch, other
from xai_insert.graph.items import present
from xai_insert.graph.operators import (
    Contracted,
    Joined,
    Permutation,
    Product,
    Regroup,
    Resized,
)
from xai_insert.graph.ops import Size, Surgeon, V
from xai_insert.graph.traits import CUTS_OUT
from xai_insert.graph.view import Node, Op, Value, fixed, volume
from xai_insert.methods.axes import (
    ELEMENTWISE,
    batch_axis,
    begins_with_batch,
    completed,
    has_tokens,
    meets,
    moved_batch,
    pieces,
    regroup,
    scores_of_one,
    token_axis,
    touched_axes,
    width,
)
from xai_insert.methods.products import attended_dims, contracted_dims, product_dims
from xai_insert.methods.shaping import copied
from xai_insert.methods.stored import as_product, is_linear, weighed, written

_BROADCASTING = ELEMENTWISE - {Op.CAST, Op.IDENTITY, Op.QUANTIZE, Op.EXPAND}
_JOINING = frozenset({Op.ATTENTION, Op.CAST, Op.IDENTITY, Op.QUANTIZE, Op.CONCAT, Op.MATMUL, Op.SCATTER})


@dataclass(frozen=True)
class Batched(Generic[V]):
    """A value of the longer batch, and what each of its axes is made of."""

    handle: V
    dims: Axes


class Batcher(Generic[V]):
    """Copies nodes with a longer batch.

    Args:
        surgeon: the model being edited.
        batch: the batch that the model was exported with; None if it is dynamic.
        rows: number of read-out rows that are kept of the token axis; they come first in it.
        copies: samples per image; more than one where that is told while the model runs.
    """

    def __init__(self, surgeon: Surgeon[V], batch: int | None, rows: int = 1, copies: Size = 1) -> None:
        self._surgeon = surgeon
        self.batch = batch_axis(batch)
        self._rows, self._copies, self._is_of_one = rows, copies, isinstance(copies, int) and copies == 1
        self.made: dict[Value, Batched[V] | None] = {}
        """Values of the longer batch; None for those that hold no read-out row."""

    def run(self, nodes: Sequence[Node], result: Value, *, heads: bool = False) -> V:
        """Copy `nodes` from the values already in `made` on; `result` as `[samples, ...]`.

        Args:
            nodes: in their order.
            result: what the last of them gives.
            heads: whether each sample may have several rows there, one for each head.

        Raises:
            CannotFreeBatchError: an operation mixes the batch, or the read-out rows with other tokens.
        """
        for node in nodes:
            if all(output in self.made for output in node.outputs):
                continue
            if node.op is Op.SHAPE or not any(value in self.made for value in node.inputs):
                continue
            if self._main(node) is None:
                self.made.update(dict.fromkeys(node.outputs))
            else:
                self._batch(node)
        batched = self.made.get(result)
        if batched is None:
            raise CannotFreeBatchError(f"{result.describe()} does not depend on the masked positions")
        if begins_with_batch(batched.dims, heads):
            return batched.handle
        if (size := scores_of_one(batched.dims)) > 0:
            return self._surgeon.ops.reshape(batched.handle, [-1, size])
        raise CannotFreeBatchError(f"{result.describe()} does not begin with the batch")

    def _main(self, node: Node) -> Batched[V] | None:
        """The batched operand that gives the result its axes: the one of highest rank."""
        batched = [self.made[value] for value in node.inputs if value in self.made]
        known = present(batched)
        is_told = node.op is Op.CONCAT or len(known) == len(batched)
        return max(known, key=lambda item: len(item.dims), default=None) if is_told else None

    def _batch(self, node: Node) -> None:
        main = self._main(node)
        if main is None or not self._meets_its_like(node, main):
            raise self._refusal(node)
        rules = {
            Op.RESHAPE: self._reshape,
            Op.TRANSPOSE: self._transpose,
            Op.CONCAT: self._join,
            Op.EXPAND: self._expand,
            Op.CONV: self._convolve,
            Op.MATMUL: self._multiply,
            Op.ATTENTION: self._attend,
            Op.SCATTER: self._write,
            **dict.fromkeys(CUTS_OUT, self._select),
        }
        is_sized = isinstance(node.kind, Resized) and node.kind.sizes_at is not None
        own = self._contract if isinstance(node.kind, Contracted) else self._keep
        rules.get(node.op, self._resize if is_sized else own)(node, main)

    def _keep(self, node: Node, main: Batched[V]) -> None:
        """An operation that keeps batch and tokens apart from the rest."""
        self._copy(node, main, self._result_dims(node, main.dims))

    def _transpose(self, node: Node, main: Batched[V]) -> None:
        if (perm := node.record(Permutation).perm) is None:
            self._keep(node, main)
            return
        self.made[node.output] = self._turned(main, perm)

    def _turned(self, main: Batched[V], perm: Sequence[int]) -> Batched[V]:
        return Batched(self._surgeon.ops.transpose(main.handle, perm), tuple(main.dims[axis] for axis in perm))

    def _meets_its_like(self, node: Node, main: Batched[V]) -> bool:
        """Whether the samples of one operand meet those of the others, and not another axis."""
        if node.op not in _BROADCASTING:
            rest = [value for value in node.inputs[1:] if value in self.made]
            return node.op in _JOINING or not rest  # computed weights, bounds and indices differ between samples
        met = [self._dims(value) for value in node.operands if value in self.made or value.is_constant]
        return all(meets(dims, main.dims) for dims in met)

    def _dims(self, value: Value) -> Axes:
        batched = self.made.get(value)
        return tuple(map(other, fixed(value.sizes))) if batched is None else batched.dims

    def _refusal(self, node: Node) -> CannotFreeBatchError:
        if node.op is Op.OTHER:  # it may mix anything with anything
            return CannotFreeBatchError(f"it is not known which axes {node.type} {node.name!r} mixes")
        return CannotFreeBatchError(f"{node.type} {node.name!r} mixes the batch or the tokens with other axes")

    def _copy(self, node: Node, main: Batched[V], dims: Axes) -> None:
        operands = [value if value is None else self._operand(node, value, main) for value in node.inputs]
        outputs = self._surgeon.copy(node, operands)
        for output, handle in zip(node.outputs, outputs, strict=True):
            shape = output.sizes
            if not shape:  # the scale of a dynamic quantiser
                self.made[output] = Batched(handle, ())
                continue
            kept = [dim if width(dim) is None else other(shape[axis]) for axis, dim in enumerate(dims)]
            self.made[output] = Batched(handle, tuple(kept))

    def _operand(self, node: Node, value: Value, main: Batched[V]) -> V:
        if value in self.made:
            batched = self.made[value]
            if batched is None:
                raise self._refusal(node)
            return batched.handle
        if isinstance(node.kind, Joined) and value.sizes[axis := node.kind.axis] == 0:  # of none, joined to more
            return self._surgeon.ops.slice(main.handle, axis, 0, 0)
        is_met = node.op in ELEMENTWISE | {Op.CONCAT} and (not self._is_of_one or any(map(has_tokens, main.dims)))
        if value.is_constant and node.op is Op.CONCAT and not self._is_of_one:
            return self._ordinary(value, main, spreads=False)
        if value.is_constant and not (is_met and self._has_tokens(value, main)):
            return self._surgeon.handle(value)
        if not is_met:
            raise self._refusal(node)
        return self._ordinary(value, main)

    def _has_tokens(self, constant: Value, main: Batched[V]) -> bool:
        """Whether a constant holds something for each token."""
        aligned = zip(reversed(constant.sizes), reversed(main.dims), strict=False)
        return any(has_tokens(dim) and size != 1 for size, dim in aligned)

    def _ordinary(self, value: Value, main: Batched[V], *, spreads: bool = True) -> V:
        """A value of the ordinary run at the read-out rows, once per sample; constants may spread by themselves."""
        op, shape = self._surgeon.ops, value.sizes
        dims = main.dims[len(main.dims) - len(shape) :]
        if len(dims) != len(shape):
            raise CannotFreeBatchError(f"{value.describe()} has more axes than the value it meets")
        handle = self._read_out(value, dims)
        batch = next((axis for axis, dim in enumerate(dims) if len(dim) == 1 and has_batch(dim)), None)
        if (value.is_constant and spreads) or batch is None:
            return handle
        sizes = [min(self._rows, shape[axis] or 1) if has_tokens(dim) else shape[axis] for axis, dim in enumerate(dims)]
        before, after = fixed(sizes[:batch]), fixed(sizes[batch + 1 :])
        columns = math.prod((*before, *after))
        alone = op.isolated(op.reshape(handle, [-1, columns]), columns)
        spread = op.reshape(alone, [*before, -1, 1, *after])
        return op.reshape(copied(op, spread, self._copies, len(before), len(after)), [*before, -1, *after])

    def _read_out(self, value: Value, dims: Axes) -> V:
        """A value of the ordinary run at the read-out rows."""
        handle = self._surgeon.handle(value)
        for axis, (dim, size) in enumerate(zip(dims, value.sizes, strict=True)):
            if has_tokens(dim) and size != 1:
                if len(dim) > 1 or (size or 0) < self._rows:
                    raise CannotFreeBatchError(f"{value.describe()} merges its tokens with another axis")
                handle = self._surgeon.ops.slice(handle, axis, 0, self._rows)
        return handle

    def _reshape(self, node: Node, main: Batched[V]) -> None:
        if perm := moved_batch(node, main.dims):
            self.made[node.output] = self._turned(main, perm)
            return
        if axes := node.record(Regroup).new_axes:  # their sizes would not tell them from a batch of one
            widened = list(main.dims)
            for axis in axes:
                widened.insert(axis, ())
            dims: Axes | None = tuple(widened)
        else:
            shape = node.output.shape
            dims = None if shape is None else regroup(main.dims, completed(shape, node))
        if dims is None:
            raise self._refusal(node)
        self.made[node.output] = Batched(self._surgeon.ops.reshape(main.handle, self._sizes(dims)), dims)

    def _expand(self, node: Node, main: Batched[V]) -> None:
        """Repeats what has size 1; the batch stays as it is, whatever number the export has written there."""
        if len(node.inputs) != 2 or node.inputs[0] not in self.made:
            self._keep(node, main)
            return
        sizes = node.output.sizes
        if len(sizes) != len(main.dims):
            raise self._refusal(node)
        kept = [1 if width(dim) is None else size for size, dim in zip(sizes, main.dims, strict=True)]
        known = present(kept)
        if len(known) < len(kept):
            raise self._refusal(node)
        dims = tuple(dim if width(dim) is None else other(size) for size, dim in zip(known, main.dims, strict=True))
        self.made[node.output] = Batched(self._surgeon.ops.expand(main.handle, known), dims)

    def _resize(self, node: Node, main: Batched[V]) -> None:
        """A resize to sizes that are listed; the batch is among them where all axes are."""
        dims, sizes = self._result_dims(node, main.dims), node.output.sizes[1:]
        listed = node.operand(node.kind.sizes_at or 0) if isinstance(node.kind, Resized) else None
        if listed is None or listed.sizes != (len(dims),):
            self._keep(node, main)
            return
        if None in sizes:
            raise self._refusal(node)
        op = self._surgeon.ops
        again = op.concat([op.size(main.handle, 0), op.constant(np.array(sizes, np.int64))], 0)
        self.made[listed] = Batched(again, ())
        self._copy(node, main, dims)
        del self.made[listed]

    def _sizes(self, dims: Axes) -> list[int]:
        sizes = []
        for dim in dims:
            factors = [self._rows if has_tokens((digit,)) else digit.size for digit in dim]
            sizes.append(-1 if has_batch(dim) else volume(factors) or 1)
        return sizes

    def _join(self, node: Node, main: Batched[V]) -> None:
        """A concatenation; where it puts the read-out rows back before the other tokens, the rows alone are needed."""
        axis = node.record(Joined).axis
        if not has_tokens(main.dims[axis]):
            self._keep(node, main)
            return
        first = node.inputs[0]
        batched = None if first is None else self.made.get(first)
        size = node.output.sizes[axis]
        if batched is None or size is None:
            raise self._refusal(node)
        dims = (*batched.dims[:axis], token_axis(size), *batched.dims[axis + 1 :])
        self.made[node.output] = Batched(batched.handle, dims)

    def _multiply(self, node: Node, main: Batched[V]) -> None:
        """A product of two values of the ordinary batch, as the scores of an attention are."""
        if node.operand(1) not in self.made:
            self._keep(node, main)
            return
        a, b = (self.made.get(node.read(index)) for index in (0, 1))
        if a is None and b is not None and self._weigh(node, b):
            return
        op, kind = self._surgeon.ops, node.record(Product)
        if a is None or b is None or (dims := product_dims(kind, a.dims, b.dims)) is None:
            raise self._refusal(node)
        factors = (a.handle, b.handle)
        handle = op.matmul_transposed(*factors, len(b.dims)) if kind.transpose_b else op.matmul(*factors)
        self.made[node.output] = Batched(handle, dims)

    def _contract(self, node: Node, main: Batched[V]) -> None:
        """An Einsum with stored weights."""
        if (dims := contracted_dims(node, main.dims)) is None:
            raise self._refusal(node)
        self._copy(node, main, dims)

    def _weigh(self, node: Node, b: Batched[V]) -> bool:
        """A product of stored rows with vectors that are columns; whether it is one."""
        made = weighed(self._surgeon, node, b.handle, b.dims)
        self.made |= {} if made is None else {node.output: Batched(*made)}
        return made is not None

    def _write(self, node: Node, main: Batched[V]) -> None:
        """Elements written over those at stored places of each sample."""
        old, new = node.read(0), self.made.get(node.read(2))
        if new is None or not (old.is_constant or old in self.made):
            raise self._refusal(node)
        made = written(self._surgeon.ops, node, self._operand(node, old, main), new.handle, new.dims)
        if made is None:
            raise self._refusal(node)
        self.made[node.output] = Batched(self._surgeon.ops.reshape(made[0], self._sizes(made[1])), made[1])

    def _attend(self, node: Node, main: Batched[V]) -> None:
        """A fused attention within each sample, under a mask that is the same for all."""
        del main  # the query gives the result its axes
        parts = present(self.made.get(node.read(index)) for index in range(3))
        dims = attended_dims(node, [part.dims for part in parts])
        if dims is None:
            raise self._refusal(node)
        self._copy(node, parts[0], dims)

    def _select(self, node: Node, main: Batched[V]) -> None:
        """A cut along the batch or the tokens, or along another axis."""
        axis = along(node.kind)
        if axis is None or width(dim := main.dims[axis]) is not None:
            self._keep(node, main)
            return
        kept = stretch(node.kind)
        if len(dim) > 1 or not has_tokens(dim) or (node.op is not Op.SPLIT and kept is None):
            raise self._refusal(node)
        if node.op is Op.GATHER and kept is not None:
            self._take_row(node, main, axis, kept.start)
        else:
            self._take_parts(node, main, axis, pieces(node, axis, kept))

    def _take_row(self, node: Node, main: Batched[V], axis: int, start: int) -> None:
        if not 0 <= start < self._rows:
            raise self._refusal(node)
        row = self._surgeon.ops.slice(main.handle, axis, start, start + 1)
        kept = [other(1)] if node.output.rank == len(main.dims) else []  # an index in a list of one
        dims = (*main.dims[:axis], *kept, *main.dims[axis + 1 :])
        self.made[node.output] = Batched(self._surgeon.ops.reshape(row, self._sizes(dims)), dims)

    def _take_parts(self, node: Node, main: Batched[V], axis: int, parts: Sequence[tuple[Value, int, int]]) -> None:
        for output, begin, stop in parts:
            if begin >= self._rows:
                self.made[output] = None
            elif stop <= self._rows:
                part = self._surgeon.ops.slice(main.handle, axis, begin, stop)
                dims = (*main.dims[:axis], other(stop - begin), *main.dims[axis + 1 :])
                self.made[output] = Batched(part, dims)
            elif begin == 0:
                self.made[output] = main
            else:
                raise self._refusal(node)

    def _convolve(self, node: Node, main: Batched[V]) -> None:
        """A convolution on a 1x1 grid is a linear layer, and as one matrix product it runs much faster."""
        dims = self._result_dims(node, main.dims)
        if not is_linear(node):
            self._copy(node, main, dims)
            return
        channels, *rest = node.output.sizes[1:]
        made = as_product(self._surgeon, node, main.handle)
        self.made[node.output] = Batched(made, (main.dims[0], other(channels), *[()] * len(rest)))

    def _result_dims(self, node: Node, dims: Axes) -> Axes:
        """Axes of the result of an operation that keeps batch and tokens apart from the rest."""
        rank = node.output.rank
        if not dims and node.op in ELEMENTWISE:  # the scale of a dynamic quantiser, times those of the weight
            return tuple(other(size) for size in fixed(node.output.sizes))
        touched = touched_axes(node, len(dims))
        if touched is None or any(width(dims[axis]) is None for axis in touched):
            raise self._refusal(node)
        if rank == len(dims):
            return dims
        if node.op in (Op.REDUCE, Op.GATHER) and rank == len(dims) - len(touched):
            return tuple(dim for axis, dim in enumerate(dims) if axis not in touched)
        raise self._refusal(node)
