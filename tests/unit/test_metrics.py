"""The measures of faithfulness on cases whose answer is known."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.faithfulness import metrics
from benchmarks.faithfulness.compare import SHAPES, Model, shape_samples

SIDE = 20


def lit_corner(images):
    """The score is the mean brightness of the upper left quarter."""
    return images[:, 0, : SIDE // 2, : SIDE // 2].mean((1, 2))


@pytest.fixture
def image():
    picture = np.zeros((1, 3, SIDE, SIDE), np.float32)
    picture[:, :, : SIDE // 2, : SIDE // 2] = 1
    return picture


@pytest.fixture
def corner():
    saliency = np.zeros((SIDE, SIDE), np.float32)
    saliency[: SIDE // 2, : SIDE // 2] = 1
    return saliency


def test_insertion_and_deletion(image, corner):
    right = metrics.curves(image, corner, lit_corner, 20)
    wrong = metrics.curves(image, 1 - corner, lit_corner, 20)
    assert right[0] > wrong[0] + 0.05
    # A quarter of the pixels fall from 1 to the mean, 0.25, in five steps; then nothing changes.
    assert right[1] == pytest.approx((5 * (1 + 0.25) / 2 + 15 * 0.25) / 20, abs=1e-6)
    assert wrong[1] == pytest.approx((15 * 1 + 5 * (1 + 0.25) / 2) / 20, abs=1e-6)


def test_average_drop(image, corner):
    assert metrics.average_drop(image, corner, lit_corner, 0.0) == 0
    assert metrics.average_drop(image, corner / 2, lit_corner, 0.0) == pytest.approx(0.5)
    assert metrics.average_drop(image, 1 - corner, lit_corner, 0.0) == 1


def test_coherency(image, corner):
    assert metrics.coherency(image, corner, lambda _: corner, 0.0) == pytest.approx(1)
    assert metrics.coherency(image, corner, lambda _: 1 - corner, 0.0) == pytest.approx(0)
    assert metrics.coherency(image, corner, np.zeros_like, 0.0) == 0


def test_adcc(corner):
    assert metrics.complexity(corner) == pytest.approx(0.25)
    assert metrics.adcc(0.0, 1.0, 0.0) == 1
    assert metrics.adcc(0.5, 1.0, 0.5) == pytest.approx(3 / (2 + 1 + 2))
    assert metrics.adcc(1.0, 1.0, 0.0) == 0


def test_scaling_to_the_image():
    raw = np.array([[3.0, 7.0], [3.0, 3.0]], np.float32)
    unit = metrics.scaled(raw, (8, 8))
    assert unit.min() == 0
    assert unit.max() == 1
    assert unit[0, -1] == 1
    assert not metrics.scaled(np.full((2, 2), 5.0, np.float32), (8, 8)).any()


def test_grad_cam_of_a_linear_head_is_the_class_activation_map():
    model, path = Model(SHAPES / "shapes_cnn.onnx"), SHAPES / "shapes_cnn.onnx"
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    linear = next(node for node in onnx.load(path).graph.node if node.op_type == "Gemm")
    image = shape_samples(1)[0].image
    feature = model._parts.feature(image)[0]
    for class_id in (0, 5):
        expected = np.maximum(np.tensordot(weights[linear.input[1]][class_id], feature, 1), 0)
        found = model.raw_map("grad-cam", image, class_id)
        np.testing.assert_allclose(found, expected, atol=2e-3 * expected.max())
