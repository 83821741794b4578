"""Scores that are given as maps, beside boxes that are given as they are: of the boxes of a place widths alone tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xai_insert.errors import AmbiguousModelError
from xai_insert.graph.items import only
from xai_insert.locate.detector import Channels
from xai_insert.probe.channels import MOST_ANCHORS, may_be_bins
from xai_insert.probe.rivals import Watched

_BOX = 4


def of_maps(
    item: Watched,
    order: Channels | None,
    beside: Sequence[Watched],
    seen: Callable[[], Sequence[Channels]],
    num_classes: int | None,
) -> tuple[Channels | None, str]:
    """The order of a head of scores, with as many anchors as the boxes beside it have, and what was taken for granted.

    Args:
        item: the head.
        order: its order with one anchor; None where anchors and classes have axes, and nothing tells which is which.
        beside: the other heads of its grid.
        seen: gives the orders that a reshape behind it allows, as runs of the model tell them.
        num_classes: number of classes, where the user has given it.

    Raises:
        AmbiguousModelError: its channels may be classes of one box, with more numbers than its sides, or of several.
    """
    width = item.head.channels
    counts, shared = _counts(width, beside, num_classes), _shared(item)
    if not counts or shared == width:
        return order, ""
    told = [found for found in seen() if found.anchors in counts and found.anchors * found.classes == width]
    if len(told) == 1 or order is None:
        return only(told), ""
    count = min(counts)
    several = Channels(0, width // count, count, width // count)
    if num_classes is not None or shared == width // count:
        return several, ""
    if count == MOST_ANCHORS and count < width:
        return several, _taken(count, f"{count} boxes of each place", "bins of one", width)
    if may_be_bins(count):
        return order, _taken(count, "bins of one box of each place", f"{count} boxes", width // count)
    raise AmbiguousModelError(
        f"{item.head.value.describe()} scores {width} classes of one box of each place, whose sides have {count} "
        f"numbers, or {width // count} of {count} boxes; say which: --num-classes {width} or {width // count}"
    )


def _taken(count: int, taken: str, other: str, classes: int) -> str:
    taken = f"{_BOX * count} channels beside are taken for {taken}"
    return f"{taken}: if they are {other}, say so with --num-classes {classes}"


def _shared(item: Watched) -> int:
    """How many scores a softmax ties, with no others beside; 0 if there is none."""
    counts = {count for channel in item.like_classes for count in item.responses[channel].moved.values()}
    return max(counts, default=0) if item.is_exclusive else 0


def _counts(width: int, beside: Sequence[Watched], num_classes: int | None) -> set[int]:
    """How many boxes of a place, more than one, so many scores and the raw numbers beside them may be of."""
    if any(other.is_class and other.head.channels == 1 for other in beside):  # an objectness, of one box
        return set()
    counts = _of_boxes(width, [other.head.channels for other in beside if other.is_raw])
    if num_classes is None:
        return {count for count in counts if width != 2 * count}  # two offsets for each map of a key point
    return counts & {width // num_classes} if width % num_classes == 0 else set()


def _of_boxes(width: int, raw: Sequence[int]) -> set[int]:
    """How many boxes, more than one, some width of raw numbers may hold that share out all others and the scores."""
    boxes = {size // _BOX for size in raw if size % _BOX == 0}
    return {count for count in boxes if count > 1 and all(size % count == 0 for size in (width, *raw))}
