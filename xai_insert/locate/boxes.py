"""Boxes of a detector: those decoded at every location, and those that it reports."""

from __future__ import annotations

from dataclasses import dataclass

from xai_insert.graph.view import Value
from xai_insert.layouts.boxes import BoxFormat


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

    def before(self, level: DecodedLevel) -> list[int]:
        """Which levels have their rows before those of one, in the same value."""
        return [n for n, other in enumerate(self.levels) if other.value is level.value and other.start < level.start]


def powers_of_size(pair: tuple[float, float], size: tuple[int, int]) -> int | None:
    """1 for the width and the height of the image, -1 for one over them, 0 for (1, 1); None for other numbers."""
    height, width = size
    known = {(1.0, 1.0): 0, (float(width), float(height)): 1, (1 / width, 1 / height): -1}
    return known.get(pair)
