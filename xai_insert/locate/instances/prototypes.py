"""Coefficients beside prototype masks, as YOLO segmenters give them, with suppression or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import UnsupportedTaskError
from xai_insert.layouts.boxes import are_shares, are_whole
from xai_insert.locate.instances.kinds import BoxFormat, LocationInstances, RowInstances, Sample

_BOX = 4
_LEAST_PROTOTYPES = 4
_PAST_IMAGE = 2.0  # boxes may reach over the border; coordinates in pixels go far beyond


def find_prototypes(samples: Sequence[Sample], num_classes: int | None) -> RowInstances | LocationInstances | None:
    """Predictions whose last columns are coefficients of prototypes; None if there are none.

    Args:
        samples: the model's outputs for a sample image.
        num_classes: the number of classes if the user has given it.

    Raises:
        UnsupportedTaskError: the columns cannot be told.
    """
    for prototypes in filter(_may_be_prototypes, samples):
        for predictions in samples:
            if len(predictions.shape) == 3 and predictions.shape[0] == prototypes.shape[0] and predictions.is_float:
                found = _fit(predictions, prototypes, num_classes)
                if found is not None:
                    return found
    return None


def _may_be_prototypes(sample: Sample) -> bool:
    return len(sample.shape) == 4 and sample.is_float and min(sample.shape[1:]) >= _LEAST_PROTOTYPES


def _fit(predictions: Sample, prototypes: Sample, num_classes: int | None) -> RowInstances | LocationInstances | None:
    count = prototypes.shape[1]
    if predictions.shape[2] == _BOX + 2 + count and are_whole(predictions.array[..., _BOX + 1]):
        boxes, scores = predictions.array[..., :_BOX], predictions.array[..., _BOX]
        if are_shares(scores):
            is_relative = _are_relative(boxes[scores > 0])
            return RowInstances(predictions, prototypes, BoxFormat(is_relative=is_relative))
    return _fit_locations(predictions, prototypes, num_classes)


def _fit_locations(predictions: Sample, prototypes: Sample, num_classes: int | None) -> LocationInstances | None:
    """Predictions of every location: a box, scores in 0..1, and coefficients, which are not."""
    for channels_last in (False, True):
        rows = predictions.array if channels_last else predictions.array.transpose(0, 2, 1)
        width = rows.shape[2] - _BOX - prototypes.shape[1]
        if width < 1 or not are_shares(rows[..., _BOX : _BOX + width]) or are_shares(rows[..., _BOX + width :]):
            continue
        has_objectness = _has_objectness(predictions, channels_last, width, num_classes)
        box_format = _format_of(rows[..., :_BOX], predictions)
        return LocationInstances(predictions, channels_last, has_objectness, prototypes, box_format)
    return None


def _has_objectness(predictions: Sample, channels_last: bool, width: int, num_classes: int | None) -> bool:
    """Whether the first of `width` scores is no class score.

    Models with anchors write a row per location and begin it with the objectness; anchor-free ones write a column per
    location and have none. A row per location may be either: there the number of classes decides.
    """
    if not channels_last or num_classes == width:
        return False
    if num_classes == width - 1:
        return True
    raise UnsupportedTaskError(
        f"output {predictions.describe()} has {width} scores in each row: {width} classes, or an objectness and "
        f"{width - 1} classes; say which: --num-classes"
    )


def _format_of(boxes: npt.NDArray[Any], predictions: Sample) -> BoxFormat:
    """Of two corners, the second lies behind the first everywhere; a width is often less than the centre's distance."""
    behind = np.mean((boxes[..., 2:] >= boxes[..., :2]).all(axis=-1))
    if behind > 0.99:
        return BoxFormat(is_relative=_are_relative(boxes))
    if np.mean((boxes[..., 2:] >= 0).all(axis=-1)) > 0.9:
        return BoxFormat(is_centre=True, is_relative=_are_relative(boxes))
    raise UnsupportedTaskError(
        f"the first four numbers of output {predictions.describe()} are neither corners nor centres of boxes"
    )


def _are_relative(boxes: npt.NDArray[Any]) -> bool:
    return bool(boxes.size) and float(np.abs(boxes).max()) < _PAST_IMAGE
