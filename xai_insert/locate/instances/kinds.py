"""The kinds of export in which instances come, and what must be known of each.

Exports leave sizes open or unsaid, so what the model gave for a sample image is looked at as well as the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from xai_insert.graph.view import Value


@dataclass(frozen=True, eq=False)
class Sample:
    """One output of the model, and what it was for a sample image."""

    name: str
    value: Value
    array: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def is_float(self) -> bool:
        return self.array.dtype.kind == "f"

    def describe(self) -> str:
        """`'masks' [100, 28, 28]`, for messages."""
        return f"{self.name!r} {list(self.shape)}"


@dataclass(frozen=True)
class BoxFormat:
    """How four numbers describe a box.

    Attributes:
        is_centre: centre and sides, else two corners.
        is_relative: in shares of the image, else in pixels.
    """

    is_centre: bool = False
    is_relative: bool = False

    @property
    def key(self) -> str:
        """What metadata call it, for programs: `corners-pixels`, `centres-shares`, ..."""
        return f"{'centres' if self.is_centre else 'corners'}-{'shares' if self.is_relative else 'pixels'}"

    def __str__(self) -> str:
        return (
            f"{'centres' if self.is_centre else 'corners'} in {'shares of the image' if self.is_relative else 'pixels'}"
        )


@dataclass(frozen=True)
class ListedInstances:
    """Outputs with one entry per instance.

    Attributes:
        masks: in 0..1, `[B, M, h, w]`, `[B, M, 1, h, w]` or, for one image, `[M, h, w]`, `[M, 1, h, w]`.
        labels: class of each instance, `[B, M]` or `[M]`.
        scores: `[B, M]` or `[M]`; None where they are column 4 of the boxes.
        boxes: `[B, M, 4 or 5]` or `[M, 4 or 5]`.
        per_box: whether a mask covers its box, else the image.
        box_format: of the boxes.
    """

    masks: Sample
    labels: Sample
    scores: Sample | None
    boxes: Sample
    per_box: bool
    box_format: BoxFormat

    @property
    def scored(self) -> Sample:
        """The output with the scores."""
        return self.boxes if self.scores is None else self.scores

    @property
    def drawn(self) -> Sample:
        """The output that holds the masks."""
        return self.masks


@dataclass(frozen=True)
class RowInstances:
    """Detections with coefficients: box, score, class, coefficients in each row.

    Attributes:
        rows: `[B, M, 6 + nm]`.
        prototypes: `[B, nm, h, w]`.
        box_format: of the boxes.
    """

    rows: Sample
    prototypes: Sample
    box_format: BoxFormat

    @property
    def scored(self) -> Sample:
        """The output with the scores."""
        return self.rows

    @property
    def drawn(self) -> Sample:
        """The output that holds the masks."""
        return self.prototypes


@dataclass(frozen=True)
class LocationInstances:
    """One prediction per location, before any suppression: box, objectness if any, class scores, coefficients.

    Attributes:
        predictions: `[B, C, A]` or, with `channels_last`, `[B, A, C]`.
        channels_last: see `predictions`.
        has_objectness: whether a score of its own stands before the class scores.
        prototypes: `[B, nm, h, w]`.
        box_format: of the boxes.
    """

    predictions: Sample
    channels_last: bool
    has_objectness: bool
    prototypes: Sample
    box_format: BoxFormat

    @property
    def scored(self) -> Sample:
        """The output with the scores."""
        return self.predictions

    @property
    def drawn(self) -> Sample:
        """The output that holds the masks."""
        return self.prototypes


@dataclass(frozen=True)
class QueryInstances:
    """One candidate per query.

    Attributes:
        scores: class scores `[B, Q, width]`.
        has_no_object: whether the last class score means that there is no object.
        scores_are_shares: whether the class scores are shares already, else logits.
        masks: `[B, Q, h, w]`.
        masks_are_shares: whether the masks are in 0..1 already, else logits.
    """

    scores: Sample
    has_no_object: bool
    scores_are_shares: bool
    masks: Sample
    masks_are_shares: bool

    @property
    def scored(self) -> Sample:
        """The output with the scores."""
        return self.scores

    @property
    def drawn(self) -> Sample:
        """The output that holds the masks."""
        return self.masks


Found = ListedInstances | RowInstances | LocationInstances | QueryInstances
