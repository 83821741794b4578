"""Kinds of heads and outputs that are easily mistaken: the right class scores, in NumPy, or a refusal."""

import numpy as np
import onnx
import pytest

from tests import detection_oracle, oracle
from tests.models import Builder
from xai_insert import Options, errors, insert

GRID = 8


def small(**options):
    return Builder(batch=1, size=(2 * GRID, 2 * GRID), **options)


def conv(b, x, width):
    return b.node("Conv", x, b.weight(width, 6, 1, 1), b.weight(width))


def flat(b, x, width):
    """`[1, A * width, h, w]` to rows `[1, h * w * A, width]`."""
    return b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.const(np.array([1, -1, width], np.int64)))


def image():
    return np.random.default_rng(3).standard_normal((1, 3, 2 * GRID, 2 * GRID), dtype=np.float32)


def watched(model, names):
    """Values of the plain model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    outputs = oracle.run(copy, image())
    return [outputs[name] for name in names]


def maps(model, **options):
    return oracle.run(insert(model, Options(output_dtype="f32", **options)).model, image())["saliency_map"]


def dense(kind):
    """Networks that give something for every place."""
    b = small()
    x = conv(b, b.backbone(), 5 if kind.startswith("argmax") else 1)
    axis = b.const(np.array([1], np.int64))
    if kind == "depth":
        return b.model(b.node("Squeeze", b.node("Relu", x), axis))
    if kind == "mask":
        return b.model(b.node("Squeeze", b.node("Sigmoid", x), axis))
    if kind == "mask_map":
        return b.model(b.node("Sigmoid", x))
    return b.model(b.node("Cast", b.node("ArgMax", x, axis=1, keepdims=0), to=onnx.TensorProto.FLOAT))


@pytest.mark.parametrize(
    ("kind", "said"), [("depth", "depth"), ("mask", "mask"), ("mask_map", "mask"), ("argmax_float", "segmenter")]
)
def test_values_for_every_place_are_no_detections(kind, said):
    with pytest.raises(errors.UnsupportedTaskError, match=said):
        insert(dense(kind))


@pytest.mark.parametrize(("width", "said"), [(3, "key points"), (40, "text")])
def test_rows_without_classes_are_no_detections(width, said):
    b = small()
    x = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), 6, 7 * width)
    with pytest.raises(errors.UnsupportedTaskError, match=said):
        insert(b.model(b.node("Reshape", x, b.const(np.array([1, 7, width], np.int64)))))


def decoded(b, x):
    """Boxes around their locations."""
    return b.node("Exp", x)


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


def test_boxes_by_sigmoid_are_no_classes():
    model, scores = tokens_of_boxes(5)
    (logits,) = watched(model, [scores])
    wanted = detection_oracle.definition([logits.transpose(0, 2, 1).reshape(1, 5, GRID, GRID)], [1], 5)
    np.testing.assert_allclose(maps(model), wanted, atol=1e-6)


def test_four_classes_beside_boxes_by_sigmoid_are_refused():
    with pytest.raises(errors.AmbiguousModelError, match="both four wide"):
        insert(tokens_of_boxes(4)[0])
