"""What an operator does along one axis: which axis that is, and what it keeps of it."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.items import only, present
from xai_insert.graph.operators import (
    Cut,
    Joined,
    Operator,
    Parts,
    Picked,
    Ranked,
    Reduction,
    Slices,
    Softmax,
    Unknown,
    Window,
)
from xai_insert.graph.pattern import before
from xai_insert.graph.shape import Shape
from xai_insert.graph.view import Op, Value, constant_of

_MANY = 1 << 16
_OPEN = 10**9  # an end from here on is that of the axis


def convolves(kind: Operator) -> bool:
    """Whether an operator is a convolution, a transposed one too."""
    return isinstance(kind, Window) and kind.pool is None


def along(kind: Operator) -> int | None:
    """The one axis along which an operator works; None if there are several, or it is not known."""
    if isinstance(kind, (Softmax, Reduction)):
        return only(kind.axes or ())
    if isinstance(kind, Slices):
        return None if kind.single is None else kind.single.axis
    return kind.axis if isinstance(kind, (Joined, Parts, Picked, Ranked)) else None


def stretch(kind: Operator) -> Cut | None:
    """The neighbouring elements of one axis that an operator keeps; None where it does not, or they are not known."""
    if isinstance(kind, Slices):
        return kind.single
    start = only(kind.indices or ()) if isinstance(kind, Picked) else None
    return None if start is None or not isinstance(kind, Picked) else Cut(kind.axis, start, 1, start + 1)


def reduces(kind: Operator, *modes: str) -> bool:
    """Whether an operator is a reduction by one of these."""
    return isinstance(kind, Reduction) and kind.mode in modes


def is_least(kind: Operator) -> bool:
    """Whether an operator tells where the least elements are, not the greatest."""
    return reduces(kind, "argmin") or (isinstance(kind, Ranked) and kind.is_least)


def sliced(
    shape: Shape,
    axes: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int | None] | None,
    steps: Sequence[int] = (),
    dropped: tuple[int, ...] = (),
) -> Slices:
    """What a slice keeps of a value of this shape; in steps of one where it has no others."""
    count = len(starts)
    bounds = zip(axes, starts, ends or [None] * count, steps or [1] * count, strict=False)
    found = [_cut(axis % len(shape), shape[axis], start, step, end) for axis, start, end, step in bounds]
    cuts = tuple(present(found))
    if len(cuts) < len(found):
        return Slices(None)
    kept = tuple(cut for cut in cuts if cut.axis in dropped or ends is None or not _is_whole(cut, shape))
    return Slices(kept, dropped, None if ends is None else _single(kept or cuts, dropped, shape))


def turned(shape: Shape | None, axis: int, lengths: Value | None) -> Operator:
    """The record of a reversal of so many elements along an axis, of each image; known where these are all."""
    size = None if shape is None else shape[axis]
    stored = None if lengths is None else constant_of(before(lengths, (Op.EXPAND,)))
    is_whole = size is not None and stored is not None and bool((stored == size).all())
    return Slices((Cut(axis, size - 1, -1),)) if is_whole and size is not None else Unknown()


def _cut(axis: int, size: int | None, start: int, step: int, end: int | None) -> Cut | None:
    """What is kept of an axis; None where its start is counted from an end that is not known."""
    if size is None:
        return Cut(axis, start, step, _end(end)) if 0 <= start < _MANY else None
    begin = max(0, start + size) if start < 0 else min(start, size - (step < 0))
    return Cut(axis, begin, step, _end(end, size))


def _end(end: int | None, size: int | None = None) -> int | None:
    if end is None or size is None:
        return end if end is not None and end < _OPEN else None
    return max(0, end + size) if end < 0 else min(end, size)


def _is_whole(cut: Cut, shape: Shape) -> bool:
    """Whether a cut leaves nothing out."""
    return (cut.start, cut.step) == (0, 1) and cut.end in (None, shape[cut.axis])


def _single(cuts: Sequence[Cut], dropped: tuple[int, ...], shape: Shape) -> Cut | None:
    """The cut that leaves something out, or the first of those that do not; None if several do, or it is not known."""
    if any(cut.step != 1 for cut in cuts):
        return None
    cut = only([cut for cut in cuts if not _is_whole(cut, shape)] or list(cuts[:1]))
    if cut is None or (cut.end is not None and cut.end < 0) or dropped not in ((), (cut.axis,)):
        return None
    return cut
