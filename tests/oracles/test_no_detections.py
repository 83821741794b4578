"""What is easily mistaken for detections: values of every place, and rows without classes or without places."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import detection_oracle, models
from model_zoo_fixtures.testbed.grid_heads import GRID, conv, maps, small, watched
from xai_insert import Options, errors, insert


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


@pytest.mark.parametrize(("kind", "said"), [("depth", "depth"), ("mask", "mask"), ("mask_map", "mask")])
def test_values_for_every_place_are_no_detections(kind, said):
    with pytest.raises(errors.UnsupportedTaskError, match=said):
        insert(dense(kind))


def test_an_argmax_of_every_place_is_no_detection():
    assert insert(dense("argmax_float")).report.task == "semantic segmentation"


def maps_beside_each_other(kind):
    """Two or three values for every place, some of them in 0..1: none has room for a box."""
    b = small()
    x = b.backbone()
    depth, confidence = b.node("Relu", conv(b, x, 1)), b.node("Sigmoid", conv(b, x, 1))
    axis = b.const(np.array([1], np.int64))
    if kind == "confidence":
        return b.model(*(b.node("Squeeze", value, axis) for value in (depth, confidence)))
    if kind == "confidence_map":
        return b.model(confidence, depth)
    if kind == "classes":
        return b.model(b.node("Squeeze", depth, axis), b.node("Softmax", conv(b, x, 5), axis=1))
    if kind == "flow":
        return b.model(confidence, conv(b, x, 2))
    if kind == "flows":
        coarse = b.node("Conv", x, b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2])
        return b.model(confidence, *(conv(b, feature, 2) for feature in (x, coarse)))
    return b.model(depth, conv(b, x, 3), confidence)


@pytest.mark.parametrize("kind", ["confidence", "confidence_map", "classes", "flow", "flows", "normals"])
@pytest.mark.parametrize("options", [{}, {"num_classes": 1}, {"num_classes": 5}])
def test_scores_beside_a_depth_or_a_flow_are_no_detections(kind, options):
    with pytest.raises(errors.UnsupportedTaskError, match="every place of the image"):
        insert(maps_beside_each_other(kind), Options(**options))


def test_scores_beside_sizes_and_offsets_are_detections():
    """Objects as points (CenterNet): scores, and a box in two heads of two channels."""
    b = small()
    x = b.backbone()
    classes, size, offset = (conv(b, x, width) for width in (3, 2, 2))
    model = b.model(b.node("Sigmoid", classes), b.node("Exp", size), offset)
    (scores,) = watched(model, [classes])
    np.testing.assert_allclose(maps(model), detection_oracle.definition([scores], [1], 3), atol=1e-6)


@pytest.mark.parametrize(("width", "said"), [(3, "key points"), (4, "as of attributes"), (40, "text")])
def test_rows_without_classes_are_no_detections(width, said):
    b = small()
    x = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), 6, 7 * width)
    with pytest.raises(errors.UnsupportedTaskError, match=said):
        insert(b.model(b.node("Reshape", x, b.const(np.array([1, 7, width], np.int64)))))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_a_pose_beside_a_depth_map_is_no_detection(first, rank):
    b = small()
    x = b.backbone()
    depth = b.node("Sigmoid", conv(b, x, 1))
    pose = b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 6, 6)
    if rank == 3:
        pose = b.node("Reshape", pose, b.const(np.array([1, 1, 6], np.int64)))
    report = insert(b.model(pose, depth) if first else b.model(depth, pose)).report
    assert (report.task, report.logits["classes"], report.target["grid"]) == ("classification", 6, (8, 8))


def test_raw_scores_of_every_place_are_semantic_segmentation():
    b = small()
    model = b.model(conv(b, b.backbone(), 21))
    assert insert(model).report.task == "semantic segmentation"
    with pytest.raises(errors.XaiInsertError, match="semantic segmentation"):
        insert(model, Options(num_classes=21))


def read_text(b):
    """Scores `[T, 1, K]` of the characters along the columns, as CRNN gives them."""
    x = b.node("ReduceMean", b.backbone(), axes=[2], keepdims=0)
    return b.model(b.node("MatMul", b.node("Transpose", x, perm=[2, 0, 1]), b.weight(6, 37)))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_scores_of_several_steps_are_no_classes(kind):
    with pytest.raises(errors.UnsupportedTaskError, match="looks like text"):
        insert(models.as_format(read_text(small()), kind))


def test_a_size_of_the_image_is_no_row_of_places():
    """A depth whose rows and columns are lost on the way to it."""
    b = small()
    lost = b.node("Gemm", b.node("Flatten", b.backbone()), b.weight(6 * GRID * GRID, 4 * GRID * GRID))
    with pytest.raises(errors.UnsupportedTaskError, match="depth"):
        insert(b.model(b.node("Reshape", lost, b.const(np.array([1, 2 * GRID, 2 * GRID])))))
