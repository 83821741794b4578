"""What is chosen for a detector, and what is built of it so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from model_zoo_fixtures.testbed.nets.detector_oracle import Level
from model_zoo_fixtures.testbed.nets.pyramids import Layout, Rows

SELECTING = ("suppressed", "best", "best flat")  # outputs that hold chosen boxes


@dataclass
class Parts:
    """What the heads give.

    Attributes:
        rows: fields that each anchor has, by name: one level after another.
        levels: where the class scores are.
        gates: where the objectness is.
        raw: the heads' values.
    """

    rows: dict[str, list[Rows]] = field(default_factory=dict)
    levels: list[Level] = field(default_factory=list)
    gates: list[Level] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)

    def add(self, name: str, rows: Rows) -> None:
        self.rows.setdefault(name, []).append(rows)


@dataclass
class Design:
    """What is chosen for a detector before it is built."""

    classes: int  # without background
    background: str  # none, first, last
    dropped: bool
    objectness: str  # none, apart, fused
    multiplied: bool
    activation: str  # Sigmoid, Softmax or none
    fields: tuple[str, ...]  # with a head of their own, or beside the boxes
    fused: bool
    form: str
    reported: str
    normalised: bool
    layout: Layout
    first: tuple[str, ...] = ()  # parts of a fused head that stand before the others, in this order
    between: bool = False  # whether the fields stand before the scores in a joined output
    quality: bool = False  # whether each anchor's quality stands before all else in a fused head, as PP-YOLO has it

    @property
    def scores(self) -> int:
        return self.classes + (self.background != "none")

    @property
    def background_index(self) -> int | None:
        return {"none": None, "first": 0, "last": self.classes}[self.background]
