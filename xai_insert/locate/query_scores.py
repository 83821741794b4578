"""The class scores beside the boxes that queries report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xai_insert.graph.traits import CHOOSES_ROWS, SQUASHES
from xai_insert.graph.view import Graph, Node, Op, Value

_BOX = 4


@dataclass(frozen=True)
class ReportedScores:
    """The class scores of reported boxes.

    Attributes:
        value: `[N, M, K]`, or `[N, M]` where the model gives the best one alone.
        start: first column of the scores, in an output with boxes before them.
        activation: what is still to be applied; None where they are shares already.
        no_object: whether the last column is that of no class.
    """

    value: Value
    start: int = 0
    activation: Literal["softmax", "sigmoid"] | None = None
    no_object: bool = False

    @property
    def classes(self) -> int:
        """K, without that of no object."""
        return (self.value.sizes[2] or 0) - self.start - self.no_object if self.value.rank == 3 else 1


def scores_beside(graph: Graph, boxes: Value, num_classes: int | None) -> tuple[ReportedScores | None, str]:
    """Class scores of each query, beside its box; why not, where they cannot be told."""
    told = _beside(graph, boxes)
    if told is None:
        return None, "the output with its class scores cannot be told"
    value, start = told
    width = (value.sizes[2] or 0) - start
    maker = _maker(value, start)
    is_share = maker is not None and maker.op in SQUASHES
    if maker is not None and is_share and _are_of_classes(maker, width):
        return ReportedScores(value, start), ""
    if num_classes in (width, width - 1):
        no_object = num_classes == width - 1
        activation: Literal["softmax", "sigmoid"] = "softmax" if no_object else "sigmoid"
        return ReportedScores(value, start, None if is_share else activation, no_object), ""
    what = "scores" if is_share else "raw scores"
    return None, (
        f"{value.describe()} holds {what} of {width} classes, or of {width - 1} and of no object: "
        f"--num-classes {width} or {width - 1}"
    )


def _are_of_classes(maker: Node, width: int) -> bool:
    """Whether each of so many scores in 0..1 is by itself, or that of no object was left out."""
    return maker.op is Op.SIGMOID or maker.output.sizes[-1:] == (width + 1,)


def _beside(graph: Graph, boxes: Value) -> tuple[Value, int] | None:
    """The output with the class scores of boxes, perhaps the same, and where they begin; None if it is not told."""
    found = [other for other in graph.outputs if other is not boxes and _is_beside(other, boxes)]
    if found:
        return (found[0], 0) if len(found) == 1 else None
    return (boxes, _BOX) if (boxes.sizes[2] or 0) > _BOX else None


def _is_beside(value: Value, boxes: Value) -> bool:
    return value.rank == 3 and value.sizes[:2] == boxes.sizes[:2] and "float" in value.dtype


def _maker(value: Value, start: int) -> Node | None:
    """What made the scores, behind what joins them to boxes or drops other layers' rows."""
    node = value.producer
    while node is not None and node.op in CHOOSES_ROWS:
        operands = node.operands if node.op is Op.CONCAT else [node.read(0)]
        node = operands[-1 if start else 0].producer
    return node


def chosen_scores(graph: Graph, boxes: Value) -> tuple[ReportedScores | None, str]:
    """The score of each reported box."""
    found = [v for v in graph.outputs if v.shape == boxes.sizes[:2] and "float" in v.dtype]
    if len(found) == 1:
        return ReportedScores(found[0]), ""
    return None, "no output, or more than one, holds a score for each box"
