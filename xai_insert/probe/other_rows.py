"""Heads of one grid that score the same classes in other rows: more anchors of a level, or two levels of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xai_insert.graph.items import present
from xai_insert.graph.view import Value
from xai_insert.locate.detector import Channels
from xai_insert.probe.channels import Element, columns_of, moved_by_all, resolve, samples
from xai_insert.probe.heads import HeadProbe
from xai_insert.probe.orders import Orders
from xai_insert.probe.rivals import Watched


def alike_but_for_rows(search: Orders, items: Sequence[Watched]) -> list[list[Watched]]:
    """Heads that score other rows of one value, as two levels of one size do, together."""
    groups = list[list[Watched]]()
    for item in items:
        group = next((group for group in groups if are_in_other_rows(search, [*group, item])), None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    return groups


def are_in_other_rows(search: Orders, items: Sequence[Watched]) -> bool:
    """Whether heads score the same classes in other rows of one value: more anchors of one level."""
    ends = {index for item in items for index in item.moved()}
    if len({item.head.channel_axis for item in items}) > 1 or not ends:
        return False
    single = {item.index for item in items if (order := search.layout(item)) is not None and order.classes == 1}
    for probe, count in _probes(search, items, search.observed[min(ends)].value):
        for index in range(count):
            found = [_rows_of(search, probe, item, index, is_single=item.index in single) for item in items]
            orders = present(found)
            if len(orders) == len(found):
                return _are_others(orders)
    return False


def scores_before(item: Watched, beside: Sequence[Watched]) -> list[Watched]:
    """Heads of several scores, and no objectness, whose columns end where those of a head begin."""
    others = [other for other in beside if other.is_class and other.head.channels > 1]
    first = {index: min(columns) for index, columns in item.last_places(item.like_classes).items()}
    return [
        other
        for other in others
        if any(max(columns) + 1 == first.get(index) for index, columns in other.last_places(other.like_classes).items())
    ]


def _probes(search: Orders, items: Sequence[Watched], end: Value) -> Iterator[tuple[HeadProbe, int]]:
    """Probes that see what heads move, and how many values: the search's own, and one of what leads to `end`."""
    yield search.probe, len(search.observed)
    if arranged := search.arranged([item.head for item in items], end):
        yield HeadProbe(search.loaded, search.heads, arranged), len(arranged)


def _rows_of(
    search: Orders, probe: HeadProbe, item: Watched, index: int, *, is_single: bool
) -> tuple[tuple[Element, int], frozenset[Element]] | None:
    """Columns of the classes and elements that a head's channels move in one value; None if it does not tell."""
    cells = probe.cells(item.index)
    chosen = item.like_classes if probe is search.probe else samples(item.head.channels)
    if len(cells) == 1 or not chosen:
        return None
    rises = ({channel: probe.rises(item.index, channel, cell) for channel in chosen} for cell in cells)
    seen = moved_by_all(next(rises), chosen, next(rises), index)
    if seen is None:
        return None
    here, there = seen
    channels = item.head.channels
    order = Channels(0, 1, channels, 1) if is_single else resolve(here, there, channels)
    columns = columns_of(here, there)
    if order is None or not _are_of_classes(columns, is_single=is_single):
        return None
    return (min(columns), order.classes), frozenset(here.values())


def _are_others(orders: Sequence[tuple[tuple[Element, int], frozenset[Element]]]) -> bool:
    """Whether heads move the same columns, each in rows of its own."""
    columns, rows = {columns for columns, _ in orders}, [rows for _, rows in orders]
    return len(columns) == 1 and len(frozenset().union(*rows)) == sum(map(len, rows))


def _are_of_classes(columns: set[Element], *, is_single: bool) -> bool:
    """Whether columns are those of several classes, one each; of a single class, that or none."""
    widths = {len(column) for column in columns}
    return widths <= {0, 1} if is_single else widths == {1} and len(columns) > 1
