"""Layouts of detectors' and segmenters' outputs, against arrays made by hand from the same two objects."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from xai_insert.explain.detections import Detections, Facts
from xai_insert.explain.errors import UnknownLayoutError
from xai_insert.explain.layouts import detections
from xai_insert.explain.masks import instances
from xai_insert.layouts.boxes import overlap
from xai_insert.layouts.record import Layout

HEIGHT, WIDTH = 100, 200
CLASSES = 5
PIXELS = np.array([[10, 20, 50, 80], [120, 10, 190, 60]], np.float32)
SHARES = PIXELS / [WIDTH, HEIGHT, WIDTH, HEIGHT]
LABELS, SCORES = np.array([2, 1]), np.array([0.9, 0.6], np.float32)
FACTS = Facts((HEIGHT, WIDTH), CLASSES)


def centred(boxes):
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def logit(shares):
    return np.log(shares) - np.log1p(-shares)


def grid(step=10, side=8.0):
    """Boxes of a dense detector's locations that see nothing, all over the input."""
    y, x = np.mgrid[0:HEIGHT:step, 0:WIDTH:step].reshape(2, -1) + step / 2
    return np.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], axis=1).astype(np.float32)


def dense():
    """Boxes in pixels and class scores of many locations; some neighbours see the same object, less surely."""
    boxes = np.concatenate([PIXELS, PIXELS + np.array([2, -1, 1, 2]), grid()]).astype(np.float32)
    scores = np.full((len(boxes), CLASSES), 0.01, np.float32)
    for index, (label, score) in enumerate(zip([*LABELS, *LABELS], [*SCORES, 0.5, 0.5], strict=True)):
        scores[index, label] = score
    return boxes, scores


def dense_with_objectness():
    boxes, scores = dense()
    share = np.full((len(boxes), 1), 0.8, np.float32)
    return np.concatenate([centred(boxes), share, scores / 0.8 * (scores < 0.8) + (scores >= 0.8)], axis=1)[None]


def rows(boxes):
    own = np.concatenate([boxes, SCORES[:, None], LABELS[:, None]], axis=1)
    return np.concatenate([own, np.zeros((3, 6))]).astype(np.float32)


def detection_output():
    own = np.concatenate([[[0], [0]], LABELS[:, None], SCORES[:, None], SHARES], axis=1)
    other = np.array([[1, 3, 0.99, 0, 0, 1, 1], [-1, 0, 0, 0, 0, 0, 0]])  # of another image, and the end
    return np.concatenate([own, other])[None, None].astype(np.float32)


def tensorflow():
    padded = np.zeros((1, 5, 4), np.float32)
    padded[0, :2] = SHARES[:, [1, 0, 3, 2]]
    labels, scores = np.ones((1, 5), np.float32), np.zeros((1, 5), np.float32)
    labels[0, :2], scores[0, :2] = LABELS, SCORES
    return [padded, labels, scores, np.array([2], np.float32)]


def queries(width):
    """Logits and boxes of queries, most of which see nothing; with `CLASSES + 1`, the last says so."""
    logits = np.full((1, 30, width), -6, np.float32)
    logits[0, :, CLASSES:] = 6
    for index, (label, score) in enumerate(zip(LABELS, SCORES, strict=True)):
        if width == CLASSES:
            logits[0, index, label] = logit(score)
        else:
            logits[0, index] = -40
            logits[0, index, [label, CLASSES]] = np.log([score, 1 - score])
    boxes = np.full((1, 30, 4), 0.3, np.float32)
    boxes[0, :2] = centred(SHARES)
    return [logits, boxes]


def scored_with_background(index, given):
    """Dense boxes, and scores with the background at `index` of the maps' classes, if it is given."""
    boxes, scores = dense()
    nothing = 1 - scores.max(axis=1, keepdims=True)
    places = [scores[:, :index], nothing, scores[:, index:]] if given else [scores]
    return [boxes[None], np.concatenate(places, axis=1)[None]]


LAYOUTS = {
    "rows": lambda: [rows(PIXELS)[None]],
    "rows of one image": lambda: [rows(PIXELS)],
    "rows in shares": lambda: [rows(SHARES)[None]],
    "DetectionOutput": lambda: [detection_output()],
    "lists": lambda: [PIXELS, LABELS, SCORES],
    "lists in another order": lambda: [SCORES[None], LABELS[None].astype(np.int32), PIXELS[None]],
    "lists in shares": lambda: [SHARES.astype(np.float32)[None], SCORES[None], LABELS[None]],
    "boxes with scores": lambda: [np.c_[PIXELS, SCORES].astype(np.float32)[None], LABELS[None]],
    "TensorFlow": tensorflow,
    "EfficientNMS": lambda: [np.array([[2]], np.int32), PIXELS[None], SCORES[None], LABELS[None].astype(np.int32)],
    "boxes and scores": lambda: [array[None] for array in dense()],
    "YOLO": lambda: [np.concatenate([centred(dense()[0]), dense()[1]], axis=1).T[None]],
    "YOLO by rows": lambda: [np.concatenate([centred(dense()[0]), dense()[1]], axis=1)[None]],
    "YOLO with objectness": lambda: [dense_with_objectness()],
    "RT-DETR": lambda: queries(CLASSES),
    "DETR": lambda: queries(CLASSES + 1),
}


def check(found, facts=FACTS, labels=LABELS, scores=SCORES):
    kept = found.found(0.3, facts.overlap)
    np.testing.assert_array_equal(found.classes[kept], labels)
    np.testing.assert_allclose(found.scores[kept], scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes[kept], SHARES, atol=1e-5)
    return kept


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_objects(layout):
    arrays = [array.astype(np.float32) if array.dtype == np.float64 else array for array in LAYOUTS[layout]()]
    if layout == "YOLO with objectness":
        check(detections(arrays, FACTS), scores=[0.8, 0.6])
    else:
        check(detections(arrays, FACTS))


@pytest.mark.parametrize(("index", "given", "shift"), [(0, True, 1), (0, False, 1), (CLASSES, True, 0)])
def test_classes_are_numbered_as_the_maps_are(index, given, shift):
    facts = Facts((HEIGHT, WIDTH), CLASSES + 1, background=index)
    check(detections(scored_with_background(index, given), facts), labels=LABELS + shift)


def test_background_of_raw_logits_takes_part_in_the_softmax():
    facts = Facts((HEIGHT, WIDTH), CLASSES + 1, background=0)
    logits, boxes = queries(CLASSES + 1)
    check(detections([np.roll(logits, 1, axis=2), boxes], facts), labels=LABELS + 1)


@pytest.mark.parametrize("shapes", [((0, 4), (0,), (0,)), ((1, 0, 5), (1, 0)), ((1, 0, 6),), ((0, 6),)])
def test_nothing_found(shapes):
    found = detections([np.zeros(shape, np.float32) for shape in shapes], FACTS)
    assert found.found(0.0, 0.5) == []
    assert found.best(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.zeros((1, 7600, 7)), np.zeros((1, 7600, 32))], "no outputs are boxes"),
        ([np.c_[centred(PIXELS), SCORES, LABELS][None]], "not two corners"),
        ([PIXELS, LABELS, LABELS + 1, SCORES], "several outputs could be the labels"),
        ([PIXELS, LABELS + CLASSES, SCORES], "there is a label 7, but the maps are those of 5 classes"),
        ([dense()[0][None], dense()[1][None], dense()[0][None]], "several outputs could be the boxes"),
        ([np.array([[[0.4, 0.4, 0.5, 0.5]]]), np.eye(1, CLASSES)[None]], "two corners as well as a centre"),
        ([np.random.default_rng(0).normal(0, 40, (1, 99, 4)), np.full((1, 99, CLASSES), 0.1)], "neither two corners"),
    ],
)
def test_no_guess(arrays, message):
    arrays = [array.astype(np.float32) if array.dtype == np.float64 else array for array in arrays]
    with pytest.raises(UnknownLayoutError, match=message):
        detections(arrays, FACTS)


def test_queries_without_known_classes_are_not_read():
    with pytest.raises(UnknownLayoutError):
        detections(queries(CLASSES), Facts((HEIGHT, WIDTH)))
    check(detections(queries(CLASSES), Facts.of(Layout(), (HEIGHT, WIDTH), None, CLASSES)))


def test_overlaps():
    box = np.array([0.0, 0.0, 2.0, 2.0])
    others = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 3, 3], [0, 0, 1, 1]], float)
    np.testing.assert_allclose(overlap(others, box), [1, 1 / 3, 0, 1 / 4])


def test_suppression_is_greedy_and_by_class():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [4, 0, 14, 10], [0, 0, 10, 10]], float)
    found = Detections(boxes, np.array([0, 0, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6]), is_dense=True)
    assert found.found(0.3, 0.5) == [0, 2, 3], "2 overlaps 1, which is gone"
    assert found.found(0.65, 0.5) == [0, 2]
    assert found.best(3).tolist() == [0.9, 0.6, 0]


# Masks


def discs():
    """Masks of the whole input, an ellipse in each box."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    middle, half = centred(PIXELS)[:, :2], centred(PIXELS)[:, 2:] / 2
    return np.stack(
        [((x - m[0]) / h[0]) ** 2 + ((y - m[1]) / h[1]) ** 2 < 1 for m, h in zip(middle, half, strict=True)]
    )


def per_box(side=28):
    cells = (np.arange(side) + 0.5) / side * 2 - 1
    one = (cells**2 + cells[:, None] ** 2 < 1).astype(np.float32)
    return np.stack([one, one])[:, None]


def quarter():
    return np.stack([cv2.resize(m.astype(np.float32), (WIDTH // 2, HEIGHT // 2), interpolation=3) for m in discs()])


def with_prototypes(form):
    """Two prototypes, a disc each; the coefficients choose."""
    prototypes = (quarter()[None] * 20 - 10).astype(np.float32)
    chosen = np.eye(2, dtype=np.float32)
    if form == "rows":
        return [np.c_[PIXELS, SCORES, LABELS, chosen][None].astype(np.float32), prototypes]
    boxes, scores = dense()
    coefficients = np.concatenate([chosen, chosen, np.ones((len(boxes) - 4, 2)) * -0.5])
    columns = np.concatenate([centred(boxes), scores, coefficients], axis=1)[None].astype(np.float32)
    return [prototypes, columns if form == "rows of locations" else columns.transpose(0, 2, 1)]


MASKS = {
    "of the image": (lambda: [PIXELS, LABELS, SCORES, discs()[:, None].astype(np.float32)], {}),
    "of boxes": (lambda: [PIXELS, LABELS, SCORES, per_box()], {"pastes_masks": True}),
    "of boxes with scores": (
        lambda: [np.c_[PIXELS, SCORES][None].astype(np.float32), LABELS[None], per_box()[None, :, 0]],
        {"pastes_masks": True},
    ),
    "rows": (lambda: with_prototypes("rows"), {"boxes": "corners-pixels"}),
    "locations": (lambda: with_prototypes("locations"), {"boxes": "centres-pixels"}),
    "rows of locations": (lambda: with_prototypes("rows of locations"), {}),
    "queries": (lambda: [queries(CLASSES + 1)[0][:, :2], quarter()[None] * 20 - 10], {}),
    "queries with shares": (lambda: [queries(CLASSES)[0][:, :2], quarter()[None]], {}),
}


@pytest.mark.parametrize("layout", MASKS)
def test_each_layout_gives_the_same_masks(layout):
    build, known = MASKS[layout]
    found = instances(build(), Facts((HEIGHT, WIDTH), CLASSES, **known))
    if "queries" in layout:
        np.testing.assert_allclose(found.boxes, SHARES, atol=0.011)  # of cells
        kept = found.found(0.3, 0.5)
        np.testing.assert_array_equal(found.classes[kept], LABELS)
    else:
        kept = check(found)
    for index, wanted in zip(kept, discs(), strict=True):
        mask = cv2.resize(found.mask(index), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) > 0.5
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.93


def test_masks_are_not_guessed():
    with pytest.raises(UnknownLayoutError, match="more than one, holds a mask"):
        instances([PIXELS, LABELS, SCORES, per_box(), discs().astype(np.float32)], FACTS)
    with pytest.raises(UnknownLayoutError, match="no outputs are instances"):
        instances([np.zeros((1, 3, 4, 4), np.float32)], FACTS)
    nothing = [np.zeros(shape, np.float32) for shape in ((0, 4), (0,), (0,), (0, 1, 28, 28))]
    assert instances(nothing, FACTS).found(0, 0.5) == []


def test_labels_of_a_table_stand_for_the_maps_of_their_classes():
    table = (3, 17, 44, 62, 90)
    own = np.concatenate([PIXELS, SCORES[:, None], np.array(table)[LABELS][:, None]], axis=1).astype(np.float32)
    found = detections([own], replace(FACTS, labels=table))
    np.testing.assert_array_equal(found.classes, LABELS)
    with pytest.raises(UnknownLayoutError, match="a label 44, which no class has"):
        detections([own], replace(FACTS, labels=(3, 17, 45, 62, 90)))
