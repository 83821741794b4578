"""Heads that look like classes and give the boxes: sides in 0..1, which a sigmoid bounds as it does scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from xai_insert.errors import AmbiguousModelError, TargetNotFoundError
from xai_insert.graph.pattern import before
from xai_insert.graph.traits import SAME, SQUASHES
from xai_insert.graph.view import Graph, Value
from xai_insert.locate.observed import Observed
from xai_insert.probe.rivals import Watched

_BOX = 4


def without_sigmoid_boxes(
    graph: Graph,
    items: Sequence[Watched],
    every: Sequence[Watched],
    said: int | None,
    observed: Sequence[Observed],
    is_boxed: Callable[[Watched], bool],
    is_placed: Callable[[Value], bool],
) -> Sequence[Watched]:
    """Heads of one grid without those that give boxes in 0..1; beside such, the scores that share their rows.

    Args:
        graph: the model.
        items: heads of a grid whose channels look like classes.
        every: all heads of that grid.
        said: number of classes, where the user has given it: a head of so many gives these, if none gives scores.
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
            if [other.head.channels for other in every].count(said or 0) == 1:
                return items
            raise TargetNotFoundError(
                f"the head {item.head.value.describe()} gives boxes, and no head gives the scores "
                f"{beside[0].describe()} beside them one by one; if it gives {item.head.channels} classes: "
                f"--num-classes {item.head.channels}"
            )
        for found in scored:
            kept = _with(kept, found, items)
    return kept


def _with(kept: list[Watched], found: Watched, items: Collection[Watched]) -> list[Watched]:
    """The heads kept and one more, once; of one class, scale and shift of the scores look like their head.

    All of these are one value.
    """
    is_known = found.index in {own.index for own in (*items, *kept)}
    if is_known or found.head.value in {own.head.value for own in kept}:
        return kept
    return [own for own in kept if not _is_part(own, found)] + [found]


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
    if boxes is None or not _may_give_boxes(item, is_boxed):
        return []
    beside = _beside(graph, boxes)
    if any(value in rows for value in beside):
        return []
    return _of_boxes(boxes, beside, is_placed if item.has_tokens else None)


def _may_give_boxes(item: Watched, is_boxed: Callable[[Watched], bool]) -> bool:
    """Whether a head has four channels for each box, which are no softmax, and no other head gives its boxes."""
    if item.head.channels % _BOX or item.is_exclusive:
        return False
    return item.has_tokens or not is_boxed(item)


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
    """A head each of whose channels moves one column of a value beside the boxes, as that value, or its logits."""
    if not item.has_tokens:
        return None
    for index, watched in enumerate(observed):
        value = watched.value
        is_alike = value in beside and value.sizes[1:3] == (item.head.value.sizes[1], item.head.channels)
        if is_alike and _moves_its_columns(item, index):
            return replace(item, head=replace(item.head, value=before(value, SAME | SQUASHES)))
    return None


def _moves_its_columns(item: Watched, index: int) -> bool:
    """Whether each channel of a head moves the column of its number in an observed value, and nothing else there."""
    alone = all(response.moved.get(index) == 1 for response in item.responses.values())
    elements = [response.elements.get(index) for response in item.responses.values()]
    return alone and [element and element[2] for element in elements] == list(item.responses)
