"""The batch, and the tokens whose read-out rows are kept, among the axes of a region that runs on many samples.

The axes are those of `xai_insert.graph.axes`, with the sizes of the model as it was exported, and follow its rules. Two
origins count: the batch, and the tokens, of which the rows that are kept come first.
"""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.axes import Axes, Axis, Digit, Kind, Origin, Sizes, axis_size, has_batch, of, other
from xai_insert.graph.axes import regroup as graph_regroup
from xai_insert.graph.operators import UnitNorm
from xai_insert.graph.traits import ALONG_ONE_AXIS
from xai_insert.graph.view import POINTWISE, Node, Op, Value, fixed, volume

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


def touched_axes(node: Node, rank: int) -> Sequence[int] | None:
    """Axes that an operation mixes or resizes; None if that is unknown."""
    axes: Sequence[int] | None
    if node.op in ELEMENTWISE:
        axes = ()
    elif node.op in (Op.REDUCE, Op.LAYER_NORM):
        axes = node.attrs["axes"]
    elif node.op in ALONG_ONE_AXIS:
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


def pieces(node: Node, axis: int, start: int | None, end: int | None) -> list[tuple[Value, int, int]]:
    """Each output of a Slice or Split with its range along `axis`."""
    if node.op is Op.SLICE:
        return [(node.output, start or 0, 1 << 62 if end is None else end)]
    begin, parts = 0, []
    for output in node.outputs:
        size = fixed([output.sizes[axis]])[0]
        parts.append((output, begin, begin + size))
        begin += size
    return parts


def completed(shape: Sequence[int | None], node: Node) -> Sequence[int | None]:
    """A shape with at most one unknown size, as far as the operand's known sizes allow."""
    source = node.read(0)
    if sum(size is None for size in shape) < 2 or source.shape is None or shape[0] is not None:
        return shape
    elements = volume(source.shape[1:])
    known = volume([size for size in shape if size is not None])
    if elements is None or not known or sum(size is None for size in shape) > 2:
        return shape
    return [None, *(elements // known if size is None else size for size in shape[1:])]
