"""Which of several heads of one grid give the class scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xai_insert.errors import AmbiguousModelError, TargetNotFoundError
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.detector import Channels
from xai_insert.locate.frontier import Head, Observed
from xai_insert.locate.outputs import likely_task
from xai_insert.probe.heads import Effect, Element, Response

_SCORES = frozenset({Effect.CLASS, Effect.FALLING, Effect.SILENT})
_BOXES = frozenset({Effect.OTHER, Effect.RAW})
_BOX = 4


@dataclass(frozen=True)
class Watched:
    """A head and what its sampled channels do.

    Attributes:
        index: place among the heads.
        head: the head.
        responses: at the first location, by channel.
    """

    index: int
    head: Head
    responses: Mapping[int, Response]

    @property
    def effects(self) -> set[Effect]:
        return {response.effect for response in self.responses.values()}

    @property
    def elements(self) -> dict[int, Mapping[int, Element]]:
        """The one element that each channel raises in each observed value."""
        return elements_of(self.responses)

    @property
    def is_class(self) -> bool:
        return Effect.CLASS in self.effects and self.effects <= _SCORES

    @property
    def is_fused(self) -> bool:
        return Effect.CLASS in self.effects and not self.effects <= _SCORES and not self.is_box

    @property
    def is_box(self) -> bool:
        """Whether its channels move four columns of a value one by one: a side of a box in 0..1 is no score."""
        ends = {
            index: {response.elements[index][-1] for response in self.responses.values() if index in response.elements}
            for index in self.moved()
        }
        alone = [i for i in ends if all(i in response.elements for response in self.responses.values())]
        return self.head.channels % _BOX == 0 and any(len(ends[index]) == _BOX for index in alone)

    @property
    def moves_boxes(self) -> bool:
        return bool(self.effects & _BOXES)

    @property
    def is_raw(self) -> bool:
        return self.effects == {Effect.RAW}

    def as_raw(self) -> Watched:
        """The same with each channel's own number in 0..1 taken for what is given as it is: all of a head squashed."""
        if self.effects != {Effect.CLASS} or any(
            count > 1 for response in self.responses.values() for count in response.moved.values()
        ):
            return self
        raw = {channel: replace(response, effect=Effect.RAW) for channel, response in self.responses.items()}
        return replace(self, responses=raw)

    @property
    def is_exclusive(self) -> bool:
        """Whether a channel moves the other classes too, as a softmax does; no share and its rest, of one channel."""
        return Effect.FALLING in self.effects or any(map(self._is_shared, self.touched()))

    def _is_shared(self, index: int) -> bool:
        """Whether several channels move one element of a value, where one moves several."""
        found = [response.touched[index] for response in self.responses.values() if index in response.touched]
        if max(map(len, found)) == 1:
            return False
        every = np.concatenate(found)
        return len(np.unique(np.ravel_multi_index(tuple(every.T), tuple(every.max(axis=0) + 1)))) < len(every)

    @property
    def has_tokens(self) -> bool:
        return len(self.head.levels[0].grid_axes) == 1

    def moved(self) -> set[int]:
        """The observed values of which some element rises alone."""
        return {index for response in self.responses.values() for index in response.elements}

    def touched(self) -> set[int]:
        """The observed values of which anything moves."""
        return {index for response in self.responses.values() for index in response.touched}


def elements_of(responses: Mapping[int, Response]) -> dict[int, Mapping[int, Element]]:
    """The elements that channels raise alone, by channel."""
    return {channel: response.elements for channel, response in responses.items()}


def gives_boxes(items: Sequence[Watched], grid_of: Callable[[int], tuple[int, int]], *, are_apart: bool) -> bool:
    """Whether the heads of some grid have room for a box: four channels of one, or pairs (size, offset) of several.

    One channel beside scores is a depth, two are a flow, three are normals; five as they are, a second
    segmentation.

    Args:
        items: all heads.
        grid_of: the grid of a head, by its index.
        are_apart: whether other heads give classes, so that none has them beside a box.
    """
    pairs: dict[tuple[int, int], int] = {}
    for item in items:
        width = item.head.channels
        if item.moves_boxes and width >= _BOX and not (are_apart and item.is_raw and width % _BOX):
            return True
        if item.moves_boxes and width % 2 == 0:
            grid = grid_of(item.index)
            pairs[grid] = pairs.get(grid, 0) + width
    return max(pairs.values(), default=0) >= _BOX


def pure(items: Sequence[Watched], layout: Callable[[Watched], Channels | None]) -> list[Watched]:
    """Heads whose channels are all classes, if there are any; and of fused ones those with a run of classes."""
    whole = [item for item in items if item.is_class]
    if not whole:
        return list(items)
    if max(item.head.channels for item in whole) > 1:
        return whole
    # One channel may be an objectness beside a fused head; visibilities of key points are no run of classes.
    return whole + [item for item in items if item.is_fused and layout(item) is not None]


def with_classes(
    items: Sequence[Watched], num_classes: int, layout: Callable[[Watched], Channels | None]
) -> list[Watched]:
    """The heads of so many classes, a background not counted or counted.

    Raises:
        TargetNotFoundError: there is none.
    """
    orders = {item.index: order for item in items if (order := layout(item)) is not None}
    counts = {index: order.classes for index, order in orders.items()}
    fits = [item for item in items if counts.get(item.index) in (None, num_classes)]
    more = [item for item in items if counts.get(item.index) == num_classes + 1]
    if fits:  # the one class more that a softmax has, or that is never selected, is a background
        more = [item for item in more if item.is_exclusive or silent_class([item], orders) is not None]
    fits += more
    if not fits:
        listed = ", ".join(f"{item.head.value.describe()} ({counts[item.index]} classes)" for item in items)
        raise TargetNotFoundError(f"no class head has --num-classes {num_classes}; found {listed}")
    return fits


def are_beside(one: Watched, other: Watched, watched: Sequence[Watched]) -> bool:
    """Whether two heads give scores in one value that holds no boxes, where an objectness would have to stand."""
    boxed = {index for item in watched if item.moves_boxes for index in item.touched()}
    return not boxed.issuperset(one.moved() & other.moved())


def with_joined(graph: Graph, watched: Sequence[Watched]) -> list[Head]:
    """The heads, of which those whose classes are joined at once, side by side, are one head of them all."""
    heads = [item.head for item in watched]
    by_value = {item.head.value: item for item in watched}
    for node in graph.nodes:
        parts = [by_value[value] for value in node.operands if value in by_value] if node.op is Op.CONCAT else []
        if len(parts) == len(node.operands) and _is_side_by_side(node, parts, watched):
            first = parts[0].head
            heads = [head for head in heads if head.value not in node.operands or head is first]
            heads[heads.index(first)] = replace(first, value=node.output)
    return heads


def _is_side_by_side(node: Node, parts: Sequence[Watched], watched: Sequence[Watched]) -> bool:
    """Whether a node joins the classes of heads, and nothing else reads these."""
    widths = [item.head.channels for item in parts]
    if max(widths, default=1) == 1 or any(item.head.channel_axis != node.attrs["axis"] for item in parts):
        return False  # two layers of one channel may be a class and its objectness
    return all(
        item.is_class and item.head.value.only_use is not None and are_beside(parts[0], item, watched) for item in parts
    )


def refuse_rivals(items: Sequence[Watched]) -> AmbiguousModelError:
    """The error for heads that fit equally well."""
    *others, last = (item.head.value.describe() for item in items)
    told = "; say which, with --num-classes, a background counted"
    advice = told if len({item.head.channels for item in items}) > 1 else ""
    return AmbiguousModelError(f"two heads could hold the class scores: {', '.join(others)} and {last}{advice}")


def silent_class(scoring: Sequence[Watched], channels: Mapping[int, Channels]) -> int | None:
    """The class whose score is never selected."""
    silent = {
        order.label(channel)
        for item in scoring
        if item.is_class
        for order in [channels[item.index]]
        for channel, response in item.responses.items()
        if response.effect in (Effect.FALLING, Effect.SILENT) and 0 <= order.label(channel) < order.classes
    }
    return silent.pop() if len(silent) == 1 else None


def undecoded(graph: Graph, widths: Sequence[int], num_classes: int | None) -> AmbiguousModelError:
    """The error for heads that are outputs as they are, of so many channels each."""
    alike = len({value.shape for value in graph.outputs}) == 1  # not a level each
    likely = likely_task(graph) if alike else None
    others = "" if likely is None else f"; else {likely}, which is no detection"
    if num_classes is not None:
        return AmbiguousModelError(
            f"the heads are returned undecoded, and of their widths ({', '.join(map(str, widths))} channels) "
            f"--num-classes {num_classes} does not tell which are classes: those of boxes may be as wide; export the "
            f"model with its boxes decoded{others}"
        )
    if {*widths} & {2 * width for width in widths}:
        others += "; else maps of key points beside their offsets: --method keypoint-map"
    return AmbiguousModelError(
        "not a classifier; if it is a detector, it returns its heads undecoded, and their widths "
        f"({', '.join(map(str, widths))} channels) do not tell classes from boxes: give the number of classes, "
        f"--num-classes{others}"
    )


def beside_raw_boxes(
    raw: Sequence[Watched], observed: Sequence[Observed], grid_of: Callable[[int], tuple[int, int]]
) -> dict[int, int]:
    """Undecoded heads whose output has the rows of another that is four wide, and alone is; by index, its width.

    Boxes are four wide, so that the other output has the scores, whatever the widths of the heads: six boxes of a place
    are as wide as 24 classes. Where each place has one box, four may be the classes, and the others bins of its sides.
    """
    found: dict[int, int] = {}
    for boxes, scores, width in _boxes_and_scores(observed):
        boxed, scored = ([item for item in raw if _moves_alone(item, index)] for index in (boxes, scores))
        anchors = {grid_of(item.index): item.head.channels / _BOX for item in boxed}
        may_be_bins = width % _BOX == 0 and {*anchors.values()} == {1}
        if not may_be_bins and all(anchors.get(grid_of(item.index)) == item.head.channels / width for item in scored):
            found |= {item.index: width for item in scored}
    return found


def _boxes_and_scores(observed: Sequence[Observed]) -> list[tuple[int, int, int]]:
    """Outputs that alone share their rows, the first four wide, the second of several columns, and how many."""
    rows: dict[int | None, list[tuple[int, int | None]]] = {}
    for index, item in enumerate(observed):
        sizes = item.value.sizes
        if item.is_output and len(sizes) > 1 and all(size == 1 for size in sizes[2:-1]):
            rows.setdefault(sizes[0 if len(sizes) == 2 else 1], []).append((index, sizes[-1]))
    pairs = [sorted(found, key=lambda item: item[1] != _BOX) for found in rows.values() if len(found) == 2]
    return [
        (boxes, scores, width)
        for (boxes, four), (scores, width) in pairs
        if four == _BOX and width not in (None, 1, _BOX)
    ]


def _moves_alone(item: Watched, index: int) -> bool:
    """Whether each of a head's channels moves one element of an observed value."""
    return all(index in response.elements for response in item.responses.values())


def without_sigmoid_boxes(
    graph: Graph,
    items: Sequence[Watched],
    every: Sequence[Watched],
    observed: Sequence[Observed],
    is_boxed: Callable[[Watched], bool],
    is_placed: Callable[[Value], bool],
) -> list[Watched]:
    """Heads of one grid without those that give boxes in 0..1; beside such, the scores that share their rows.

    Args:
        graph: the model.
        items: heads of a grid whose channels look like classes.
        every: all heads of that grid.
        observed: what was watched.
        is_boxed: whether another head is known to give the boxes where one has its channels.
        is_placed: whether a value differs from row to row although all locations are alike, as boxes do.

    Raises:
        AmbiguousModelError: boxes and scores are both four wide.
        TargetNotFoundError: there are boxes, and no head whose channels each move one score beside them.
    """
    kept: list[Watched] = []
    for item in items:
        beside = _scores_of_boxes(graph, item, observed, is_boxed, is_placed)
        if not beside:
            kept.append(item)
            continue
        scored = [found for other in every if other is not item and (found := _scores(other, beside, observed))]
        if not scored and not any(other.is_class for other in items if other is not item):
            raise TargetNotFoundError(
                f"the head {item.head.value.describe()} gives boxes, and no head gives the scores "
                f"{beside[0].describe()} beside them one by one"
            )
        for found in scored:  # of one class, scale and shift of the scores look like their head: all are one value
            known = {own.index for own in (*items, *kept)}
            if found.index not in known and found.head.value not in {own.head.value for own in kept}:
                kept = [own for own in kept if not _is_part(own, found)] + [found]
    return kept


def _is_part(item: Watched, whole: Watched) -> bool:
    """Whether a head of one channel moves the one score that a value is: its scale, or its shift."""
    return item.head.channels == 1 == whole.head.channels and item.moved() == whole.moved()


def _scores_of_boxes(
    graph: Graph,
    item: Watched,
    observed: Sequence[Observed],
    is_boxed: Callable[[Watched], bool],
    is_placed: Callable[[Value], bool],
) -> list[Value]:
    """The scores beside the boxes in 0..1 that a head gives; none if it gives no such boxes."""
    rows = [observed[index].value for index in item.moved() if observed[index].value in graph.outputs]
    boxes = next((value for value in rows if value.rank == 3 and value.sizes[2] == _BOX), None)
    if boxes is None or item.head.channels % _BOX:
        return []
    if item.is_exclusive or (not item.has_tokens and is_boxed(item)):  # the sides of a box are no softmax
        return []
    beside = _beside(graph, boxes)
    if any(value in rows for value in beside):
        return []
    return _of_boxes(boxes, beside, is_placed if item.has_tokens else None)


def _of_boxes(boxes: Value, beside: list[Value], is_placed: Callable[[Value], bool] | None) -> list[Value]:
    """The scores beside boxes; none where a value of four columns beside them lies on the grid instead.

    Raises:
        AmbiguousModelError: there are two of four columns, and nothing tells.
    """
    four = [value for value in beside if value.sizes[2] == _BOX]
    are_alone = len(four) == len(beside)
    if not four or is_placed is None:
        return [] if are_alone else beside
    placed = [is_placed(value) for value in (boxes, *four)]
    if placed.count(True) == 1:
        return beside if placed[0] else []
    if not are_alone:
        return beside
    raise AmbiguousModelError(
        f"the outputs {boxes.describe()} and {four[0].describe()} are both four wide: either could hold "
        "the boxes, and nothing tells which holds the class scores"
    )


def _beside(graph: Graph, boxes: Value) -> list[Value]:
    return [
        value
        for value in graph.outputs
        if value is not boxes and value.rank == 3 and "float" in value.dtype and value.sizes[1] == boxes.sizes[1]
    ]


def _scores(item: Watched, beside: Sequence[Value], observed: Sequence[Observed]) -> Watched | None:
    """A head each of whose channels moves one column of a value beside the boxes, as that value."""
    for index, watched in enumerate(observed):
        value = watched.value
        if value not in beside or value.sizes[2] != item.head.channels or value.sizes[1] != item.head.value.sizes[1]:
            continue
        elements = [response.elements.get(index) for response in item.responses.values()]
        alone = all(response.moved.get(index) == 1 for response in item.responses.values())
        columns = [None if element is None else element[2] for element in elements]
        if alone and columns == list(item.responses) and item.has_tokens:
            return replace(item, head=replace(item.head, value=value))
    return None
