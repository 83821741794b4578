"""Which heads of a detector give class scores, and in which order of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from xai_insert.errors import AmbiguousModelError, TargetNotFoundError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import activations
from xai_insert.graph.items import only
from xai_insert.graph.proportion import require_proportion
from xai_insert.graph.view import Graph, Op, Value
from xai_insert.locate.affine import affine_behind
from xai_insert.locate.detector import Channels, ClassLevel, Detector
from xai_insert.locate.frontier import Head, channel_axis, find_heads, finished, without_grid
from xai_insert.locate.inputs import image_inputs, open_hint
from xai_insert.locate.observed import observed_values
from xai_insert.locate.outputs import are_masks, query_boxes
from xai_insert.probe.answered import require_answered
from xai_insert.probe.columns import with_columns
from xai_insert.probe.each_level import orders_of_levels
from xai_insert.probe.granted import are_layers, is_behind, is_factor, is_objectness, stands_before
from xai_insert.probe.heads import Effect
from xai_insert.probe.orders import Orders
from xai_insert.probe.other_rows import alike_but_for_rows, are_in_other_rows, scores_before
from xai_insert.probe.rivals import (
    Watched,
    are_beside,
    gives_boxes,
    pure,
    refuse_rivals,
    silent_class,
    with_classes,
    with_joined,
)
from xai_insert.probe.sigmoid_boxes import without_sigmoid_boxes
from xai_insert.probe.undecoded import named_scores, raw_scores

_BOX = 4


class _Search(Orders):
    """The search for class scores in one model."""

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
        chosen = list[list[Watched]]()
        for grid, items in grids.items():
            every = [item for item in self.watched if self.probe.grid(item.index) == grid]
            apart = pure(self._without_boxes_in_one(items, every, num_classes), self.layout)
            if num_classes is not None:
                apart = with_classes(apart, num_classes, self.layout)
            chosen.append(self._best(apart, chosen))
        found = [self._finishing(item) for items in chosen for item in items]
        return [item for item in found if self.is_listed(item)] or found  # beside rows of boxes a map is a mask

    def _without_boxes_in_one(
        self, items: Sequence[Watched], every: Sequence[Watched], said: int | None
    ) -> Sequence[Watched]:
        return without_sigmoid_boxes(self.graph, items, every, said, self.observed, self.is_boxed, self.probe.is_placed)

    def _finishing(self, item: Watched) -> Watched:
        """Of heads of one class that make one score, as a shift and a scale of it do, that which ends in the score."""
        if item.head.channels > 1:
            return item
        for other in self.watched:
            if other.head.channels == 1 and other.touched() == item.touched() and other is not item:
                end = finished(self.graph, other.head).value
                if end is not other.head.value and end in activations(self.graph, [item.head.value]):
                    return other
        return item

    def may_tell(self, item: Watched) -> bool:
        """Whether scores of a head may be classes: those between coordinates say which key points are seen."""
        return item.is_class or self.layout(item) is not None or item.index in self.doubts

    def evidence(self, scoring: Sequence[Watched]) -> str:
        """How the classes were told, and what was taken for granted, for people."""
        texts = self.granted.about(item.index for item in scoring)
        texts += [stands_before(other.head) for other in scores_before(scoring[0], self.rivals(scoring[0]))]
        return "; ".join(["raising a channel raises one class score", *texts, *are_layers(scoring[0].head)])

    def require_all_levels(self, scoring: Sequence[Watched]) -> None:
        """Make sure that no other layer gives class scores too.

        Raises:
            AmbiguousModelError: one may, and it is not known where in the image its results lie.
        """
        self._require_no_silent_level(scoring)
        widths = {item.head.channels for item in scoring}
        scores = {self.observed[index].value for item in scoring for index in item.moved()}
        for value in without_grid(self.graph, image_inputs(self.graph)):
            channels = 0 if value.producer is None else value.sizes[channel_axis(value.producer)]
            if channels in widths or not scores.isdisjoint(activations(self.graph, [value])):
                raise AmbiguousModelError(
                    f"{value.describe()} may give class scores as well as {scoring[0].head.value.describe()}, and its "
                    "places in the image cannot be traced"
                )

    def _require_no_silent_level(self, scoring: Sequence[Watched]) -> None:
        """Refuse a level whose scores a mask keeps still where it was asked: its classes would be left out."""
        grids = {self.probe.grid(item.index) for item in scoring}
        widths = {item.head.channels for item in scoring}
        for item in self.watched:
            is_still = item.effects == {Effect.SILENT} and self.probe.grid(item.index) not in grids
            if is_still and item.head.channels in widths:
                raise AmbiguousModelError(
                    f"{item.head.value.describe()} may give class scores as well as "
                    f"{scoring[0].head.value.describe()}, but none of its channels moved a score: something, as an "
                    "objectness that is compared with a threshold, lets none through; export the model without that"
                )

    def gives_boxes(self) -> bool:
        """Whether some heads have room for boxes, or carry them to where they are decoded."""
        loose = [item for item in self.watched if not self.moves_together(item)]
        of_classes = [item for item in self.watched if item.is_class]
        if gives_boxes(loose, self.probe.grid, are_apart=bool(of_classes)) or any(map(self.carries_boxes, loose)):
            return True
        return any(map(self.is_boxed, of_classes))

    def scores_all_of(self, value: Value) -> bool:
        """Whether a head has a score for the first and the last number of rows wider than a box, which has no place."""
        ends = {0, (value.sizes[-1] or 0) - 1}
        found = [index for index, item in enumerate(self.observed) if item.value is value and max(ends) >= _BOX]
        scored = [item.last_places(item.responses) for item in self.watched if item.is_class]
        return any(ends <= places.get(index, set()) for index in found for places in scored)

    def _best(self, items: Sequence[Watched], before: Sequence[Sequence[Watched]]) -> list[Watched]:
        """The only head; several that are anchors of one level or are added up; the classes beside an objectness.

        Of two that fit alike it is the one whose scores are joined to those of the levels before.
        """
        if len({finished(self.graph, item.head).value for item in items}) < 2:
            return list(items[:1])
        several = self._several(items)  # one class for each anchor beside more of them is an objectness
        items = several or [item for item in items if item.is_class] or items
        if len(items) < 2 or are_in_other_rows(self, items) or self._are_equal_levels(items):
            return list(items)
        if several or len({item.head.channels for item in items}) > 1:
            raise refuse_rivals(items)
        alike = alike_but_for_rows(self, items)
        best = alike[0][0]
        for item, *_ in alike[1:]:
            best = self._joined([item, best], before) or self._better(item, best)
        return next(group for group in alike if group[0] is best)

    def _several(self, items: Sequence[Watched]) -> list[Watched]:
        """The heads that have several classes, beside which one of one class for each anchor is an objectness.

        Raises:
            AmbiguousModelError: it may be a class, as its scores stand beside theirs without a box.
        """
        several, single = list[Watched](), list[Watched]()
        for item in items:
            order = self.layout(item)
            (single if order is not None and order.classes == 1 else several).append(item)
        beside = [item for item in single if item.is_class and several and are_beside(item, several[0], self.watched)]
        if beside:
            raise refuse_rivals([several[0], *beside])
        for one in [one for one in single if one.is_class][:1]:
            for item in several:
                self.granted.note(item.index, is_objectness(one.head))
        return several

    def _joined(self, items: Sequence[Watched], before: Sequence[Sequence[Watched]]) -> Watched | None:
        """Of two heads the one alone whose scores go, before both meet, where those of another level go."""
        one, other = (activations(self.graph, [item.head.value]) for item in items)
        known = [activations(self.graph, [item.head.value]) for level in before for item in level]
        found = [
            item for item, own in zip(items, (one - other, other - one), strict=True) if any(map(own.__and__, known))
        ]
        return only(found)

    def _better(self, one: Watched, other: Watched) -> Watched:
        """Of heads of one class that which reads neither boxes, as their quality does, nor their feature, as a gate."""
        if (apart := self._apart_from_boxes(one, other)) is not None:
            return apart
        if one.elements == other.elements and self.layout(one) is not None:
            self._require_product(one, other)
            self.granted.note(one.index, is_factor(other.head))
            return one
        places = [self._first_output(item) for item in (one, other)]
        if one.head.channels > 1 or places[0] == places[1] or self._outputs_of_boxes(one) > 1:
            raise refuse_rivals([one, other])
        best, rest = (one, other) if places[0] < places[1] else (other, one)
        self.granted.note(best.index, is_behind(rest.head))  # of one class, either says it
        return best

    def _require_product(self, one: Watched, other: Watched) -> None:
        """Refuse two heads of one class that are added up: neither alone says where it is.

        Raises:
            AmbiguousModelError: they are.
        """
        both = activations(self.graph, [one.head.value]) & activations(self.graph, [other.head.value])
        first = next((node for node in self.graph.nodes if not both.isdisjoint(node.outputs)), None)
        if first is not None and first.op is Op.ADD:
            raise AmbiguousModelError(
                f"the score of the only class is the sum of {one.head.value.describe()} and "
                f"{other.head.value.describe()}, added where places are rows: neither alone says where the class is; "
                "export the model with the two added as maps"
            )

    def _apart_from_boxes(self, *items: Watched) -> Watched | None:
        """The only head that does not read the boxes, or else their feature; None if that does not tell."""
        moving = [item.head for item in self.watched if item.moves_boxes]
        made, sources = activations(self.graph, [head.value for head in moving]), {head.source for head in moving}
        for boxes in (made, sources):
            apart = [item for item in items if item.head.source not in boxes]
            if len(apart) == 1:
                return apart[0]
        return None

    def _are_equal_levels(self, items: Sequence[Watched]) -> bool:
        """Whether heads score outputs of their own, all alike, of which there are as many as outputs of their boxes."""
        moved = [item.touched() for item in items]
        sizes = {self.observed[index].value.sizes for indices in moved for index in indices}
        are_apart = len(set().union(*moved)) == sum(map(len, moved)) == len(items)
        return are_apart and len(sizes) == 1 and self._outputs_of_boxes(items[0]) == len(items)

    def _outputs_of_boxes(self, item: Watched) -> int:
        """How many outputs hold the boxes of as many places: several levels may have one size."""
        cells = math.prod(self.probe.grid(item.index))
        return [value.sizes[1:] for value in self.graph.outputs].count((cells, _BOX))

    def _first_output(self, item: Watched) -> int:
        """Which of the model's outputs the head moves, by its place among them; their number if it moves none."""
        moved = {self.observed[index].value for response in item.responses.values() for index in response.elements}
        return next(
            (place for place, value in enumerate(self.graph.outputs) if value in moved), len(self.graph.outputs)
        )


def find_class_levels(
    loaded: LoadedModel, graph: Graph, num_classes: int | None, output: str | None = None
) -> Detector | None:
    """Locate the class scores of a detector; None if no head has any.

    Args:
        loaded: the unedited model.
        graph: its view.
        num_classes: number of classes, where the user has given it.
        output: name of the outputs whose heads count, as of a main one beside an auxiliary one; all if it is None.

    Raises:
        UnknownNameError: no output has that name.
        AmbiguousModelError: several readings fit.
        TargetNotFoundError: a head has class scores whose order of channels cannot be told.
    """
    images = image_inputs(graph)
    heads = find_heads(graph, images, output)
    if (named := _named(loaded, graph, heads, output, num_classes)) is not None:
        return named
    observed = observed_values(graph, images, heads)
    if not heads or not observed or are_masks(graph):
        return None
    require_proportion(graph)
    search = _with_joined(_Search(loaded, graph, heads, observed, num_classes), heads, num_classes)
    boxes = [value for value in query_boxes(graph) if not search.scores_all_of(value)]
    if not search.gives_boxes() and not boxes and not _selects(graph):
        return _squashed(search, num_classes)
    scoring = search.class_heads(num_classes)
    found = None if any(map(search.may_tell, scoring)) else raw_scores(search, num_classes)
    if found is None and scoring:
        return _of_scores(search, scoring)
    return found and _of_raw(search, *found)


def _named(
    loaded: LoadedModel, graph: Graph, heads: Sequence[Head], output: str | None, num_classes: int | None
) -> Detector | None:
    """The detector whose classes the named outputs have, and other outputs the boxes; None if it is no such."""
    images = image_inputs(graph)
    if output is None or num_classes is None or not heads or (every := find_heads(graph, images)) == heads:
        return None
    search = _Search(loaded, graph, every, observed_values(graph, images, every), num_classes)
    found = named_scores(search, num_classes, {head.value for head in heads})
    told = "--output names those with the classes, the others have the boxes"
    return _detector(search, *found, None, told) if found else None


def _with_joined(search: _Search, heads: Sequence[Head], num_classes: int | None) -> _Search:
    """A search among the same heads, those whose classes stand side by side as one."""
    graph = search.graph
    if (joined := with_joined(graph, search.watched, num_classes)) == heads:
        return search
    return _Search(search.loaded, graph, joined, observed_values(graph, image_inputs(graph), joined), num_classes)


def _of_scores(search: _Search, scoring: Sequence[Watched]) -> Detector:
    """What heads say whose channels are seen to be classes."""
    search.require_all_levels(scoring)
    known, by = _told(search, scoring)
    channels = orders_of_levels(search, scoring, known, by)
    require_answered(search, scoring, channels)
    return _detector(search, scoring, channels, silent_class(scoring, channels), search.evidence(scoring))


def _squashed(search: _Search, num_classes: int | None) -> Detector | None:
    """Boxes and scores of one head squashed together, as heads are cut off for the processors of phones and cameras.

    Without the number of classes nothing moves like a box: maps may be those of classes or of depth alone.
    """
    if num_classes is None and not any(map(search.is_listed, search.watched)):
        return None
    search.watched = [item.as_raw() for item in search.watched]
    try:
        found = raw_scores(search, num_classes)
    except AmbiguousModelError:
        return None
    return found and _of_raw(search, *found)


def _of_raw(search: _Search, scoring: Sequence[Watched], orders: Mapping[int, Channels]) -> Detector:
    told = "outputs and widths of the undecoded heads"
    order = orders[scoring[0].index]
    if order.classes < order.stride:
        first, last = (order.channel(0, label) for label in (0, order.classes - 1))
        told += f"; of each box's {order.stride} channels {first} to {last} are taken for its classes, as YOLO's are"
    return _detector(search, scoring, orders, None, told)


def _told(search: _Search, scoring: Sequence[Watched]) -> tuple[Channels, Watched]:
    """The order of the channels of the first head that tells it, and that head.

    One anchor's channels fit any order: wider levels are asked after it, which may have more.
    """
    told: tuple[Channels, Watched] | None = None
    doubt: AmbiguousModelError | None = None
    for item in scoring:
        if told is not None and (told[0].anchors > 1 or item.head.channels <= told[1].head.channels):
            continue
        found = search.layout(item)
        if item.index in search.doubts:
            doubt = doubt or search.doubts[item.index]
        elif found is not None and (told is None or found.anchors > 1):
            told = found, item
    if doubt is not None and (told is None or told[0].anchors == 1):
        raise doubt
    told = told or _by_columns(search, scoring)
    if told is None:
        listed = ", ".join(item.head.value.describe() for item in scoring) + open_hint(search.graph)
        raise TargetNotFoundError(f"the order of classes and anchors cannot be told in the class heads {listed}")
    return told


def _by_columns(search: _Search, scoring: Sequence[Watched]) -> tuple[Channels, Watched] | None:
    """The order of classes that are turned about before locations are flattened, where a location has one box."""
    for item in scoring:
        plain = Channels(0, item.head.channels, 1, item.head.channels)
        if item.is_class and search.has_one_box(item) and with_columns(search, item, plain) is not None:
            return plain, item
    return None


def _selects(graph: Graph) -> bool:
    return any(node.op is Op.NMS for node in graph.nodes)


def _detector(
    search: _Search,
    scoring: Sequence[Watched],
    channels: Mapping[int, Channels],
    background: int | None,
    evidence: str,
) -> Detector:
    levels = list[tuple[int, ClassLevel]]()
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
    middle, ordered = levels[len(levels) // 2][1], tuple(_finished(search.graph, level) for _, level in levels)
    item, classes = next(item for item in scoring if item.head is middle.head), ordered[0].channels.labels
    return Detector(ordered, classes, background, evidence, search.moves_all(item, middle.channels, classes))


def _finished(graph: Graph, level: ClassLevel) -> ClassLevel:
    """A level whose scores have the shift and the scale that the model gives to each location, if it does."""
    more = tuple(_finished(graph, other) for other in level.more)
    head = finished(graph, level.head)
    return replace(level, head=head, more=more, affine=affine_behind(head.value, level.channels.classes))
