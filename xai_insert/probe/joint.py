"""The classes among the channels of a head that gives boxes as well, read off the columns that each channel moves.

A box has a row of numbers in some value behind the head: coordinates, objectness, classes and more, in any order and
from any channels. Which channel is which is seen where it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from xai_insert.errors import AmbiguousModelError
from xai_insert.graph.items import only
from xai_insert.graph.view import Shape
from xai_insert.locate.detector import Channels
from xai_insert.probe.channels import Element, Moves, axes_of

_BOX = 4


@dataclass(frozen=True)
class Joint:
    """What the channels of a head do to one value, at one location.

    Attributes:
        scores: the one element that rises with each channel that acts like a class.
        there: the same at another location, for at least one of them.
        tied: everything that each of these channels moves, as all scores of a softmax.
        others: everything that each of the other channels moves.
        raised: what of it rises.
        sizes: of the value; empty where they may be anything.
        way: what lies between the head and the value that a channel moves: those of one part of a row have the same.
        is_boxed: whether another head gives the boxes, so that this one has none.
    """

    scores: Moves
    there: Moves
    tied: Mapping[int, Sequence[Element]]
    others: Mapping[int, Sequence[Element]]
    raised: Mapping[int, Sequence[Element]]
    sizes: Shape
    way: Callable[[int], frozenset[int]]
    is_boxed: bool = False


@dataclass(frozen=True)
class Told:
    """The order of a head's channels, and what was taken for granted.

    Attributes:
        channels: the order.
        assumed: scores behind each box of which the first is taken for objectness though nothing tells; 0 if none is.
    """

    channels: Channels
    assumed: int = 0


def read_joint(joint: Joint, channels: int, num_classes: int | None = None) -> Told | None:
    """The classes of a head that gives boxes as well; None if this value does not tell.

    Args:
        joint: what its channels do.
        channels: how many it has.
        num_classes: number of classes, where the user has given it.

    Raises:
        AmbiguousModelError: several readings fit.
    """
    axes = axes_of({channel: joint.scores[channel] for channel in joint.there}, joint.there)
    if axes is None or not axes[1]:
        return None
    rows = _rows_of_boxes(joint, axes[0])
    return rows.told(channels, num_classes) if rows is not None and rows.columns else None


def _rows_of_boxes(joint: Joint, axes: Sequence[int]) -> _Rows | None:
    """The rows along the one axis that holds the columns of a box; None if several could."""
    varying = [axis for axis in axes if len({element[axis] for element in joint.scores.values()}) > 1]
    rows = [_Rows(joint, axis) for axis in varying] or [_Rows(joint, None)]
    if len(rows) > 1:  # anchors have an axis of their own
        rows = [row for row in rows if row.are_of_boxes]
    return only(rows)


class _Rows:
    """The rows that a location has in a value, one of each box, with columns along an axis; None for one column."""

    def __init__(self, joint: Joint, axis: int | None) -> None:
        self.joint = joint
        self.axis = axis
        self.rows: dict[Element, dict[int, list[int]]] = {}
        for channel, element in sorted(joint.scores.items()):
            row, column = self._apart(element)
            self.rows.setdefault(row, {}).setdefault(column, []).append(channel)
        self.others = {
            channel: places
            for channel, elements in joint.others.items()
            if (places := {self._apart(element) for element in elements})
        }
        sets = {frozenset(row) for row in self.rows.values()}
        self.columns = sorted(next(iter(sets))) if len(sets) == 1 else []

    def _apart(self, element: Element) -> tuple[Element, int]:
        if self.axis is None:
            return element, 0
        return (*element[: self.axis], *element[self.axis + 1 :]), element[self.axis]

    @property
    def are_of_boxes(self) -> bool:
        """Whether every other channel stays in the row of one box."""
        return all(
            len({row for row, _ in places}) == 1 and {row for row, _ in places} <= {*self.rows}
            for places in self.others.values()
        )

    @property
    def _first(self) -> dict[int, list[int]]:
        return self.rows[min(self.rows)]

    @property
    def _shared(self) -> set[int]:
        """Columns that several channels move, each in a row."""
        return {column for row in self.rows.values() for column, found in row.items() if len(found) > 1}

    def told(self, channels: int, num_classes: int | None) -> Told | None:
        """The classes, and how sure that is."""
        shared = self._shared
        if shared and (len(shared) > 1 or any(abs(column - min(shared)) == 1 for column in self.columns)):
            return None
        # of a single class the objectness, multiplied, moves the same number: either says where it is
        chosen, assumed = (sorted(shared), 0) if shared else self._classes(num_classes)
        if not chosen:
            return None
        table = [[self.rows[row][column][-1] for column in chosen] for row in sorted(self.rows)]
        return Told(_order(table, channels), assumed)

    def _classes(self, num_classes: int | None) -> tuple[list[int], int]:
        """The columns of classes, and how many scores there are if the first of them is taken for objectness.

        Raises:
            AmbiguousModelError: several readings fit, or none: scores multiply parts of the others.
        """
        if len(self._multiplied()) > 1:
            raise AmbiguousModelError(
                "some of its scores multiply only a part of the others, as in a hierarchy of classes, so that no "
                "channel is one class"
            )
        width = self.joint.sizes[self.axis] if self.joint.sizes and self.axis is not None else None
        box = self._box(width)
        if box is None:
            return [], 0
        scores = [column for column in self.columns if column not in box]
        gated = {frozenset(columns & {*scores}) for columns in self._gates()}
        several = [columns for columns in gated if len(columns) > 1]
        if len(several) == 1:  # an objectness is multiplied to them
            return sorted(several[0]), 0
        if len(scores) in (width, num_classes):
            return scores, 0
        runs = self._runs(scores)
        if len(runs) == 1 and self._are_tied(runs[0]):
            return runs[0], 0
        return _Scores(runs, box, self._is_plain(box), len(self.rows)).classes(num_classes)

    def _are_tied(self, run: Sequence[int]) -> bool:
        """Whether a softmax runs over all of several scores: the first is no objectness."""
        row = min(self.rows)
        places = {self._apart(element) for element in self.joint.tied.get(self._first[run[-1]][0], ())}
        return len(run) > 1 and (row, run[0]) in places

    def _box(self, width: int | None) -> range | None:
        """The four columns of coordinates; some of them may look like scores. Empty if there are none.

        None if what moves cannot be those of a box: the places of key points, with a visibility behind each.
        """
        if self.joint.is_boxed:
            return None if any(len(places) == 1 for places in self.others.values()) else range(0)
        moved = sorted({column for places in self.others.values() for _, column in places} - self._gated())
        if moved:
            first = _first_of_box(moved, width)
            return None if first is None else range(first, first + _BOX)
        is_hidden = width != len(self.columns) and self.columns[:_BOX] == [*range(_BOX)]
        return range(_BOX) if is_hidden else range(0)

    def _gates(self) -> list[set[int]]:
        """Columns of class-like scores that single other channels move, where these are several."""
        moved = [{column for _, column in places} & {*self.columns} for places in self.others.values()]
        return [columns for columns in moved if len(columns) > 1]

    def _multiplied(self) -> set[frozenset[int]]:
        """Sets of several class-like scores that other channels raise."""
        raised = [
            frozenset(self._apart(element)[1] for element in elements) & {*self.columns}
            for elements in self.joint.raised.values()
        ]
        return {columns for columns in raised if len(columns) > 1}

    def _gated(self) -> set[int]:
        return set[int]().union(*self._gates())

    def _is_plain(self, box: range) -> bool:
        """Whether each box has a channel for each of its numbers, and no distribution over bins."""
        first = min(self.rows)
        found = [channel for channel, places in self.others.items() if any((first, column) in places for column in box)]
        return len(found) <= _BOX

    def _runs(self, scores: Sequence[int]) -> list[list[int]]:
        """Neighbouring columns that come the same way."""
        runs = list[list[int]]()
        for column in scores:
            if runs and column == runs[-1][-1] + 1:
                runs[-1].append(column)
            else:
                runs.append([column])
        return [part for run in runs for part in self._parts(run)]

    def _parts(self, run: list[int]) -> list[list[int]]:
        """A run cut where the way changes; what begins and ends the same way is one."""
        if len(run) < 2 or self._way(run[0]) == self._way(run[-1]):
            return [run]
        half = len(run) // 2
        left, right = self._parts(run[:half]), self._parts(run[half:])
        if self._way(left[-1][-1]) == self._way(right[0][0]):
            return [*left[:-1], left[-1] + right[0], *right[1:]]
        return left + right

    def _way(self, column: int) -> frozenset[int]:
        return self.joint.way(self._first[column][0])


def _first_of_box(moved: Sequence[int], width: int | None) -> int | None:
    """Where the four columns begin, of which these moved: with the first, or at an end of the row."""
    if {*moved[:_BOX]} == _four(moved[0]):
        return moved[0]
    ends = [0] if width is None else [0, width - _BOX]
    fits = [end for end in ends if end <= moved[0] and moved[-1] < end + _BOX] or _fours(moved)
    return fits[0] if fits else None


def _fours(moved: Sequence[int]) -> list[int]:
    """Where just four neighbours begin, if there is one such place: places of key points come in twos and threes."""
    found = [column for column in moved if {*range(column - 1, column + _BOX + 1)} & {*moved} == _four(column)]
    return found if len(found) == 1 else []


def _four(first: int) -> set[int]:
    return {*range(first, first + _BOX)}


@dataclass(frozen=True)
class _Scores:
    """Runs of scores beside a box, from which the classes are chosen."""

    runs: Sequence[list[int]]
    box: range
    is_plain: bool
    anchors: int

    def classes(self, num_classes: int | None) -> tuple[list[int], int]:
        """The columns, and the number of scores of which the first is assumed to be objectness.

        Raises:
            AmbiguousModelError: several readings fit.
        """
        wide = [run for run in self.runs if len(run) > 1]
        if not wide:
            return self._of_singles()
        if num_classes is not None:
            return self._of_so_many(num_classes, wide), 0
        if len(wide) > 1:
            listed = " and of ".join(str(len(run)) for run in wide)
            raise AmbiguousModelError(
                f"beside each box stand scores of {listed} columns, any of which may be the classes; say which: "
                "--num-classes"
            )
        return self._of_run(wide[0])

    def _of_run(self, run: list[int]) -> tuple[list[int], int]:
        """The only run of several scores, or what follows the first of them, its objectness."""
        is_said = any(self._is_objectness(single, run) for single in self.runs if single != run)
        if is_said or not self._is_behind_box(run):
            return run, 0
        if [run[-1] + 1] in self.runs:
            raise AmbiguousModelError(_either(len(run), f"{len(run)} classes before an objectness"))
        if self.anchors == 1:
            raise AmbiguousModelError(_either(len(run), f"{len(run)} classes"))
        return run[1:], len(run)

    def _of_so_many(self, count: int, wide: Sequence[list[int]]) -> list[int]:
        """The one run of so many classes, or of as many behind their objectness; the longest if none is that long."""
        fits = [run for run in wide if len(run) == count]
        if len(fits) > 1:  # an objectness before one of them tells
            fits = [run for run in fits if [run[0] - 1] in self.runs] or fits
        fits = fits or [run[1:] for run in wide if len(run) == count + 1] or [max(wide, key=len)]
        if len(fits) > 1:
            raise AmbiguousModelError(
                f"beside each box stand several runs of {count} scores, and nothing tells which are the classes"
            )
        return fits[0]

    def _of_singles(self) -> tuple[list[int], int]:
        """One class; or several, each of which comes its own way."""
        columns = [column for run in self.runs for column in run]
        if len(columns) < 3:
            behind = [column for column in columns if not self._is_behind_box([column])]
            return (behind or columns)[-1:], 0
        together = [column for index, column in enumerate(columns) if column == columns[0] + index]
        if together == columns:
            return columns[1:], len(columns)
        # what follows with gaps are visibilities of key points
        return (together[1:] if len(together) == 2 else []), 0

    def _is_behind_box(self, run: Sequence[int]) -> bool:
        return self.is_plain and len(self.box) > 0 and run[0] == self.box[-1] + 1

    def _is_objectness(self, single: Sequence[int], run: Sequence[int]) -> bool:
        """Whether a score alone stands before the run; what stands behind it may be something else."""
        return len(single) == 1 and single[0] < run[0]


def _either(count: int, other: str) -> str:
    return (
        f"the {count} scores behind each box may be an objectness and {count - 1} class"
        f"{'es' if count > 2 else ''}, or {other}; say which: --num-classes"
    )


def _order(table: list[list[int]], channels: int) -> Channels:
    """The order in which a head has the channels of a table, anchors by classes.

    Raises:
        AmbiguousModelError: it is not regular.
    """
    anchors, classes, start = len(table), len(table[0]), table[0][0]
    stride = table[1][0] - start if anchors > 1 else channels
    for order in (Channels(start, classes, anchors, stride), Channels(start, classes, anchors, 1, classes_first=True)):
        if stride > 0 and order.block[1] <= channels and _table(order) == table:
            return order
    raise AmbiguousModelError(
        "the model gives its classes or anchors in another order than the head that scores them has; such an order is "
        "not followed"
    )


def _table(order: Channels) -> list[list[int]]:
    """The channels of an order, anchors by classes."""
    return [[order.channel(anchor, label) for label in range(order.classes)] for anchor in range(order.anchors)]
