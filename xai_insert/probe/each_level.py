"""The order of the classes of each level: proved to be that of the level that told it, or else asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from xai_insert.errors import UnsupportedTaskError
from xai_insert.graph.items import only
from xai_insert.locate.detector import Channels
from xai_insert.probe.columns import classes_of_columns, left_out, line_of, with_columns
from xai_insert.probe.heads import Array
from xai_insert.probe.orders import Orders
from xai_insert.probe.rivals import Watched
from xai_insert.probe.undecoded import like

_WEAKEST, _STRONGEST = 1.0, 4.0
_MOVED = 1e-2  # of what it was
_TRIALS = 2  # a gain of each class may hide in one that its classes stand otherwise

Axis = tuple[int, int]
"""One of the values watched, and the axis of it along which classes lie."""
Line = tuple[int, tuple[int | slice, ...]]
Ranks = tuple[int, ...]
"""The columns that moved, the lowest first."""


def orders_of_levels(search: Orders, scoring: Sequence[Watched], known: Channels, by: Watched) -> dict[int, Channels]:
    """The order of the channels of every level, with the classes picked as the scores of the model have them.

    Args:
        search: the heads and what is watched.
        scoring: those with class scores.
        known: the order of one of them.
        by: that head.

    Raises:
        UnsupportedTaskError: the classes of a level arrive otherwise than those of the one that told, and nothing tells
            how; or one that `with_columns` raises.
    """
    known, *others = _turned(known)
    if others and not _stays(search, by, known):
        known = next((order for order in others if _stays(search, by, order)), known)
    first = with_columns(search, by, known) or known
    orders = {
        item.index: replace(search.own(item) or like(known, by.head, item.head), picked=first.picked)
        for item in scoring
    }
    _require_one_number(scoring, orders)
    shown = _Shown(search, orders[by.index], by)
    if shown.axis is None:  # nothing has classes side by side
        return orders
    return {item.index: _asked(shown, item, orders[item.index]) for item in scoring}


def _require_one_number(scoring: Sequence[Watched], orders: Mapping[int, Channels]) -> None:
    """Refuse levels of other numbers of classes: one of them is misread."""
    counts = {orders[item.index].labels: item.head.value.describe() for item in scoring}
    if len(counts) > 1:
        listed = ", ".join(f"{name} ({count} classes)" for count, name in counts.items())
        raise UnsupportedTaskError(f"the channels of the class heads {listed} do not tell one number of classes")


def _asked(shown: _Shown, item: Watched, order: Channels) -> Channels:
    """The order of a level: the one that is expected, if its classes are seen to arrive like those of the first."""
    return order if shown.is_alike(item, order) else _anew(shown, item, order)


def _anew(shown: _Shown, item: Watched, order: Channels) -> Channels:
    """The order that a level tells itself: the one that is proved, or else the only one that may be."""
    own = None if order.anchors == 1 else shown.search.layout(item)
    plain = replace(order, picked=())
    fits = [plain] if own is None or own.classes != order.classes else [plain, own]
    tried = [*{turned: None for fit in fits for turned in _turned(fit)}]
    staying = [fit for fit in tried if _stays(shown.search, item, fit)]
    found = [made for fit in staying or tried if (made := _with_own_columns(shown, item, fit)) is not None]
    proved = next((made for made in found if shown.is_alike(item, made)), only(found))
    if proved is None:
        raise _differ(shown.by, item)
    return proved


def _with_own_columns(shown: _Shown, item: Watched, order: Channels) -> Channels | None:
    """An order with the classes picked as the scores of its level have them; None if it is not that of the level."""
    try:
        columns = classes_of_columns(shown.search, item, order)
        made = with_columns(shown.search, item, order, shown.apart)
    except UnsupportedTaskError:
        return None
    return made if columns is not None and len(columns) == len(shown.columns) else None


def _turned(order: Channels) -> list[Channels]:
    """An order, and the one with classes for anchors and anchors for classes, which are as many and look alike."""
    is_whole = order.classes_first or order.stride == order.classes
    if order.anchors == 1 or order.anchors != order.classes or not is_whole:
        return [order]
    return [order, Channels(order.start, order.classes, order.anchors, order.classes, not order.classes_first)]


def _stays(search: Orders, item: Watched, order: Channels) -> bool:
    """Whether the classes of an anchor lie along an axis on which it makes no difference which location it is."""
    try:
        line = line_of(search, item, order)
    except UnsupportedTaskError:
        return False
    return line is None or _is_no_place(search, item, order.channel(0, 0), line)


def _is_no_place(search: Orders, item: Watched, channel: int, line: Line) -> bool:
    index, at = line
    along, cells = _along(at), search.probe.cells(item.index)
    here, there = (search.probe.rises(item.index, channel, cell).get(index) for cell in (cells[0], cells[-1]))
    return here is None or there is None or here[along] == there[along]


def _along(at: Sequence[int | slice]) -> int:
    return [isinstance(place, slice) for place in at].index(True)


def _differ(one: Watched, other: Watched) -> UnsupportedTaskError:
    return UnsupportedTaskError(
        f"the classes of {other.head.value.describe()} arrive in another order than those of "
        f"{one.head.value.describe()}, and nothing tells in which: no map of both levels would be that of a class; "
        "export the model with one order of classes and anchors for all levels"
    )


class _Shown:
    """Runs in which each class of a location has a number of its own, all anchors alike.

    Args:
        search: the heads and what is watched.
        order: the order of the head that told it.
        by: that head.
    """

    def __init__(self, search: Orders, order: Channels, by: Watched) -> None:
        self.search, self.order, self.by = search, order, by
        self.axis = self._axis(by, order)

    def is_alike(self, item: Watched, order: Channels) -> bool:
        """Whether the scores of a level are ordered by the numbers of their classes as those of the first are."""
        return item is self.by or (
            self._own is not None and self._ranks(item, order, self._axis_of(item, order)) == self._own
        )

    @cached_property
    def columns(self) -> list[int]:
        """The class of each column, as the first head counts them."""
        return classes_of_columns(self.search, self.by, replace(self.order, picked=())) or []

    @property
    def apart(self) -> int | None:
        """Which class of the outputs is no column."""
        return only(left_out(self.columns, self.order))

    @cached_property
    def _is_flat(self) -> bool:
        """Whether classes and locations share an axis, as where the best of both are looked up."""
        return not _stays(self.search, self.by, replace(self.order, picked=()))

    @cached_property
    def _own(self) -> list[Ranks] | None:
        return self._ranks(self.by, self.order, self.axis)

    @cached_property
    def _base(self) -> list[Array]:
        return self.search.probe.run({})

    def _axis_of(self, item: Watched, order: Channels) -> Axis | None:
        if self.axis is not None and self.axis[0] in item.touched():
            return self.axis
        try:
            return self._axis(item, order)
        except UnsupportedTaskError:  # its channels lie otherwise
            return None

    def _axis(self, item: Watched, order: Channels) -> Axis | None:
        line = None if order.labels == 1 else line_of(self.search, item, replace(order, picked=()))
        return None if line is None else (line[0], _along(line[1]))

    def _ranks(self, item: Watched, order: Channels, axis: Axis | None) -> list[Ranks] | None:
        """How the columns are ordered in each run; None if that is not the same in the rows of all anchors."""
        found = None if axis is None else [self._ranks_of(item, order, axis, trial) for trial in range(_TRIALS)]
        return None if found is None or None in found else [ranks for ranks in found if ranks is not None]

    def _ranks_of(self, item: Watched, order: Channels, axis: Axis, trial: int) -> Ranks | None:
        index, along = axis
        after, before = (np.moveaxis(run[index], along, -1) for run in (self._run(item, order, trial), self._base))
        if after.shape != before.shape:
            return None
        moved = np.abs(after - before) > _MOVED * np.abs(before) + 1e-9
        rows, columns = (part[moved.any(-1)] for part in (after, moved))
        return only({_ranked(row, places, is_flat=self._is_flat) for row, places in zip(rows, columns, strict=True)})

    def _run(self, item: Watched, order: Channels, trial: int) -> list[Array]:
        probe, numbers = self.search.probe, _numbers(order.labels, trial)
        array, cell = probe.fed(item.index), probe.cells(item.index)[0]
        for anchor, label in product(range(order.anchors), range(order.labels)):
            array[probe.place(item.index, order.channel(anchor, label), cell)] = numbers[label]
        return probe.run({item.index: array})


def _ranked(row: Array, moved: npt.NDArray[np.bool_], *, is_flat: bool) -> Ranks:
    columns = np.flatnonzero(moved)
    first = columns[0] if is_flat else 0
    return tuple(int(column - first) for column in columns[np.argsort(row[columns], kind="stable")])


def _numbers(count: int, seed: int) -> Array:
    """As many distinct numbers, none near zero, half of them below it."""
    sizes = np.linspace(_WEAKEST, _STRONGEST, -(-count // 2))
    return np.random.default_rng(seed).permutation(np.concatenate([-sizes, sizes])[:count])
