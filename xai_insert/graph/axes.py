"""What every axis of every value is made of, followed from the image by one rule per operator.

An axis is a product of digits, the major one first, as in a number of mixed radix; a digit is a part of an origin: the
batch, the rows or the columns of the image, or something else (channels, heads, queries, members, what was mixed). A
reshape splits and merges digits, a transpose reorders them; where factors do not come out, the origin is lost, not
guessed, and where cells of the image were torn apart, no residual brings it back. Cell i of rows or columns lies at
pixel `stride * i + offset` of the image. Equal sizes mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from xai_insert.graph.items import present

Sizes = Sequence[int | None]
Turn = tuple[float, float]


class Kind(Enum):
    """What an origin stands for."""

    BATCH = "batch"
    ROWS = "rows"
    COLUMNS = "columns"
    TIME = "time"
    """The frames of a clip; what is said of rows and columns of the image holds for them too."""
    OTHER = "other"
    JOINT = "joint"
    """Several axes end to end: tokens before, of, and behind a grid; views of one batch."""
    SHUFFLED = "shuffled"
    """The cells of one axis in another order."""
    ELSEWHERE = "elsewhere"
    """Cells that lie in the image, each where nothing tells: of streams that contradict each other, warped, sorted."""
    COPIES = "copies"
    """The same elements again and again, as Tile and Expand lay them out of one."""
    STORED = "stored"
    """Rows that a model has learned, joined to rows of the image along an axis without a place: they hold none."""


@dataclass(frozen=True, eq=False)
class Origin:
    """What digits are parts of.

    Attributes:
        kind: see `Kind`.
        size: number of its elements; None where it follows the input.
        stride: for rows and columns, pixels from one cell to the next; negative where they run backwards.
        offset: pixel of the centre of cell 0.
        roll: cell i holds what is at cell `i + roll`, modulo the size.
        grain: pixels between the cells of the coarser grid that these were interpolated from; 0 where they were not.
        parts: of a joint one, the axes that stand end to end; of a shuffled one, the axis in its order.
        order: of a shuffled one, where each cell stood.
        whole: of what it was cut out, and `start` where from.
        coarser: what its major digits are as origins of their own, by their step.
        turn: the first pixel, and after how many cells outside show the other end again; None where nothing lies there.
    """

    kind: Kind
    size: int | None
    stride: float = 1.0
    offset: float = 0.0
    roll: int = 0
    grain: float = 0.0
    parts: tuple[Axis, ...] = ()
    order: tuple[int, ...] = ()
    whole: Origin | None = None
    start: int = 0
    coarser: dict[int, Origin] = field(default_factory=dict)
    turn: Turn | None = None

    @property
    def is_place(self) -> bool:
        return self.kind in (Kind.ROWS, Kind.COLUMNS, Kind.TIME)


@dataclass(frozen=True)
class Digit:
    """`index // step % size` of an origin's index."""

    origin: Origin
    step: int
    size: int | None


_NEUTRAL = (Kind.OTHER, Kind.ELSEWHERE, Kind.COPIES)
Axis = tuple[Digit, ...]
Axes = tuple[Axis, ...]


def of(origin: Origin) -> Axis:
    """The axis that is an origin, whole."""
    return () if origin.size == 1 and origin.kind in _NEUTRAL else (Digit(origin, 1, origin.size),)


def other(size: int | None) -> Axis:
    """An axis of which nothing is known but its size."""
    return of(Origin(Kind.OTHER, size))


def copies(size: int | None) -> Axis:
    """An axis of so many times the same."""
    return of(Origin(Kind.COPIES, size))


def elsewhere(size: int | None) -> Axis:
    """An axis of cells of which it is known that they lie at places of their own, and not at which."""
    return of(Origin(Kind.ELSEWHERE, size))


def is_elsewhere(axis: Axis) -> bool:
    """Whether cells of an axis lie at places that nothing tells."""
    return any(digit.origin.kind is Kind.ELSEWHERE for digit in axis)


def unplaced(axis: Axis, size: int | None) -> Axis:
    """An axis of so many cells made of those of another whose rule is not known: lost once is lost for good."""
    return elsewhere(size) if is_elsewhere(axis) else other(size)


def displaced(axis: Axis) -> Axis:
    """An axis whose cells have been put at places that nothing tells, if they had any."""
    return elsewhere(axis_size(axis)) if has_place(axis) else axis


def others(shape: Sizes | None) -> Axes:
    """Axes of which nothing is known; none if not even their number is."""
    return tuple(other(size) for size in shape or ())


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


def has_batch(axis: Axis) -> bool:
    """Whether an axis holds anything of the batch."""
    return any(digit.origin.kind is Kind.BATCH for digit in axis)


def is_frame(axis: Axis) -> bool:
    """Whether an axis is one frame of a clip, which leaves no trace where it is dropped."""
    return len(axis) == 1 and axis[0].size == 1 and axis[0].origin.kind is Kind.TIME


def is_stored(axis: Axis) -> bool:
    """Whether an axis counts learned rows alone."""
    return len(axis) == 1 and axis[0].origin.kind is Kind.STORED


def parts_of(axis: Axis) -> tuple[Axis, ...]:
    """The axes that stand end to end in one; itself if it is not joint."""
    if len(axis) == 1 and axis[0].origin.kind is Kind.JOINT and axis[0].size == axis[0].origin.size:
        return axis[0].origin.parts
    return (axis,)


def of_image(shape: Sizes, sides: tuple[int, int], time: int | None, frames: int | None) -> Axes:
    """The axes of an image, of a clip with its axis of frames, or of one with `frames` in the channels."""
    rows, columns = sides
    known: dict[int | None, Kind] = {0: Kind.BATCH, rows: Kind.ROWS, columns: Kind.COLUMNS, time: Kind.TIME}
    own = [of(Origin(known.get(axis, Kind.OTHER), size)) for axis, size in enumerate(shape)]
    if frames and (channels := shape[1]):
        own[1] = (*of(Origin(Kind.TIME, frames)), *other(channels // frames))
    return tuple(own)


def line(axis: Axis) -> Origin | None:
    """An axis as whole rows or columns, maybe coarser than those that it comes from; None if it is none."""
    if len(axis) != 1 or not axis[0].origin.is_place or axis[0].origin.roll:
        return None
    return coarse(axis[0])


def rolled_line(axis: Axis, stride: int) -> Origin | None:
    """Whole rows or columns that were rolled by a multiple of `stride`; None for others."""
    origin = coarse(axis[0]) if len(axis) == 1 and axis[0].origin.is_place else None
    return None if origin is None or origin.roll % stride else origin


def coarse(digit: Digit) -> Origin | None:
    """The major part of rows or columns as a grid of its own; None for a minor part, whose cells lie in many places."""
    origin, step = digit.origin, digit.step
    if step == 1 and digit.size == origin.size:
        return origin
    if digit.size is None or origin.size is None or step * digit.size != origin.size or origin.roll % step:
        return None
    if step not in origin.coarser:
        stride, offset = origin.stride * step, origin.offset + origin.stride * (step - 1) / 2
        roll = origin.roll // step
        origin.coarser[step] = Origin(origin.kind, digit.size, stride, offset, roll, turn=origin.turn)
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
    if above is None or wanted is None or not near(above, wanted):
        return None
    return Digit(origin, minor.step, major.size * minor.size)


def regroup(axes: Axes, shape: Sizes) -> Axes:
    """Axes after a reshape to `shape`."""
    shape, stream = list(shape), list(merged([digit for axis in axes for digit in axis]))
    fits = _known([digit.size for digit in stream]) == _known(shape)
    result = _dealt(stream, shape)
    lost = elsewhere if fits and any(has_place((digit,)) for digit in stream) else other
    filled = [lost(size) if axis is None else axis for axis, size in zip(result, shape, strict=True)]
    if filled and stream and all(digit.size == 1 for digit in stream):
        filled[-1] = (*filled[-1], *stream)
    return _led_by_batch(tuple(filled))


def _dealt(stream: list[Digit], shape: list[int | None]) -> list[Axis | None]:
    """What each axis of `shape` takes off `stream`, from the left, then from the right; None of those that are lost."""
    result: list[Axis | None] = [None] * len(shape)
    left = _fill(stream, shape, result, range(len(shape)), from_right=False)
    if left is None:
        return result
    stuck = _fill(stream, shape, result, range(len(shape) - 1, left, -1), from_right=True)
    if stuck is None and (shape[left] is None or axis_size(tuple(stream)) == shape[left]):
        result[left] = merged(stream)
        stream.clear()
    elif stuck is not None and not any(shape[left : stuck + 1]) and _are_batch_and_channels(stream, stuck + 1 - left):
        result[left : stuck + 1] = [(digit,) for digit in stream]
    return result


def _are_batch_and_channels(stream: Sequence[Digit], count: int) -> bool:
    """Whether an open batch and as many axes beside it are left, none of which has a place: each stays by itself."""
    sizes = [digit.size for digit in stream if digit.origin.kind is not Kind.BATCH]
    return len(stream) == count == len(sizes) + 1 and None not in sizes and not has_place(tuple(stream))


def _known(sizes: Sizes) -> tuple[int, int]:
    """How many sizes are unknown, and the product of the others."""
    known = present(sizes)
    return len(sizes) - len(known), math.prod(known)


def _led_by_batch(axes: Axes) -> Axes:
    """A batch of one that stands behind places goes first, where an axis of size 1 stands that holds nothing."""
    if not axes or axes[0]:
        return axes
    last = next((index for index, axis in enumerate(axes) if has_place(axis) and is_single_batch([axis[-1]])), None)
    if last is None:
        return axes
    return (axes[last][-1:], *axes[1:last], axes[last][:-1], *axes[last + 1 :])


def _fill(
    stream: list[Digit], shape: list[int | None], result: list[Axis | None], order: Iterable[int], *, from_right: bool
) -> int | None:
    """Take axis after axis off one end of `stream`; the first axis that could not be taken, None if all could."""
    for index in order:
        size = shape[index]
        if size is None:
            may_take = not from_right and shape.count(None) > 1
            taken = _open_batch(stream) if may_take else None
        elif from_right:
            taken = _take(stream, size, -1)
        else:
            following = shape[index + 1] if index + 1 < len(shape) else None
            taken = _from_left(stream, size, following)
        if taken is None:
            return index
        result[index] = merged(taken[::-1] if from_right else taken)
    return None


def _open_batch(stream: list[Digit]) -> list[Digit] | None:
    """The batch off the left end of `stream`, if it is open and stands there."""
    is_batch = bool(stream) and stream[0].origin.kind is Kind.BATCH and stream[0].size is None
    return [stream.pop(0)] if is_batch else None


def _from_left(stream: list[Digit], size: int, following: int | None) -> list[Digit] | None:
    """Digits of a product of `size`, and a batch of one behind them unless the following axis is for that."""
    taken = _take(stream, size, 0)
    while taken is not None and following != 1 and is_single_batch(stream):
        taken.append(stream.pop(0))
    return taken


def is_single_batch(stream: list[Digit]) -> bool:
    """Whether a batch of one comes next, which leaves no trace in the sizes: it stays with what it stands behind."""
    return bool(stream) and stream[0].origin.kind is Kind.BATCH and stream[0].size == 1


def _take(stream: list[Digit], size: int, end: int) -> list[Digit] | None:
    """Digits of a product of `size` off one end of `stream`, splitting the last; None, and nothing taken, if none."""
    rest, product = list(stream), 1
    taken = _single(rest, size, end)
    while product < size:
        if not rest or size % product:
            return None
        digit, need = rest.pop(end), size // product
        if not digit.size:
            return None
        if need % digit.size == 0:
            taken.append(digit)
            product *= digit.size
        elif digit.size % need == 0 and not digit.origin.parts:
            part, left = _halves(digit, need, end)
            taken.append(part)
            rest.insert(0 if end == 0 else len(rest), left)
            product = size
        else:
            return None
    stream[:] = rest
    return taken


def _single(stream: list[Digit], size: int, end: int) -> list[Digit]:
    """Digits of size 1, taken off `stream` before others: all from the left, one from the right or for such an axis."""
    taken = list[Digit]()
    while stream and stream[end].size == 1 and (end == 0 or not taken):
        taken.append(stream.pop(end))
        if size == 1:
            break
    return taken


def _halves(digit: Digit, need: int, end: int) -> tuple[Digit, Digit]:
    """A digit as two, of which the first, of size `need`, stands at an end of the stream."""
    over = (digit.size or 0) // need
    if end == 0:
        return Digit(digit.origin, digit.step * over, need), Digit(digit.origin, digit.step, over)
    return Digit(digit.origin, digit.step, need), Digit(digit.origin, digit.step * need, over)


def near(a: Origin, b: Origin) -> bool:
    """Whether two grids have their cells at the same places, to half a stride, or half a cell they were made from.

    Interpolation that puts the corners of both grids on each other has another stride: both ends count there. What was
    laid so from coarser grids, whose last cell ends further from the edge, agrees at the other end to less than a cell.
    """
    if a.roll != b.roll:
        return False
    grain = max(a.grain, b.grain)
    if not grain or not a.size or a.size != b.size or a.stride * b.stride < 0:
        return is_near((a.stride, a.offset), (b.stride, b.offset), grain)
    slack = max(abs(a.stride), grain) / 2 + 1e-6
    ends = [(item.offset, item.offset + item.stride * (item.size or 1) - item.stride) for item in (a, b)]
    least, most = sorted(abs(one - two) for one, two in zip(*ends, strict=True))
    return bool(most <= slack or (least <= 1e-6 and most < grain))


def is_near(a: tuple[float, float], b: tuple[float, float], grain: float = 0.0) -> bool:
    """Whether two pairs of stride and offset put the cells at the same places, to half a stride or half a `grain`."""
    slack = max(abs(a[0]), grain) / 2 + 1e-6
    return abs(a[0] - b[0]) <= 1e-3 * abs(a[0]) and abs(a[1] - b[1]) <= slack


def moved(origin: Origin, size: int | None, stride: float, offset: float) -> Axis:
    """Rows or columns on another grid: `stride` and `offset` in cells of the one before."""
    roll = round(origin.roll / stride) if size else 0
    grain = max(origin.grain, abs(origin.stride)) if stride < 1 else origin.grain
    first = origin.offset + origin.stride * offset
    return of(Origin(origin.kind, size, origin.stride * stride, first, roll, grain, turn=origin.turn))
