"""Heads that a model gives as they are: which have class scores, told by outputs, widths and reshapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from xai_insert.errors import TargetNotFoundError
from xai_insert.locate.detector import Channels
from xai_insert.locate.frontier import Head
from xai_insert.probe.channels import of_width, raw_channels, with_several
from xai_insert.probe.orders import Orders
from xai_insert.probe.rivals import Watched, beside_raw_boxes, undecoded


def raw_scores(search: Orders, num_classes: int | None) -> tuple[list[Watched], dict[int, Channels]] | None:
    """The undecoded heads with class scores, and the orders of their channels; None if no head is undecoded.

    Args:
        search: the heads and what is watched.
        num_classes: number of classes, where the user has given it.

    Raises:
        AmbiguousModelError: nothing tells, or not for every level.
    """
    raw = [item for item in search.watched if item.is_raw]
    if not raw:
        return None
    widths = {item.index: (search.probe.grid(item.index), item.head.channels) for item in search.watched}
    found = _raw_orders(search, raw, widths, num_classes)
    scoring = [item for item in raw if item.index in found]
    grids = [search.probe.grid(item.index) for item in scoring]
    left = _unread(search, raw, scoring, found)
    if not scoring or left or len(grids) != len(set(grids)) or len({order.classes for order in found.values()}) != 1:
        raise undecoded(search.graph, [width for _, width in widths.values()], num_classes)
    return scoring, found


def like(known: Channels, by: Head, head: Head) -> Channels:
    """The order of another level's head: its number of anchors may differ, nothing else."""
    width = by.channels // known.anchors
    anchors, rest = divmod(head.channels, width)
    if rest:
        raise TargetNotFoundError(
            f"the class head {head.value.describe()} has no whole number of anchors, as {by.value.describe()} has "
            f"{known.anchors} of {width} channels"
        )
    before = known.block[0] if known.classes_first or known.anchors > 1 else 0  # some channels of each anchor
    return replace(known, anchors=anchors, start=known.start + before * anchors // known.anchors - before)


def _unread(
    search: Orders, raw: Sequence[Watched], scoring: Sequence[Watched], found: Mapping[int, Channels]
) -> list[Watched]:
    """Undecoded heads of other grids that should give scores too: all, where boxes and scores come of one head."""
    heads = Counter(search.probe.grid(item.index) for item in raw)
    grids = {search.probe.grid(item.index) for item in scoring}
    alike, counts = {item.head.channels for item in scoring}, {heads[grid] for grid in grids}
    is_joint = any(order.classes < order.stride for order in found.values())
    left = [item for item in raw if search.probe.grid(item.index) not in grids]
    return [i for i in left if is_joint or i.head.channels in alike or heads[search.probe.grid(i.index)] in counts]


def _raw_orders(
    search: Orders, raw: Sequence[Watched], widths: Mapping[int, tuple[tuple[int, int], int]], num_classes: int | None
) -> dict[int, Channels]:
    """Orders of undecoded heads, by the first that tells: decoded boxes, a single class, outputs, widths, a reshape."""
    found = with_several(_orders(raw, search.beside_boxes), num_classes)
    found = found or (_orders(raw, search.single_class) if num_classes in (None, 1) else {})
    found = found or _by_outputs(search, raw, num_classes) or _by_widths(search, raw, widths, num_classes)
    is_map = not any(search.is_listed(item) or search.is_boxed(item) for item in raw)
    if num_classes is None and is_map and [order.anchors for order in found.values()] == [1]:
        found = {}  # two maps of one size, one of them of four channels: not only detectors have them
    return found or (_orders(raw, search.raw_layout) if num_classes is None else {})


def _by_outputs(search: Orders, raw: Sequence[Watched], num_classes: int | None) -> dict[int, Channels]:
    """Orders told by outputs that share their rows, of which one has the boxes."""
    counts = beside_raw_boxes(raw, search.observed, search.probe.grid)
    if num_classes is not None and {*counts.values()} != {num_classes}:
        return {}
    scoring = [item for item in raw if item.index in counts]
    found = _orders(scoring, lambda item: of_width(search.raw_orders(item), counts[item.index]))
    by = next((item for item in scoring if item.index in found), None)
    if by is None:
        return {}
    return {item.index: found.get(item.index) or like(found[by.index], by.head, item.head) for item in scoring}


def _by_widths(
    search: Orders, raw: Sequence[Watched], widths: Mapping[int, tuple[tuple[int, int], int]], num_classes: int | None
) -> dict[int, Channels]:
    """Orders told by widths; those of one level tell the number of classes of another, which may have more anchors."""

    def orders(classes: int | None) -> dict[int, Channels]:
        return _orders(raw, lambda item: _as_seen(search, item, raw_channels(widths, item.index, classes)))

    found = orders(num_classes)
    counts, grids = {order.classes for order in found.values()}, {widths[index][0] for index in found}
    if num_classes is None and len(counts) == 1:
        found |= {index: order for index, order in orders(min(counts)).items() if widths[index][0] not in grids}
    return found


def _as_seen(search: Orders, item: Watched, order: Channels | None) -> Channels | None:
    """An order told by widths, corrected by how anchors are set apart; None if that contradicts it."""
    if order is None or not search.stays_whole(item, order):
        return None
    seen = [found for found in search.raw_orders(item) if found.anchors > 1]
    if not seen:
        return order
    if order.classes < order.stride:  # boxes and scores in one head
        whole = {found for found in seen if (found.classes, found.anchors) == (order.stride, order.anchors)}
        if len(whole) > 1:
            return None
        is_inside = any(found.classes_first for found in whole)
        start = order.start * order.anchors
        return replace(order, start=start, stride=1, classes_first=True) if is_inside else order
    return next((found for found in seen if (found.classes, found.anchors) == (order.classes, order.anchors)), None)


def _orders(heads: Sequence[Watched], order_of: Callable[[Watched], Channels | None]) -> dict[int, Channels]:
    return {item.index: order for item in heads if (order := order_of(item)) is not None}
