"""Boxes of a detector: those decoded at every location, and those that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from xai_insert.graph.view import Value

Array = npt.NDArray[np.float64]

BoxFormat = Literal["xyxy", "yxyx", "cxcywh", "xywh"]
BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)


@dataclass(frozen=True)
class DecodedLevel:
    """The rows of a value that hold the boxes decoded at one level.

    The box of anchor `a` at location `p`, counted row by row, is row `start + p * anchors + a`, or
    `start + a * locations + p` if anchors come first.

    Attributes:
        value: the boxes, four of them side by side from the first column on.
        row_axis: axis of the rows.
        column_axis: axis of the coordinates.
        shape: sizes of the value for one run of the model.
        start: row of the first location's first anchor.
        anchors_first: whether anchors, not locations, are the slower index.
    """

    value: Value
    row_axis: int
    column_axis: int
    shape: tuple[int, ...]
    start: int
    anchors_first: bool


@dataclass(frozen=True)
class ReportedBoxes:
    """The boxes among a model's outputs.

    Attributes:
        value: the output, `[M, C]` or `[N, M, C]`.
        column: first of the four columns of coordinates.
        format: what the columns mean.
        scale: factors of x and y that give the units of the decoded boxes.
        labels: output with the labels, `[M]`, `[N, M]` or a column of one; None where there is one class.
        label_column: column of the label in an output with boxes; None where the labels have an output of their own.
        first_label: label of the class 0 of the head.
    """

    value: Value
    column: int
    format: BoxFormat
    scale: tuple[float, float]
    labels: Value | None
    label_column: int | None
    first_label: int


@dataclass(frozen=True)
class BoxVoters:
    """What the map of a reported box is made of.

    Attributes:
        levels: where each level's boxes are, as the detector's class levels are ordered.
        format: what the columns of the decoded boxes mean.
        bounds: largest x and y, if the model clips the boxes that it reports; else None.
        reported: the boxes that it reports.
        is_exclusive: whether a softmax over classes, not a sigmoid each, gives the scores.
        is_late: whether the model decodes the boxes of locations that it has chosen alone, and all are to be decoded.
    """

    levels: tuple[DecodedLevel, ...]
    format: BoxFormat
    bounds: tuple[float, float] | None
    reported: ReportedBoxes
    is_exclusive: bool
    is_late: bool = False


def corners(boxes: Array, meaning: BoxFormat) -> Array:
    """Left, top, right and bottom, `[..., 4]`, of boxes in another format."""
    a, b, c, d = np.moveaxis(boxes, -1, 0)
    if meaning == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif meaning == "xywh":
        c, d = a + c, b + d
    elif meaning == "yxyx":
        a, b, c, d = b, a, d, c
    return np.stack([a, b, c, d], axis=-1)


def overlap(boxes: Array, other: Array) -> Array:
    """Intersection over union of each of `boxes` `[M, 4]` with one box; 0 where either is empty."""
    sides = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = [np.prod(np.maximum(item[..., 2:] - item[..., :2], 0), axis=-1) for item in (boxes, other)]
    union = areas[0] + areas[1] - common
    return np.where((areas[0] > 0) & (areas[1] > 0), common / np.where(union > 0, union, 1), 0.0)
