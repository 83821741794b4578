"""DetClassProbabilityMap: where a single-stage detector sees each class, read off its class scores.

As in OpenVINO Training Extensions' `DetClassProbabilityMapHook`.
"""

from __future__ import annotations

import numpy as np

from xai_insert.graph.ops import Ops, Size, Surgeon, V
from xai_insert.locate.affine import Affine
from xai_insert.locate.detector import ClassLevel, Detector
from xai_insert.methods.shaping import scalar, size_of, total


def det_class_probability_map(surgeon: Surgeon[V], detector: Detector, *, follows: bool = False) -> V:
    """Class probabilities on the grid of the middle level, `[B, K, h, w]` float32, 0..1.

    For each level the raw class scores, maximum over anchors (of all its heads), resized to the middle level's grid
    (bilinear); mean over levels; softmax over classes. With one class the softmax, which would be 1 everywhere, is left
    out, and the mean of the raw scores stays.

    Args:
        surgeon: the model being edited.
        detector: its class scores; a background class takes part like the others.
        follows: whether the sizes of grids are read while the model runs though they are known, so that the model may
            be reshaped.
    """
    op = surgeon.ops
    height, width = grid_of_level(surgeon, detector.middle, follows=follows)

    def resized(item: ClassLevel) -> V:
        scores = class_scores(surgeon, item, follows=follows)
        for more in item.more:
            scores = op.maximum(scores, class_scores(surgeon, more, follows=follows))
        return scores if item is detector.middle else op.resize(scores, height, width)

    mean = op.mul(total(op, map(resized, detector.levels)), scalar(op, 1.0 / len(detector.levels), "float32"))
    return mean if detector.classes == 1 else op.softmax(mean, axis=1)


def class_scores(surgeon: Surgeon[V], item: ClassLevel, *, follows: bool) -> V:
    """Raw class scores of one level, maximum over anchors: `[B, K, h, w]` float32."""
    op, order = surgeon.ops, item.channels
    best = _best(surgeon, item, follows=follows)
    best = best if item.affine is None else _affine(op, best, item.affine)
    return op.pick(best, order.picked, axis=1) if order.picked else best


def _best(surgeon: Surgeon[V], item: ClassLevel, *, follows: bool) -> V:
    """The maximum over anchors, in the order of the head: `[B, K, h, w]`."""
    op, order = surgeon.ops, item.channels
    x = level_channels(surgeon, item)
    if order.anchors == 1:
        return x
    height, width = grid_of_level(surgeon, item, follows=follows)
    if order.classes_first:
        x = op.reshape(x, [-1, order.classes, order.anchors, height, width])
        best = op.reduce(x, "max", [2])
    else:
        x = op.reshape(x, [-1, order.anchors, order.stride, height, width])
        if order.classes < order.stride:
            x = op.slice(x, 2, *order.within)
        best = op.reduce(x, "max", [1])
    return op.reshape(best, [-1, order.classes, height, width])


def _affine(op: Ops[V], scores: V, affine: Affine) -> V:
    """Scores with what the model does to them before their sigmoid or softmax."""
    scale, shift = (
        op.constant(np.array(part, np.float32).reshape(1, -1, 1, 1)) for part in (affine.scale, affine.shift)
    )
    return op.add(op.mul(scores, scale), shift)


def level_channels(surgeon: Surgeon[V], item: ClassLevel) -> V:
    """A head's channels at one level that its anchors have (`Channels.block`), `[B, C, h, w]` float32."""
    op = surgeon.ops
    value, order = item.head.value, item.channels
    x = surgeon.handle(value)
    if len(item.level.grid_axes) == 1:
        (axis,), sides = item.level.grid_axes, grid_of_level(surgeon, item)
        if item.level.cells != value.sizes[axis]:
            x = op.slice(x, axis, item.level.start, item.level.start + (item.level.cells or 0))
        if axis == 1:  # OpenVINO's CPU plugin reads a transpose before the reshape wrongly where the model joins levels
            x = op.transpose(op.reshape(x, [-1, *sides, item.head.channels]), [0, 3, 1, 2])
        else:
            x = op.reshape(x, [-1, item.head.channels, *sides])
    elif item.head.channel_axis == len(value.sizes) - 1:
        x = op.transpose(x, [0, 3, 1, 2])
    first, end = order.block
    if end - first < item.head.channels:
        x = op.slice(x, 1, first, end)
    return x


def grid_of_level(surgeon: Surgeon[V], item: ClassLevel, *, follows: bool = False) -> tuple[Size, Size]:
    """Height and width of a level; read while the model runs if the level is to follow another size of the image."""
    level, value = item.level, item.head.value
    if len(level.grid_axes) == 1:
        return level.height, level.width
    op, handle = surgeon.ops, surgeon.handle(value)
    if follows:
        height, width = (op.size(handle, axis) for axis in level.grid_axes)
    else:
        height, width = (size_of(op, handle, value, axis) for axis in level.grid_axes)
    return height, width
