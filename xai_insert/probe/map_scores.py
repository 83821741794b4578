"""Scores that are given as maps, beside boxes that are given as they are: of the boxes of a place widths alone tell."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.errors import AmbiguousModelError
from xai_insert.locate.detector import Channels
from xai_insert.probe.channels import may_be_bins
from xai_insert.probe.rivals import Watched

_BOX = 4


def of_maps(
    item: Watched, order: Channels, beside: Sequence[Watched], seen: Sequence[Channels], num_classes: int | None
) -> Channels:
    """The order of a head of scores, with as many anchors as the boxes beside it have.

    Args:
        item: the head.
        order: its order with one anchor.
        beside: the other heads of its grid.
        seen: the orders that a reshape behind it allows.
        num_classes: number of classes, where the user has given it.

    Raises:
        AmbiguousModelError: its channels may be classes of one box, whose sides have bins, or of several boxes.
    """
    width = item.head.channels
    counts = _counts(width, beside, num_classes)
    told = [found for found in seen if found.anchors in counts and found.anchors * found.classes == width]
    if not counts or len(told) == 1:
        return told[0] if counts else order
    count = min(counts)
    if num_classes is not None or (len(counts) == 1 and count < width and not may_be_bins(count)):
        return Channels(0, width // count, count, width // count)
    raise AmbiguousModelError(
        f"{item.head.value.describe()} scores {width} classes of one box of each place, whose sides have {count} "
        f"bins, or {width // count} of {count} boxes; say which: --num-classes {width} or {width // count}"
    )


def _counts(width: int, beside: Sequence[Watched], num_classes: int | None) -> set[int]:
    """How many boxes of a place, more than one, so many scores and the raw numbers beside them may be of."""
    if any(other.is_class and other.head.channels == 1 for other in beside):  # an objectness, of one box
        return set()
    boxes = {other.head.channels // _BOX for other in beside if other.is_raw and other.head.channels % _BOX == 0}
    counts = {count for count in boxes if count > 1 and width % count == 0}
    if num_classes is None:
        return counts
    return counts & {width // num_classes} if width % num_classes == 0 else set()
