"""What every axis of every value is made of, followed from the image by one rule per operator.

An axis is a product of digits, the major one first, as in a number of mixed radix; a digit is a part of an origin: the
batch, the rows or the columns of the image, or something else (channels, heads, queries, members, what was mixed). A
reshape splits and merges digits, a transpose reorders them; where factors do not come out, the origin is lost, not
guessed. Cell i of rows or columns lies at pixel `stride * i + offset` of the image. Equal sizes mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

Sizes = Sequence[int | None]


class Kind(Enum):
    """What an origin stands for."""

    BATCH = "batch"
    ROWS = "rows"
    COLUMNS = "columns"
    OTHER = "other"
    JOINT = "joint"
    """Several axes end to end: tokens before, of, and behind a grid; views of one batch."""
    SHUFFLED = "shuffled"
    """The cells of one axis in another order."""


@dataclass(frozen=True, eq=False)
class Origin:
    """What digits are parts of.

    Attributes:
        kind: see `Kind`.
        size: number of its elements; None where it follows the input.
        stride: for rows and columns, pixels from one cell to the next; negative where they run backwards.
        offset: pixel of the centre of cell 0.
        roll: cell i holds what is at cell `i + roll`, modulo the size.
        parts: of a joint one, the axes that stand end to end; of a shuffled one, the axis in its order.
        order: of a shuffled one, where each cell stood.
        whole: of what it was cut out, and `start` where from.
        coarser: what its major digits are as origins of their own, by their step.
    """

    kind: Kind
    size: int | None
    stride: float = 1.0
    offset: float = 0.0
    roll: int = 0
    parts: tuple[Axis, ...] = ()
    order: tuple[int, ...] = ()
    whole: Origin | None = None
    start: int = 0
    coarser: dict[int, Origin] = field(default_factory=dict)

    @property
    def is_place(self) -> bool:
        return self.kind in (Kind.ROWS, Kind.COLUMNS)


@dataclass(frozen=True)
class Digit:
    """`index // step % size` of an origin's index."""

    origin: Origin
    step: int
    size: int | None


Axis = tuple[Digit, ...]
Axes = tuple[Axis, ...]


def of(origin: Origin) -> Axis:
    """The axis that is an origin, whole."""
    return () if origin.size == 1 and origin.kind is Kind.OTHER else (Digit(origin, 1, origin.size),)


def other(size: int | None) -> Axis:
    """An axis of which nothing is known but its size."""
    return of(Origin(Kind.OTHER, size))


def others(shape: Sizes) -> Axes:
    """Axes of which nothing is known."""
    return tuple(other(size) for size in shape)


def axis_size(axis: Axis) -> int | None:
    """Product of the digits' sizes."""
    return _product(digit.size for digit in axis)


def _product(sizes: Iterable[int | None]) -> int | None:
    total = 1
    for size in sizes:
        if size is None:
            return None
        total *= size
    return total


def has_place(axis: Axis) -> bool:
    """Whether an axis holds anything of the image's rows or columns."""
    return any(d.origin.is_place or any(has_place(part) for part in d.origin.parts) for d in axis)


def parts_of(axis: Axis) -> tuple[Axis, ...]:
    """The axes that stand end to end in one; itself if it is not joint."""
    if len(axis) == 1 and axis[0].origin.kind is Kind.JOINT and axis[0].size == axis[0].origin.size:
        return axis[0].origin.parts
    return (axis,)


def line(axis: Axis) -> Origin | None:
    """An axis as whole rows or columns, maybe coarser than those that it comes from; None if it is none."""
    if len(axis) != 1 or not axis[0].origin.is_place or axis[0].origin.roll:
        return None
    return coarse(axis[0])


def rolled_line(axis: Axis, stride: int) -> Origin | None:
    """Whole rows or columns that were rolled by a multiple of `stride`; None for others."""
    if len(axis) != 1 or not axis[0].origin.is_place or axis[0].size != axis[0].origin.size:
        return None
    return None if axis[0].origin.roll % stride else axis[0].origin


def coarse(digit: Digit) -> Origin | None:
    """The major part of rows or columns as a grid of its own; None for a minor part, whose cells lie in many places."""
    origin, step = digit.origin, digit.step
    if step == 1 and digit.size == origin.size:
        return origin
    if digit.size is None or origin.size is None or step * digit.size != origin.size or origin.roll:
        return None
    if step not in origin.coarser:
        stride, offset = origin.stride * step, origin.offset + origin.stride * (step - 1) / 2
        origin.coarser[step] = Origin(origin.kind, digit.size, stride, offset)
    return origin.coarser[step]


def merged(digits: Sequence[Digit]) -> Axis:
    """Digits with neighbours of one origin put together where they follow one another."""
    made: list[Digit] = []
    for digit in digits:
        together = _follows(made[-1], digit) if made else None
        if together is None:
            made.append(digit)
        else:
            made[-1] = together
    return tuple(made)


def _follows(major: Digit, minor: Digit) -> Digit | None:
    """Two digits as one, where the minor one counts on below the major one; on several paths their origins differ."""
    origin = minor.origin
    if not minor.size:
        return None
    if major.origin is origin:
        together = Digit(origin, minor.step, _product((major.size, minor.size)))
        return together if major.step == minor.step * minor.size else None
    if not (origin.is_place and major.origin.kind is origin.kind and major.size):
        return None
    above, wanted = coarse(major), coarse(Digit(origin, minor.step * minor.size, major.size))
    if above is None or wanted is None or not _near(above, wanted):
        return None
    return Digit(origin, minor.step, major.size * minor.size)


def regroup(axes: Axes, shape: Sizes) -> Axes:
    """Axes after a reshape to `shape`."""
    shape, stream = list(shape), list(merged([digit for axis in axes for digit in axis]))
    result: list[Axis | None] = [None] * len(shape)
    left = _fill(stream, shape, result, range(len(shape)), from_right=False)
    if left is not None:
        stuck = _fill(stream, shape, result, range(len(shape) - 1, left, -1), from_right=True)
        if stuck is None and (shape[left] is None or axis_size(tuple(stream)) == shape[left]):
            result[left], stream = merged(stream), []
    filled = [other(size) if axis is None else axis for axis, size in zip(result, shape, strict=True)]
    if filled and stream and all(digit.size == 1 for digit in stream):
        filled[-1] = (*filled[-1], *stream)
    return tuple(filled)


def _fill(
    stream: list[Digit], shape: list[int | None], result: list[Axis | None], order: Iterable[int], *, from_right: bool
) -> int | None:
    """Take axis after axis off one end of `stream`; the first axis that could not be taken, None if all could."""
    end = -1 if from_right else 0
    for index in order:
        size = shape[index]
        taken: list[Digit] | None
        if size is None:
            is_batch = bool(stream) and stream[end].origin.kind is Kind.BATCH and stream[end].size is None
            if not is_batch or from_right or shape.count(None) == 1:
                return index
            taken = [stream.pop(0)]
        else:
            taken = _take(stream, size, end)
        if taken is None:
            return index
        result[index] = merged(taken[::-1] if from_right else taken)
    return None


def _take(stream: list[Digit], size: int, end: int) -> list[Digit] | None:
    """Digits of a product of `size` off one end of `stream`, splitting the last; None, and nothing taken, if none."""
    rest, taken, product = list(stream), list[Digit](), 1
    while rest and rest[end].size == 1 and (end == 0 or not taken):
        taken.append(rest.pop(end))
        if size == 1:
            break
    while product < size:
        if not rest:
            return None
        digit = rest.pop(end)
        if not digit.size:
            return None
        need = size // product
        if size % product:
            return None
        if need % digit.size == 0:
            taken.append(digit)
            product *= digit.size
        elif digit.size % need == 0 and not digit.origin.parts:
            over = digit.size // need
            major = Digit(digit.origin, digit.step * (over if end == 0 else need), need if end == 0 else over)
            minor = Digit(digit.origin, digit.step, over if end == 0 else need)
            taken.append(major if end == 0 else minor)
            rest.insert(0 if end == 0 else len(rest), minor if end == 0 else major)
            product = size
        else:
            return None
    stream[:] = rest
    return taken


def agree(a: Axis, b: Axis) -> bool:
    """Whether two axes have the same cells at the same places of the image, to half a stride."""
    return len(a) == len(b) and all(_agrees(one, two) for one, two in zip(a, b, strict=True))


def _agrees(a: Digit, b: Digit) -> bool:
    one, two = a.origin, b.origin
    if one is two:
        return a == b
    if one.kind is not two.kind or a.size != b.size:
        return False
    if one.kind in (Kind.JOINT, Kind.SHUFFLED):
        return one.order == two.order and len(one.parts) == len(two.parts) and all(map(agree, one.parts, two.parts))
    if not one.is_place:
        return True
    first, second = coarse(a), coarse(b)
    if first is None or second is None:
        return a.step == b.step and one.size == two.size and _near(one, two)
    return first.roll == second.roll and _near(first, second)


def _near(a: Origin, b: Origin) -> bool:
    slack = abs(a.stride) / 2 + 1e-6
    return abs(a.stride - b.stride) <= 1e-3 * abs(a.stride) and abs(a.offset - b.offset) <= slack and a.roll == b.roll


def join(a: Axis, b: Axis) -> Axis:
    """One axis of what two values give together: what has no place in the image is neutral."""
    if not a or not b:
        return a or b
    if has_place(a) and has_place(b):
        if agree(a, b) or (_is_whole(a) and not _is_whole(b)):
            return a
        return b if _is_whole(b) and not _is_whole(a) else other(axis_size(a))
    if has_place(a) or has_place(b):
        return a if has_place(a) else b
    return b if any(d.origin.kind is Kind.BATCH for d in b) and not any(d.origin.kind is Kind.BATCH for d in a) else a


def _is_whole(axis: Axis) -> bool:
    """Whether an axis is rows, columns or tokens of both; what attention to windows leaves may be a part of each."""
    placed = [digit for part in parts_of(axis) for digit in part if digit.origin.is_place]
    kinds = {digit.origin.kind for digit in placed}
    return len(kinds) == len(placed) and all(coarse(digit) is not None for digit in placed)


def join_all(values: Sequence[Axes], rank: int) -> Axes:
    """Axes of operands that broadcast against one another."""
    result: list[Axis] = [()] * rank
    for axes in values:
        for back, axis in enumerate(reversed(axes), 1):
            if back <= rank:
                result[rank - back] = join(result[rank - back], axis)
    return tuple(result)


def cut(axis: Axis, start: int, count: int | None, step: int = 1) -> Axis:
    """What is left of an axis where `count` cells are kept, from `start` on."""
    size = axis_size(axis)
    if count is not None and count == size and step == 1:
        return axis
    parts = parts_of(axis)
    if len(parts) > 1:
        return _cut_parts(parts, start, count) if step == 1 else other(count)
    if step == -1 and count is not None and count == size and start == count - 1:
        return reversed_axis(axis)
    origin = line(axis)
    if count == 0:
        return other(0)
    if not axis or (count == 1 and (origin is None or step != 1)):
        return () if count == 1 else other(count)
    if origin is not None:
        if step == 1 and start == 0 and count is None and origin.size is None:
            return axis
        stride, offset = origin.stride * step, origin.offset + origin.stride * start
        whole = origin if step == 1 else None
        return of(Origin(origin.kind, count, stride, offset, whole=whole, start=start))
    if len(axis) > 1 and step == 1 and count is not None:
        inner = axis_size(axis[1:])
        if inner and start % inner == 0 and count % inner == 0:
            return merged((*cut(axis[:1], start // inner, count // inner), *axis[1:]))
    if len(axis) == 1 and axis[0].origin.is_place and axis[0].origin.roll and step == 1:
        return _piece(axis[0].origin, start, count)
    return other(count)


def reversed_axis(axis: Axis) -> Axis:
    """An axis read backwards."""
    lines = [coarse(digit) for digit in axis]
    if any(origin is None or not origin.is_place or not origin.size for origin in lines):
        return other(axis_size(axis))
    return tuple(digit for origin in lines if origin is not None for digit in of(turned(origin)))


def turned(origin: Origin) -> Origin:
    """Rows or columns from the last to the first."""
    last = origin.offset + origin.stride * ((origin.size or 1) - 1)
    return replace(origin, stride=-origin.stride, offset=last, roll=-origin.roll, whole=None, start=0, coarser={})


def _piece(origin: Origin, start: int, count: int | None) -> Axis:
    """A part of rolled rows or columns, of which only the joint with the rest is of use."""
    return of(Origin(Kind.OTHER, count, whole=origin, start=start))


def _cut_parts(parts: Sequence[Axis], start: int, count: int | None) -> Axis:
    kept: list[Axis] = []
    begin = 0
    for index, part in enumerate(parts):
        size = axis_size(part)
        if size is None:
            is_rest = count is None and start <= begin and index == len(parts) - 1
            return joint([*kept, part]) if is_rest else other(count)
        low = max(start - begin, 0)
        high = size if count is None else min(start + count - begin, size)
        if low < high:
            kept.append(cut(part, low, high - low))
        begin += size
    return joint(kept)


def joint(parts: Sequence[Axis]) -> Axis:
    """Axes end to end, pieces that belong together put together."""
    flat = [piece for part in parts if axis_size(part) != 0 for piece in parts_of(part)]
    made: list[Axis] = []
    for part in flat:
        last = made[-1] if made else None
        together = None if last is None else _together(last, part)
        if together is None:
            made.append(part)
        else:
            made[-1] = together
    if len(made) < 2:
        return made[0] if made else other(0)
    sizes = [axis_size(part) for part in made]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    if not any(map(has_place, made)) and not any(d.origin.kind is Kind.BATCH for part in made for d in part):
        return other(total)
    return of(Origin(Kind.JOINT, total, parts=tuple(made)))


def _together(a: Axis, b: Axis) -> Axis | None:
    """Two neighbours as one: pieces of one whole in their order or the other way round, or both without a place."""
    if len(a) == len(b) == 1:
        one, two = a[0].origin, b[0].origin
        whole = one.whole
        if whole is not None and whole is two.whole and None not in (one.size, two.size):
            count = (one.size or 0) + (two.size or 0)
            if one.start + (one.size or 0) == two.start:
                return of(whole) if count == whole.size else cut(of(whole), one.start, count)
            if count == whole.size and two.start == 0 and one.start == two.size:
                return of(rolled(whole, one.start))
    if any(has_place(axis) or any(d.origin.kind is Kind.BATCH or d.origin.whole for d in axis) for axis in (a, b)):
        return None
    sizes = (axis_size(a), axis_size(b))
    return None if None in sizes else other((sizes[0] or 0) + (sizes[1] or 0))


def rolled(origin: Origin, by: int) -> Origin:
    """An origin whose cell i holds what is at cell `i + by`."""
    return replace(origin, roll=(origin.roll + by) % (origin.size or 1), whole=None, start=0, coarser={})


def moved(origin: Origin, size: int | None, stride: float, offset: float) -> Axis:
    """Rows or columns on another grid: `stride` and `offset` in cells of the one before."""
    roll = round(origin.roll / stride) if size else 0
    return of(Origin(origin.kind, size, origin.stride * stride, origin.offset + origin.stride * offset, roll))


def resized(origin: Origin, size: int, *, corners: bool) -> Axis:
    """Rows or columns interpolated to another number of cells."""
    before = origin.size or size
    if corners:
        return moved(origin, size, (before - 1) / max(size - 1, 1), 0.0)
    ratio = before / size
    return moved(origin, size, ratio, (ratio - 1) / 2)
