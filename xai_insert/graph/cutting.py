"""Axes that are cut, put end to end, turned round or rolled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    is_stored,
    line,
    merged,
    moved,
    of,
    other,
    parts_of,
    rolled_line,
    unplaced,
)
from xai_insert.graph.items import summed
from xai_insert.graph.wrapping import circular, cut_around, reaches_out


def cut(axis: Axis, start: int, count: int | None, step: int = 1) -> Axis:
    """What is left of an axis where `count` cells are kept, from `start` on."""
    size = axis_size(axis)
    is_whole = count is not None and count == size
    if is_whole and step == 1:
        return axis
    parts = parts_of(axis)
    if len(parts) > 1:
        return _cut_parts(parts, start, count) if step == 1 else other(count)
    if is_stored(axis):
        return _stored(count)
    if is_whole and step == -1 and start == (count or 0) - 1:
        return reversed_axis(axis)
    if count == 0:
        return other(0)
    return _cut_one(axis, start, count, step)


def _cut_one(axis: Axis, start: int, count: int | None, step: int) -> Axis:
    """The same of an axis in one part, of which something but not all is kept."""
    origin = line(axis)
    if origin is not None:
        return _cut_line(axis, origin, start, count, step)
    whole = rolled_line(axis, step) if step > 0 else None
    if whole is not None:
        return _piece(whole, start, count, step)
    if count == 1:
        return ()
    return _cut_major(axis, start, count) if axis and step == 1 else unplaced(axis, count)


def _cut_line(axis: Axis, origin: Origin, start: int, count: int | None, step: int) -> Axis:
    """A part of rows or columns."""
    if count == 1 and step != 1:
        return ()
    if step == 1 and start == 0 and count is None and origin.size is None:
        return axis
    if reaches_out(origin):
        return cut_around(origin, start, count, step)
    stride, offset = origin.stride * step, origin.offset + origin.stride * start
    return of(Origin(origin.kind, count, stride, offset, whole=origin if step == 1 else None, start=start))


def _cut_major(axis: Axis, start: int, count: int | None) -> Axis:
    """A cut of the major digit alone, all others whole."""
    inner = axis_size(axis[1:]) if len(axis) > 1 and count is not None else None
    if not inner or count is None or start % inner or count % inner:
        return unplaced(axis, count)
    return merged((*cut(axis[:1], start // inner, count // inner), *axis[1:]))


def reversed_axis(axis: Axis) -> Axis:
    """An axis read backwards."""
    lines = [origin for digit in axis if (origin := coarse(digit)) is not None and origin.is_place and origin.size]
    if len(lines) < len(axis):
        return other(axis_size(axis))
    return tuple(digit for origin in lines for digit in of(turned(origin)))


def turned(origin: Origin) -> Origin:
    """Rows or columns from the last to the first."""
    last = origin.offset + origin.stride * ((origin.size or 1) - 1)
    return replace(origin, stride=-origin.stride, offset=last, roll=-origin.roll, whole=None, start=0, coarser={})


def _piece(origin: Origin, start: int, count: int | None, step: int) -> Axis:
    """A part of rolled rows or columns; with the edge of the image inside, only its joint with the rest is of use."""
    if origin.size is None or count is None:
        return other(count)
    stride = origin.stride * step
    if start < step and step * count == origin.size:
        return of(Origin(origin.kind, count, stride, origin.offset + origin.stride * start, origin.roll // step))
    first, whole = (start + origin.roll) % origin.size, origin if step == 1 else None
    if first + step * (count - 1) < origin.size:
        offset = origin.offset + origin.stride * first
        return of(Origin(origin.kind, count, stride, offset, whole=whole, start=start))
    return of(Origin(Kind.OTHER, count, whole=whole, start=start))


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


def joined(parts: Sequence[Axis], is_of_image: Sequence[bool], around: Axes) -> Axis:
    """Axes end to end; where the other axes have a place and these have none, learned rows stay told from the others.

    Args:
        parts: the axes.
        is_of_image: whether each is that of a value that depends on the image.
        around: the axes of the values together.
    """
    if any(map(has_place, around)) and not any(has_place(part) or has_batch(part) for part in parts):
        marked = zip(parts, is_of_image, strict=True)
        return joint([part if is_found else _stored(axis_size(part)) for part, is_found in marked])
    return joint(parts)


def of_rows(axes: Sequence[Axis]) -> Axes:
    """Axes of rows that were cut out: of learned ones no other axis has a place either."""
    if not any(map(is_stored, axes)):
        return tuple(axes)
    return tuple(other(axis_size(axis)) if has_place(axis) else axis for axis in axes)


def joint(parts: Sequence[Axis]) -> Axis:
    """Axes end to end, pieces that belong together put together."""
    made = _put_together(piece for whole in parts if axis_size(whole) != 0 for piece in parts_of(whole))
    if len(made) < 2:
        return made[0] if made else other(0)
    sizes = [axis_size(part) for part in made]
    total = summed(sizes)
    if any(has_place(part) or has_batch(part) or is_stored(part) for part in made):
        return of(Origin(Kind.JOINT, total, parts=tuple(made)))
    return elsewhere(total) if any(map(is_elsewhere, made)) else other(total)


def _put_together(parts: Iterable[Axis]) -> list[Axis]:
    """Axes end to end, of which neighbours that are one are one."""
    made: list[Axis] = []
    for part in parts:
        together = _together(made[-1], part) if made else None
        if together is None:
            made.append(part)
        else:
            made[-1] = together
    return made


def stacked(parts: Sequence[Axes], axis: int) -> tuple[int, Axis, Axis] | None:
    """Equal pieces of one whole in their order, joined on an axis of their own, as an unfold into tiles is written.

    Returns:
        Which axis they are pieces of, what is left of it, and the new axis, which counts pieces; None if they are none.
    """
    if any(axes[axis] for axes in parts):
        return None
    for index in range(len(parts[0])):
        found = _pieces([axes[index] for axes in parts])
        if found is not None:
            whole, size = found
            return index, (Digit(whole, 1, size),), (Digit(whole, size, len(parts)),)
    return None


def _pieces(parts: Sequence[Axis]) -> tuple[Origin, int] | None:
    """The whole that axes are all the equal pieces of, in their order, and the size of one."""
    whole = parts[0][0].origin.whole if len(parts[0]) == 1 else None
    if whole is None or not whole.size or whole.size < len(parts):
        return None
    size = whole.size // len(parts)
    pieces = [axis[0].origin for axis in parts if len(axis) == 1]
    found = [(piece.start, piece.size) for piece in pieces if piece.whole is whole]
    return (whole, size) if found == [(start, size) for start in range(0, whole.size, size)] else None


def _together(a: Axis, b: Axis) -> Axis | None:
    """Two neighbours as one: pieces of one whole in their order or the other way round, or both without a place."""
    found = _of_one_whole(a[0].origin, b[0].origin) if len(a) == len(b) == 1 else None
    found = found or _side_by_side(line(a), line(b)) or circular(line(a), line(b))
    if found is not None:
        return found
    if _is_somewhere(a) or _is_somewhere(b) or is_stored(a) is not is_stored(b):
        return None
    sizes = (axis_size(a), axis_size(b))
    if None in sizes:
        return None
    return (_stored if is_stored(a) else other)((sizes[0] or 0) + (sizes[1] or 0))


def _is_somewhere(axis: Axis) -> bool:
    """Whether it makes a difference which cells of an axis are meant."""
    return has_place(axis) or has_batch(axis) or any(digit.origin.whole for digit in axis)


def _stored(size: int | None) -> Axis:
    """An axis of learned rows."""
    return of(Origin(Kind.STORED, size))


def _of_one_whole(one: Origin, two: Origin) -> Axis | None:
    whole = one.whole
    if whole is None or whole is not two.whole or one.size is None or two.size is None:
        return None
    count = one.size + two.size
    if one.start + one.size == two.start:
        return of(whole) if count == whole.size else cut(of(whole), one.start, count)
    if count == whole.size and two.start == 0 and one.start == two.size:
        return of(rolled(whole, one.start))
    return _shifted(whole, one, two) if count == whole.size else None


def _shifted(whole: Origin, one: Origin, two: Origin) -> Axis | None:
    """A whole moved by one cell, its outermost cell repeated."""
    if one.start == two.start == 0 and one.size == 1:
        return moved(whole, whole.size, 1.0, -1)
    return moved(whole, whole.size, 1.0, 1) if one.start == two.size == 1 else None


def _side_by_side(one: Origin | None, two: Origin | None) -> Axis | None:
    """Rows or columns of two parts of the image, the second of which goes on where the first one ends."""
    if one is None or two is None or one.kind is not two.kind or not one.size or not two.size:
        return None
    following = one.offset + one.stride * one.size
    if (one.stride, one.grain, following) != (two.stride, two.grain, two.offset):
        return None
    return of(replace(one, size=one.size + two.size, whole=None, start=0, coarser={}))


def rolled(origin: Origin, by: int) -> Origin:
    """An origin whose cell i holds what is at cell `i + by`."""
    return replace(origin, roll=(origin.roll + by) % (origin.size or 1), whole=None, start=0, coarser={})
