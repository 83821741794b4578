"""Heads that a model gives as they are: which have class scores, told by outputs, widths and reshapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace

from xai_insert.errors import AmbiguousModelError, TargetNotFoundError
from xai_insert.graph.cuts import activations
from xai_insert.graph.view import Graph, Shape, Value
from xai_insert.locate.detector import Channels
from xai_insert.locate.frontier import Head
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.logits import scored_outputs
from xai_insert.locate.observed import Observed
from xai_insert.locate.outputs import likely_task
from xai_insert.probe.channels import (
    MOST_ANCHORS,
    anchor_stride,
    fused_by_width,
    of_width,
    raw_channels,
    resolve_raw,
    with_several,
)
from xai_insert.probe.orders import Orders
from xai_insert.probe.rivals import Watched

_BOX = 4


def raw_scores(search: Orders, num_classes: int | None) -> tuple[list[Watched], dict[int, Channels]] | None:
    """The undecoded heads with class scores, and the orders of their channels; None if no head is undecoded.

    Args:
        search: the heads and what is watched.
        num_classes: number of classes, where the user has given it.

    Raises:
        AmbiguousModelError: nothing tells, or not for every level.
    """
    raw = [item for item in search.watched if item.is_raw]
    if not raw:
        return None
    widths = {item.index: (search.probe.grid(item.index), item.head.channels) for item in search.watched}
    found = _raw_orders(search, raw, widths, num_classes)
    scoring = [item for item in raw if item.index in found]
    if not _are_whole(search, raw, scoring, found):
        raise _undecoded(search, raw, [width for _, width in widths.values()], num_classes)
    return scoring, found


def named_scores(
    search: Orders, num_classes: int, named: Set[Value]
) -> tuple[list[Watched], dict[int, Channels]] | None:
    """The undecoded heads that the user says have the class scores, beside others that may have the boxes.

    Args:
        search: all heads, and what is watched.
        num_classes: number of classes.
        named: the heads that lead to the outputs that the user has named.

    Raises:
        AmbiguousModelError: those of some levels are not named.
    """
    raw = [item for item in (item.as_raw() for item in search.watched) if item.is_raw]
    scoring = [item for item in raw if item.head.value in named]
    widths = {item.index: (search.probe.grid(item.index), item.head.channels) for item in raw}
    if len(scoring) < len(named) or any(_are_bins(item.head.channels, num_classes) for item in scoring):
        return None
    found = _orders(scoring, lambda item: _as_seen(search, item, raw_channels(widths, item.index, num_classes)))
    if len(found) < len(scoring):
        return None
    if not _are_whole(search, raw, scoring, found):
        raise AmbiguousModelError(
            "--output names class scores of some levels alone; name those of every level, with commas between: "
            f"{_rivals(search, raw, num_classes)}"
        )
    return scoring, found


def _are_bins(width: int, num_classes: int) -> bool:
    """Whether channels are rather those of one box: its classes, and bins of its sides."""
    return width > MOST_ANCHORS * num_classes and fused_by_width(width, num_classes) is not None


def _rivals(search: Orders, raw: Sequence[Watched], num_classes: int) -> str:
    """The outputs of which one, or those of one of two kinds, may have the classes, for people."""
    widths = {item.index: (search.probe.grid(item.index), item.head.channels) for item in raw}
    graph, grids = search.graph, dict[tuple[int, int], list[str]]()
    for item in raw:
        if raw_channels(widths, item.index, num_classes) is not None:
            behind = activations(graph, [item.head.value])
            pairs = zip(graph.output_names, graph.outputs, strict=True)
            grids.setdefault(widths[item.index][0], []).extend(repr(name) for name, value in pairs if value in behind)
    several = [names for found in grids.values() if len(names := [*dict.fromkeys(found)]) > 1]
    return ", ".join(dict.fromkeys(map(" or ".join, several)))


def _are_whole(
    search: Orders, raw: Sequence[Watched], scoring: Sequence[Watched], found: Mapping[int, Channels]
) -> bool:
    """Whether heads give the scores of every level, once each, and of the same classes."""
    grids = [search.probe.grid(item.index) for item in scoring]
    if not scoring or len(grids) != len(set(grids)) or len({order.classes for order in found.values()}) != 1:
        return False
    return not (_unread(search, raw, scoring, found) or _has_equal_level(search, raw, found))


def _has_equal_level(search: Orders, raw: Sequence[Watched], found: Mapping[int, Channels]) -> bool:
    """Whether a grid has a second head as wide as the same classes of some anchors, beside one of their boxes."""
    for index, order in found.items():
        grid = search.probe.grid(index)
        widths = Counter(item.head.channels for item in raw if search.probe.grid(item.index) == grid)
        widths -= Counter([order.classes * order.anchors, _BOX * order.anchors])
        anchors = [width // order.classes for width in widths if width % order.classes == 0]
        if order.classes == order.stride and any(_BOX * count in widths for count in anchors):
            return True
    return False


def like(known: Channels, by: Head, head: Head) -> Channels:
    """The order of another level's head: its number of anchors may differ, nothing else."""
    width = by.channels // known.anchors
    anchors, rest = divmod(head.channels, width)
    if rest:
        raise TargetNotFoundError(
            f"the class head {head.value.describe()} has no whole number of anchors, as {by.value.describe()} has "
            f"{known.anchors} of {width} channels"
        )
    before = known.block[0] if known.classes_first or known.anchors > 1 else 0  # some channels of each anchor
    return replace(known, anchors=anchors, start=known.start + before * anchors // known.anchors - before)


def _unread(
    search: Orders, raw: Sequence[Watched], scoring: Sequence[Watched], found: Mapping[int, Channels]
) -> list[Watched]:
    """Undecoded heads of other grids that should give scores too: all, where boxes and scores come of one head."""
    heads = Counter(search.probe.grid(item.index) for item in raw)
    grids = {search.probe.grid(item.index) for item in scoring}
    alike, counts = {item.head.channels for item in scoring}, {heads[grid] for grid in grids}
    is_joint = any(order.classes < order.stride for order in found.values())
    left = [item for item in raw if search.probe.grid(item.index) not in grids]
    return [i for i in left if is_joint or i.head.channels in alike or heads[search.probe.grid(i.index)] in counts]


def _raw_orders(
    search: Orders, raw: Sequence[Watched], widths: Mapping[int, tuple[tuple[int, int], int]], num_classes: int | None
) -> dict[int, Channels]:
    """Orders of undecoded heads, by the first that tells: decoded boxes, a single class, outputs, widths, a reshape."""
    found = with_several(_orders(raw, search.beside_boxes), num_classes)
    if not found and num_classes in (None, 1):
        found = _orders(raw, lambda item: _single_class(search, item))
    found = found or _by_outputs(search, raw, num_classes) or _by_widths(search, raw, widths, num_classes)
    if num_classes is not None:
        return found
    if [order.anchors for order in found.values()] == [1] and _are_maps(search, raw):
        found = {}  # two maps of one size, one of them of four channels: not only detectors have them
    return found or _orders(raw, lambda item: _alone(search, item))


def _alone(search: Orders, item: Watched) -> Channels | None:
    """The order of the only head of its grid, which is an output but for a reshape."""
    if search.rivals(item):
        return None
    return next((resolve_raw(*moves, item.head.channels) for moves in search.raw_moves(item)), None)


def _single_class(search: Orders, item: Watched) -> Channels | None:
    """The order of a head with one channel for each anchor, beside a single other one with a box and more."""
    rivals = search.rivals(item)
    strides = [
        stride
        for head in (item, *rivals)
        for moves in search.raw_moves(head)
        if (stride := anchor_stride(*moves, head.head.channels)) is not None
    ]
    if len(rivals) != 1 or len(strides) != 2 or strides[0] != 1 or strides[1] < _BOX:
        return None
    if item.head.channels == 1 and not search.is_listed(item):
        return None  # maps of one and of four channels need not be score and box
    anchors = item.head.channels
    return Channels(0, 1, anchors, 1) if rivals[0].head.channels == anchors * strides[1] else None


def _are_maps(search: Orders, raw: Sequence[Watched]) -> bool:
    """Whether the heads are returned as they are, and neither as rows nor beside boxes."""
    return not any(search.is_listed(item) or search.is_boxed(item) for item in raw)


def _by_outputs(search: Orders, raw: Sequence[Watched], num_classes: int | None) -> dict[int, Channels]:
    """Orders told by outputs that share their rows, of which one has the boxes."""
    counts = _beside_raw_boxes(raw, search.observed, search.probe.grid)
    if num_classes is not None and not {*counts.values()} <= {num_classes, num_classes + 1}:  # and a background
        return {}
    scoring = [item for item in raw if item.index in counts]
    found = _orders(scoring, lambda item: of_width(search.raw_orders(item), counts[item.index]))
    known = [item for item in scoring if item.index in found]
    if not known:
        return {}
    by = known[0]
    return {item.index: found.get(item.index) or like(found[by.index], by.head, item.head) for item in scoring}


def _by_widths(
    search: Orders, raw: Sequence[Watched], widths: Mapping[int, tuple[tuple[int, int], int]], num_classes: int | None
) -> dict[int, Channels]:
    """Orders told by widths; those of one level tell the number of classes of another, which may have more anchors."""
    told = raw if num_classes is not None else [item for item in raw if not _may_be_either(search, item)]

    def orders(classes: int | None) -> dict[int, Channels]:
        return _orders(
            told,
            lambda item: _as_seen(
                search, item, raw_channels(widths, item.index, classes) or _of_rows(search, item, classes)
            ),
        )

    found = orders(num_classes)
    counts, grids = {order.classes for order in found.values()}, {widths[index][0] for index in found}
    if num_classes is None and len(counts) == 1:
        found |= {index: order for index, order in orders(min(counts)).items() if widths[index][0] not in grids}
    return found


def _may_be_either(search: Orders, item: Watched) -> bool:
    """Whether an undecoded head stands beside another one, and beside boxes that are decoded: neither has these."""
    rivals = search.rivals(item)
    decodes = any(other.moves_boxes and not (other.is_raw or other.is_class) for other in rivals)
    return decodes and any(other.is_raw for other in rivals)


def _of_rows(search: Orders, item: Watched, classes: int | None) -> Channels | None:
    """Boxes, objectness and so many classes of the only head of its grid, where a reshape shows rows of that width."""
    if classes is None or search.rivals(item):
        return None
    stride = _BOX + 1 + classes
    anchors = item.head.channels // stride
    is_seen = any((found.classes, found.anchors) == (stride, anchors) for found in search.raw_orders(item))
    return Channels(_BOX + 1, classes, anchors, stride) if is_seen and anchors > 1 else None


def _as_seen(search: Orders, item: Watched, order: Channels | None) -> Channels | None:
    """An order told by widths, corrected by how anchors are set apart; None if that contradicts it."""
    if order is None or not search.stays_whole(item, order):
        return None
    seen = [found for found in search.raw_orders(item) if found.anchors > 1]
    if not seen:
        return order
    is_joint = order.classes < order.stride  # boxes and scores in one head
    wanted = (order.stride if is_joint else order.classes, order.anchors)
    fits = [found for found in seen if (found.classes, found.anchors) == wanted]
    if is_joint:
        return _inside(order, fits)
    return fits[0] if fits else None


def _inside(order: Channels, seen: Sequence[Channels]) -> Channels | None:
    """An order of boxes and scores of one head, with anchors inside each number where they are seen to be there."""
    if len({*seen}) > 1:
        return None
    if not any(found.classes_first for found in seen):
        return order
    return replace(order, start=order.start * order.anchors, stride=1, classes_first=True)


def _orders(heads: Sequence[Watched], order_of: Callable[[Watched], Channels | None]) -> dict[int, Channels]:
    return {item.index: order for item in heads if (order := order_of(item)) is not None}


def _beside_raw_boxes(
    raw: Sequence[Watched], observed: Sequence[Observed], grid_of: Callable[[int], tuple[int, int]]
) -> dict[int, int]:
    """Undecoded heads whose output has the rows of another that is four wide, and alone is; by index, its width.

    Boxes are four wide, so that the other output has the scores, whatever the widths of the heads: six boxes of a place
    are as wide as 24 classes. Where each place has one box, four may be the classes, and the others bins of
    its sides, or these and an objectness.
    """
    found: dict[int, int] = {}
    for boxes, scores, width in _boxes_and_scores(observed):
        boxed, scored = ([item for item in raw if _moves_alone(item, index)] for index in (boxes, scores))
        anchors = {grid_of(item.index): item.head.channels / _BOX for item in boxed}
        may_be_bins = width % _BOX in (0, 1) and {*anchors.values()} == {1}
        if not may_be_bins and all(anchors.get(grid_of(item.index)) == item.head.channels / width for item in scored):
            found |= {item.index: width for item in scored}
    return found


def _boxes_and_scores(observed: Sequence[Observed]) -> list[tuple[int, int, int]]:
    """Outputs that alone share their rows, the first four wide, the second of several columns, and how many."""
    rows: dict[int | None, list[tuple[int, int | None]]] = {}
    for index, item in enumerate(observed):
        if item.is_output and _has_rows(item.value.sizes):
            *lead, width = item.value.sizes
            rows.setdefault(lead[:2][-1], []).append((index, width))
    pairs = [sorted(found, key=lambda item: item[1] != _BOX) for found in rows.values() if len(found) == 2]
    return [
        (boxes, scores, width)
        for (boxes, four), (scores, width) in pairs
        if four == _BOX and width not in (None, 1, _BOX)
    ]


def _has_rows(sizes: Shape) -> bool:
    """Whether sizes are those of rows and columns, with images before them and anything single between."""
    return len(sizes) > 1 and all(size == 1 for size in sizes[2:-1])


def _moves_alone(item: Watched, index: int) -> bool:
    """Whether each of a head's channels moves one element of an observed value."""
    return all(index in response.elements for response in item.responses.values())


def _undecoded(
    search: Orders, raw: Sequence[Watched], widths: Sequence[int], num_classes: int | None
) -> AmbiguousModelError:
    """The error for heads that are outputs as they are, of so many channels each."""
    listed = ", ".join(map(str, widths))
    others = _other_tasks(search.graph) + _vectors(search.graph)
    if num_classes is not None and (rivals := _rivals(search, raw, num_classes)):
        return AmbiguousModelError(
            f"the heads are returned undecoded, and of their widths ({listed} channels) --num-classes {num_classes} "
            f"does not tell which are classes: {rivals} may be, and the other then holds the boxes; --output NAME says "
            f"which are classes, NAME,NAME for those of several levels{others}"
        )
    if num_classes is not None:
        return AmbiguousModelError(
            f"the heads are returned undecoded, and of their widths ({listed} channels) "
            f"--num-classes {num_classes} does not tell which are classes: those of boxes may be as wide; export the "
            f"model with its boxes decoded{others}"
        )
    if {*widths} & {2 * width for width in widths}:
        others += "; else maps of key points beside their offsets: --method keypoint-map"
    return AmbiguousModelError(
        "not a classifier; if it is a detector, it returns its heads undecoded, and their widths "
        f"({listed} channels) do not tell classes from boxes: give the number of classes, --num-classes{others}"
    )


def _vectors(graph: Graph) -> str:
    """What explains a vector beside the maps, in words; empty where there is none."""
    names = [item.output_name for item in scored_outputs(graph, image_inputs(graph), None)]
    return f"; --output {names[0]} explains that vector" if names else ""


def _other_tasks(graph: Graph) -> str:
    """What else than a detector a model with these outputs may be, in words."""
    if len({value.sizes[-2:] for value in graph.outputs}) > 1:  # a level each
        return ""
    likely = likely_task(graph)
    return "" if likely is None else f"; else it is no detection: {likely}"
