"""The order of a head's channels, watched in the model's own runtime: where each of them arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from xai_insert.errors import AmbiguousModelError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.items import only
from xai_insert.graph.traits import ARRANGES, CUTS_OUT, SQUASHES
from xai_insert.graph.view import Graph, Op, Value
from xai_insert.locate.detector import Channels
from xai_insert.locate.frontier import Head
from xai_insert.locate.observed import Observed, reshapes_between
from xai_insert.probe.channels import (
    Moves,
    moved,
    moved_by_all,
    readings,
    resolve,
    resolve_column,
    samples,
)
from xai_insert.probe.granted import Granted, first_is_objectness
from xai_insert.probe.heads import Effect, HeadProbe, Response
from xai_insert.probe.joint import Joint, read_joint
from xai_insert.probe.map_scores import of_maps
from xai_insert.probe.rivals import Watched, elements_in, elements_of, sets_background_apart, with_background
from xai_insert.probe.watching import Watching

_ARRANGING = ARRANGES | SQUASHES | {Op.CONCAT}


class Orders(Watching):
    """Heads of one model, and in which order their channels are.

    Args:
        loaded: the unedited model.
        graph: its view.
        heads: where it is cut.
        observed: what is watched behind them.
        num_classes: number of classes, where the user has given it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        graph: Graph,
        heads: Sequence[Head],
        observed: Sequence[Observed],
        num_classes: int | None,
    ) -> None:
        super().__init__(loaded, graph, heads, observed)
        self.num_classes = num_classes
        self.granted = Granted()
        self.doubts: dict[int, AmbiguousModelError] = {}
        self._known: dict[int, Channels | None] = {}

    def layout(self, item: Watched) -> Channels | None:
        """The order of one head's channels; None if it has one location only or nothing tells."""
        if item.index not in self._known:
            self._known[item.index] = self._joint(item) if item.is_fused else self._of_classes(item)
        return self._known[item.index]

    def own(self, item: Watched) -> Channels | None:
        """The order of a head that gives boxes as well, if it tells; the others are as the first."""
        return self.layout(item) if item.is_fused else None

    def _of_classes(self, item: Watched) -> Channels | None:
        """The same of a head that gives no boxes.

        A token is one location with one box, unless the head of boxes gives it as many as there would be anchors: what
        is best over all tokens moves with them in ways that look like any order.
        """
        found = self._told(item)
        if not item.has_tokens and (found is None or found.anchors == 1):
            return self._beside_raw_boxes(item, found)
        if found is None or found.anchors == 1 or not item.has_tokens:
            return found
        is_said = found.anchors in self.boxes(item).get(True, set())
        return found if is_said else Channels(0, item.head.channels, 1, item.head.channels)

    def _beside_raw_boxes(self, item: Watched, order: Channels | None) -> Channels | None:
        """The order of scores that are given as maps: where boxes are given as they are, their widths tell anchors."""
        if self.is_listed(item) or self.boxes(item):
            return order
        try:
            found, told = of_maps(item, order, self.rivals(item), lambda: self.raw_orders(item), self.num_classes)
        except AmbiguousModelError as err:
            self.doubts[item.index] = err
            return order
        self.granted.note(item.index, told)
        return found

    def _told(self, item: Watched) -> Channels | None:
        channels = item.head.channels
        if channels == 1:
            return Channels(0, channels, 1, channels)
        cells = self.probe.cells(item.index)
        if len(cells) == 1:
            return None
        chosen = item.like_classes
        others = {channel: self.probe.rises(item.index, channel, cells[1]) for channel in chosen[:12]}
        for index in reversed(range(len(self.observed))):
            seen = moved_by_all(item.elements, chosen, others, index)
            found = seen and self._of_value(item, *seen, self.observed[index].value)
            if found:
                return found
        found = self._layout_on_the_way(item)
        if found is None and item.has_tokens and self.boxes(item).get(True, {1}) == {1}:
            return Channels(0, channels, 1, channels)
        return found

    def _joint(self, item: Watched) -> Channels | None:
        """The order of a head that gives boxes as well; None if nothing tells, or several readings fit (`doubts`)."""
        if len(cells := self.probe.cells(item.index)) == 1:
            return None
        try:
            found = self._joint_behind(item, cells[1]) or self._joint_on_the_way(item)
            return found and with_background(item, found)
        except AmbiguousModelError as err:
            self.doubts[item.index] = AmbiguousModelError(
                f"{item.head.value.describe()} gives more than classes: {err}"
            )
            return None

    def _joint_behind(self, item: Watched, cell: tuple[int, int]) -> Channels | None:
        """The same, as an observed value tells it, of which one with scores alone goes before others."""
        chosen = item.like_classes
        others = {channel: self.probe.rises(item.index, channel, cell) for channel in chosen[:12]}
        clean = self._without_boxes(item)
        one = [index for index, item in enumerate(self.observed) if item.value.sizes[-1:] == (1,)]
        # In one column classes look like anchors.
        for index in sorted(clean or range(len(self.observed)), key=lambda i: (i not in one, i), reverse=True):
            here, there = moved(item.elements, chosen, index), moved(others, list(others), index)
            there = {channel: element for channel, element in there.items() if channel in here}
            if there and (clean or len(here) == len(chosen)):
                value = self.observed[index].value
                if found := self._read_joint(item, item.responses, chosen, there, index, value):
                    return found
        return None

    def _joint_on_the_way(self, item: Watched) -> Channels | None:
        """The same, before classes and locations are flattened."""
        way, chosen = self._way(item), item.like_classes
        if not way:
            return None
        probe = HeadProbe(self.loaded, self.heads, way)
        first, second = probe.cells(item.index)
        here = {channel: probe.respond(item.index, channel, first) for channel in range(item.head.channels)}
        there = {channel: probe.rises(item.index, channel, second) for channel in chosen[:12]}
        for index in reversed(range(len(way))):
            seen = moved_by_all(elements_of(here), chosen, there, index)
            found = seen and self._read_joint(item, here, chosen, seen[1], index, way[index].value)
            if found:
                return found
        return None

    def _way(self, item: Watched) -> list[Observed]:
        """Where a head's classes and locations may have axes of their own, before they are flattened."""
        ends = {index for response in item.responses.values() for index in response.elements}
        return self.arranged([item.head], self.observed[min(ends)].value) if ends else []

    def _read_joint(
        self,
        item: Watched,
        responses: Mapping[int, Response],
        chosen: Sequence[int],
        there: Moves,
        index: int,
        value: Value,
    ) -> Channels | None:
        """What one value tells of a head that gives boxes as well."""
        scores = moved(elements_of(responses), chosen, index)
        beside = {
            channel: response
            for channel, response in responses.items()
            if channel not in scores and index in response.touched and response.effect is not Effect.FALLING
        }
        others = {channel: elements_in(response.touched[index]) for channel, response in beside.items()}
        raised = {channel: elements_in(response.raised[index]) for channel, response in beside.items()}
        tied = {channel: elements_in(responses[channel].touched[index]) for channel in scores}
        joint = Joint(scores, there, tied, others, raised, value.sizes, self._ways(item, value), self.is_boxed(item))
        told = read_joint(joint, item.head.channels, self.num_classes)
        if told is None:
            return None
        if told.assumed:
            self.granted.note(item.index, first_is_objectness(told.assumed))
        return told.channels

    def _ways(self, item: Watched, end: Value) -> Callable[[int], frozenset[int]]:
        """Through which of the parts that are cut out between a head and a value each of its channels goes."""
        parts = [
            Observed(value, by_magnitude=False, is_output=False, heads=frozenset([item.head.value]))
            for value in reshapes_between(self.graph, [item.head], end)
            if value.made_by(*CUTS_OUT)
        ]
        if not parts:
            return lambda channel: frozenset()
        probe = cache(lambda: HeadProbe(self.loaded, self.heads, parts))
        return cache(lambda channel: probe().moved_by(item.index, channel, probe().cells(item.index)[0]))

    def _of_value(self, item: Watched, here: Moves, there: Moves, value: Value) -> Channels | None:
        """The order that the places of what moved in a value tell."""
        found = self._resolve(item, here, there) or self._boxes_of_classes(item, here, there)
        if found is None and item.is_class and value.sizes[-1:] == (1,):
            is_each = self.anchors(item) <= {item.head.channels}  # else of each class, as a suppression may have them
            found = resolve_column(here, item.head.channels) if is_each else None
        return None if found is None or (item.is_class and not sets_background_apart(item, found)) else found

    def beside_boxes(self, item: Watched) -> Channels | None:
        """The order of an undecoded head of a grid whose boxes are decoded; None if nothing tells it."""
        channels, boxes = item.head.channels, self.boxes(item).get(True, set())
        if len(boxes) != 1:
            return None
        if boxes in ({1}, {channels}):
            (anchors,) = boxes
            return Channels(0, channels // anchors, anchors, channels // anchors)
        found = [order for order in self.raw_orders(item) if order.anchors in boxes]
        return only(found)

    def stays_whole(self, item: Watched, order: Channels) -> bool:
        """Whether some value holds all classes of an undecoded head: these are not parted, boxes and more are."""
        classes = {order.channel(anchor, label) for anchor in range(order.anchors) for label in range(order.classes)}
        ends = [set(response.elements) for channel, response in item.responses.items() if channel in classes]
        return not ends or bool(set.intersection(*ends))

    def raw_orders(self, item: Watched) -> list[Channels]:
        """The orders that fit an undecoded head, as far as a reshape sets anchors apart."""
        return next((readings(*moves, item.head.channels) for moves in self.raw_moves(item)), [])

    def _without_boxes(self, item: Watched) -> set[int]:
        """The values in which a head that gives boxes as well moves scores alone; the widest of them."""
        boxes = {i for response in item.responses.values() if response.effect is Effect.OTHER for i in response.moved}
        counts: dict[int, set[tuple[int, ...]]] = {}
        for channel in item.like_classes:
            for index, element in item.responses[channel].elements.items():
                counts.setdefault(index, set()).add(element)
        alone = {index: len(elements) for index, elements in counts.items() if index not in boxes}
        return {index for index, count in alone.items() if count == max(alone.values())}

    def raw_moves(self, item: Watched) -> Iterator[tuple[Moves, Moves]]:
        """What the channels move at two locations, in the first value that they all move; nothing if there is none."""
        cells = self.probe.cells(item.index)
        if len(cells) == 1:
            return
        others = {channel: self.probe.rises(item.index, channel, cells[1]) for channel in item.responses}
        for index in range(len(self.observed)):
            here, there = moved(item.elements, list(others), index), moved(others, list(others), index)
            if len(here) == len(there) == len(others):
                yield here, there
                return

    def _resolve(self, item: Watched, here: Moves, there: Moves) -> Channels | None:
        found, boxes = readings(here, there, item.head.channels), self.anchors(item)
        if boxes:
            each = item.is_exclusive  # no softmax runs over anchors, but over classes, which may have boxes
            found = [o for o in found if o.anchors in boxes or (each and o.anchors * o.classes in boxes)]
        return only(found)

    def _boxes_of_classes(self, item: Watched, here: Moves, there: Moves) -> Channels | None:
        """The order where each location has as many boxes as scores: boxes of classes, or one class and anchors.

        Raises:
            AmbiguousModelError: the user has not given the number of classes, which alone tells.
        """
        found = resolve(here, there, item.head.channels)
        if found is None or found.anchors > 1 or found.classes < 2 or self.anchors(item) != {found.classes}:
            return None
        if self.num_classes is None:
            count = found.classes
            raise AmbiguousModelError(
                f"{item.head.value.describe()} scores {count} boxes of each location: one for each of {count} classes, "
                f"or {count} anchors of one class; say which: --num-classes"
            )
        return found if self.num_classes == found.classes else Channels(0, 1, found.classes, 1)

    def _layout_on_the_way(self, item: Watched) -> Channels | None:
        """The same, watched where classes and locations have axes of their own, before they are flattened."""
        way = self._way(item)
        if not way:
            return None
        probe = HeadProbe(self.loaded, self.heads, way)  # all heads, or the backbone would have to run
        first, second = probe.cells(item.index)
        everywhere = samples(item.head.channels)  # a background shows here
        here_all = {channel: probe.rises(item.index, channel, first) for channel in everywhere}
        there_all = {channel: probe.rises(item.index, channel, second) for channel in everywhere[:12]}
        for index in reversed(range(len(way))):
            seen = moved_by_all(here_all, everywhere, there_all, index)
            found = seen and self._resolve(item, *seen)
            if found and sets_background_apart(item, found):
                return found
        alone = Channels(0, 1, item.head.channels, 1)
        is_alone = self.anchors(item) == {alone.anchors} and sets_background_apart(item, alone)
        return alone if is_alone else None

    def arranged(self, heads: Sequence[Head], end: Value) -> list[Observed]:
        """Values on the way from heads to `end` that reshapes, joins and activations make."""
        return [
            Observed(value, by_magnitude=True, is_output=False, heads=frozenset(head.value for head in heads))
            for value in reshapes_between(self.graph, heads, end)
            if value.made_by(*_ARRANGING) and value.axis_count > 1
        ]
