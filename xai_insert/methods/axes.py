"""The batch, and the tokens whose read-out rows are kept, among the axes of a region that runs on many samples.

The axes are those of `xai_insert.graph.axes`, with the sizes of the model as it was exported, and follow its rules. Two
origins count: the batch, and the tokens, of which the rows that are kept come first.
"""

from __future__ import annotations

from xai_insert.graph.axes import Axes, Axis, Digit, Kind, Origin, Sizes, axis_size, of, other
from xai_insert.graph.axes import regroup as graph_regroup

_SPECIAL = (Kind.BATCH, Kind.JOINT)


def batch_axis(size: int | None) -> Axis:
    """The batch of the exported model; None if it is free."""
    return of(Origin(Kind.BATCH, size))


def token_axis(size: int) -> Axis:
    """As many tokens: a joint axis, as a reshape may not split it."""
    return of(Origin(Kind.JOINT, size, parts=(other(size),)))


def has_batch(axis: Axis) -> bool:
    """Whether an axis holds the batch."""
    return any(digit.origin.kind is Kind.BATCH for digit in axis)


def has_tokens(axis: Axis) -> bool:
    """Whether an axis holds tokens."""
    return any(digit.origin.kind is Kind.JOINT for digit in axis)


def width(axis: Axis) -> int | None:
    """Size of an axis without batch and tokens; None for others."""
    return None if has_batch(axis) or has_tokens(axis) else axis_size(axis)


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
