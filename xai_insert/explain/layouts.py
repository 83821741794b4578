"""Reading boxes, classes and scores from the outputs of detectors, told apart by shape, type and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xai_insert.explain.detections import Detections, Facts, Floats, corners, numbered
from xai_insert.explain.errors import UnknownLayoutError
from xai_insert.explain.outputs import Array
from xai_insert.graph.items import present
from xai_insert.layouts.boxes import are_shares, are_whole

_BOX = 4
_ROW = 6
_DETECTION_OUTPUT = 7


def detections(arrays: Sequence[Array], facts: Facts) -> Detections:
    """Read the objects of the first image of a batch.

    Layouts, N images, M objects, L locations or queries, K classes:

    - rows `[N, M, 6]` or `[M, 6]`: corners, score, label; rows `[1, 1, M, 7]`: image, label, score, corners;
    - lists: boxes `[M, 4]` or `[N, M, 4]`, labels, scores; or boxes with scores `[N, M, 5]`, labels;
    - the same with a fourth output, the number of objects of each image, and labels that are floats: boxes are
      `y, x, y, x` in shares, as TensorFlow writes them;
    - boxes `[N, L, 4]` and class scores or logits `[N, L, K]`;
    - boxes and class scores together: `[N, 4 + K, L]` or `[N, L, 4 + K]`, or `[N, L, 5 + K]` with an objectness.

    Args:
        arrays: the model's outputs, without the maps.
        facts: what else is known of the model.

    Raises:
        UnknownLayoutError: no layout fits, or several outputs do.
    """
    for read in (rows, listed, scored, fused):
        found = read(arrays, facts)
        if found is not None:
            return numbered(_by_map(found, facts) if read in (rows, listed) else found, facts)
    raise UnknownLayoutError("no outputs are boxes with classes and scores of a known layout")


def _by_map(found: Detections, facts: Facts) -> Detections:
    """Numbers of maps for labels.

    Raises:
        UnknownLayoutError: an object has a label below that of the first map, or one that no class has.
    """
    if facts.labels:
        return replace(found, classes=_numbers(found, facts.labels))
    classes = found.classes - facts.first_label
    if facts.first_label and (classes[found.scores > 0] < 0).any():
        raise UnknownLayoutError(f"there is a label below {facts.first_label}, that of the first map")
    return replace(found, classes=classes)


def _numbers(found: Detections, labels: Sequence[int]) -> Array:
    """The number of the class that each label of a table stands for; 0 for what is padded."""
    numbers = {label: number for number, label in enumerate(labels)}
    unknown = {int(label) for label in found.classes[found.scores > 0]} - numbers.keys()
    if unknown:
        raise UnknownLayoutError(f"there is a label {min(unknown)}, which no class has")
    return np.array([numbers.get(int(label), 0) for label in found.classes], found.classes.dtype)


def is_whole(array: Array) -> bool:
    """Whether every element is a whole number, of whatever type, and none is negative but -1."""
    return are_whole(array) and (array.dtype.kind in "iu" or bool(array.min(initial=0) >= -1))


def are_scores(array: Array) -> bool:
    """Whether every element is a float in 0..1."""
    return array.dtype.kind == "f" and are_shares(array)


def only(found: Sequence[Detections]) -> Detections | None:
    """The only reading; None if there is none.

    Raises:
        UnknownLayoutError: there are several.
    """
    if len(found) > 1:
        raise UnknownLayoutError("several outputs could be the boxes")
    return found[0] if found else None


def _made(boxes: Floats, classes: Array, scores: Array) -> Detections:
    return Detections(boxes, np.asarray(classes, np.int64), np.asarray(scores, np.float64))


def rows(arrays: Sequence[Array], facts: Facts, extra: int = 0) -> Detections | None:
    """One row for each object; `extra` columns may follow. Rows of score 0 are padding."""
    read = [_rows_of(array, facts, extra) for array in arrays if array.dtype.kind == "f"]
    return only(present(read))


def _rows_of(array: Array, facts: Facts, extra: int) -> Detections | None:
    """The objects of one output, if it is such rows."""
    if array.ndim in (2, 3) and array.shape[-1] == _ROW + extra:
        return _six_columns(_of_first_image(array), facts)
    if array.ndim == _BOX and array.shape[:2] == (1, 1) and array.shape[3] == _DETECTION_OUTPUT:
        return _seven_columns(array[0, 0].astype(np.float64))
    return None


def _six_columns(own: Floats, facts: Facts) -> Detections | None:
    """Corners, score, label."""
    if not (are_scores(own[:, 4]) and is_whole(own[:, 5])):
        return None
    sure = own[:, 4] > 0
    boxes = np.zeros((len(own), _BOX))
    boxes[sure] = corners(own[sure, :_BOX], facts, are_centres=False)
    _require_corners(boxes)
    return _made(boxes, own[:, 5], own[:, 4])


def _seven_columns(own: Floats) -> Detections | None:
    """Image, label, score, corners."""
    if not (is_whole(own[:, :2]) and are_scores(own[:, 2])):
        return None
    own = own[own[:, 0] == 0]
    return _made(own[:, 3:], own[:, 1], own[:, 2])


def _of_first_image(array: Array) -> Floats:
    """Rows of the first image `[M, columns]` of `[M, columns]` or `[N, M, columns]`."""
    return (array if array.ndim == 2 else array[0]).astype(np.float64)


def _require_corners(boxes: Floats) -> None:
    if len(boxes) and (boxes[:, 2:] >= boxes[:, :2]).all(axis=1).mean() < 0.99:
        raise UnknownLayoutError("the four numbers of a box are not two corners")


def listed(arrays: Sequence[Array], facts: Facts) -> Detections | None:
    """One output for boxes, one for labels, and one for scores unless they stand behind the boxes."""
    found: list[tuple[Array, Detections, list[Array]]] = []
    misfits = []
    for boxes in arrays:
        try:
            read = _list_of(boxes, arrays, facts)
        except UnknownLayoutError as err:
            misfits.append(err)
        else:
            found += [(boxes, *read)] if read is not None else []
    if misfits and not found:
        raise misfits[0]
    read_as_numbers = [id(number) for _, _, numbers in found for number in numbers]
    return only([own for boxes, own, _ in found if id(boxes) not in read_as_numbers])


def _list_of(boxes: Array, arrays: Sequence[Array], facts: Facts) -> tuple[Detections, list[Array]] | None:
    """The list whose boxes an output may be, and the outputs with the numbers that belong to it."""
    if not _may_be_listed(boxes):
        return None
    lead = boxes.shape[:-1]
    numbers = [array for array in arrays if array is not boxes and _without_ones(array.shape) == _without_ones(lead)]
    if not lead[-1] and len(numbers) >= _ROW - boxes.shape[-1]:
        return _made(np.zeros((0, _BOX)), np.zeros(0), np.zeros(0)), numbers  # labels as well as scores
    own = _of_first_image(boxes)
    labels, scores = _labels_and_scores(own, numbers)
    if not labels or not scores:
        return None
    _require_one(labels, scores)
    images = 1 if boxes.ndim == 2 else lead[0]
    label, score = labels[0].reshape(images, -1)[0], scores[0].reshape(-1, lead[-1])[0]
    count = _count(arrays, labels[0], images) if boxes.ndim == 3 else None
    if count is not None:
        own, label, score = own[:count], label[:count], score[:count]
        own = _of_tensorflow(own) if labels[0].dtype.kind == "f" else own
    places = corners(own[:, :_BOX], facts, are_centres=False)
    _require_corners(places[score > 0])
    return _made(places, label, score), [*labels, *scores]


def _require_one(labels: Sequence[Array], scores: Sequence[Array]) -> None:
    if len(labels) > 1 or len(scores) > 1:
        raise UnknownLayoutError("several outputs could be the labels or the scores")


def _may_be_listed(boxes: Array) -> bool:
    """Whether an output has the sizes of a list of boxes, with scores behind them or not."""
    return boxes.dtype.kind == "f" and boxes.ndim in (2, 3) and boxes.shape[-1] in (_BOX, _BOX + 1)


def _of_tensorflow(boxes: Floats) -> Floats:
    """Boxes that TensorFlow wrote, with x before y."""
    if np.abs(boxes).max(initial=0) > 2:
        raise UnknownLayoutError("boxes with a count beside them are not in shares of the image")
    return boxes[:, [1, 0, 3, 2]]


def _labels_and_scores(boxes: Floats, numbers: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Which outputs may be the labels and which the scores of boxes `[M, 4 or 5]`."""
    labels = [array for array in numbers if array.dtype.kind in "iu"] or list(filter(is_whole, numbers))
    if boxes.shape[1] > _BOX:
        return labels, [boxes[:, _BOX]] if are_scores(boxes[:, _BOX]) else []
    return labels, [array for array in numbers if are_scores(array) and not any(array is label for label in labels)]


def _count(arrays: Sequence[Array], labels: Array, images: int) -> int | None:
    """How many of the first image's boxes count, if one output says that."""
    counts = [array for array in arrays if array.size == images and array.ndim <= 2 and is_whole(array)]
    counts = [array for array in counts if array is not labels]
    return int(counts[0].reshape(-1)[0]) if len(counts) == 1 else None


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def scored(arrays: Sequence[Array], facts: Facts) -> Detections | None:
    """Boxes and class scores of the same locations or queries, in two outputs."""
    found = [_scored(boxes, scores, facts) for boxes in arrays if _are_located(boxes) for scores in arrays]
    return only(present(found))


def _are_located(boxes: Array) -> bool:
    return boxes.ndim == 3 and boxes.shape[2] == _BOX and boxes.dtype.kind == "f"


def _scored(boxes: Array, scores: Array, facts: Facts) -> Detections | None:
    if scores is boxes or scores.ndim != 3 or scores.shape[:2] != boxes.shape[:2]:
        return None
    read, is_query = class_scores(scores[0], facts), not are_scores(scores)
    if read is None or (is_query and not are_scores(boxes)):
        return None  # logits stand beside distances yet to be decoded, but for queries
    places = corners(boxes[0], facts, True if is_query else None)
    return Detections(places, *best_of(read), is_dense=not is_query)


def best_of(scores: Floats) -> tuple[Array, Floats]:
    """The best class of each row and its score."""
    best = scores.argmax(axis=1)
    return best, np.take_along_axis(scores, best[:, None], 1)[:, 0]


def class_scores(values: Array, facts: Facts) -> Floats | None:
    """Scores `[L, K]` in 0..1, by number of the map and 0 for a background; None if these are no class scores.

    Args:
        values: scores or logits `[L, width]`, of the classes, or of those and one more that says there is no object.
        facts: says how many classes there are.
    """
    if facts.classes is None or values.dtype.kind != "f":
        return None
    more = values.shape[1] - facts.classes  # one for no object, or one less where the background is left out
    lacks_background = facts.background == 0 and more == -1
    if more not in (0, 1) and not lacks_background:
        return None
    scores = values.astype(np.float64)
    if not are_scores(values):
        is_exclusive = more == 1 or (facts.background is not None and not lacks_background)
        scores = _softmax(scores) if is_exclusive else sigmoid(scores)
    if more == 1:
        return scores[:, : facts.classes]
    return np.pad(scores, ((0, 0), (1, 0))) if lacks_background else _without(scores, facts.background)


def _without(scores: Floats, background: int | None) -> Floats:
    """Scores with 0 for the background, where there is one."""
    if background is not None:
        scores[:, background] = 0
    return scores


def sigmoid(values: Floats) -> Floats:
    """Independent scores of logits."""
    return np.asarray(1 / (1 + np.exp(-values.clip(-500, 500))), np.float64)


def _softmax(values: Floats) -> Floats:
    """Scores of exclusive classes, of logits `[L, K]`."""
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def fused(arrays: Sequence[Array], facts: Facts, extra: int = 0) -> Detections | None:
    """Boxes and class scores of the same locations, in one output; `extra` values may follow."""
    if facts.classes is None:
        return None
    width = _BOX + facts.classes + extra
    located = [array for array in arrays if array.ndim == 3 and array.dtype.kind == "f"]
    rows = [array[0].T for array in located if array.shape[1] == width]
    rows += [array[0] for array in located if array.shape[2] in (width, width + 1)]
    read = [_fused(own, own.shape[1] - width, facts) for own in rows]
    return only(present(read))


def _fused(own: Array, objectness: int, facts: Facts) -> Detections | None:
    assert facts.classes is not None
    first = _BOX + objectness
    scores = own[:, _BOX : first + facts.classes]
    if not are_scores(scores):
        return None
    read = scores[:, objectness:].astype(np.float64)
    if objectness:
        read = read * scores[:, :1]
    return Detections(corners(own[:, :_BOX], facts), *best_of(read), is_dense=True)
