"""Box votes: the map of one reported box, made of what every location says about it.

D-RISE's similarity of detections (Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps",
CVPR 2021), intersection over union times cosine of the class scores, between the reported box and the detection of each
location, instead of between it and the detections of thousands of masked images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xai_insert.graph.ops import Ops, Surgeon, V
from xai_insert.graph.view import Graph
from xai_insert.locate.boxes import BoxVoters, DecodedLevel, ReportedBoxes
from xai_insert.locate.detector import ClassLevel, Detector
from xai_insert.methods.box_sides import TINY, box_sides, overlap_of
from xai_insert.methods.det_class_probability_map import grid_of_level, level_channels
from xai_insert.methods.late_boxes import boxes_everywhere
from xai_insert.methods.shaping import scalar, total
from xai_insert.methods.tensor import Tensor, tensor


def box_votes(surgeon: Surgeon[V], graph: Graph, detector: Detector, voters: BoxVoters) -> V:
    """The votes for each reported box on the grid of the middle level, `[B, M, h, w]` float32, 0..1.

    For each location of each level, the box decoded there and its class probabilities `p`:
    `IoU(box, reported box) * p[label] / ||p||`, maximum over anchors, resized to the middle level's grid (bilinear);
    mean over levels. Empty boxes and labels that are no class, as rows that pad the report have them, give zeros.

    Args:
        surgeon: the model being edited.
        graph: its view.
        detector: its class scores.
        voters: its boxes.
    """
    op = surgeon.ops
    sides = reported_sides(surgeon, voters.reported)
    wanted = labels_one_hot(surgeon, detector, voters.reported)
    late = boxes_everywhere(surgeon, graph) if voters.is_late else {}
    middle = grid_of_level(surgeon, detector.middle)

    def resized(item: ClassLevel, rows: DecodedLevel) -> V:
        boxes = decoded_boxes(surgeon.ops, late.get(rows.value, surgeon.handle(rows.value)), item, rows)
        votes = _level_votes(surgeon, item, boxes, voters, sides, wanted)
        return votes if item is detector.middle else op.resize(votes, *middle)

    votes = total(op, (resized(*pair) for pair in zip(detector.levels, voters.levels, strict=True)))
    return op.mul(votes, scalar(op, 1.0 / len(detector.levels), "float32"))


def reported_sides(surgeon: Surgeon[V], found: ReportedBoxes) -> list[Tensor[V]]:
    """The sides of the reported boxes in units of the decoded ones, `[B, M, 1]` each."""
    sides = box_sides(surgeon.ops, _reported(surgeon, found), found.format, 2)
    return [side * factor for side, factor in zip(sides, found.scale * 2, strict=True)]


def sides_of(op: Ops[V], boxes: V, voters: BoxVoters) -> list[Tensor[V]]:
    """The sides of decoded boxes `[B, 4, L]`, within the bounds of the reported ones, `[B, 1, L]` each."""
    decoded = box_sides(op, boxes, voters.format, 1)
    if voters.bounds is None:
        return decoded
    bounds = voters.bounds * 2
    return [side.at_most(tensor(op, bound)).at_least(0.0) for side, bound in zip(decoded, bounds, strict=True)]


def _level_votes(
    surgeon: Surgeon[V],
    item: ClassLevel,
    boxes: V,
    voters: BoxVoters,
    reported: Sequence[Tensor[V]],
    wanted: V | None,
) -> V:
    op = surgeon.ops
    votes = overlap_of(reported, sides_of(op, boxes, voters)).handle
    if wanted is not None:
        votes = op.mul(votes, op.matmul(wanted, _directions(surgeon, item, voters.is_exclusive)))
    anchors, (height, width) = item.channels.anchors, grid_of_level(surgeon, item)
    batch, count = op.size(votes, 0), op.size(votes, 1)
    if anchors > 1:
        votes = op.reduce(op.reshape(votes, [batch, count, anchors, height * width]), "max", [2])
    return op.reshape(votes, [batch, count, height, width])


def decoded_boxes(op: Ops[V], x: V, item: ClassLevel, rows: DecodedLevel) -> V:
    """Boxes of a level, `[B, 4, A * P]`, anchors slower than locations."""
    rank = len(rows.shape)
    cells, anchors = item.level.cells, item.channels.anchors
    if cells is None:
        raise ValueError("grids are known")
    x = op.slice(x, rows.row_axis, rows.start, rows.start + cells * anchors)
    x = op.slice(x, rows.column_axis, 0, 4)
    others = [axis for axis in range(rank) if axis not in (rows.row_axis, rows.column_axis)]
    order = [*others, rows.column_axis, rows.row_axis]
    if order != list(range(rank)):
        x = op.transpose(x, order)
    if anchors == 1 or rows.anchors_first:
        return op.reshape(x, [-1, 4, anchors * cells])
    x = op.transpose(op.reshape(x, [-1, 4, cells, anchors]), [0, 1, 3, 2])
    return op.reshape(x, [-1, 4, anchors * cells])


def class_shares(surgeon: Surgeon[V], item: ClassLevel, is_exclusive: bool) -> V:
    """Class probabilities of a level, `[B, K, A * P]`."""
    op = surgeon.ops
    x, order = level_channels(surgeon, item), item.channels
    cells = item.level.cells
    if cells is None:
        raise ValueError("grids are known")
    if order.classes_first:
        x = op.reshape(x, [-1, order.classes, order.anchors * cells])
    else:
        x = op.reshape(x, [-1, order.anchors, order.stride if order.anchors > 1 else order.classes, cells])
        if order.anchors > 1 and order.classes < order.stride:
            x = op.slice(x, 2, *order.within)
        if order.anchors > 1:
            x = op.transpose(x, [0, 2, 1, 3])
        x = op.reshape(x, [-1, order.classes, order.anchors * cells])
    x = op.pick(x, order.picked, axis=1) if order.picked else x
    return op.softmax(x, axis=1) if is_exclusive else op.sigmoid(x)


def _directions(surgeon: Surgeon[V], item: ClassLevel, is_exclusive: bool) -> V:
    """Class probabilities of a level divided by their norm, `[B, K, A * P]`."""
    scores = Tensor(surgeon.ops, class_shares(surgeon, item, is_exclusive))
    return (scores / (scores * scores).sum(1).sqrt().at_least(TINY)).handle


def _reported(surgeon: Surgeon[V], found: ReportedBoxes) -> V:
    """Reported boxes, `[B, M, 4]`."""
    op = surgeon.ops
    x = surgeon.handle(found.value)
    rank = len(found.value.sizes)
    x = op.slice(x, rank - 1, found.column, found.column + 4)
    return op.unsqueeze(x, [0]) if rank == 2 else x


def labels_one_hot(surgeon: Surgeon[V], detector: Detector, found: ReportedBoxes) -> V | None:
    """1 at the class of each reported box, `[B, M, K]`; None where there is one class only."""
    if found.labels is None:
        return None
    op = surgeon.ops
    x, rank = surgeon.handle(found.labels), len(found.labels.sizes)
    if "int" in found.labels.dtype:
        x = op.cast(x, "float32")
    if found.label_column is not None:
        x = op.slice(x, rank - 1, found.label_column, found.label_column + 1)
        x = op.unsqueeze(x, [0]) if rank == 2 else x
    else:
        x = op.unsqueeze(x, [0, 2] if rank == 1 else [2])
    numbers = np.arange(detector.classes, dtype=np.float32) + found.first_label
    # No comparison: where one reads SSDLite's labels, OpenVINO 2026.4 computes its outputs wrongly.
    return (Tensor(op, x) - numbers.reshape(1, 1, -1)).tent().handle
