"""Detected objects, in one form for every layout of outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from xai_insert.explain.errors import UnknownLayoutError
from xai_insert.explain.outputs import Array
from xai_insert.layouts.boxes import corners as boxes_as_corners
from xai_insert.layouts.boxes import overlap as overlap_with
from xai_insert.layouts.record import PASTED, Layout

Floats = npt.NDArray[np.float64]
Masks = Callable[[int], Floats]
_MOST_OVERLAP = 0.5
_MOST_KEPT = 300
_BOX = 4
_PAST_IMAGE = 2.0  # boxes may reach over the border; coordinates in pixels go far beyond
_NEARLY_ALL = 0.99


@dataclass(frozen=True)
class Facts:
    """What is known of a model besides its outputs.

    Attributes:
        size: height and width of its input.
        classes: number of class scores, a background among them; None if unknown.
        background: index of the background among them; None if there is none.
        boxes: how boxes are written, `corners-pixels` or the like; empty if unknown.
        overlap: intersection over union above which neighbours are the same object.
        first_label: the label that a detector's lists give to the class of map 0.
        labels: those that they give to the classes, where they are not counted.
        pastes_masks: whether masks are those of boxes, to be pasted, else of the whole image.
    """

    size: tuple[int, int]
    classes: int | None = None
    background: int | None = None
    boxes: str = ""
    overlap: float = _MOST_OVERLAP
    pastes_masks: bool = False
    first_label: int = 0
    labels: tuple[int, ...] = ()

    @classmethod
    def of(cls, layout: Layout, size: tuple[int, int], maps: int | None, labels: int) -> Facts:
        """What is needed to read its boxes.

        Args:
            layout: what was written when the map was inserted.
            size: height and width of the input.
            maps: number of maps; None if there is one for all classes.
            labels: number of class names; counts where there are no maps, and before what was written of the classes.
        """
        overlap = layout.suppression_overlap
        return cls(
            size,
            maps or labels or layout.classes or None,
            layout.background,
            layout.box_format,
            _MOST_OVERLAP if overlap is None else overlap,
            layout.masks == PASTED,
            layout.first_label or 0,
            layout.labels or (),
        )


@dataclass(frozen=True, eq=False)
class Detections:
    """M candidates, in any order.

    Attributes:
        boxes: corners x0, y0, x1, y1 in shares of the model's input, `[M, 4]`.
        classes: number of each one's class `[M]`, which is also that of its map.
        scores: 0..1, `[M]`.
        is_dense: whether neighbours may be the same object, because nothing was suppressed.
        mask: the mask of candidate m over the whole input, `[h, w]` in 0..1; None for a detector.
    """

    boxes: Floats
    classes: npt.NDArray[np.int64]
    scores: Floats
    is_dense: bool = False
    mask: Masks | None = None

    def best(self, count: int) -> Floats:
        """The best score of each of so many classes, 0 for those not found."""
        result = np.zeros(count)
        np.maximum.at(result, self.classes, self.scores)
        return result

    def found(self, threshold: float, overlap: float) -> list[int]:
        """Candidates that are objects: sure enough and, where nothing was suppressed, the best of their neighbours."""
        order = [int(index) for index in np.argsort(-self.scores, kind="stable") if self.scores[index] >= threshold]
        order = [index for index in order if self.scores[index] > 0]
        return self._without_neighbours(order, overlap) if self.is_dense else order

    def _without_neighbours(self, order: list[int], overlap: float) -> list[int]:
        kept: list[int] = []
        for index in order:
            same = [other for other in kept if self.classes[other] == self.classes[index]]
            if not same or overlap_with(self.boxes[same], self.boxes[index]).max() <= overlap:
                kept.append(index)
            if len(kept) == _MOST_KEPT:
                break
        return kept


def corners(boxes: Array, facts: Facts, are_centres: bool | None = None) -> Floats:
    """Corners in shares of the input of boxes `[M, 4]`, of which it is not known how they are written.

    Of two corners the second lies behind the first everywhere; a width is often less than the centre's distance from
    the border. Coordinates in pixels go far beyond 1.

    Args:
        boxes: two corners, or centre and sides; in pixels or in shares of the input.
        facts: see `Facts`; its `boxes` decide if they are there.
        are_centres: whether the layout means centre and sides; None if it does not tell.

    Raises:
        UnknownLayoutError: the boxes fit neither way of writing, or both.
    """
    values = np.asarray(boxes, np.float64).reshape(-1, _BOX)
    if not len(values):
        return values
    if facts.boxes:
        are_centres, is_relative = facts.boxes.startswith("centres"), facts.boxes.endswith("shares")
    else:
        is_relative = float(np.abs(values).max()) < _PAST_IMAGE
    shares = values if is_relative else values / np.array([facts.size[1], facts.size[0]] * 2)
    if are_centres is None:
        are_centres = _are_centres(shares)
    return boxes_as_corners(shares, "cxcywh") if are_centres else shares


def _are_centres(shares: Floats) -> bool:
    first, second = shares[:, :2], shares[:, 2:]
    inside = (first - second / 2 > -0.05).all(axis=1) & (first + second / 2 < 1.05).all(axis=1)
    if (second >= first).all(axis=1).mean() < _NEARLY_ALL:
        if (second >= 0).all(axis=1).mean() < 0.9:
            raise UnknownLayoutError("the four numbers of a box are neither two corners nor a centre and sides")
        return True
    if inside.mean() > 0.95:
        raise UnknownLayoutError("the four numbers of a box may be two corners as well as a centre and sides")
    return False


def numbered(detections: Detections, facts: Facts) -> Detections:
    """Check that each class has a map.

    Raises:
        UnknownLayoutError: a label is not below the number of maps, so labels and maps are counted differently.
    """
    highest = int(detections.classes.max(initial=-1))
    if facts.classes is not None and highest >= facts.classes:
        raise UnknownLayoutError(f"there is a label {highest}, but the maps are those of {facts.classes} classes")
    return replace(detections, classes=detections.classes.clip(0))
