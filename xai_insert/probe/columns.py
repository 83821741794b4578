"""Which class of a head arrives in which column of the scores that a model gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from xai_insert.errors import UnsupportedTaskError
from xai_insert.graph.view import Value
from xai_insert.locate.detector import Channels
from xai_insert.locate.inputs import open_hint
from xai_insert.probe.heads import Array, Effect, HeadProbe
from xai_insert.probe.orders import Orders
from xai_insert.probe.rivals import Watched
from xai_insert.probe.spread import Element

_PUSH = 12.0
_ROSE = 1e-2  # of what it was
_FEWEST = 2  # columns that tell along which axis classes lie


def with_columns(search: Orders, item: Watched, order: Channels, apart: int | None = None) -> Channels | None:
    """The order of a head's channels, with the classes picked as the scores of the model have them.

    None if nothing that is watched has classes side by side.

    Args:
        search: the heads and what is watched.
        item: one head with class scores.
        order: its order, as told by where its channels arrive.
        apart: which class of the outputs the one is that is no column; that of the head if it is None.

    Raises:
        UnsupportedTaskError: a column is made of several classes of the head, or classes of the head are no columns of
            the scores beside one another.
    """
    found = classes_of_columns(search, item, order)
    if found is None:
        return None
    if left := left_out(found, order):
        at = left[0] if apart is None else apart
        found = [*found[:at], *left, *found[at:]]
    return replace(order, picked=() if found == [*range(order.classes)] else tuple(found))


def left_out(found: Sequence[int], order: Channels) -> list[int]:
    """The class that is no column, as a background that is cut off; none if there are several, or none."""
    left = sorted({*range(order.classes)} - {*found})
    return left if len(left) == 1 else []


def classes_of_columns(search: Orders, item: Watched, order: Channels) -> list[int] | None:
    """The class of a head that each column of the scores has; None if nothing that is watched has them side by side.

    Every class has a number in binary, and for each digit two runs raise the classes that have it, and those that have
    not. A column that rises in one run of each pair is the score of the class that these spell.

    Raises:
        UnsupportedTaskError: as above.
    """
    line = None if order.classes < _FEWEST else line_of(search, item, order)
    if line is None:
        return None
    index, at = line
    codes = _Codes(search.probe, item, order)
    found = codes.columns(index, at) or codes.columns_one_by_one(index, at)
    value = search.observed[index].value
    if found is None:
        raise _shared(search, item, value)
    _require_columns(codes, order, found, item.head.value, value)
    return found


def _shared(search: Orders, item: Watched, value: Value) -> UnsupportedTaskError:
    return UnsupportedTaskError(
        f"class scores behind {value.describe()} are each made of several channels of {item.head.value.describe()}, "
        f"which are members or parts of a class: no map in the model is that of a class{open_hint(search.graph)}"
    )


def _require_columns(codes: _Codes, order: Channels, found: Sequence[int], head: Value, value: Value) -> None:
    """Refuse classes of which several that arrive somewhere are no columns of their own."""
    left = sorted(set(range(order.classes)) - set(found))
    if not found or len(found) != len(set(found)) or (len(left) > 1 and codes.arrive(left)):
        raise UnsupportedTaskError(
            f"{head.describe()} was read as {order.classes} classes, but {value.describe()} has {len(set(found))} of "
            "these side by side"
        )


def line_of(search: Orders, item: Watched, order: Channels) -> tuple[int, tuple[int | slice, ...]] | None:
    """The scores beside one another in which an anchor's classes arrive: an output, or else what is selected by."""
    tried = sorted({0, 1, order.classes // 2, order.classes - 1})
    found = [search.response(item, order.channel(0, label)) for label in tried]
    responses = [response for response in found if response.effect is Effect.CLASS]
    spread: Value | None = None
    numbers = sorted(range(len(search.observed)), key=lambda index: (not search.observed[index].is_output, -index))
    for index in numbers:
        elements = [response.elements[index] for response in responses if index in response.elements]
        if len(set(elements)) < _FEWEST:
            continue
        axes = _apart(elements)
        if len(axes) == 1:
            at: list[int | slice] = [*elements[0]]
            at[axes[0]] = slice(None)
            return index, tuple(at)
        spread = spread or search.observed[index].value
    if spread is not None:  # in rows and columns
        raise _shared(search, item, spread)
    return None


def _apart(elements: Sequence[Element]) -> list[int]:
    return [axis for axis in range(len(elements[0])) if len({element[axis] for element in elements}) > 1]


class _Codes:
    """Runs in which the classes of one anchor at one location are raised, all others of it held even."""

    def __init__(self, probe: HeadProbe, item: Watched, order: Channels) -> None:
        self.probe, self.item, self.order = probe, item, order
        self.cell = probe.cells(item.index)[0]
        self.even = self._run([])

    def columns(self, index: int, at: tuple[int | slice, ...]) -> list[int] | None:
        """The class of each column of a line that is the score of one; None if one is the score of several."""
        classes = range(self.order.classes)
        width = max(1, len(classes).bit_length())
        rises = []
        for digit in range(width):
            having = [label for label in classes if (label + 1) >> digit & 1]
            others = [label for label in classes if label not in having]
            rises.append(
                [self._rose(self._run(labels)[index][at], self.even[index][at]) for labels in (having, others)]
            )
        with_digit, without = np.array(rises).swapaxes(0, 1)  # [digits, columns] each
        is_one = (with_digit != without).all(axis=0)
        is_all = (with_digit & without).all(axis=0)  # the best of all, or a sum of them
        is_none = ~(with_digit | without).any(axis=0)
        numbers = (with_digit * 2 ** np.arange(width)[:, None]).sum(axis=0) - 1
        own = numbers[is_one]
        if not (is_one | is_all | is_none).all() or ((own < 0) | (own >= len(classes))).any():
            return None
        return self._with_muted([int(number) for number in own], [*np.flatnonzero(is_one)], len(is_none))

    def columns_one_by_one(self, index: int, at: tuple[int | slice, ...]) -> list[int] | None:
        """The same where classes come in groups that have a softmax each: raised together, none of a group rises."""
        even = self.even[index][at]
        rises = np.array([self._rose(self._run([label])[index][at], even) for label in range(self.order.classes)])
        return [int(label) for label in rises.argmax(axis=0)] if (rises.sum(axis=0) == 1).all() else None

    def _with_muted(self, own: list[int], columns: Sequence[int], width: int) -> list[int]:
        """The classes with those whose columns stay in place and never rise: their scores are masked in the model."""
        every = [*range(self.order.classes)]
        starts = {int(column) - label for column, label in zip(columns, own, strict=True)}
        are_inside = bool(own) and own[0] == 0 and own[-1] == every[-1]
        return every if len(starts) == 1 and (are_inside or (width == len(every) and starts == {0})) else own

    def arrive(self, labels: Sequence[int]) -> bool:
        """Whether raising some classes raises anything."""
        return any(self._rose(high, even).any() for high, even in zip(self._run(labels), self.even, strict=True))

    def _run(self, labels: Sequence[int]) -> list[Array]:
        array = self.probe.fed(self.item.index)
        for label in range(self.order.classes):
            place = self.probe.place(self.item.index, self.order.channel(0, label), self.cell)
            array[place] = _PUSH if label in labels else 0
        return self.probe.run({self.item.index: array})

    @staticmethod
    def _rose(high: Array, even: Array) -> npt.NDArray[np.bool_]:
        return np.asarray(high - even > _ROSE * np.abs(even) + 1e-9)
