"""What is left of places where values meet: residual additions, gates, products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xai_insert.graph.axes import (
    Axes,
    Axis,
    Digit,
    Kind,
    Origin,
    axis_size,
    coarse,
    elsewhere,
    has_batch,
    has_place,
    is_elsewhere,
    is_single_batch,
    line,
    moved,
    near,
    parts_of,
    rolled_line,
)
from xai_insert.graph.items import present

_DECIDING = (has_batch, has_place, is_elsewhere)
_PLACED = 1
_SLIGHTLY = 1e-3  # of a cell


def agree(a: Axis, b: Axis) -> bool:
    """Whether two axes have the same cells at the same places of the image, to half a stride."""
    if len(a) != len(b):
        a, b = without_single_batch(a), without_single_batch(b)
    return len(a) == len(b) and all(_agrees(one, two) for one, two in zip(a, b, strict=True))


def without_single_batch(axis: Axis) -> Axis:
    """An axis without batches of one, which leave no trace in the sizes."""
    return tuple(digit for digit in axis if not is_single_batch([digit]))


def _agrees(a: Digit, b: Digit) -> bool:
    one, two = a.origin, b.origin
    if one is two:
        return a == b
    if one.kind is not two.kind or a.size != b.size:
        return False
    if one.kind in (Kind.JOINT, Kind.SHUFFLED):
        return one.order == two.order and len(one.parts) == len(two.parts) and all(map(agree, one.parts, two.parts))
    return not one.is_place or _lie_alike(a, b)


def _lie_alike(a: Digit, b: Digit) -> bool:
    """Whether two digits stand for the same rows or columns of the image."""
    one, two = a.origin, b.origin
    first, second = coarse(a), coarse(b)
    if first is None or second is None:
        return a.step == b.step and one.size == two.size and near(one, two)
    return first.roll == second.roll and near(first, second)


def join(a: Axis, b: Axis) -> Axis:
    """One axis of what two values give together: what has no place in the image is neutral."""
    if not a or not b:
        return a or b
    if _weight(a) == _weight(b) == _PLACED:
        return _meet(a, b)
    return b if _weight(b) > _weight(a) else a


def _weight(axis: Axis) -> int:
    """How much an axis decides beside another: the last of `_DECIDING` that it is, -1 if it is none."""
    return max((weight for weight, decides in enumerate(_DECIDING) if decides(axis)), default=-1)


def _meet(a: Axis, b: Axis) -> Axis:
    """One axis of two that both have places; where they contradict each other, no third one may settle it."""
    if agree(a, b):
        return b if _grain(b) < _grain(a) else a  # a pyramid adds interpolated cells to finer ones
    if (between := _between(line(a), line(b))) is not None:
        return between
    whole, part = (a, b) if _is_whole(a) else (b, a)
    if _is_whole(a) is _is_whole(b) or _is_reordered(part):
        return elsewhere(axis_size(a))
    return whole


def _grain(axis: Axis) -> float:
    return max((digit.origin.grain for digit in axis), default=0.0)


def _is_whole(axis: Axis) -> bool:
    """Whether an axis is rows, columns or tokens of both; what attention to windows leaves may be a part of each."""
    placed = [digit for part in parts_of(axis) for digit in part if digit.origin.is_place]
    kinds = {digit.origin.kind for digit in placed}
    return len(kinds) == len(placed) and all(coarse(digit) is not None for digit in placed)


def _between(a: Origin | None, b: Origin | None) -> Axis | None:
    """The middle of two grids whose cells are less than one apart; None if they are not.

    So it is where pads differ, and where features of a mirrored image are turned back: strided layers lay each cell to
    one side of what it sees.
    """
    if a is None or b is None or (a.kind, a.stride, a.size, a.roll) != (b.kind, b.stride, b.size, b.roll):
        return None
    apart = (b.offset - a.offset) / a.stride
    return moved(a, a.size, 1.0, apart / 2) if abs(apart) < 1 else None


def _is_reordered(axis: Axis) -> bool:
    """Whether an axis has parts of both sides of the image, or all of one in another order: torn, or shuffled by parts.

    Parts of one side and of the same side of a coarser grid are a query for each place in a window, which every window
    has: what it reads lies in the window.
    """
    kinds, origins = {digit.origin.kind for digit in axis}, {digit.origin for digit in axis}
    if len(axis) < 2 or not axis[0].origin.is_place:
        return False
    return len(kinds) > 1 or (len(origins) == 1 and axis_size(axis) == axis[0].origin.size is not None)


def centred(joined: Axis, parts: Sequence[Axis]) -> Axis:
    """A joined axis in the middle of what it was joined from.

    Every second pixel and those between, as in a Focus; channels moved by a cell to either side, as layers of shifts
    and linear layers have them instead of a convolution.
    """
    if is_elsewhere(joined):
        return _between_shifts([rolled_line(part, 1) for part in parts]) or joined
    lines = [line(part) for part in parts if not _grain(part)]
    offsets = {origin.offset for origin in lines if origin is not None}
    first = line(joined)
    if first is None or None in lines or len(offsets) < 2:
        return joined
    middle = sum(origin.offset for origin in lines if origin is not None) / len(lines)
    return moved(first, first.size, 1.0, (middle - first.offset) / first.stride)


def _between_shifts(grids: Sequence[Origin | None]) -> Axis | None:
    """The middle one of grids that are alike but for a shift by a cell to either side; None if there is none."""
    lines = present(grids)
    alike = {(origin.kind, origin.stride, origin.size) for origin in lines}
    if len(lines) < len(grids) or len(alike) > 1:
        return None
    first, middle = lines[0], sum(map(_rolled_offset, lines)) / len(lines)
    by = (middle - first.offset) / first.stride
    return moved(replace(first, roll=0), first.size, 1.0, by) if _are_around(middle, lines) else None


def _are_around(middle: float, lines: Sequence[Origin]) -> bool:
    """Whether one of several grids lies in their middle, and the others a cell beside it at most."""
    apart = [abs((_rolled_offset(origin) - middle) / origin.stride) for origin in lines]
    return min(apart) <= _SLIGHTLY and max(apart) <= 1 + _SLIGHTLY


def _rolled_offset(origin: Origin) -> float:
    """Where the first cell of a grid would lie if it were shifted by as much as it is rolled, the shorter way."""
    half = (origin.size or 1) // 2
    return origin.offset + origin.stride * ((origin.roll + half) % (origin.size or 1) - half)


def contracted(labels: tuple[str, str, str], operands: tuple[Axes, Axes]) -> Axes:
    """Axes of sums of products, each where the operands have it; `labels` name those of both and of the result."""
    found: dict[str, Axis] = {}
    for text, axes in zip(labels, operands, strict=False):
        for label, axis in zip(text, axes, strict=False):
            found[label] = join(found.get(label, ()), axis)
    return tuple(found.get(label, ()) for label in labels[2])


def join_all(values: Sequence[Axes], rank: int) -> Axes:
    """Axes of operands that broadcast against one another."""
    result: list[Axis] = [()] * rank
    for axes in values:
        for index, axis in zip(range(rank - 1, -1, -1), reversed(axes), strict=False):
            result[index] = join(result[index], axis)
    return tuple(result)
