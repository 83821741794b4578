"""Which heads of a detector give class scores, and in which order of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from xai_insert.errors import AmbiguousModelError, TargetNotFoundError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.proportion import require_proportion
from xai_insert.graph.view import Graph, Op, Value
from xai_insert.locate.detector import Channels, ClassLevel, Detector
from xai_insert.locate.frontier import Head, Observed, find_heads, observed_values, reshapes_between
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.outputs import query_boxes
from xai_insert.probe.channels import (
    Moves,
    anchor_stride,
    raw_channels,
    resolve,
    resolve_column,
    resolve_fused,
    resolve_raw,
    samples,
)
from xai_insert.probe.heads import Effect, HeadProbe, Response
from xai_insert.probe.rivals import (
    Watched,
    gives_boxes,
    pure,
    refuse_rivals,
    silent_class,
    undecoded,
    with_classes,
    without_sigmoid_boxes,
)

_ARRANGING = frozenset({Op.RESHAPE, Op.TRANSPOSE, Op.CONCAT, Op.SOFTMAX, Op.SIGMOID})
_BOX = 4
_EVIDENCE = "raising a channel raises one class score"


class _Search:
    """The search for class scores in one model."""

    def __init__(
        self,
        loaded: LoadedModel,
        graph: Graph,
        heads: Sequence[Head],
        observed: Sequence[Observed],
        num_classes: int | None,
    ) -> None:
        self.num_classes = num_classes
        self.loaded = loaded
        self.graph = graph
        self.heads = heads
        self.observed = observed
        self.probe = HeadProbe(loaded, heads, observed)
        self.watched = [self._watch(index, head) for index, head in enumerate(heads)]

    def _watch(self, index: int, head: Head) -> Watched:
        cell = self.probe.cells(index)[0]
        chosen = samples(head.channels)
        responses = {channel: self.probe.respond(index, channel, cell) for channel in chosen}
        item = Watched(index, head, responses)
        if item.is_fused:
            rest = [channel for channel in range(head.channels) if channel not in responses]
            responses |= {channel: self.probe.respond(index, channel, cell) for channel in rest}
        return item

    def class_heads(self, num_classes: int | None) -> list[Watched]:
        """The heads with class scores, one for each grid, or several that are more anchors of it.

        Raises:
            AmbiguousModelError: two heads of one grid fit equally well.
            TargetNotFoundError: none has the number of classes that the user has given.
        """
        grids: dict[tuple[int, int], list[Watched]] = {}
        for item in self.watched:
            if item.is_class or item.is_fused:
                grids.setdefault(self.probe.grid(item.index), []).append(item)
        chosen = []
        for grid, items in grids.items():
            every = [item for item in self.watched if self.probe.grid(item.index) == grid]
            apart = pure(without_sigmoid_boxes(self.graph, items, every, self.observed), self.layout)
            if num_classes is not None:
                apart = with_classes(apart, num_classes, self.layout)
            chosen += self._best(apart)
        return chosen

    def _best(self, items: Sequence[Watched]) -> list[Watched]:
        """The only head; several that are anchors of one level; the classes beside an objectness."""
        if len(items) > 1:
            counts = {item.index: None if (order := self.layout(item)) is None else order.classes for item in items}
            several = [item for item in items if counts[item.index] != 1]
            items = several or items  # one class for each anchor beside more of them is an objectness
        if len(items) < 2 or self._are_anchors(items):
            return list(items)
        if several or len({item.head.channels for item in items}) > 1:
            raise refuse_rivals(items)
        best = items[0]
        for item in items[1:]:
            best = self._better(item, best)
        return [best]

    def _are_anchors(self, items: Sequence[Watched]) -> bool:
        """Whether heads score the same classes in other rows of one value: more anchors of one level."""
        if len({item.head.channel_axis for item in items}) > 1 or items[0].has_tokens:
            return False
        orders = []
        for observed in (self.observed, self._arranged([item.head for item in items], self.observed[-1].value)):
            probe = self.probe if observed is self.observed else None
            if not observed:
                continue
            probe = probe or HeadProbe(self.loaded, self.heads, observed)
            for index in range(len(observed)):
                orders = [self._rows_of(probe, item, index) for item in items]
                if all(order is not None for order in orders):
                    columns = {order[0] for order in orders if order is not None}  # first, and how many
                    rows = [order[1] for order in orders if order is not None]
                    return len(columns) == 1 and len(frozenset().union(*rows)) == sum(map(len, rows))
        return False

    def _rows_of(
        self, probe: HeadProbe, item: Watched, index: int
    ) -> tuple[tuple[int, int], frozenset[tuple[int, ...]]] | None:
        """Columns of the classes and elements that a head's channels move in one value; None if it does not tell."""
        cells = probe.cells(item.index)
        chosen = [channel for channel, response in item.responses.items() if response.effect is Effect.CLASS]
        if len(cells) == 1 or not chosen:
            return None
        here, there = (
            _moves({channel: probe.respond(item.index, channel, cell) for channel in chosen}, chosen, index)
            for cell in cells
        )
        order = resolve(here, there, item.head.channels)
        if len(here) < len(chosen) or len(there) < len(chosen) or order is None:
            return None
        free = [axis for axis in range(len(here[chosen[0]])) if all(here[c][axis] == there[c][axis] for c in chosen)]
        columns = {tuple(element[axis] for axis in free if axis) for element in here.values()}
        if len(columns) < 2 or any(len(column) != 1 for column in columns):
            return None
        return (min(columns)[0], order.classes), frozenset(here.values())

    def _better(self, one: Watched, other: Watched) -> Watched:
        """Of heads of one class that which does not read the feature of the boxes, as a gate does."""
        boxes = {item.head.source for item in self.watched if item.moves_boxes}
        apart = [item for item in (one, other) if item.head.source not in boxes]
        if len(apart) == 1:
            return apart[0]
        places = [self._first_output(item) for item in (one, other)]
        if one.head.channels > 1 or places[0] == places[1]:
            raise refuse_rivals([one, other])
        return min(zip(places, (one, other), strict=True), key=lambda pair: pair[0])[1]  # of one class, either says it

    def _first_output(self, item: Watched) -> int:
        """Which of the model's outputs the head moves, by its place among them; their number if it moves none."""
        moved = {self.observed[index].value for response in item.responses.values() for index in response.elements}
        return next(
            (place for place, value in enumerate(self.graph.outputs) if value in moved), len(self.graph.outputs)
        )

    def layout(self, item: Watched) -> Channels | None:
        """The order of one head's channels; None if it has one location only or nothing tells."""
        channels = item.head.channels
        if channels == 1 or len(item.head.levels[0].grid_axes) == 1:  # tokens have no anchors
            return Channels(0, channels, 1, channels)
        cells = self.probe.cells(item.index)
        if len(cells) == 1:
            return None
        chosen = [channel for channel, response in item.responses.items() if response.effect is Effect.CLASS]
        others = {channel: self.probe.respond(item.index, channel, cells[1]) for channel in chosen[:12]}
        for index in reversed(range(len(self.observed))):
            here, there = _moves(item.responses, chosen, index), _moves(others, list(others), index)
            if len(here) == len(chosen) and len(there) == len(others):
                found = self._resolve(item, here, there) or self._boxes_of_classes(item, here, there)
                if found is None and item.is_class and self.observed[index].value.sizes[-1:] == (1,):
                    found = resolve_column(here, item.head.channels)
                if found is not None and item.is_class and not _sets_background_apart(item, found):
                    found = None
                if found is not None:
                    return found
        return self._layout_on_the_way(item, chosen)

    def raw_layout(self, item: Watched) -> Channels | None:
        """The order of the only head of its grid, which is an output but for a reshape."""
        if self._rivals(item):
            return None
        return next((resolve_raw(*moves, item.head.channels) for moves in self._raw_moves(item)), None)

    def single_class(self, item: Watched) -> Channels | None:
        """The order of a head with one channel for each anchor, beside a single other one with a box and more."""
        rivals = self._rivals(item)
        strides = [
            stride
            for head in (item, *rivals)
            for moves in self._raw_moves(head)
            if (stride := anchor_stride(*moves, head.head.channels)) is not None
        ]
        if len(rivals) != 1 or len(strides) != 2 or strides[0] != 1 or strides[1] < _BOX:
            return None
        anchors = item.head.channels
        return Channels(0, 1, anchors, 1) if rivals[0].head.channels == anchors * strides[1] else None

    def _rivals(self, item: Watched) -> list[Watched]:
        grid = self.probe.grid(item.index)
        return [other for other in self.watched if other is not item and self.probe.grid(other.index) == grid]

    def _raw_moves(self, item: Watched) -> Iterator[tuple[Moves, Moves]]:
        """What the channels move at two locations, in the first value that they all move; nothing if there is none."""
        cells = self.probe.cells(item.index)
        if len(cells) == 1:
            return
        others = {channel: self.probe.respond(item.index, channel, cells[1]) for channel in item.responses}
        for index in range(len(self.observed)):
            here, there = _moves(item.responses, list(others), index), _moves(others, list(others), index)
            if len(here) == len(there) == len(others):
                yield here, there
                return

    def _resolve(self, item: Watched, here: Moves, there: Moves) -> Channels | None:
        channels = item.head.channels
        found = resolve_fused(here, there, channels) if item.is_fused else resolve(here, there, channels)
        anchors = self._anchors(item)
        if found is None or not anchors or item.is_fused or found.anchors in anchors:
            return found
        return None

    def _boxes_of_classes(self, item: Watched, here: Moves, there: Moves) -> Channels | None:
        """The order where each location has as many boxes as scores: boxes of classes, or one class and anchors.

        Raises:
            AmbiguousModelError: the user has not given the number of classes, which alone tells.
        """
        found = None if item.is_fused else resolve(here, there, item.head.channels)
        if found is None or found.anchors > 1 or found.classes < 2 or self._anchors(item) != {found.classes}:
            return None
        if self.num_classes is None:
            count = found.classes
            raise AmbiguousModelError(
                f"{item.head.value.describe()} scores {count} boxes of each location: one for each of {count} classes, "
                f"or {count} anchors of one class; say which: --num-classes"
            )
        return found if self.num_classes == found.classes else Channels(0, 1, found.classes, 1)

    def _layout_on_the_way(self, item: Watched, chosen: Sequence[int]) -> Channels | None:
        """The same, watched where classes and locations have axes of their own, before they are flattened."""
        ends = {index for response in item.responses.values() for index in response.elements}
        if not ends:
            return None
        way = self._arranged([item.head], self.observed[min(ends)].value)
        if not way:
            return None
        probe = HeadProbe(self.loaded, self.heads, way)  # all heads, or the backbone would have to run
        first, second = probe.cells(item.index)
        everywhere = chosen if item.is_fused else samples(item.head.channels)  # a background shows here
        here_all = {channel: probe.respond(item.index, channel, first) for channel in everywhere}
        there_all = {channel: probe.respond(item.index, channel, second) for channel in everywhere[:12]}
        for index in reversed(range(len(way))):
            here, there = _moves(here_all, everywhere, index), _moves(there_all, list(there_all), index)
            if len(here) == len(everywhere) and len(there) == len(there_all):
                found = self._resolve(item, here, there)
                if found is not None and (item.is_fused or _sets_background_apart(item, found)):
                    return found
        channels = item.head.channels
        alone = Channels(0, 1, channels, 1) if self._anchors(item) == {channels} else None
        return alone if alone is None or _sets_background_apart(item, alone) else None

    def _arranged(self, heads: Sequence[Head], end: Value) -> list[Observed]:
        """Values on the way from heads to `end` that reshapes, joins and activations make."""
        return [
            Observed(value, by_magnitude=True, is_output=False, heads=frozenset(head.value for head in heads))
            for value in reshapes_between(self.graph, heads, end)
            if value.producer is not None and value.producer.op in _ARRANGING and (value.rank or 0) > 1
        ]

    def _anchors(self, item: Watched) -> set[int]:
        """Boxes that each head of the grid decodes at a location; none where that cannot be seen."""
        grid, found = self.probe.grid(item.index), set()
        for box in self.watched:
            if box.is_class or box.is_raw or self.probe.grid(box.index) != grid or Effect.OTHER not in box.effects:
                continue
            moved = self.probe.moved_by_all(box.index, self.probe.cells(box.index)[0])
            counts = [count // _BOX for count in moved.values() if count % _BOX == 0]
            if counts and box.head.channels % _BOX == 0:
                found.add(max(counts))
        return found


def find_class_levels(loaded: LoadedModel, graph: Graph, num_classes: int | None) -> Detector | None:
    """Locate the class scores of a detector; None if no head has any.

    Args:
        loaded: the unedited model.
        graph: its view.
        num_classes: number of classes, where the user has given it.

    Raises:
        AmbiguousModelError: several readings fit.
        TargetNotFoundError: a head has class scores whose order of channels cannot be told.
    """
    images = image_inputs(graph)
    heads = find_heads(graph, images)
    observed = observed_values(graph, images, heads)
    if not heads or not observed:
        return None
    require_proportion(graph)
    search = _Search(loaded, graph, heads, observed, num_classes)
    if not gives_boxes(search.watched, search.probe.grid) and not query_boxes(graph) and not _selects(graph):
        return None  # nothing moves like a box: maps of classes or of depth alone
    scoring = search.class_heads(num_classes)
    if not scoring:
        return _raw_detector(search, num_classes)
    known = next((found for item in scoring if (found := search.layout(item)) is not None), None)
    if known is None:
        listed = ", ".join(item.head.value.describe() for item in scoring)
        raise TargetNotFoundError(f"the order of classes and anchors cannot be told in the class heads {listed}")
    channels = {item.index: _like(known, item.head) for item in scoring}
    return _detector(
        search, scoring, channels, silent_class(scoring, channels), "raising a channel raises one class score"
    )


def _sets_background_apart(item: Watched, order: Channels) -> bool:
    """Whether no class has channels that raise a score and others that only lower some, as a background does."""
    by_effect = [
        {order.label(channel) for channel, response in item.responses.items() if response.effect is effect}
        for effect in (Effect.CLASS, Effect.FALLING)
    ]
    return not set.intersection(*by_effect)


def _selects(graph: Graph) -> bool:
    return any(node.op is Op.NMS for node in graph.nodes)


def _moves(responses: Mapping[int, Response], chosen: Sequence[int], index: int) -> dict[int, tuple[int, ...]]:
    found = {channel: responses[channel].elements.get(index) for channel in chosen}
    return {channel: element for channel, element in found.items() if element is not None}


def _like(known: Channels, head: Head) -> Channels:
    """The order of another level's head: its number of anchors may differ, nothing else."""
    anchors, rest = divmod(head.channels, known.classes if known.classes_first else known.stride)
    if rest:
        raise TargetNotFoundError(
            f"the class head {head.value.describe()} has no whole number of anchors for {known.classes} classes"
        )
    return replace(known, anchors=anchors)


def _raw_detector(search: _Search, num_classes: int | None) -> Detector | None:
    raw = [item for item in search.watched if item.is_raw]
    if not raw:
        return None
    widths = {item.index: (search.probe.grid(item.index), item.head.channels) for item in search.watched}
    found = _orders(raw, search.single_class) if num_classes in (None, 1) else {}
    found = found or _orders(raw, lambda item: raw_channels(widths, item.index, num_classes))
    if not found and num_classes is None:
        found = _orders(raw, search.raw_layout)
    scoring = [item for item in raw if item.index in found]
    grids = [search.probe.grid(item.index) for item in scoring]
    if not scoring or len(grids) != len(set(grids)) or len({order.classes for order in found.values()}) != 1:
        raise undecoded(search.graph, [width for _, width in widths.values()])
    return _detector(search, scoring, found, None, "widths of the undecoded heads")


def _orders(heads: Sequence[Watched], order_of: Callable[[Watched], Channels | None]) -> dict[int, Channels]:
    return {item.index: order for item in heads if (order := order_of(item)) is not None}


def _detector(
    search: _Search,
    scoring: Sequence[Watched],
    channels: Mapping[int, Channels],
    background: int | None,
    evidence: str,
) -> Detector:
    levels = []
    single: dict[tuple[int, int], list[ClassLevel]] = {}
    for item in scoring:
        if len(item.head.levels) == 1:
            level = ClassLevel(item.head, item.head.levels[0], channels[item.index])
            single.setdefault(search.probe.grid(item.index), []).append(level)
        else:
            levels += [
                (level.cells or 0, ClassLevel(item.head, level, channels[item.index])) for level in item.head.levels
            ]
    levels += [(height * width, replace(one, more=(*more,))) for (height, width), (one, *more) in single.items()]
    levels.sort(key=lambda pair: -pair[0])
    ordered = tuple(level for _, level in levels)
    return Detector(ordered, ordered[0].channels.classes, background, evidence)
