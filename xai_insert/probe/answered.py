"""Whether the heads found give the class scores by themselves, and all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from xai_insert.errors import UnsupportedTaskError
from xai_insert.graph.view import Value
from xai_insert.locate.detector import Channels
from xai_insert.probe.channels import axes_of
from xai_insert.probe.heads import Effect
from xai_insert.probe.orders import Orders
from xai_insert.probe.rivals import Watched, elements_in
from xai_insert.probe.spread import Element, differs

Fed = npt.NDArray[np.floating]
_PUSH = 4.0
_MOST_GATES = 3  # of one box: an objectness, its quality, how central it is
_ADVICE = "--method activation-map shows the features and no class"


def require_answered(search: Orders, scoring: Sequence[Watched], orders: Mapping[int, Channels]) -> None:
    """Refuse heads that are read as classes, and are not all that the scores are made of.

    Args:
        search: the heads and what is watched.
        scoring: the heads that are read as classes.
        orders: the order of the channels of each, by its index.

    Raises:
        UnsupportedTaskError: another layer stands between a head and the scores, or there are scores of no head.
    """
    asked = set[int]()
    for item in scoring:
        for channel in item.like_classes[:1]:
            for index in item.responses[channel].elements:
                axes = _row_axes(search, item, channel, index)
                _require_own_columns(item, orders[item.index], index, axes, search.observed[index].value)
                if axes and index not in asked:
                    asked.add(index)
                    _require_all_rows(search, scoring, orders, index, axes)


def _row_axes(search: Orders, item: Watched, channel: int, index: int) -> Sequence[int]:
    """The axes of a value along which a class's score moves with the location; none if nothing tells."""
    here, cells = item.responses[channel].elements[index], search.probe.cells(item.index)
    there = search.probe.rises(item.index, channel, cells[-1]).get(index)
    axes = None if there is None or len(cells) == 1 else axes_of({0: here}, {0: there})
    return () if axes is None else axes[1]


def _require_own_columns(item: Watched, order: Channels, index: int, rows: Sequence[int], value: Value) -> None:
    """Refuse a head of which several channels make one score of a value, or one makes several."""
    classes = _class_channels(order)
    own: dict[int, set[Element]] = {}
    for channel, anchor in classes.items():
        response = item.responses.get(channel)
        if response is None or response.effect is not Effect.CLASS or index not in response.elements:
            continue
        score = response.elements[index]
        own.setdefault(anchor, set()).add(score)
        beside = [one for one in response.touched[index] if all(one[axis] == score[axis] for axis in rows)]
        if len(beside) > order.classes + 1:  # what is left of one for the rest is one more
            raise _is_before(item, value)
    if item.is_fused and not _are_gates(item, classes, own, index):
        raise _is_before(item, value)


def _are_gates(item: Watched, classes: Mapping[int, int], own: Mapping[int, set[Element]], index: int) -> bool:
    """Whether those of a head's other channels that move scores each raise all of an anchor, as an objectness does."""
    scores, gates = set[Element]().union(*own.values()), Counter[int]()
    for channel, response in item.responses.items():
        if channel in classes or response.effect is Effect.FALLING or index not in response.touched:
            continue
        raised, moved = (set(elements_in(found[index])) for found in (response.raised, response.touched))
        opened = [anchor for anchor, elements in own.items() if elements <= raised]
        gates.update(opened)
        if not opened and (response.effect is Effect.GATE or moved & scores):
            return False
    return max(gates.values(), default=0) <= _MOST_GATES


def _class_channels(order: Channels) -> dict[int, int]:
    """The anchor of each channel of a class, a background among them."""
    plain = Channels(order.start, order.classes, order.anchors, order.stride, order.classes_first)
    return {plain.channel(anchor, label): anchor for anchor in range(order.anchors) for label in range(order.classes)}


def _is_before(item: Watched, value: Value) -> UnsupportedTaskError:
    return UnsupportedTaskError(
        f"class scores behind {value.describe()} are each made of several channels of {item.head.value.describe()}, "
        f"by something that is not followed, as a product with stored vectors or of scores; {_ADVICE}"
    )


def _require_all_rows(
    search: Orders, scoring: Sequence[Watched], orders: Mapping[int, Channels], index: int, axes: Sequence[int]
) -> None:
    """Refuse heads that leave rows of scores as they are which heads of other grids move: a level was not found."""
    grids = {search.probe.grid(other.index) for other in scoring}
    rest = [other for other in search.watched if search.probe.grid(other.index) not in grids]
    if not rest:
        return
    classes = {other.index: [*_class_channels(orders[other.index])] for other in scoring}
    up, down = (_drawn(search, classes, sign) for sign in (1, -1))
    beside = _drawn(search, {other.index: [*range(other.head.channels)] for other in rest}, 1)
    first, *others = (search.probe.run(fed)[index] for fed in (up, down, up | beside))
    if any(found.shape != first.shape for found in others):
        return
    along = tuple(axis for axis in range(first.ndim) if axis not in axes)
    answers, is_moved = (differs(first, found).any(axis=along) for found in others)
    if (missed := np.asarray(is_moved & ~answers)).any():
        raise _level_missing(search.observed[index].value, scoring, missed)


def _level_missing(scores: Value, scoring: Sequence[Watched], missed: npt.NDArray[np.bool_]) -> UnsupportedTaskError:
    listed = ", ".join(other.head.value.describe() for other in scoring)
    return UnsupportedTaskError(
        f"{np.count_nonzero(missed)} of the {missed.size} rows of scores in {scores.describe()} are moved by none of "
        f"{listed}: a level is not recognised, and its classes would be left out; {_ADVICE}"
    )


def _drawn(search: Orders, channels: Mapping[int, Sequence[int]], sign: int) -> dict[int, Fed]:
    """What is fed as heads where some of their channels are moved everywhere, each by its own."""
    made, rng = dict[int, Fed](), np.random.default_rng(0)
    for index, chosen in channels.items():
        array = made[index] = search.probe.fed(index)
        place = (slice(None),) * search.heads[index].channel_axis + ([*chosen],)
        shape = array[place].shape
        array[place] = sign * rng.choice((-1, 1), shape) * rng.uniform(_PUSH / 2, _PUSH, shape)
    return made
