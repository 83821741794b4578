"""Detectors in which several heads could hold the classes: the right one, in NumPy, or a refusal that says why."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import detection_oracle, models, oracle
from model_zoo_fixtures.testbed.grid_heads import GRID, conv, decoded, flat, image, maps, small, watched
from model_zoo_fixtures.testbed.models import Builder
from xai_insert import Options, errors, insert


def attributes(*, wide=7):
    """One level, three classes beside sigmoids of another width or of the same: `[1, 4 + 3 + wide, 64]`."""
    b = small()
    x = b.backbone()
    heads = [conv(b, x, width) for width in (4, 3, wide)]
    parts = [decoded(b, heads[0]), *(b.node("Sigmoid", head) for head in heads[1:])]
    joined = b.node("Concat", *parts, axis=1)
    output = b.node("Reshape", joined, b.const(np.array([1, 7 + wide, GRID * GRID], np.int64)))
    return b.model(output), heads[1:]


@pytest.mark.parametrize("number", [0, 1])
def test_num_classes_tells_classes_from_attributes(number):
    model, heads = attributes()
    (scores,) = watched(model, [heads[number]])
    wanted = detection_oracle.definition([scores], [1], scores.shape[1])
    np.testing.assert_allclose(maps(model, num_classes=(3, 7)[number]), wanted, atol=1e-6)


@pytest.mark.parametrize("wide", [7, 3])
def test_two_heads_that_fit_are_refused_with_both_names(wide):
    model, heads = attributes(wide=wide)
    with pytest.raises(errors.AmbiguousModelError) as refusal:
        insert(model)
    assert all(name in str(refusal.value) for name in heads)


def test_a_number_of_classes_that_no_head_has_is_refused():
    with pytest.raises(errors.TargetNotFoundError, match=r"--num-classes 5.*3 classes.*7 classes"):
        insert(attributes()[0], Options(num_classes=5))


def test_classes_go_before_visibilities_of_key_points():
    """A pose detector: 2 classes beside 3 key points of place and visibility."""
    b = small()
    x = b.backbone()
    boxes, classes, points = (conv(b, x, width) for width in (4, 2, 9))
    split = b.node("Reshape", points, b.const(np.array([1, 3, 3, GRID, GRID], np.int64)))
    places, seen = (
        b.node("Slice", split, *(b.const(np.array([v], np.int64)) for v in (start, end, 2)))
        for start, end in ((0, 2), (2, 3))
    )
    places = b.node("Mul", places, b.const(np.array(2, np.float32)))
    points = b.node("Concat", places, b.node("Sigmoid", seen), axis=2)
    points = b.node("Reshape", points, b.const(np.array([1, 9, GRID, GRID], np.int64)))
    joined = b.node("Concat", decoded(b, boxes), b.node("Sigmoid", classes), points, axis=1)
    model = b.model(b.node("Reshape", joined, b.const(np.array([1, 15, GRID * GRID], np.int64))))
    (scores,) = watched(model, [classes])
    np.testing.assert_allclose(maps(model), detection_oracle.definition([scores], [1], 2), atol=1e-6)


@pytest.mark.parametrize("order", ["anchors", "flat"])
def test_heads_doubled_on_a_level_are_more_anchors(order):
    """Single-shot detectors with two kinds of anchors on one feature, each with heads of its own."""
    b = small()
    x = b.backbone()
    classes, boxes = [conv(b, x, 2 * 3) for _ in range(2)], [conv(b, x, 2 * 4) for _ in range(2)]
    if order == "anchors":
        joined = b.node("Concat", *(flat(b, head, 3) for head in classes), axis=1)
    else:
        joined = b.node("Concat", *(flat(b, head, 2 * 3 * GRID * GRID) for head in classes), axis=1)
        joined = b.node("Reshape", joined, b.const(np.array([1, -1, 3], np.int64)))
    scores = b.node("Softmax", joined, axis=2)
    model = b.model(scores, decoded(b, b.node("Concat", *(flat(b, head, 4) for head in boxes), axis=1)))
    both = np.concatenate(watched(model, classes), axis=1)
    np.testing.assert_allclose(maps(model), detection_oracle.definition([both], [4], 3), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}])
@pytest.mark.parametrize("anchors", [(1, 2), (2, 1), (2, 3), (2, 4)])
def test_heads_of_a_level_may_differ_in_anchors(anchors, options):
    b = small()
    x = b.backbone()
    classes, boxes = ([conv(b, x, count * width) for count in anchors] for width in (3, 4))
    scores = b.node("Softmax", b.node("Concat", *(flat(b, head, 3) for head in classes), axis=1), axis=2)
    model = b.model(scores, decoded(b, b.node("Concat", *(flat(b, head, 4) for head in boxes), axis=1)))
    both = np.concatenate(watched(model, classes), axis=1)
    wanted = detection_oracle.definition([both], [sum(anchors)], 3)
    np.testing.assert_allclose(maps(model, **options), wanted, atol=1e-6)


def tokens_of_boxes(classes):
    """Per token a box by sigmoid, and scores by products with normalised embeddings, scaled and moved."""
    b = small()
    x = b.node("Reshape", b.backbone(), b.const(np.array([1, 6, GRID * GRID], np.int64)))
    x = b.node("Transpose", x, perm=[0, 2, 1])
    embedded = b.node("MatMul", x, b.weight(6, 8))
    length = b.node("ReduceL2", embedded, axes=[2], keepdims=1)
    products = b.node("MatMul", b.node("Div", embedded, length), b.weight(8, classes))
    scores = b.node("Mul", products, b.node("Exp", b.node("MatMul", x, b.weight(6, 1))))
    scores = b.node("Add", scores, b.node("MatMul", x, b.weight(6, 1)))
    hidden = b.node("Relu", b.node("MatMul", x, b.weight(6, 6)))
    return b.model(scores, b.node("Sigmoid", b.node("MatMul", hidden, b.weight(6, 4)))), scores


@pytest.mark.parametrize("classes", [1, 2, 5, 8])
def test_boxes_by_sigmoid_are_no_classes(classes):
    model, scores = tokens_of_boxes(classes)
    (logits,) = watched(model, [scores])
    wanted = detection_oracle.definition([logits.transpose(0, 2, 1).reshape(1, classes, GRID, GRID)], [1], classes)
    np.testing.assert_allclose(maps(model), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_number_of_classes_makes_no_classes_of_boxes_by_sigmoid(kind):
    model, _ = tokens_of_boxes(5)
    given = models.as_format(model, kind)
    np.testing.assert_allclose(maps(given, num_classes=5), maps(given), atol=1e-6)
    with pytest.raises(errors.TargetNotFoundError, match="no class head has --num-classes 3"):
        insert(given, Options(num_classes=3))


def test_four_classes_beside_boxes_by_sigmoid_are_refused():
    with pytest.raises(errors.AmbiguousModelError, match="both four wide"):
        insert(tokens_of_boxes(4)[0])


def test_boxes_of_classes_want_the_number_of_classes():
    """Boxes `[1, L, 3, 4]` beside scores `[1, L, 3]`: of each class, or anchors of one class."""
    b = small()
    x = b.backbone()
    classes = conv(b, x, 3)
    boxes = b.node("Reshape", flat(b, conv(b, x, 12), 12), b.const(np.array([1, -1, 3, 4], np.int64)))
    model = b.model(b.node("Sigmoid", flat(b, classes, 3)), decoded(b, boxes))
    with pytest.raises(errors.AmbiguousModelError, match="--num-classes"):
        insert(model)
    (scores,) = watched(model, [classes])
    wanted = detection_oracle.definition([scores], [1], 3)
    np.testing.assert_allclose(maps(model, num_classes=3), wanted, atol=1e-6)
    np.testing.assert_allclose(maps(model, num_classes=1), scores.max(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("classes", [5, 4])
def test_classes_before_bins_of_boxes(classes):
    """Classes and 32 bins in one head, undecoded: 4 + 32 channels may be 4 anchors of 5 + 4 as well."""
    b = small()
    head = conv(b, b.backbone(), classes + 32)
    rows = b.node("Reshape", head, b.const(np.array([1, classes + 32, -1], np.int64)))
    model = b.model(b.node("Transpose", rows, perm=[0, 2, 1]))
    for options in ({}, {"num_classes": 4}) if classes == 4 else ({},):
        with pytest.raises(errors.AmbiguousModelError, match=r"undecoded, and .* not tell"):
            insert(model, Options(**options))
    if classes == 5:
        (scores,) = watched(model, [head])
        wanted = detection_oracle.definition([scores[:, :5]], [1], 5)
        np.testing.assert_allclose(maps(model, num_classes=5), wanted, atol=1e-6)


def test_heads_of_equal_width_stay_open_with_a_number_of_classes():
    b = small()
    x = b.backbone()
    coarse = b.node("Conv", x, b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2])
    heads = [conv(b, feature, 12) for feature in (x, coarse, x, coarse)]
    with pytest.raises(errors.AmbiguousModelError, match="--num-classes 3 does not tell"):
        insert(b.model(*heads), Options(num_classes=3))


def undecoded_rows(classes, *, order=(0, 1), middle=False):
    """Boxes `[1, L, 4]` and raw scores `[1, L, K]` of three levels, of 3, 6 and 6 anchors, the last of one cell."""
    b = small()
    fine = b.backbone()
    coarse = b.node("Relu", b.node("Conv", fine, b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[4, 4]))
    levels = (fine, coarse, b.node("Relu", b.node("Conv", coarse, b.weight(6, 6, 2, 2))))
    pairs = [(conv(b, x, 4 * count), conv(b, x, classes * count)) for x, count in zip(levels, (3, 6, 6), strict=True)]
    joined = [
        b.node("Concat", *(flat(b, head, width) for head in heads), axis=1)
        for heads, width in zip(zip(*pairs, strict=True), (4, classes), strict=True)
    ]
    if middle:
        joined[0] = b.node("Unsqueeze", joined[0], b.const(np.array([2], np.int64)))
    return b.model(*(joined[i] for i in order)), [scores for _, scores in pairs]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    ("classes", "options", "form"),
    [
        (24, {}, {}),
        (24, {"num_classes": 24}, {"order": (1, 0)}),
        (12, {}, {"middle": True}),
        (2, {}, {}),
    ],
)
def test_outputs_tell_boxes_from_scores_where_widths_do_not(classes, options, form, kind):
    """As the TensorFlow detection API exports an SSD: six boxes of a place are as wide as 24 classes."""
    model, heads = undecoded_rows(classes, **form)
    result = insert(models.as_format(model, kind), Options(output_dtype="f32", **options))
    assert [head["anchors"] for head in result.report.heads] == [3, 6, 6]
    wanted = detection_oracle.definition(watched(model, heads), [3, 6, 6], classes)
    found = oracle.run(result.model, image())["saliency_map"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_outputs_of_boxes_and_of_four_classes_stay_open():
    model, _ = undecoded_rows(4)
    with pytest.raises(errors.AmbiguousModelError, match="do not tell classes from boxes"):
        insert(model)


@pytest.mark.parametrize("size", [("H", "W"), (16, 16)])
def test_an_order_that_open_sizes_hide_is_refused_with_the_option_that_gives_them(size):
    """A head of one cell alone, at the size with which open sides are tried."""
    b = Builder(batch=1, size=size)
    x = b.node("Conv", b.backbone(), b.weight(6, 6, 8, 8), strides=[128, 128])
    boxes, scores = (flat(b, conv(b, x, 3 * width), width) for width in (4, 3))
    with pytest.raises(errors.TargetNotFoundError, match="order of classes and anchors") as refused:
        insert(b.model(decoded(b, boxes), b.node("Softmax", scores, axis=2)))
    assert ("--input-shape image:1,3,224,224" in str(refused.value)) == ("H" in size)
