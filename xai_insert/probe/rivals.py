"""Which of several heads of one grid give the class scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from xai_insert.errors import AmbiguousModelError, TargetNotFoundError
from xai_insert.graph.along import along
from xai_insert.graph.items import only
from xai_insert.graph.view import Graph, Node, Op
from xai_insert.locate.detector import Channels
from xai_insert.locate.frontier import Head
from xai_insert.probe.heads import Effect, Response
from xai_insert.probe.spread import Element

_SCORES = frozenset({Effect.CLASS, Effect.FALLING, Effect.SILENT})
_BOXES = frozenset({Effect.OTHER, Effect.RAW})
_BOX = 4
_FEWEST_SINGLE = 3  # layers of one class each that tell by themselves


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
    def like_classes(self) -> list[int]:
        """The channels that each raise one score."""
        return [channel for channel, response in self.responses.items() if response.effect is Effect.CLASS]

    @property
    def is_class(self) -> bool:
        return Effect.CLASS in self.effects and self.effects <= _SCORES

    @property
    def is_fused(self) -> bool:
        return Effect.CLASS in self.effects and not self.effects <= _SCORES and not self.is_box

    @property
    def is_box(self) -> bool:
        """Whether its channels move four neighbouring columns one by one: a side of a box in 0..1 is no score."""
        ends = self.last_places(self.responses)
        alone = [ends[i] for i in ends if all(i in response.elements for response in self.responses.values())]
        fours = [columns for columns in alone if len(columns) == _BOX]  # of all columns, few channels may hit any four
        return self.head.channels % _BOX == 0 and any(max(four) - min(four) == _BOX - 1 for four in fours)

    def last_places(self, channels: Iterable[int]) -> dict[int, set[int]]:
        """Along the last axis, those of the elements that channels raise alone, by index of the observed value."""
        found: dict[int, set[int]] = {}
        for channel in channels:
            for index, element in self.responses[channel].elements.items():
                found.setdefault(index, set()).add(element[-1])
        return found

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

    def without_classes(self) -> Watched:
        """The same with what each class raises taken for what many places raise together."""
        gates = {channel: replace(self.responses[channel], effect=Effect.GATE) for channel in self.like_classes}
        return replace(self, responses={**self.responses, **gates})

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


def elements_in(touched: npt.NDArray[np.intp]) -> list[Element]:
    """Rows of indices, `[count, rank]`, as elements."""
    return [tuple(map(int, element)) for element in touched]


def sets_background_apart(item: Watched, order: Channels) -> bool:
    """Whether no class has channels that raise a score and others that only lower some, as a background does."""
    by_effect = [
        {order.label(channel) for channel, response in item.responses.items() if response.effect is effect}
        for effect in (Effect.CLASS, Effect.FALLING)
    ]
    return not set.intersection(*by_effect)


def with_background(item: Watched, order: Channels) -> Channels:
    """The order of a head that gives boxes as well, with the background whose share of a softmax is cut off.

    Its channels stand before or behind those of each box's classes, and lower scores alone.
    """
    step, wider = order.anchors if order.classes_first else 1, replace(order, classes=order.classes + 1)
    for first, label in ((order.start - step, 0), (order.start, order.classes)):
        found = replace(wider, start=first)
        channels = [found.channel(anchor, label) for anchor in range(order.anchors)]
        if all(channel in item.responses and item.responses[channel].effect is Effect.FALLING for channel in channels):
            return found
    return order


def gives_boxes(items: Sequence[Watched], grid_of: Callable[[int], tuple[int, int]], *, are_apart: bool) -> bool:
    """Whether the heads of some grid have room for a box: four channels of one, or pairs (size, offset) of several.

    One channel beside scores is a depth, two are a flow, three are normals; five as they are, a second
    segmentation.

    Args:
        items: all heads.
        grid_of: the grid of a head, by its index.
        are_apart: whether other heads give classes, so that none has them beside a box.
    """
    moving = [item for item in items if item.moves_boxes]
    if any(_has_room(item, are_apart=are_apart) for item in moving):
        return True
    pairs: Counter[tuple[int, int]] = Counter()
    for item in moving:
        if item.head.channels % 2 == 0:
            pairs[grid_of(item.index)] += item.head.channels
    return max(pairs.values(), default=0) >= _BOX


def _has_room(item: Watched, *, are_apart: bool) -> bool:
    """Whether a head by itself is as wide as a box, or as several that are given as they are."""
    width = item.head.channels
    is_other = are_apart and item.is_raw and width % _BOX != 0
    return width >= _BOX and not is_other


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
    is_met = num_classes == 1 and any(counts.get(item.index) == 1 for item in fits)
    fits += _with_one_more(items, num_classes, orders, is_met=is_met, is_found=bool(fits))
    if not fits:
        listed = ", ".join(f"{item.head.value.describe()} ({counts[item.index]} classes)" for item in items)
        raise TargetNotFoundError(f"no class head has --num-classes {num_classes}; found {listed}")
    return fits


def _with_one_more(
    items: Sequence[Watched], num_classes: int, orders: Mapping[int, Channels], *, is_met: bool, is_found: bool
) -> list[Watched]:
    """The heads with one class more, which is a background; of two classes beside one, only if it is seen to be."""
    more = [item for item in items if item.index in orders and orders[item.index].classes == num_classes + 1]
    if is_met:
        more = [item for item in more if silent_class([item], orders) is not None]
    return [item for item in more if not is_found or _has_background(item, orders)]


def _has_background(item: Watched, orders: Mapping[int, Channels]) -> bool:
    """Whether one of a head's classes may be a background: one more that a softmax has, or that is never selected."""
    return item.is_exclusive or silent_class([item], orders) is not None


def are_beside(one: Watched, other: Watched, watched: Sequence[Watched]) -> bool:
    """Whether two heads give scores in one value that holds no boxes, where an objectness would have to stand."""
    boxed = {index for item in watched if item.moves_boxes for index in item.touched()}
    return not boxed.issuperset(one.moved() & other.moved())


def with_joined(graph: Graph, watched: Sequence[Watched], num_classes: int | None) -> list[Head]:
    """The heads, of which those whose classes are joined at once, side by side, are one head of them all."""
    heads = [item.head for item in watched]
    by_value = {item.head.value: item for item in watched}
    for node in graph.nodes:
        if node.op is not Op.CONCAT or not by_value.keys() >= {*node.operands}:
            continue
        parts = [by_value[value] for value in node.operands]
        if _is_side_by_side(node, parts, watched, num_classes):
            first = parts[0].head
            heads = [head for head in heads if head.value not in node.operands or head is first]
            heads[heads.index(first)] = replace(first, value=node.output)
    return heads


def _is_side_by_side(node: Node, parts: Sequence[Watched], watched: Sequence[Watched], num_classes: int | None) -> bool:
    """Whether a node joins the classes of heads, and nothing else reads these."""
    widths = [item.head.channels for item in parts]
    if max(widths, default=1) == 1 and not _are_single(parts, num_classes):
        return False
    if any(item.head.channel_axis != along(node.kind) for item in parts):
        return False
    return all(
        item.is_class and item.head.value.only_use is not None and are_beside(parts[0], item, watched) for item in parts
    )


def _are_single(parts: Sequence[Watched], num_classes: int | None) -> bool:
    """Whether heads of one channel have a class each: of two, one may be the objectness of the other."""
    if len(parts) < _FEWEST_SINGLE and len(parts) != num_classes:
        return False
    raised = [set(element.items()) for item in parts for element in item.elements.values()]
    return all(one.isdisjoint(other) for one, other in combinations(raised, 2))


def refuse_rivals(items: Sequence[Watched]) -> AmbiguousModelError:
    """The error for heads that fit equally well."""
    *others, last = (item.head.value.describe() for item in items)
    ways = ["with --num-classes, a background counted"] if len({item.head.channels for item in items}) > 1 else []
    if all(not one.touched() & other.touched() for one, other in combinations(items, 2)):
        ways.append("if they feed outputs of their own, with --output NAME")
    alone = "; nothing tells: export the model with an output for each, and say which with --output NAME"
    advice = f"; say which, {', or, '.join(ways)}" if ways else alone
    return AmbiguousModelError(f"two heads could hold the class scores: {', '.join(others)} and {last}{advice}")


def silent_class(scoring: Sequence[Watched], channels: Mapping[int, Channels]) -> int | None:
    """The class of the outputs whose score is never selected."""
    able = [item for item in scoring if item.is_class or item.is_fused]
    return only({label for item in able for label in _unselected(item, channels[item.index])})


def _unselected(item: Watched, order: Channels) -> set[int]:
    """The classes of a head, of several, whose scores are not seen to rise anywhere, at whatever anchor."""
    heard: dict[bool, set[int]] = {False: set(), True: set()}
    for channel, told in item.responses.items():
        heard[told.effect not in (Effect.FALLING, Effect.SILENT)].add(order.label(channel))
    silent = heard[False] & {*range(order.classes)} - heard[True] if order.classes > 1 else set[int]()
    return {order.picked.index(label) for label in silent & {*order.picked}} if order.picked else silent
