"""Instance masks: for each class, the mean of score times mask over its instances.

After the saliency maps that OpenVINO Training Extensions makes for Mask R-CNN and RTMDet-Ins. Instances come in several
forms (see `xai_insert.locate.instances.kinds`); each is brought to one: scores, classes, and masks on the map's grid.

A mask is read bilinearly at the centres of the grid's cells. It stays soft where the model's is: it is multiplied by
the score as it is, not cut at one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

import numpy as np

from xai_insert.graph.ops import Ops, Size, Surgeon, V
from xai_insert.graph.view import Shape, Value
from xai_insert.locate.instances.kinds import (
    BoxFormat,
    Found,
    ListedInstances,
    LocationInstances,
    QueryInstances,
    RowInstances,
    Sample,
)
from xai_insert.locate.layout import Frame
from xai_insert.methods.framing import straightened
from xai_insert.methods.masks import corners_in_cells, cropped, pasted, resized
from xai_insert.methods.present_classes import PresentClasses, present_classes
from xai_insert.methods.selection import kept_locations, strongest
from xai_insert.methods.shaping import as_vector, part_of, product_of, scalar, size_of

SUPPRESSION_SCORE = 0.25
"""Least score with which a model without suppression is read; its own package's default."""


@dataclass(frozen=True)
class MaskTarget:
    """What the map is made of, and its sizes.

    Attributes:
        found: the outputs.
        classes: number of maps; an instance whose label is not below adds nothing.
        grid: rows and columns of the map; while it is added, they may be read off the image.
        image: the model's input.
        image_axes: those of its height and width.
        threshold: instances with a lower score add nothing; None for the model's own.
        frame: how masks of the whole image lie in it.
        pixels: along a side of a cell; None where the grid is of one size whatever the image.
        follows: whether sizes are read while the model runs though they are known, so that the model may be reshaped.
    """

    found: Found
    classes: int
    grid: tuple[Size, Size]
    image: Value
    image_axes: tuple[int, int]
    threshold: float | None = None
    frame: Frame = field(default_factory=Frame)
    pixels: int | None = None
    follows: bool = False


@dataclass(frozen=True)
class Instances(Generic[V]):
    """M instances of each image.

    Attributes:
        scores: float32 `[B, M]`; 0 for padding.
        classes: float32 `[B, K, M]`, 1 where instance m is of class k, else 0.
        masks: float32 `[B, M, h, w]`, on the map's grid.
    """

    scores: V
    classes: V
    masks: V


def instance_masks(surgeon: Surgeon[V], target: MaskTarget) -> tuple[V, PresentClasses[V] | None]:
    """The raw maps of the classes with instances, float32 `[B, 1 + C, h, w]`, and which they are.

    Of queries the maps of all classes, `[B, K, h, w]`, and None.

    Memory beside the model's own: the masks on the grid, `B * M * h * w` floats (26 MB for 100 instances at 1024x1024
    and the default grid of 256x256) at most three times over, and the maps of the classes that are present. There is no
    loop. Where the model's masks cover the image, OpenVINO copies them once to resize them.

    Args:
        surgeon: the model being edited.
        target: what was located.
    """
    op, found = surgeon.ops, target.found
    if target.follows and target.pixels is not None:
        over = op.constant(np.array([target.pixels], np.int64))
        height, width = (op.div(side, over) for side in _image_sides(surgeon, target))
        target = replace(target, grid=(height, width))
    if isinstance(found, ListedInstances):
        return _mean(surgeon, target, _listed(surgeon, target, found), found.boxes)
    if isinstance(found, RowInstances):
        return _mean(surgeon, target, _rows(surgeon, target, found), found.rows)
    if isinstance(found, LocationInstances):
        return _mean(surgeon, target, _locations(surgeon, target, found), found.predictions)
    weights, masks = _weighted(surgeon, target, _queries(surgeon, target, found), found.scores)
    # All classes: choosing those that are present makes sizes that are not known before the model runs, beside which
    # OpenVINO computes the decoder of a Mask2Former otherwise, and predictions move in their last bits.
    return op.reshape(op.matmul(weights, masks), [-1, target.classes, *target.grid]), None


def _mean(
    surgeon: Surgeon[V], target: MaskTarget, instances: Instances[V], per_image: Sample
) -> tuple[V, PresentClasses[V]]:
    """Sum of score times mask over the instances of a class, divided by their number."""
    op, (weights, masks) = surgeon.ops, _weighted(surgeon, target, instances, per_image)
    batch = _images(surgeon, per_image)
    present = present_classes(op, weights, target.classes, batch)
    return op.reshape(op.matmul(present.weights, masks), [batch, -1, *target.grid]), present


def _weighted(surgeon: Surgeon[V], target: MaskTarget, instances: Instances[V], per_image: Sample) -> tuple[V, V]:
    """Weights of the instances in the map of each class, `[B, K, M]`, and their masks `[B, M, h * w]`."""
    op = surgeon.ops
    counted = op.mul(instances.classes, op.unsqueeze(_is_instance(op, instances.scores, target.threshold), [1]))
    counts = op.reduce(counted, "sum", [2])
    weights = op.div(op.mul(counted, op.unsqueeze(instances.scores, [1])), op.maximum(counts, _one(op)))
    return weights, op.reshape(instances.masks, [_images(surgeon, per_image), -1, product_of(op, target.grid)])


def _is_instance(op: Ops[V], scores: V, threshold: float | None) -> V:
    """1 where a score counts: it is at least the threshold and not zero, which is padding."""
    if threshold is None or threshold <= 0:
        return op.greater(scores, scalar(op, 0.0, "float32"))
    return op.sub(_one(op), op.greater(scalar(op, threshold, "float32"), scores))


def _listed(surgeon: Surgeon[V], target: MaskTarget, found: ListedInstances) -> Instances[V]:
    op = surgeon.ops
    batch = _images(surgeon, found.boxes)
    columns = found.boxes.shape[-1]
    boxes = op.reshape(_float(surgeon, found.boxes), [batch, -1, columns])
    if found.scores is None:
        scores = op.reshape(op.slice(boxes, 2, 4, 5), [batch, -1])
    else:
        scores = op.reshape(_float(surgeon, found.scores), [batch, -1])
    labels = op.reshape(_float(surgeon, found.labels), [batch, -1])
    sides = found.masks.shape[-2:]
    masks = op.reshape(_float(surgeon, found.masks), [batch, -1, *_sides(surgeon, target, found.masks)])
    if found.per_box:
        corners = _corners(surgeon, target, found.box_format, op.slice(boxes, 2, 0, 4))
        masks = pasted(op, masks, (sides[0], sides[1]), corners, target.grid)
    else:
        masks = _on_grid(surgeon, target, found.masks, masks, batch)
    return Instances(scores, _one_hot(op, labels, target.classes), masks)


def _rows(surgeon: Surgeon[V], target: MaskTarget, found: RowInstances) -> Instances[V]:
    op = surgeon.ops
    rows = op.transpose(_float(surgeon, found.rows), (0, 2, 1))
    scores = op.reshape(op.slice(rows, 1, 4, 5), [_images(surgeon, found.rows), -1])
    ranked = op.mul(scores, _is_instance(op, scores, target.threshold))
    chosen, best = strongest(op, rows, found.rows.shape[2], ranked)
    chosen = op.transpose(chosen, (0, 2, 1))
    labels = op.reshape(op.slice(chosen, 2, 5, 6), [_images(surgeon, found.rows), -1])
    return Instances(best, _one_hot(op, labels, target.classes), _assembled(surgeon, target, found, chosen, 6))


def _locations(surgeon: Surgeon[V], target: MaskTarget, found: LocationInstances) -> Instances[V]:
    op = surgeon.ops
    columns = _float(surgeon, found.predictions)
    if found.channels_last:
        columns = op.transpose(columns, (0, 2, 1))
    first = 5 if found.has_objectness else 4
    last = first + target.classes
    batch, width = _images(surgeon, found.predictions), last + found.prototypes.shape[1]
    threshold = SUPPRESSION_SCORE if target.threshold is None else target.threshold

    def times_objectness(columns: V, scores: V) -> V:
        return op.mul(scores, op.slice(columns, 1, 4, 5)) if found.has_objectness else scores

    if found.channels_last or found.predictions.value.dtype != "float32":
        scores = op.slice(columns, 1, first, last)
    else:
        scores = part_of(surgeon, found.predictions.value, 1, first, last)
    best = op.reshape(op.reduce(times_objectness(columns, scores), "max", [1]), [batch, -1])
    passing = op.mul(best, op.greater(best, scalar(op, threshold, "float32")))
    # Few of the thousands of locations pass; what follows is for them alone.
    columns, best = strongest(op, columns, width, passing, most=None)
    scores = times_objectness(columns, op.slice(columns, 1, first, last))
    own = op.mul(scores, op.equal(scores, op.reduce(scores, "max", [1])))  # a location speaks for its best class alone
    boxes = _corners(surgeon, target, found.box_format, op.transpose(op.slice(columns, 1, 0, 4), (0, 2, 1)))
    ranked = op.mul(best, kept_locations(op, boxes, own, best, threshold))
    chosen, score = strongest(op, columns, width, ranked)
    chosen = op.transpose(chosen, (0, 2, 1))
    _, labels = op.top(op.slice(chosen, 2, first, last), op.constant(np.ones(1, np.int64)))
    labels = op.cast(op.reshape(labels, [batch, -1]), "float32")
    return Instances(score, _one_hot(op, labels, target.classes), _assembled(surgeon, target, found, chosen, last))


def _assembled(
    surgeon: Surgeon[V], target: MaskTarget, found: RowInstances | LocationInstances, rows: V, first: int
) -> V:
    """Masks from rows `[B, M, C]`, whose coefficients begin at column `first`."""
    op = surgeon.ops
    corners = _corners(surgeon, target, found.box_format, op.slice(rows, 2, 0, 4))
    coefficients = op.slice(rows, 2, first, first + found.prototypes.shape[1])
    prototypes = _float(surgeon, found.prototypes)
    sides = _sides(surgeon, target, found.prototypes)
    batch = _images(surgeon, found.prototypes)
    masks = op.sigmoid(op.mixed_channels(coefficients, prototypes, [batch, found.prototypes.shape[1]]))
    masks = op.reshape(masks, [batch, -1, *sides])
    return cropped(
        op, resized(op, masks, batch, _known_sides(target, found.prototypes), target.grid), corners, target.grid
    )


def _queries(surgeon: Surgeon[V], target: MaskTarget, found: QueryInstances) -> Instances[V]:
    op = surgeon.ops
    scores = _float(surgeon, found.scores)
    if not found.scores_are_shares:
        scores = op.softmax(scores) if found.has_no_object else op.sigmoid(scores)
    best = op.reduce(scores, "max", [2])
    classes = op.transpose(op.equal(op.slice(scores, 2, 0, target.classes), best), (0, 2, 1))
    best = op.reshape(best, [_images(surgeon, found.scores), -1])
    masks = _float(surgeon, found.masks)
    if not found.masks_are_shares:
        masks = op.sigmoid(masks)
    batch = _images(surgeon, found.masks)
    return Instances(best, classes, _on_grid(surgeon, target, found.masks, masks, batch))


def _on_grid(surgeon: Surgeon[V], target: MaskTarget, drawn: Sample, masks: V, batch: Size) -> V:
    """Masks `[B, M, h, w]` of the whole image, in its own order, on the grid of the map."""
    shape: Shape = (None, None, *_known_sides(target, drawn))
    if not target.frame.is_upright:
        masks, shape = straightened(surgeon.ops, masks, shape, target.frame)
    return resized(surgeon.ops, masks, batch, (shape[2], shape[3]), target.grid)


def _corners(surgeon: Surgeon[V], target: MaskTarget, form: BoxFormat, boxes: V) -> V:
    """Corners in cells of boxes `[B, M, 4]`."""
    op, (height, width) = surgeon.ops, target.grid
    sides = _image_sides(surgeon, target)
    if all(isinstance(side, int) for side in (height, width, *sides)):
        rows, columns = (1, 1) if form.is_relative else sides
        cells = op.constant(np.array([width / columns, height / rows] * 2, np.float32))
    else:
        cells = _as_floats(op, [width, height] * 2)
        cells = cells if form.is_relative else op.div(cells, _as_floats(op, sides[::-1] * 2))
    return corners_in_cells(op, boxes, form, cells)


def _as_floats(op: Ops[V], sizes: Sequence[Size]) -> V:
    """Sizes side by side, float32."""
    made = [as_vector(op, size) for size in sizes]
    return op.cast(op.concat(made, 0), "float32")


def _image_sides(surgeon: Surgeon[V], target: MaskTarget) -> list[Size]:
    """Height and width of the image."""
    op, handle = surgeon.ops, surgeon.handle(target.image)
    if target.follows:
        return [op.size(handle, axis) for axis in target.image_axes]
    return [size_of(op, handle, target.image, axis) for axis in target.image_axes]


def _images(surgeon: Surgeon[V], sample: Sample) -> Size:
    """Number of images that an output is for: 1 where it has no axis for them."""
    if len(sample.shape) == 2:
        return 1
    return size_of(surgeon.ops, surgeon.handle(sample.value), sample.value, 0)


def _sides(surgeon: Surgeon[V], target: MaskTarget, masks: Sample) -> list[Size]:
    """Height and width of masks."""
    handle, rank = surgeon.handle(masks.value), len(masks.shape)
    if target.follows:
        return [surgeon.ops.size(handle, axis) for axis in (rank - 2, rank - 1)]
    return [size_of(surgeon.ops, handle, masks.value, axis) for axis in (rank - 2, rank - 1)]


def _known_sides(target: MaskTarget, masks: Sample) -> tuple[int | None, int | None]:
    shape = None if target.follows else masks.value.shape
    return (None, None) if shape is None else (shape[-2], shape[-1])


def _one_hot(op: Ops[V], labels: V, classes: int) -> V:
    """`[B, M]` to `[B, K, M]`."""
    numbers = op.constant(np.arange(classes, dtype=np.float32).reshape(1, classes, 1))
    return op.equal(op.unsqueeze(labels, [1]), numbers)


def _one(op: Ops[V]) -> V:
    return scalar(op, 1.0, "float32")


def _float(surgeon: Surgeon[V], sample: Sample) -> V:
    handle = surgeon.handle(sample.value)
    return handle if sample.value.dtype == "float32" else surgeon.ops.cast(handle, "float32")
