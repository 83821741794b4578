"""Following the batch and the tokens through reshapes and transposes, whatever sizes an export has baked in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xai_insert.graph.operators import UnitNorm
from xai_insert.graph.view import POINTWISE, Node, Op

ELEMENTWISE = POINTWISE | {Op.QUANTIZE, Op.EXPAND}
"""Operations that work on each element where it is."""
BATCH = "batch"


@dataclass(frozen=True)
class Tokens:
    """The token axis; `size` is that of the model as it was exported."""

    size: int


Atom = str | int | Tokens
Dim = tuple[Atom, ...]
"""One axis, as the factors that it was merged from, outermost first; a plain axis has one factor or none (size 1)."""
Dims = tuple[Dim, ...]


def has_tokens(dim: Dim) -> bool:
    """Whether an axis holds tokens."""
    return any(isinstance(atom, Tokens) for atom in dim)


def _size(atom: Atom, batch: int | None) -> int | None:
    if isinstance(atom, Tokens):
        return atom.size
    return atom if isinstance(atom, int) else batch


def plain(dim: int) -> Dim:
    """An axis that is neither batch nor tokens."""
    return () if dim == 1 else (dim,)


def width(dim: Dim) -> int | None:
    """Size of an axis without batch and tokens; None for others."""
    factors = [atom for atom in dim if isinstance(atom, int)]
    return math.prod(factors) if len(factors) == len(dim) else None


def regroup(dims: Dims, shape: Sequence[int | None], batch: int | None) -> Dims | None:
    """The axes after a reshape to `shape` (sizes of the exported model); None if they cannot be told.

    Args:
        dims: axes of the operand.
        shape: sizes of the result in the exported model, at most one of them unknown.
        batch: the batch that the model was exported with; None if it is dynamic.

    Elements keep their order in a reshape, so the factors keep theirs and only the borders between axes move.
    """
    stream = [atom for dim in dims for atom in dim if atom != 1]
    single = [atom for atom in stream if isinstance(atom, Tokens) and atom.size == 1]
    if single:  # one token leaves no trace in the order of elements: it may stand wherever there is an axis for it
        rest = regroup(tuple((atom,) for atom in stream if atom not in single), shape, batch)
        return None if rest is None else _with_token(rest, single[0])
    unknown = [axis for axis, size in enumerate(shape) if size is None]
    if len(unknown) > 1:
        return None
    if not unknown:
        return _consume(stream, [size or 0 for size in shape], batch, whole=True)
    axis = unknown[0]
    left = _consume(stream, [size or 0 for size in shape[:axis]], batch, whole=False)
    stream.reverse()
    right = _consume(stream, [size or 0 for size in reversed(shape[axis + 1 :])], batch, whole=False)
    if left is None or right is None:
        return None
    return (*left, tuple(reversed(stream)), *(tuple(reversed(dim)) for dim in reversed(right)))


def _with_token(dims: Dims, token: Tokens) -> Dims:
    for axis, dim in enumerate(dims):
        if not dim:
            return (*dims[:axis], (token,), *dims[axis + 1 :])
    return dims


def _consume(stream: list[Atom], sizes: list[int], batch: int | None, *, whole: bool) -> Dims | None:
    """Take one axis after the other off `stream`; with `whole`, nothing may be left."""
    result: list[Dim] = []
    for index, size in enumerate(sizes):
        following = sizes[index + 1] if index + 1 < len(sizes) else 0
        dim = _take(stream, size, following, batch)
        if dim is None:
            return None
        result.append(dim)
    return None if whole and stream else tuple(result)


def _take(stream: list[Atom], size: int, following: int, batch: int | None) -> Dim | None:
    taken: list[Atom] = []
    product = 1
    while product < size:
        if not stream:
            return None
        atom_size = _size(stream[0], batch)
        if not atom_size:  # unknown, or the 0 of a damaged file
            return None
        need = size // product
        if size % product == 0 and need % atom_size == 0:
            taken.append(stream.pop(0))
            product *= atom_size
        elif isinstance(stream[0], int) and size % product == 0 and atom_size % need == 0:
            taken.append(need)
            stream[0] = atom_size // need
            product = size
        else:
            return None
    # A batch of one leaves no trace in the sizes: it goes with the axis of size 1 or, without one, where it stands.
    while stream and not isinstance(stream[0], int) and _size(stream[0], batch) == 1 and (size == 1 or following != 1):
        taken.append(stream.pop(0))
        if following == 1:
            break
    return tuple(taken)


def touched_axes(node: Node, rank: int) -> Sequence[int] | None:
    """Axes that an operation mixes or resizes; None if that is unknown."""
    axes: Sequence[int] | None
    if node.op in ELEMENTWISE:
        axes = ()
    elif node.op in (Op.REDUCE, Op.LAYER_NORM):
        axes = node.attrs["axes"]
    elif node.op in (Op.SOFTMAX, Op.CONCAT, Op.GATHER, Op.SPLIT, Op.SLICE):
        axis = node.attrs.get("axis")
        axes = None if axis is None else (axis,)
    elif node.op is Op.MATMUL:
        weight = node.operand(1)
        axes = (rank - 1,) if weight is not None and weight.is_constant and not node.attrs["transpose_a"] else None
    elif node.op in (Op.CONV, Op.POOL):
        axes = tuple(range(1, rank))
    elif node.op is Op.BATCH_NORM:
        axes = (1,)
    elif isinstance(node.kind, UnitNorm):
        axes = node.kind.axes
    else:
        axes = None
    return axes
