"""The class scores beside the boxes that queries report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from xai_insert.graph.pattern import before, layer_of
from xai_insert.graph.traits import ARRANGES, CHOOSES_ROWS, SQUASHES
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.inputs import outputs_of_image

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


def scores_beside(
    graph: Graph, boxes: Sequence[Value], num_classes: int | None, named: Value | None
) -> tuple[ReportedScores | None, str]:
    """Class scores of each query, beside its box; why not, where they cannot be told.

    Args:
        graph: the model.
        boxes: the output with the boxes, and what other outputs may hold some.
        num_classes: the number of classes, if the user has given it.
        named: the output that the user says to hold the class scores.
    """
    told = _beside(graph, boxes, named)
    if isinstance(told, str):
        return None, told
    value, start = told
    width = (value.sizes[2] or 0) - start
    maker = _maker(value, start)
    is_share = maker is not None and _gives_shares(maker)
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


def are_scores(value: Value) -> bool:
    """Whether rows of four are no boxes: a linear layer gives them as they are, or they are shares of one."""
    layer, maker = layer_of(before(value, CHOOSES_ROWS)), _maker(value, 0)
    return (layer is not None and layer.op is Op.MATMUL) or (maker is not None and maker.op is Op.SOFTMAX)


def _are_of_classes(maker: Node, width: int) -> bool:
    """Whether each of so many scores in 0..1 is by itself, or that of no object was left out."""
    return maker.op in (Op.SIGMOID, Op.MUL) or maker.output.sizes[-1:] == (width + 1,)


def _gives_shares(maker: Node) -> bool:
    """Whether scores are in 0..1: squashed, or the product of sigmoids, as of a class and an objectness."""
    if maker.op is not Op.MUL:
        return maker.op in SQUASHES
    return all(before(factor, ARRANGES).made_by(Op.SIGMOID) for factor in maker.operands)


def _beside(graph: Graph, boxes: Sequence[Value], named: Value | None) -> tuple[Value, int] | str:
    """The output with the class scores of boxes, perhaps the same, and where they begin; or why it is not told."""
    own, *rivals = boxes
    if named is own and _holds_more(own):
        return own, _BOX
    found = [other for other in outputs_of_image(graph) if other is not own and _is_beside(other, own)]
    found = _not_boxes(found, rivals) if named is None else [named]
    if len(found) == 1 and (named or not _are_alike(found[0], own)):
        return found[0], 0
    if not found and _holds_more(own):
        return own, _BOX
    listed = ", ".join(dict.fromkeys(value.describe() for value in (own, *found)))
    return f"the output with its class scores cannot be told among {listed}: --output NAME says which it is"


def _holds_more(boxes: Value) -> bool:
    """Whether rows of boxes have room for scores behind them."""
    return (boxes.sizes[2] or 0) > _BOX


def _not_boxes(found: list[Value], rivals: Sequence[Value]) -> list[Value]:
    """Outputs without those that may hold boxes; with them, where all others may say how good these boxes are."""
    apart = [other for other in found if other not in rivals]
    return apart if any(other.sizes[2] != 1 for other in apart) or len(apart) == len(found) else found


def _are_alike(one: Value, other: Value) -> bool:
    """Whether either of two outputs could hold the boxes: both are rows of four, and neither is seen to be scores."""
    return one.sizes[2] == other.sizes[2] == _BOX and are_scores(one) is are_scores(other)


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
    found = [v for v in outputs_of_image(graph) if v.shape == boxes.sizes[:2] and "float" in v.dtype]
    if len(found) == 1:
        return ReportedScores(found[0]), ""
    return None, "no output, or more than one, holds a score for each box"
