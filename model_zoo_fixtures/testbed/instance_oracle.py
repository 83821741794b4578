"""Instance masks by their definition, in NumPy on a model's own outputs: one instance after the other."""

from __future__ import annotations

import numpy as np
import onnx

from model_zoo_fixtures.testbed import oracle

Array = np.ndarray


def mean_of_masks(scores: Array, labels: Array, masks: Array, classes: int) -> Array:
    """Per class, the sum of score times mask over its instances, divided by their number.

    Args:
        scores: `[M]`.
        labels: whole numbers `[M]`; those outside 0..classes-1 are left out.
        masks: `[M, h, w]`, on the grid of the map.
        classes: number of maps.
    """
    maps = np.zeros((classes, *masks.shape[1:]))
    for label in range(classes):
        chosen = [index for index in range(len(labels)) if labels[index] == label]
        for index in chosen:
            maps[label] += scores[index] * masks[index].astype(np.float64) / len(chosen)
    return maps


def bilinear(image: Array, grid: tuple[int, int]) -> Array:
    """`[h, w]` read at the centres of the grid's cells; pixels beyond the border repeat the last one."""
    for axis, cells in enumerate(grid):
        size = image.shape[axis]
        place = np.clip((np.arange(cells) + 0.5) * size / cells - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        share = np.expand_dims(place - low, 1 - axis)
        image = image.take(low, axis) * (1 - share) + image.take(np.minimum(low + 1, size - 1), axis) * share
    return image


def paste(mask: Array, box: Array, grid: tuple[int, int]) -> Array:
    """The mask of a box (corners in cells) on the grid: bilinear in a mask with a border of zeros around it."""
    framed = np.pad(mask.astype(np.float64), 1)
    result = np.zeros(grid)
    for row in range(grid[0]):
        y = (row + 0.5 - box[1]) / max(box[3] - box[1], 1e-6) * mask.shape[0] + 0.5
        if not 0 < y < mask.shape[0] + 1:
            continue
        for column in range(grid[1]):
            x = (column + 0.5 - box[0]) / max(box[2] - box[0], 1e-6) * mask.shape[1] + 0.5
            if not 0 < x < mask.shape[1] + 1:
                continue
            top, left = int(y), int(x)
            v, u = y - top, x - left
            patch = framed[top : top + 2, left : left + 2]
            result[row, column] = np.array([1 - v, v]) @ patch @ np.array([1 - u, u])
    return result


def assemble(coefficients: Array, prototypes: Array, box: Array, grid: tuple[int, int]) -> Array:
    """Sigmoid of the prototypes' weighted sum, on the grid, zero outside the box (corners in cells)."""
    logits = np.tensordot(coefficients.astype(np.float64), prototypes, 1)
    mask = bilinear(1 / (1 + np.exp(-logits)), grid)
    columns, rows = np.arange(grid[1]), np.arange(grid[0])
    inside_x = (columns >= box[0]) & (columns < box[2])
    inside_y = (rows >= box[1]) & (rows < box[3])
    return mask * inside_x * inside_y[:, None]


def suppress(boxes: Array, scores: Array, labels: Array, overlap: float) -> list[int]:
    """Greedy suppression in each class; indices of what is kept."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if all(_iou(boxes[index], boxes[other]) <= overlap for other in rivals):
            kept.append(int(index))
    return kept


def _iou(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    total = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / total if total > 0 else 0.0


def yolo_locations(
    predictions: Array, prototypes: Array, image: tuple[int, int], grid: tuple[int, int], threshold: float = 0.25
) -> Array:
    """Map `[K, h, w]` of one image from columns centre, sides, class scores, coefficients."""
    depth = prototypes.shape[0]
    centre, sides = predictions[:2].T, predictions[2:4].T
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
    scores = predictions[4 : len(predictions) - depth]
    labels, best = scores.argmax(axis=0), scores.max(axis=0)
    candidates = np.flatnonzero(best > threshold)
    kept = candidates[suppress(boxes[candidates], best[candidates], labels[candidates], 0.7)]
    kept = kept[np.argsort(-best[kept], kind="stable")][:300]
    masks = [assemble(predictions[-depth:, i], prototypes, in_cells(boxes[i], image, grid), grid) for i in kept]
    return mean_of_masks(best[kept], labels[kept], np.array(masks).reshape(-1, *grid), len(scores))


def yolo_rows(
    rows: Array, prototypes: Array, image: tuple[int, int], grid: tuple[int, int], classes: int, threshold: float = 0.0
) -> Array:
    """Map `[K, h, w]` of one image from rows of corners, score, class, coefficients."""
    rows = rows[(rows[:, 4] > 0) & (rows[:, 4] >= threshold)]
    masks = [assemble(row[6:], prototypes, in_cells(row[:4], image, grid), grid) for row in rows]
    return mean_of_masks(rows[:, 4], rows[:, 5], np.array(masks).reshape(-1, *grid), classes)


def listed(
    boxes: Array,
    labels: Array,
    scores: Array,
    masks: Array,
    image: tuple[int, int],
    grid: tuple[int, int],
    classes: int,
) -> Array:
    """Map `[K, h, w]` from boxes `[M, 4]`, labels `[M]`, scores `[M]`, masks `[M, h, w]` of the image or boxes."""
    if masks.shape[1:] == tuple(image):
        drawn = [bilinear(mask.astype(np.float64), grid) for mask in masks]
    else:
        drawn = [paste(mask, in_cells(box, image, grid), grid) for mask, box in zip(masks, boxes, strict=True)]
    return mean_of_masks(scores, labels, np.array(drawn).reshape(-1, *grid), classes)


def queries(logits: Array, masks: Array, grid: tuple[int, int]) -> Array:
    """Map `[K, h, w]` of one image from class logits `[Q, K + 1]`, the last for no object, and mask logits."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    shares /= shares.sum(axis=1, keepdims=True)
    drawn = np.array([bilinear(1 / (1 + np.exp(-mask.astype(np.float64))), grid) for mask in masks])
    return mean_of_masks(shares.max(axis=1), shares.argmax(axis=1), drawn, logits.shape[1] - 1)


def in_cells(box: Array, image: tuple[int, int], grid: tuple[int, int]) -> Array:
    """Corners in pixels as corners in cells."""
    return box * np.array([grid[1] / image[1], grid[0] / image[0]] * 2)


def opened(model):
    """Runs a model: an image to all outputs, in order."""
    if isinstance(model, onnx.ModelProto):
        session = oracle.session(model)
        name = session.get_inputs()[0].name
        return lambda picture: session.run(None, {name: picture})
    compiled = oracle.compiled(model)
    return lambda picture: [np.array(value) for value in compiled([picture]).values()]
