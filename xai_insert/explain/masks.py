"""Reading instances and their masks from the outputs of segmenters, told apart by shape, type and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from xai_insert.explain.detections import Detections, Facts, Floats, Masks, numbered
from xai_insert.explain.errors import UnknownLayoutError
from xai_insert.explain.layouts import are_scores, best_of, class_scores, fused, listed, rows, sigmoid
from xai_insert.explain.outputs import Array
from xai_insert.graph.items import present

_BOX = 4
_ROW = 6


def instances(arrays: Sequence[Array], facts: Facts) -> Detections:
    """Read the instances of the first image of a batch.

    Layouts, beside those of `layouts.detections` for the boxes: a mask per instance, `[M, h, w]` with axes of size 1
    wherever they stand, of the image or of the box; prototypes `[N, D, h, w]`, whose D coefficients end each row or
    location; class scores `[N, Q, K]` or `[N, Q, K + 1]` and masks `[N, Q, h, w]` of queries.

    Raises:
        UnknownLayoutError: no layout fits, or several outputs do.
    """
    found = _from_prototypes(arrays, facts) or _from_list(arrays, facts) or _from_queries(arrays, facts)
    if found is None:
        raise UnknownLayoutError("no outputs are instances with masks of a known layout")
    return numbered(found, facts)


def _from_prototypes(arrays: Sequence[Array], facts: Facts) -> Detections | None:
    for prototypes in arrays:
        if prototypes.ndim != 4 or prototypes.dtype.kind != "f":
            continue
        for array in arrays:
            found = _with_coefficients(array, prototypes[0], facts) if array.ndim == 3 else None
            if found is not None:
                return found
    return None


def _with_coefficients(array: Array, prototypes: Array, facts: Facts) -> Detections | None:
    """The instances of an output whose rows or locations end with coefficients of prototypes `[D, h, w]`."""
    depth, located = len(prototypes), _BOX + (facts.classes or 0)
    of_locations = (located, located + 1)
    ways = ((array[0], rows, (_ROW,)), (array[0], fused, of_locations), (array[0].T, fused, of_locations))
    for own, read, widths in ways:
        found = read([array], facts, depth) if own.shape[1] - depth in widths else None
        if found is not None:
            return replace(found, mask=_assembled(own[:, -depth:], prototypes, found.boxes, facts.size))
    return None


def _assembled(coefficients: Array, prototypes: Array, boxes: Floats, size: tuple[int, int]) -> Masks:
    def mask(index: int) -> Floats:
        logits = np.tensordot(coefficients[index].astype(np.float64), prototypes.astype(np.float64), 1)
        return _inside(sigmoid(logits), boxes[index], size)

    return mask


def _inside(mask: Floats, box: Floats, size: tuple[int, int]) -> Floats:
    """The mask in the size of the input, and 0 outside the box."""
    height, width = size
    large = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    columns, lines = (x >= box[0]) & (x <= box[2]), (y >= box[1]) & (y <= box[3])
    return np.asarray(large * columns * lines[:, None], np.float64)


def _from_list(arrays: Sequence[Array], facts: Facts) -> Detections | None:
    found = listed(arrays, facts)
    if found is None:
        return None
    count = len(found.scores)
    if count == 0:
        return found
    own = _masks_of(arrays, count)
    if not facts.pastes_masks:
        return replace(found, mask=lambda index: own[index].astype(np.float64))
    return replace(found, mask=lambda index: _pasted(own[index], found.boxes[index], facts.size))


def _masks_of(arrays: Sequence[Array], count: int) -> Array:
    """The one output that holds a mask for each of so many boxes, `[count, h, w]`."""
    masks = [array for array in arrays if array.ndim >= 3 and min(array.shape[-2:]) > 1 and are_scores(array)]
    masks = [array for array in masks if int(np.prod(array.shape[:-2])) == count]
    if len(masks) != 1:
        raise UnknownLayoutError("no output, or more than one, holds a mask for each box")
    return masks[0].reshape(count, *masks[0].shape[-2:])


def _pasted(mask: Array, box: Floats, size: tuple[int, int]) -> Floats:
    """A mask of a box `[h, w]`, put there in an empty mask of the whole input."""
    height, width = size
    rows_, columns = mask.shape
    x = ((np.arange(width) + 0.5) / width - box[0]) / max(box[2] - box[0], 1e-9) * columns - 0.5
    y = ((np.arange(height) + 0.5) / height - box[1]) / max(box[3] - box[1], 1e-9) * rows_ - 0.5
    along, down = (np.broadcast_to(part, size).astype(np.float32) for part in (x, y[:, None]))
    drawn = cv2.remap(mask.astype(np.float32), along, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(drawn, np.float64)


def _from_queries(arrays: Sequence[Array], facts: Facts) -> Detections | None:
    read = [_of_queries(masks, logits, facts) for masks in arrays for logits in arrays]
    found = present(read)
    if len(found) > 1:
        raise UnknownLayoutError("several outputs could be class scores and masks of queries")
    return found[0] if found else None


def _of_queries(masks: Array, logits: Array, facts: Facts) -> Detections | None:
    """The instances of masks and class scores of the same queries."""
    if masks.ndim != 4 or masks.dtype.kind != "f" or logits.ndim != 3 or logits.shape[2] == _BOX:
        return None
    scores = class_scores(logits[0], facts) if masks.shape[:2] == logits.shape[:2] else None
    if scores is None:
        return None
    shares = masks[0].astype(np.float64)
    shares = shares if are_scores(masks) else sigmoid(shares)
    return Detections(_bounds(shares), *best_of(scores), mask=shares.__getitem__)


def _bounds(masks: Floats) -> Floats:
    """Boxes `[M, 4]` around masks `[M, h, w]`, in shares; zeros for an empty one."""
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), _BOX))
    for box, mask in zip(boxes, masks > 0.5, strict=True):
        y, x = np.nonzero(mask)
        if len(x):
            box[:] = x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height
    return boxes
