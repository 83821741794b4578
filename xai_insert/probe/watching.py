"""The heads of a detector, what their channels do, and which of them give the boxes that others score."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph
from xai_insert.locate.detector import Channels
from xai_insert.locate.frontier import Head
from xai_insert.locate.observed import Observed
from xai_insert.probe.channels import samples
from xai_insert.probe.coordinates import without_coordinates
from xai_insert.probe.heads import Effect, HeadProbe, Response
from xai_insert.probe.rivals import Watched
from xai_insert.probe.spread import Element

_BOX = 4
_MAP = 4  # axes


class Watching:
    """Heads of one model, watched.

    Args:
        loaded: the unedited model.
        graph: its view.
        heads: where it is cut.
        observed: what is watched behind them.
    """

    def __init__(self, loaded: LoadedModel, graph: Graph, heads: Sequence[Head], observed: Sequence[Observed]) -> None:
        self.loaded = loaded
        self.graph = graph
        self.heads = heads
        self.observed = observed
        self.probe = HeadProbe(loaded, heads, observed)
        watched = [self._watch(index, head) for index, head in enumerate(heads)]
        self.watched = without_coordinates(watched, self.probe)

    def _watch(self, index: int, head: Head) -> Watched:
        cell = self.probe.cells(index)[0]
        chosen = samples(head.channels)
        responses = {channel: self.probe.respond(index, channel, cell) for channel in chosen}
        item = Watched(index, head, responses)
        if item.like_classes and self.probe.is_pooled(index, item.like_classes[0], item.responses):
            return item.without_classes()
        if item.is_fused:
            rest = [channel for channel in range(head.channels) if channel not in responses]
            responses |= {channel: self.probe.respond(index, channel, cell) for channel in rest}
        return item

    def response(self, item: Watched, channel: int) -> Response:
        """What a channel does at the first location."""
        known = item.responses.get(channel)
        return known or self.probe.respond(item.index, channel, self.probe.cells(item.index)[0])

    def is_listed(self, item: Watched) -> bool:
        """Whether an output has the locations of a head in one axis, as rows of a detector are."""
        return any(len(element) < 4 for response in item.responses.values() for element in response.elements.values())

    def rivals(self, item: Watched) -> list[Watched]:
        """The other heads of its grid."""
        grid = self.probe.grid(item.index)
        return [other for other in self.watched if other is not item and self.probe.grid(other.index) == grid]

    def anchors(self, item: Watched) -> set[int]:
        """Boxes that each head of the grid decodes at a location; none where that cannot be seen."""
        found = self.boxes(item)
        return found.get(True) or found.get(False, set())  # what has four columns is no list of key points

    def moves_together(self, item: Watched) -> bool:
        """Whether every channel but classes moves all numbers of its place, as of a vector that has length one."""
        moved = self.probe.moved_at(item.index)
        others = [response for response in item.responses.values() if response.effect is not Effect.CLASS]
        found = others or item.responses.values()
        counts = {(index, count) for response in found for index, count in response.moved.items()}
        return bool(counts) and all(index in moved and count == moved[index][1] > 2 for index, count in counts)

    def moves_all(self, item: Watched, order: Channels, classes: int) -> bool:
        """Whether the first class moves as many numbers of an output as there are classes, as behind a softmax."""
        moved = self.response(item, order.channel(0, 0)).moved if classes > 1 else {}
        return any(count == classes and self.observed[index].is_output for index, count in moved.items())

    def carries_boxes(self, item: Watched) -> bool:
        """Whether a head's numbers go, four to a row, to where those of the best locations are looked up."""
        return item.effects == {Effect.CARRIED} and any(columns == _BOX for _, (_, columns, _) in self._carried(item))

    def _carried(self, item: Watched) -> list[tuple[int, tuple[int, int, int]]]:
        """What moves in values that have the locations in one axis: a map that is resized is no list of boxes."""
        return [(i, at) for i, at in self.probe.moved_at(item.index).items() if self.observed[i].value.rank != _MAP]

    def is_boxed(self, item: Watched) -> bool:
        """Whether another head of the grid gives four numbers for each box that are no scores."""
        return bool(self.boxes(item).get(True))

    def has_one_box(self, item: Watched) -> bool:
        """Whether other heads of the grid decode one box at each location."""
        return self.anchors(item) == {1}

    def boxes(self, item: Watched) -> dict[bool, set[int]]:
        """Boxes that the other heads of its grid decode at a location, by whether they lie in four columns."""
        found: dict[bool, set[int]] = {}
        parts = list[Watched]()
        for box in self.rivals(item):
            moves = {Effect.OTHER, Effect.CARRIED} & box.effects
            if box.is_class or box.is_raw or not moves or self.moves_together(box):  # as vectors of length one do
                continue
            if self._are_apart(item, box):
                continue
            of_four, of_any = self._boxes_of(box)
            if of_four or of_any:
                found.setdefault(bool(of_four), set()).add(max(of_four or of_any))
            if not of_four:
                parts.append(box)
        if not found.get(True) and (counts := self._side_by_side(parts)):
            found[True] = counts
        return found

    def _are_apart(self, one: Watched, other: Watched) -> bool:
        """Whether a location has other rows of each of two heads, in every two lists of as many rows."""
        pairs = product(self.probe.lists_of(one.index), self.probe.lists_of(other.index))
        found = [one.rows.isdisjoint(beside.rows) for one, beside in pairs if one.length == beside.length]
        return bool(found) and all(found)

    def _side_by_side(self, parts: Sequence[Watched]) -> set[int]:
        """How many boxes of a place there are whose sides come of heads or outputs of their own."""
        sides: dict[tuple[int, frozenset[int]], set[tuple[int, Element]]] = {}
        for listed in (listed for part in parts for listed in self.probe.lists_of(part.index)):
            if self.observed[listed.index].is_output:
                moved = {(listed.index, column) for column in listed.columns}
                sides.setdefault((listed.length, listed.rows), set()).update(moved)
        return {len(rows) for (_, rows), columns in sides.items() if len(columns) == _BOX}

    def _boxes_of(self, box: Watched) -> tuple[set[int], set[int]]:
        """How many boxes of a place a head may give: in rows of four columns, and by how many elements move."""
        is_carried, width = Effect.OTHER not in box.effects, box.head.channels
        moved = self._carried(box) if is_carried else [*self.probe.moved_at(box.index).items()]
        wide = (_BOX, _BOX + 1) if box.is_fused else (_BOX,)  # an objectness is beside the box
        of_four = {
            rows
            for index, (_, columns, rows) in moved
            if columns in wide or self._may_be_sides(index, columns, width / rows)
        }
        return of_four, {count // _BOX for _, (count, _, _) in moved if count % _BOX == width % _BOX == 0}

    def _may_be_sides(self, index: int, columns: int, width: float) -> bool:
        """Whether so many channels are a box's of which so many numbers move: a side may hardly do; an angle beside."""
        *lengths, _ = sorted(size or 0 for size in self.observed[index].value.sizes[1:])  # but that of the locations
        is_list = len(lengths) < _MAP - 2 and max(lengths, default=0) >= columns > _BOX
        are_bins = columns == _BOX - 1 and _BOX in lengths and width % _BOX == 0
        return columns > 1 and (width in (_BOX, columns if is_list else _BOX) or are_bins)
