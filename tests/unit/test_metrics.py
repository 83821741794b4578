"""The measures of faithfulness on cases whose answer is known."""

from itertools import pairwise

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_zoo_fixtures.testbed.faithful_models import SHAPES, Model, shape_samples
from xai_insert import Explainer, Options, insert_file
from xai_insert.evaluate import metrics
from xai_insert.evaluate.evaluation import Evaluation
from xai_insert.evaluate.imputation import imputed
from xai_insert.evaluate.measure import faithfulness
from xai_insert.evaluate.subject import Subject
from xai_insert.explain.files import Source

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


# A second implementation, in NumPy alone


def blurred(image, side, sigma):
    offsets = np.arange(side) - side // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in (2, 3):
        padded = np.pad(image, [(side // 2, side // 2) if axis == a else (0, 0) for a in range(4)], mode="reflect")
        parts = [np.take(padded, np.arange(image.shape[axis]) + shift, axis) for shift in range(side)]
        image = sum(weight * part for weight, part in zip(kernel, parts, strict=True))
    return image


def areas(image, saliency, score, steps):
    """Insertion and deletion, a pixel at a time."""
    ranked = sorted(np.ndindex(saliency.shape), key=lambda place: (-saliency[place], place))
    side = max(saliency.shape) // 10 * 2 + 1
    means = np.broadcast_to(image.mean((2, 3), keepdims=True), image.shape)
    found = []
    for start, end in ((blurred(image, side, side / 4), image), (image, means)):
        state, heights, changed = start.copy(), [], 0
        for step in range(steps + 1):
            while changed < round(step * len(ranked) / steps):
                row, column = ranked[changed]
                state[:, :, row, column] = end[:, :, row, column]
                changed += 1
            heights.append(float(score(state.astype(np.float32))[0]))
        found.append(sum((a + b) / 2 for a, b in pairwise(heights)) / steps)
    return found


@pytest.mark.parametrize("steps", [1, 7, 32])
def test_insertion_and_deletion_by_another_hand(steps):
    rng = np.random.default_rng(steps)
    image = rng.random((1, 3, SIDE, SIDE), np.float32)
    saliency = np.round(rng.random((SIDE, SIDE)), 1).astype(np.float32)  # many are equal
    weights = rng.random((3, SIDE, SIDE)) / (3 * SIDE**2)

    def score(images):
        return (images * weights).sum((1, 2, 3)) ** 2

    assert metrics.curves(image, saliency, score, steps) == pytest.approx(
        areas(image, saliency, score, steps), abs=1e-6
    )


# ROAD and ARCC


def filled_by_hand(image, removed):
    """The equations of the paper, solved as they stand."""
    height, width = removed.shape
    places = [tuple(place) for place in np.argwhere(removed)]
    left, right = np.zeros((len(places), len(places))), np.zeros((len(places), len(image)))
    for row, (y, x) in enumerate(places):
        for dy, dx in [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]:
            other = (y + dy, x + dx)
            if not (0 <= other[0] < height and 0 <= other[1] < width):
                continue
            weight = 1 / 6 if 0 in (dy, dx) else 1 / 12
            left[row, row] += weight
            if other in places:
                left[row, places.index(other)] -= weight
            else:
                right[row] += weight * image[:, other[0], other[1]]
    result = image.astype(np.float64)
    result[:, removed] = np.linalg.solve(left, right).T
    return result


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 6, 9), (3, 20, 17)])
def test_removed_pixels_are_filled_in_as_the_paper_says(shape):
    rng = np.random.default_rng(0)
    image = rng.random(shape).astype(np.float32) * 255
    removed = rng.random(shape[1:]) < 0.5
    found = imputed(image, removed, noise=0)
    np.testing.assert_allclose(found, filled_by_hand(image, removed), atol=1e-2 * image.std())
    assert (found[:, ~removed] == image[:, ~removed]).all()


def test_one_pixel_is_the_mean_of_its_neighbours():
    image = np.array([[[1, 2, 3], [4, 99, 6], [7, 8, 9]]], np.float32)
    removed = np.zeros((3, 3), bool)
    removed[1, 1] = True
    assert imputed(image, removed, noise=0)[0, 1, 1] == pytest.approx((1 + 3 + 7 + 9) / 12 + (2 + 4 + 6 + 8) / 6)
    removed[:] = True
    np.testing.assert_allclose(imputed(image, removed, noise=0), image.mean(), rtol=1e-6)


def test_noise_is_a_hundredth_of_the_spread_and_the_same_each_time():
    image = np.random.default_rng(0).random((3, 64, 64)).astype(np.float32)
    removed = np.zeros((64, 64), bool)
    removed[::2] = True
    added = imputed(image, removed, seed=3) - imputed(image, removed, noise=0)
    assert added[:, removed].std() == pytest.approx(0.01 * image.std(), rel=0.05)
    assert (imputed(image, removed, seed=3) == imputed(image, removed, seed=3)).all()


def test_road(image, corner):
    """Of a row of light: without the most salient quarter the light is gone, without the least all of it is there."""
    assert metrics.road(image, corner, lit_corner, [0.25]) == pytest.approx((1 - 0) / 2, abs=0.02)
    assert metrics.road(image, 1 - corner, lit_corner, [0.25]) == pytest.approx(-0.5, abs=0.02)
    both = [metrics.road(image, corner, lit_corner, [share]) for share in (0.25, 0.5)]
    assert metrics.road(image, corner, lit_corner, [0.25, 0.5]) == pytest.approx(np.mean(both), abs=0.01)


def test_arcc():
    assert metrics.arcc(0.5, 1.0, 0.0) == 1
    assert metrics.arcc(0.25, 1.0, 0.5) == pytest.approx(3 / (2 + 1 + 2))
    assert metrics.arcc(-0.1, 1.0, 0.0) == 0
    assert metrics.arcc(0.5, 0.5, 0.75) == pytest.approx(3 / (1 + 2 + 4))


# Places


def test_pointing_and_energy():
    saliency = np.zeros((4, 6), np.float32)
    saliency[1, 2], saliency[3, 5] = 1, 0.5
    assert metrics.is_hit(saliency, [(2, 1, 3, 2)])
    assert not metrics.is_hit(saliency, [(3, 1, 6, 4), (0, 2, 6, 4)])
    assert metrics.energy(saliency, [(2, 1, 3, 2)]) == pytest.approx(2 / 3)
    assert metrics.energy(saliency, [(0, 0, 6, 4), (0, 0, 6, 4)]) == pytest.approx(1)
    assert metrics.energy(saliency, [(5.5, 3, 6, 3.5)]) == pytest.approx(0.5 * 0.25 / 1.5)
    assert metrics.energy(np.zeros((2, 2), np.float32), [(0, 0, 2, 2)]) == 0


def test_distance_and_correlation_of_two_maps():
    one, other = np.zeros((2, 4, 3), np.float32)
    one[0, 0] = other[3, 2] = 1
    assert metrics.peak_distance(one, other) == pytest.approx(np.hypot(3, 2) / 5)
    assert metrics.correlation(one, one) == pytest.approx(1)
    assert metrics.correlation(one, np.ones_like(one)) is None


def test_the_figures_are_those_of_the_benchmark(tmp_path):
    """Of the same map and image, whichever way the model is run."""
    path = tmp_path / "m.onnx"
    insert_file(SHAPES / "shapes_cnn.onnx", path, Options(output_dtype="f32"))
    sample = shape_samples(1)[0]
    cv2.imwrite(str(tmp_path / "0.png"), sample.picture[..., ::-1])
    found = Evaluation(Subject(Explainer(path)), steps=8).measure(Source(tmp_path / "0.png", "0"))
    model = Model(SHAPES / "shapes_cnn.onnx")
    class_id = int(model.probabilities(sample.image)[0].argmax())

    def explain(image):
        return metrics.scaled(model.raw_map("recipro-cam", image, class_id), (96, 96))

    def score(images):
        return model.probabilities(images)[:, class_id]

    expected = faithfulness(sample.image, explain(sample.image), score, explain, 0.0, 8)
    assert found["maps"]["recipro-cam"] == pytest.approx(expected, abs=1e-4)
