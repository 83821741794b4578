"""The batch, and the tokens whose read-out rows are kept, among the axes of a region that runs on many samples.

The axes are those of `xai_insert.graph.axes`, with the sizes of the model as it was exported, and follow its rules. Two
origins count: the batch, and the tokens, of which the rows that are kept come first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from xai_insert.graph.along import along
from xai_insert.graph.axes import Axes, Axis, Digit, Kind, Origin, Sizes, axis_size, has_batch, of, other
from xai_insert.graph.axes import regroup as graph_regroup
from xai_insert.graph.items import present
from xai_insert.graph.operators import Blocks, Cut, Norm, Product, Reduction, Resized, UnitNorm, Window
from xai_insert.graph.traits import ALONG_ONE_AXIS
from xai_insert.graph.view import POINTWISE, Node, Op, Shape, Value, fixed, volume

ELEMENTWISE = POINTWISE | {Op.QUANTIZE, Op.EXPAND}
"""Operations that work on each element where it is."""
UNKNOWN = -1
_SPECIAL = (Kind.BATCH, Kind.JOINT)


def batch_axis(size: int | None) -> Axis:
    """The batch of the exported model; None if it is free."""
    return of(Origin(Kind.BATCH, size))


def token_axis(size: int) -> Axis:
    """As many tokens: a joint axis, as a reshape may not split it."""
    return of(Origin(Kind.JOINT, size, parts=(other(size),)))


def has_tokens(axis: Axis) -> bool:
    """Whether an axis holds tokens."""
    return any(digit.origin.kind is Kind.JOINT for digit in axis)


def width(axis: Axis) -> int | None:
    """Size of an axis without batch and tokens, -1 for one that follows the image; None for others."""
    if has_batch(axis) or has_tokens(axis):
        return None
    size = axis_size(axis)
    return UNKNOWN if size is None else size


def kept(axes: Axes) -> list[Digit]:
    """The digits that hold batch or tokens."""
    return [digit for axis in axes for digit in axis if digit.origin.kind in _SPECIAL]


def regroup(axes: Axes, shape: Sizes) -> Axes | None:
    """The axes after a reshape to `shape`, at most one of whose sizes is unknown; None if batch or tokens are lost."""
    single = [digit for digit in kept(axes) if digit.origin.kind is Kind.JOINT and digit.size == 1]
    if single:  # one token leaves no trace in the order of elements: it may stand wherever there is an axis for it
        rest = regroup(tuple(tuple(digit for digit in axis if digit not in single) for axis in axes), shape)
        return None if rest is None else _with_token(rest, (single[0],))
    found = graph_regroup(axes, shape)
    return found if kept(found) == kept(axes) else None


def _with_token(axes: Axes, token: Axis) -> Axes:
    for index, axis in enumerate(axes):
        if not axis:
            return (*axes[:index], token, *axes[index + 1 :])
    return axes


def alike(a: Axes, b: Axes) -> bool:
    """Whether axes are as wide, and hold the same parts of batch and tokens."""
    return list(map(_measure, a)) == list(map(_measure, b))


def _measure(axis: Axis) -> tuple[int | None, list[tuple[Kind, int | None]]]:
    return axis_size(axis), [(digit.origin.kind, digit.size) for digit in kept((axis,))]


def meets(dims: Axes, others: Axes) -> bool:
    """Whether the batch of one operand broadcasts against that of another."""
    pairs = zip(reversed(dims), reversed(others), strict=False)
    return all(has_batch(own) == has_batch(met) or own == () for own, met in pairs)


def begins_with_batch(dims: Axes, heads: bool) -> bool:
    """Whether the batch comes first: alone, or where `heads` before others of known size."""
    first = dims[0] if dims else ()
    return has_batch(first[:1]) and (len(first) == 1 or (heads and bool(width(first[1:]))))


def scores_of_one(dims: Axes) -> int:
    """How many scores each sample has where one image's had no axis of images, only theirs; 0 elsewhere."""
    (first, *rest) = dims or ((),)
    size = width(first[1:]) if has_batch(first[:1]) and not rest else None
    return max(size or 0, 0)


def touched_axes(node: Node, rank: int) -> Sequence[int] | None:
    """Axes that an operation mixes or resizes; None if that is unknown."""
    rule = _TOUCHED.get(node.op)
    if rule is not None:
        return rule(node, rank)
    if isinstance(node.kind, (Resized, Blocks, Window)):
        return tuple(range(1, rank))
    return node.kind.axes if isinstance(node.kind, UnitNorm) else None


def _own_axis(node: Node, rank: int) -> Sequence[int] | None:
    del rank
    axis = along(node.kind)
    return None if axis is None else (axis,)


def _own_axes(node: Node, rank: int) -> Sequence[int] | None:
    del rank
    return node.kind.axes if isinstance(node.kind, (Norm, Reduction)) else None


def _of_product(node: Node, rank: int) -> Sequence[int] | None:
    weight = node.operand(1)
    is_layer = weight is not None and weight.is_constant and not node.record(Product).transpose_a
    return (rank - 1,) if is_layer else None


_TOUCHED: Mapping[Op, Callable[[Node, int], Sequence[int] | None]] = {
    **dict.fromkeys(ALONG_ONE_AXIS, _own_axis),
    **dict.fromkeys((Op.REDUCE, Op.LAYER_NORM), _own_axes),
    **dict.fromkeys((Op.CONV, Op.POOL), lambda _, rank: tuple(range(1, rank))),
    Op.MATMUL: _of_product,
    Op.BATCH_NORM: lambda _, __: (1,),
    **dict.fromkeys(ELEMENTWISE, lambda _, __: ()),
}


def is_shared(mask: Value, dims: Axes) -> bool:
    """Whether a mask is stored, and the same for all samples of what it meets."""
    aligned = zip(reversed(mask.sizes), reversed(dims), strict=False)
    return mask.is_constant and not any(has_batch(dim) and size != 1 for size, dim in aligned)


def moved_batch(node: Node, dims: Axes) -> tuple[int, ...] | None:
    """The transpose of a batch of one that is written as a reshape, as in IRs of one image; None if it is none."""
    before, after = node.read(0).sizes, node.output.sizes
    at = next((axis for axis, dim in enumerate(dims) if len(dim) == 1 and has_batch(dim)), None)
    if at is None or before[at] != 1 or len(before) != len(after):
        return None
    rest, place = [axis for axis in range(len(dims)) if axis != at], _new_place(at, after)
    if place is None or [*after[:place], *after[place + 1 :]] != [before[axis] for axis in rest]:
        return None
    return (*rest[:place], at, *rest[place:])


def _new_place(at: int, after: Shape) -> int | None:
    """Where the batch goes: to the front, or off it where something else stands there now."""
    if at:
        return 0 if after[0] == 1 and after[at] != 1 else None
    return after.index(1) if after[0] != 1 and 1 in after else None


def pieces(node: Node, axis: int, kept: Cut | None) -> list[tuple[Value, int, int]]:
    """Each output of a Slice, which keeps `kept`, or of a Split, with its range along `axis`."""
    if kept is not None:
        return [(node.output, kept.start, 1 << 62 if kept.end is None else kept.end)]
    begin, parts = 0, []
    for output in node.outputs:
        size = fixed([output.sizes[axis]])[0]
        parts.append((output, begin, begin + size))
        begin += size
    return parts


def completed(shape: Sequence[int | None], node: Node) -> Sequence[int | None]:
    """A shape with at most one unknown size, as far as the operand's known sizes allow."""
    source, unknown = node.read(0), sum(size is None for size in shape)
    if unknown != 2 or source.shape is None or shape[0] is not None:
        return shape
    elements = volume(source.shape[1:])
    known = volume(present(shape))
    if elements is None or not known:
        return shape
    return [None, *(elements // known if size is None else size for size in shape[1:])]
