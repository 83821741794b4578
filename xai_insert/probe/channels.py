"""The order of classes and anchors among a head's channels, read off the elements that each channel moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xai_insert.graph.items import only, present
from xai_insert.locate.detector import Channels

Element = tuple[int, ...]
Moves = Mapping[int, Element]
"""The element of one value that rises with each channel, all at one location."""

_BOX = 4
_PAIR = 2  # channels
_FEWEST_BINS, _MOST_BINS = 8, 18  # for each side of a box; published detectors have 8 to 17
MOST_ANCHORS = 9  # of a place, three shapes in three sizes, as no detector has bins


def samples(channels: int) -> list[int]:
    """Channels that tell the order of all: the first few, the last two and some between."""
    chosen = {*range(6), channels // 3, channels // 2, channels - 2, channels - 1}
    return sorted(channel for channel in chosen if 0 <= channel < channels)


def resolve(here: Moves, there: Moves, channels: int) -> Channels | None:
    """The order of a head all of whose channels are class scores; None if this value does not tell.

    Args:
        here: what channels move at one location.
        there: the same at another location.
        channels: number of channels of the head.
    """
    found = readings(here, there, channels)
    return only(found)


def readings(here: Moves, there: Moves, channels: int) -> list[Channels]:
    """The orders that fit: where anchors have an axis of their own, that could be the classes' too."""
    axes = axes_of(here, there)
    if axes is None or not axes[1]:
        return []
    varying = [axis for axis in axes[0] if len({element[axis] for element in here.values()}) > 1]
    found = [_along(axis, here, channels) for axis in varying] if varying else [_beside_background(here, channels)]
    return present(found)


def _beside_background(here: Moves, channels: int) -> Channels | None:
    """The order of two classes of which one alone arrives, each anchor's in a place of its own."""
    anchors = channels // 2
    if channels % 2 or len({*here.values()}) < len(here):
        return None
    if len({channel % 2 for channel in here}) == 1:
        return Channels(0, 2, anchors, 2)
    if len({channel // anchors for channel in here}) == 1:
        return Channels(0, 2, anchors, 1, classes_first=True)
    return None


def _along(axis: int, here: Moves, channels: int) -> Channels | None:
    """The order with which the classes lie along an axis, all of them or all but a background."""
    columns = {channel: element[axis] for channel, element in here.items()}
    low = min(columns.values())
    seen = max(columns.values()) - low + 1
    for classes, first in ((seen, 0), (seen + 1, 0), (seen + 1, 1)):
        if channels % classes:
            continue
        anchors = channels // classes
        if all(column - low + first == channel % classes for channel, column in columns.items()):
            return Channels(0, classes, anchors, classes)
        if all(column - low + first == channel // anchors for channel, column in columns.items()):
            return Channels(0, classes, anchors, 1, classes_first=True)
    return None


def resolve_column(here: Moves, channels: int) -> Channels | None:
    """The order of a head of one class, seen in a value whose last axis has one element: each channel is an anchor."""
    apart = {element for element in here.values() if element[-1] == 0}
    return Channels(0, 1, channels, 1) if len(apart) == len(here) else None


def resolve_raw(here: Moves, there: Moves, channels: int) -> Channels | None:
    """The order of an undecoded head of boxes, objectness and classes whose anchors are set apart by a reshape.

    None if anchors and what each of them has still share an axis: then one anchor cannot be told from several.
    """
    stride = anchor_stride(here, there, channels)
    if stride is None or stride == channels or stride <= _BOX + 1:
        return None
    return Channels(_BOX + 1, stride - _BOX - 1, channels // stride, stride)


def anchor_stride(here: Moves, there: Moves, channels: int) -> int | None:
    """Channels that an undecoded head has for each anchor, read off the axis that they lie along; None if none is told.

    Anchors that a reshape has not set apart count as one.
    """
    axes = axes_of(here, there)
    if axes is None or not axes[1]:
        return None
    return max((stride for axis in axes[0] if (stride := _stride_along(axis, here, channels))), default=None)


def _stride_along(axis: int, here: Moves, channels: int) -> int | None:
    stride = max(element[axis] for element in here.values()) + 1
    rows: dict[int, set[Element]] = {}
    for channel, element in here.items():
        if element[axis] != channel % stride:
            return None
        rows.setdefault(channel // stride, set()).add((*element[:axis], *element[axis + 1 :]))
    is_apart = all(len(row) == 1 for row in rows.values()) and len(set.union(*rows.values())) == len(rows)
    return stride if channels % stride == 0 and is_apart else None


def columns_of(here: Moves, there: Moves) -> set[Element]:
    """Where elements lie along the axes on which they stay when the location changes, that of the images left out."""
    axes = axes_of(here, there)
    free = [] if axes is None else axes[0]
    return {tuple(element[axis] for axis in free if axis) for element in here.values()}


def axes_of(here: Moves, there: Moves) -> tuple[list[int], list[int]] | None:
    """Axes along which the elements stay when the location changes, and those along which they move."""
    common = [(here[channel], there[channel]) for channel in here if channel in there]
    if not common:
        return None
    rank = len(common[0][0])
    free = [axis for axis in range(rank) if all(a[axis] == b[axis] for a, b in common)]
    return free, [axis for axis in range(rank) if axis not in free]


def raw_channels(
    heads: Mapping[int, tuple[tuple[int, int], int]], index: int, num_classes: int | None
) -> Channels | None:
    """The order of a head that is an output as it is, told by widths alone; None if it need not give classes.

    Args:
        heads: grid and number of channels of every head.
        index: the head in question.
        num_classes: number of classes, where the user has given it.
    """
    grid, width = heads[index]
    others = [channels for other, (place, channels) in heads.items() if place == grid and other != index]
    if num_classes is None:
        return _by_width(width, others)
    if not others:
        return fused_by_width(width, num_classes)
    if width == num_classes > _PAIR and {*others} == {_PAIR}:  # sizes, and offsets, as CenterNet's
        return Channels(0, num_classes, 1, num_classes)
    anchors, rest = divmod(width, num_classes)
    if rest or not any(_may_hold_boxes(other, anchors) for other in others):
        return None
    if width == _BOX and num_classes + 1 in others:  # which may have the classes and a background
        return None
    return Channels(0, num_classes, anchors, num_classes)


def _may_hold_boxes(width: int, anchors: int) -> bool:
    """Whether so many channels are those of a box for each anchor; of one, bins of its sides too, and an objectness."""
    return width == _BOX * anchors or (anchors == 1 and width >= _BOX and width % _BOX in (0, 1))


def fused_by_width(width: int, classes: int) -> Channels | None:
    """Boxes, objectness and classes for each anchor; or classes before the bins of a box distribution."""
    has_anchors = width % (_BOX + 1 + classes) == 0
    has_bins = width - classes > _BOX and (width - classes) % _BOX == 0  # a box alone may stand before the classes
    is_without = width % (_BOX + classes) == 0 and width != _BOX + classes  # anchors without objectness
    if (has_anchors and has_bins and width != _BOX + 1 + classes) or is_without:
        return None  # another reading fits
    if has_anchors:
        stride = _BOX + 1 + classes
        return Channels(_BOX + 1, classes, width // stride, stride)
    if has_bins:
        return Channels(0, classes, 1, width)
    return None


def _by_width(width: int, others: Sequence[int]) -> Channels | None:
    """A head of `anchors * classes` channels beside one of `anchors * 4`, if no other reading fits."""
    fits = [other for other in others if other % _BOX == 0 and width % (other // _BOX) == 0 and other != width]
    if len(fits) != 1 or (width % _BOX == 0 and fits[0] % (width // _BOX) == 0):
        return None
    anchors = fits[0] // _BOX
    if width == anchors:  # objectness or centerness, or no detector: a depth beside four other maps
        return None
    if _may_be_boxes(width, fits[0]) or may_be_bins(anchors):
        return None
    return Channels(0, width // anchors, anchors, width // anchors)


def may_be_bins(count: int) -> bool:
    """Whether so many numbers for each side of a box may be its bins, and not those of as many boxes."""
    return count >= _FEWEST_BINS and count != MOST_ANCHORS


def _may_be_boxes(width: int, classes: int) -> bool:
    """Whether so many channels may as well give boxes, with an objectness or with bins of their sides, of so many."""
    bins, rest = divmod(width, classes)
    has_bins = classes % _BOX == 0 and 1 < bins <= _MOST_BINS and rest in (0, classes // _BOX)  # of four classes
    anchors = width // (_BOX + 1)
    return has_bins or (width == anchors * (_BOX + 1) and classes % anchors == 0 and classes > anchors)


def of_width(orders: Sequence[Channels], classes: int) -> Channels | None:
    """The only order of so many classes."""
    fits = [order for order in orders if order.classes == classes]
    return only(fits)


def with_several(found: dict[int, Channels], num_classes: int | None) -> dict[int, Channels]:
    """Orders of as many classes as the user says; else those of several, where there are any."""
    if num_classes is not None:
        return {index: order for index, order in found.items() if order.classes == num_classes}
    return {index: order for index, order in found.items() if order.classes != 1} or found


def moved(
    elements: Mapping[int, Mapping[int, Element]], chosen: Sequence[int], index: int
) -> dict[int, tuple[int, ...]]:
    """The one element that each channel moves in a value, if it does."""
    found = {channel: elements[channel].get(index) for channel in chosen}
    return {channel: element for channel, element in found.items() if element is not None}


def moved_by_all(
    here: Mapping[int, Mapping[int, Element]],
    chosen: Sequence[int],
    there: Mapping[int, Mapping[int, Element]],
    index: int,
) -> tuple[Moves, Moves] | None:
    """What channels move in a value at one location, and at another; None unless each of them moves one element."""
    first, second = moved(here, chosen, index), moved(there, list(there), index)
    return (first, second) if len(first) == len(chosen) and len(second) == len(there) else None
