"""Box votes: the map of one reported box, made of what every location says about it.

D-RISE's similarity of detections (Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps",
CVPR 2021), intersection over union times cosine of the class scores, between the reported box and the detection of each
location, instead of between it and the detections of thousands of masked images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic

import numpy as np

from xai_insert.graph.ops import Ops, Size, Surgeon, V
from xai_insert.graph.view import Graph
from xai_insert.locate.boxes import BoxVoters, DecodedLevel, ReportedBoxes, powers_of_size
from xai_insert.locate.detector import ClassLevel, Detector
from xai_insert.locate.inputs import image_inputs, image_size, sized_axes
from xai_insert.methods.box_sides import TINY, box_sides, overlap_of
from xai_insert.methods.det_class_probability_map import grid_of_level, level_channels
from xai_insert.methods.late_boxes import boxes_everywhere
from xai_insert.methods.shaping import product_of, scalar, sum_of, total
from xai_insert.methods.tensor import Tensor, tensor


@dataclass(frozen=True)
class Rows(Generic[V]):
    """Where the boxes of a level stand, in numbers or, where they follow the size of the image, in values.

    Attributes:
        height, width: of the grid.
        cells: locations.
        count: boxes.
        start: the first of them, in the value that holds those of all levels.
    """

    height: Size
    width: Size
    cells: Size
    count: Size
    start: Size


def box_votes(surgeon: Surgeon[V], graph: Graph, detector: Detector, voters: BoxVoters, *, follows: bool = False) -> V:
    """The votes for each reported box on the grid of the middle level, `[B, M, h, w]` float32, 0..1.

    For each location of each level, the box decoded there and its class probabilities `p`:
    `IoU(box, reported box) * p[label] / ||p||`, maximum over anchors, resized to the middle level's grid (bilinear);
    mean over levels. Empty boxes and labels that are no class, as rows that pad the report have them, give zeros.

    Args:
        surgeon: the model being edited.
        graph: its view.
        detector: its class scores.
        voters: its boxes.
        follows: whether grids and the size of the image are read while the model runs though they are known, so that
            the model may be reshaped.
    """
    op = surgeon.ops
    image = image_of(surgeon, graph) if follows else None
    sides = reported_sides(surgeon, voters.reported, image)
    wanted = labels_one_hot(surgeon, detector, voters.reported)
    late = boxes_everywhere(surgeon, graph) if voters.is_late else {}
    places = rows_of(surgeon, detector, voters, follows=follows)
    middle = grid_of_level(surgeon, detector.middle, follows=follows)

    def resized(item: ClassLevel, level: DecodedLevel, rows: Rows[V]) -> V:
        handle = late.get(level.value, surgeon.handle(level.value))
        handle, level = of_each_image(surgeon, handle, level, voters.reported)
        boxes = decoded_boxes(op, handle, item, level, rows, images=images_in(voters.reported))
        votes = _level_votes(surgeon, item, sides_of(op, boxes, voters, image), voters, sides, wanted, rows)
        return votes if item is detector.middle else op.resize(votes, *middle)

    votes = total(op, map(resized, detector.levels, voters.levels, places))
    return op.mul(votes, scalar(op, 1.0 / len(detector.levels), "float32"))


@dataclass(frozen=True)
class Image(Generic[V]):
    """The size of the image while the model runs.

    Attributes:
        size: height and width for which it was planned.
        width, height: float32 `[1]`.
    """

    size: tuple[int, int]
    width: Tensor[V]
    height: Tensor[V]


def image_of(surgeon: Surgeon[V], graph: Graph) -> Image[V]:
    """The size of the image, of which the plan is for one."""
    image, op = image_inputs(graph)[0], surgeon.ops
    size, handle = image_size(image), surgeon.handle(image)
    if size is None:
        raise ValueError("the plan is for one size")
    height, width = (Tensor(op, op.number(op.size(handle, axis))) for axis in sized_axes(image))
    return Image(size, width, height)


def rows_of(surgeon: Surgeon[V], detector: Detector, voters: BoxVoters, *, follows: bool = False) -> list[Rows[V]]:
    """Where the boxes of each level stand."""
    op, found = surgeon.ops, list[Rows[V]]()
    for item in detector.levels:
        height, width = grid_of_level(surgeon, item, follows=follows)
        cells = product_of(op, [height, width])
        found.append(Rows(height, width, cells, product_of(op, [cells, item.channels.anchors]), 0))
    starts = [level.start for level in voters.levels]
    if follows:
        starts = [sum_of(op, [found[before].count for before in voters.before(level)]) for level in voters.levels]
    return [replace(rows, start=start) for rows, start in zip(found, starts, strict=True)]


def images_in(found: ReportedBoxes) -> Size:
    """The batch of what is decoded, -1 for any: a list of boxes that does not tell images apart is of one."""
    return 1 if len(found.value.sizes) == 2 else -1


def of_each_image(surgeon: Surgeon[V], x: V, level: DecodedLevel, found: ReportedBoxes) -> tuple[V, DecodedLevel]:
    """Decoded boxes with an axis of the images, where those of all stand in one, `[B * rows, 4]`, and where they do."""
    if (level.row_axis, len(level.shape)) != (0, 2) or len(found.value.sizes) == 2 or found.value.sizes[0] == 1:
        return x, level
    images = surgeon.ops.size(surgeon.handle(found.value), 0)
    x = surgeon.ops.reshape(x, [images, -1, level.shape[1]])
    return x, replace(level, shape=(1, *level.shape), row_axis=1, column_axis=2)


def _in_pixels(pair: tuple[float, float], image: Image[V] | None) -> list[Tensor[V] | float]:
    """What a pair of numbers is where the image has another size, for both ends of two sides."""
    power = 0 if image is None else powers_of_size(pair, image.size)
    if image is None or not power:
        return [*pair, *pair]
    sides = [image.width, image.height]
    return [side if power > 0 else tensor(side.op, 1.0) / side for side in (*sides, *sides)]


def reported_sides(surgeon: Surgeon[V], found: ReportedBoxes, image: Image[V] | None = None) -> list[Tensor[V]]:
    """The sides of the reported boxes in units of the decoded ones, `[B, M, 1]` each."""
    sides = box_sides(surgeon.ops, _reported(surgeon, found), found.format, 2)
    return [side * factor for side, factor in zip(sides, _in_pixels(found.scale, image), strict=True)]


def sides_of(op: Ops[V], boxes: V, voters: BoxVoters, image: Image[V] | None = None) -> list[Tensor[V]]:
    """The sides of decoded boxes `[B, 4, L]`, within the bounds of the reported ones, `[B, 1, L]` each."""
    decoded = box_sides(op, boxes, voters.format, 1)
    if voters.bounds is None:
        return decoded
    bounds = _in_pixels(voters.bounds, image)
    limits = [bound if isinstance(bound, Tensor) else tensor(op, bound) for bound in bounds]
    return [side.at_most(limit).at_least(0.0) for side, limit in zip(decoded, limits, strict=True)]


def _level_votes(
    surgeon: Surgeon[V],
    item: ClassLevel,
    decoded: Sequence[Tensor[V]],
    voters: BoxVoters,
    reported: Sequence[Tensor[V]],
    wanted: V | None,
    rows: Rows[V],
) -> V:
    op = surgeon.ops
    votes = overlap_of(reported, decoded).handle
    if wanted is not None:
        votes = op.mul(votes, op.matmul(wanted, _directions(surgeon, item, voters.is_exclusive, rows)))
    batch, count, anchors = op.size(votes, 0), op.size(votes, 1), item.channels.anchors
    if anchors > 1:
        votes = op.reduce(op.reshape(votes, [batch, count, anchors, rows.cells]), "max", [2])
    return op.reshape(votes, [batch, count, rows.height, rows.width])


def decoded_boxes(op: Ops[V], x: V, item: ClassLevel, level: DecodedLevel, rows: Rows[V], *, images: Size = -1) -> V:
    """Boxes of a level, `[B, 4, A * P]`, anchors slower than locations; `images` is B."""
    rank, anchors = len(level.shape), item.channels.anchors
    x = op.slice(x, level.row_axis, rows.start, sum_of(op, [rows.start, rows.count]))
    x = op.slice(x, level.column_axis, 0, 4)
    others = [axis for axis in range(rank) if axis not in (level.row_axis, level.column_axis)]
    order = [*others, level.column_axis, level.row_axis]
    if order != list(range(rank)):
        x = op.transpose(x, order)
    if anchors > 1 and not level.anchors_first:
        x = op.transpose(op.reshape(x, [images, 4, rows.cells, anchors]), [0, 1, 3, 2])
    return op.reshape(x, [images, 4, rows.count])


def class_shares(surgeon: Surgeon[V], item: ClassLevel, is_exclusive: bool, rows: Rows[V]) -> V:
    """Class probabilities of a level, `[B, K, A * P]`."""
    op = surgeon.ops
    x, order = level_channels(surgeon, item), item.channels
    if order.classes_first:
        x = op.reshape(x, [-1, order.classes, rows.count])
    else:
        x = op.reshape(x, [-1, order.anchors, order.stride if order.anchors > 1 else order.classes, rows.cells])
        if order.anchors > 1 and order.classes < order.stride:
            x = op.slice(x, 2, *order.within)
        if order.anchors > 1:
            x = op.transpose(x, [0, 2, 1, 3])
        x = op.reshape(x, [-1, order.classes, rows.count])
    x = op.pick(x, order.picked, axis=1) if order.picked else x
    return op.softmax(x, axis=1) if is_exclusive else op.sigmoid(x)


def _directions(surgeon: Surgeon[V], item: ClassLevel, is_exclusive: bool, rows: Rows[V]) -> V:
    """Class probabilities of a level divided by their norm, `[B, K, A * P]`."""
    scores = Tensor(surgeon.ops, class_shares(surgeon, item, is_exclusive, rows))
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
