"""The generated shape images and the models trained on them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest
from numpy.typing import NDArray

from model_zoo_fixtures.shapes import evaluate
from model_zoo_fixtures.shapes.dataset import (
    CLASS_NAMES,
    HELD_OUT_SEED,
    IMAGE_SIZE,
    Scene,
    classification_batch,
    classification_scene,
    multi_object_scene,
)

FOLDER = Path(evaluate.__file__).resolve().parent
N_IMAGES = 200
LEAST_ACCURACY = {"shapes_cnn": 0.97, "shapes_vit": 0.95}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Held-out classification scenes."""
    return [classification_scene(HELD_OUT_SEED + index) for index in range(N_IMAGES)]


@pytest.fixture(scope="module")
def labels(scenes: list[Scene]) -> NDArray[np.int64]:
    """Class of each scene."""
    return np.array([scene.target.class_id for scene in scenes])


@pytest.fixture(scope="module")
def batch(scenes: list[Scene]) -> NDArray[np.float32]:
    """Model input for all scenes, float32 ``[200, 3, 96, 96]``."""
    return np.concatenate([scene.model_input() for scene in scenes])


@pytest.mark.parametrize("make", [classification_scene, multi_object_scene])
def test_a_seed_determines_the_scene(make) -> None:  # type: ignore[no-untyped-def]
    first, second, other = make(7), make(7), make(15)
    assert np.array_equal(first.image, second.image)
    assert [shape.box for shape in first.objects] == [shape.box for shape in second.objects]
    assert not np.array_equal(first.image, other.image)


def test_batch_equals_single_scenes() -> None:
    images, classes = classification_batch(range(40, 48))
    assert images.shape == (8, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert images.dtype == np.uint8
    assert classes.tolist() == list(range(len(CLASS_NAMES)))
    assert np.array_equal(images[3].transpose(1, 2, 0), classification_scene(43).image)


@pytest.mark.parametrize("make", [classification_scene, multi_object_scene])
def test_boxes_fit_their_masks(make) -> None:  # type: ignore[no-untyped-def]
    for seed in range(40):
        scene = make(seed)
        covered = np.zeros(scene.image.shape[:2], dtype=int)
        assert scene.objects
        for shape in scene.objects:
            x_min, y_min, x_max, y_max = shape.box
            inside = shape.mask[y_min:y_max, x_min:x_max]
            assert inside.sum() == shape.mask.sum() > 0
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert min(inside.shape) >= 8
            covered += shape.mask
        assert covered.max() == 1


def test_multi_object_scenes_vary_in_number() -> None:
    counts = {len(multi_object_scene(seed).objects) for seed in range(40)}
    assert counts == {1, 2, 3, 4}


def test_sample_images_match_the_generator() -> None:
    paths = sorted((FOLDER / "images").glob("shape_*.png"))
    assert len(paths) == 5
    for index, path in enumerate(paths):
        bgr = cv2.imread(str(path))
        assert bgr is not None
        stored = bgr[..., ::-1].astype(float)
        drawn = classification_scene(HELD_OUT_SEED + index).image
        # Rasterisers of different OpenCV releases may differ in single border pixels.
        assert np.abs(stored - drawn).mean() < 1.0


@pytest.mark.parametrize("name", sorted(LEAST_ACCURACY))
def test_models_are_accurate_and_runtimes_agree(
    name: str, batch: NDArray[np.float32], labels: NDArray[np.int64]
) -> None:
    session = evaluate.open_session(FOLDER / f"{name}.onnx")
    onnx_logits = np.asarray(session.run(["logits"], {"image": batch})[0])
    compiled = ov.Core().compile_model(str(FOLDER / f"{name}.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ir_logits = compiled({"image": batch})["logits"]
    assert onnx_logits.shape == ir_logits.shape == (N_IMAGES, len(CLASS_NAMES))
    assert (onnx_logits.argmax(1) == labels).mean() >= LEAST_ACCURACY[name]
    assert (ir_logits.argmax(1) == labels).mean() >= LEAST_ACCURACY[name]
    assert np.abs(onnx_logits - ir_logits).max() < 1e-3


@pytest.mark.parametrize("name", sorted(LEAST_ACCURACY))
def test_models_carry_their_labels(name: str) -> None:
    properties = {entry.key: entry.value for entry in onnx.load(str(FOLDER / f"{name}.onnx")).metadata_props}
    assert tuple(properties["labels"].split()) == CLASS_NAMES
    info = ov.Core().read_model(str(FOLDER / f"{name}.xml"))
    assert info.get_rt_info(["model_info", "model_type"]).astype(str) == "Classification"
    assert tuple(info.get_rt_info(["model_info", "labels"]).astype(str).split()) == CLASS_NAMES
    assert (FOLDER / f"{name}.onnx").stat().st_size < 1_000_000


def test_cnn_maps_point_at_the_target(scenes: list[Scene]) -> None:
    model = evaluate.split_cnn(FOLDER / "shapes_cnn.onnx")
    chosen = scenes[:100]
    maps = [evaluate.recipro_cam(model, scene.model_input(), scene.target.class_id) for scene in chosen]
    hits = [evaluate.peak_in_box(saliency, scene) for saliency, scene in zip(maps, chosen, strict=True)]
    assert np.mean(hits) >= 0.9


def test_vit_maps_point_at_the_target(scenes: list[Scene]) -> None:
    model = evaluate.split_vit(FOLDER / "shapes_vit.onnx")
    chosen = scenes[:40]
    maps = [evaluate.vit_recipro_cam(model, scene.model_input(), scene.target.class_id) for scene in chosen]
    hits = [evaluate.peak_in_box(saliency, scene) for saliency, scene in zip(maps, chosen, strict=True)]
    assert np.mean(hits) >= 0.9


def test_detector_finds_the_shapes() -> None:
    scenes = [multi_object_scene(HELD_OUT_SEED + index) for index in range(100)]
    figures = evaluate.evaluate_detector(FOLDER / "shapes_detector.onnx", scenes)
    assert min(figures.values()) >= 0.9


def test_detector_runtimes_agree() -> None:
    image = np.concatenate([multi_object_scene(HELD_OUT_SEED + index).model_input() for index in range(4)])
    session = evaluate.open_session(FOLDER / "shapes_detector.onnx")
    boxes, scores = (np.asarray(value) for value in session.run(["boxes", "scores"], {"image": image}))
    compiled = ov.Core().compile_model(str(FOLDER / "shapes_detector.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled({"image": image})
    assert boxes.shape == (4, 336, 4)
    assert scores.shape == (4, 336, len(CLASS_NAMES))
    assert np.abs(result["scores"] - scores).max() < 1e-4
    assert np.abs(result["boxes"] - boxes).max() < 1e-2


def test_two_stage_detector_finds_the_shapes() -> None:
    model = evaluate.split_two_stage(FOLDER / "shapes_two_stage.onnx")
    figures = evaluate.evaluate_two_stage(model, [multi_object_scene(HELD_OUT_SEED + index) for index in range(100)])
    assert min(figures[key] for key in ("recall", "precision", "pointing")) >= 0.9
    assert figures["on shape"] >= 0.75


def test_two_stage_runtimes_agree() -> None:
    session = evaluate.open_session(FOLDER / "shapes_two_stage.onnx")
    compiled = ov.Core().compile_model(str(FOLDER / "shapes_two_stage.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for index in range(4):
        image = multi_object_scene(HELD_OUT_SEED + index).model_input()
        boxes, scores, labels = (
            np.asarray(value) for value in session.run(["boxes", "scores", "labels"], {"image": image})
        )
        result = compiled({"image": image})
        assert len(boxes) >= 1
        assert np.array_equal(result["labels"], labels)
        assert np.abs(result["scores"] - scores).max() < 1e-4
        assert np.abs(result["boxes"] - boxes).max() < 1e-2
