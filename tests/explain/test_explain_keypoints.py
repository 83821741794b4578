"""Drawing keypoint maps: named or numbered, with a mark at the peak of each."""

import json

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest
from click.testing import CliRunner

from model_zoo_fixtures.shapes import semantic
from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, HELD_OUT_SEED, multi_object_scene
from model_zoo_fixtures.shapes.keypoints import shape_keypoints
from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.keypoint_models import JOINTS, build, simcc
from xai_insert import Explainer, Options, insert
from xai_insert.cli.explain import main as explain


def save(model, path):
    onnx.save(model, path) if path.suffix == ".onnx" else ov.save_model(model, path, compress_to_fp16=False)
    return path


def test_the_peak_lies_in_a_shape_of_its_name():
    """Of a model whose head was fitted to shape scenes, on scenes that it has not seen."""
    scenes = [multi_object_scene(HELD_OUT_SEED + index) for index in range(60)]
    result = insert(shape_keypoints(), Options(method="keypoint-map"))
    hits = []
    for scene, maps in zip(scenes, oracle.run(result.model, semantic.pixels(scenes))["saliency_map"], strict=True):
        for number in {item.class_id for item in scene.objects}:
            row, column = np.unravel_index(int(maps[number].argmax()), maps[number].shape)
            own = [item for item in scene.objects if item.class_id == number]
            hits.append(any(item.contains(4 * column + 2, 4 * row + 2) for item in own))
    assert len(hits) > 100
    assert np.mean(hits) >= 0.95


@pytest.mark.parametrize("kind", models.FORMATS)
def test_each_point_is_marked(kind, tmp_path):
    file = tmp_path / ("model.onnx" if kind == "onnx" else "model.xml")
    model = shape_keypoints()
    save(insert(models.as_format(model, kind), Options(method="keypoint-map")).model, file)
    scene = multi_object_scene(HELD_OUT_SEED)
    cv2.imwrite(str(tmp_path / "scene.png"), scene.image[..., ::-1])
    arguments = [file, tmp_path / "scene.png", "-o", tmp_path / "out", "--labels", tmp_path / "names.txt"]
    (tmp_path / "names.txt").write_text("\n".join(f"middle of {name}" for name in CLASS_NAMES))
    done = CliRunner().invoke(explain, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    (record,) = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    heat = oracle.run(model, semantic.pixels([scene]))["heatmaps"][0]
    assert [item["label"] for item in record["maps"]] == [f"middle of {name}" for name in CLASS_NAMES]
    for item in record["predictions"]:
        own = heat[item["class_id"]]
        assert item["score"] == pytest.approx(own.max(), abs=0.01)  # a runtime may use half precision
        row, column = np.unravel_index(int(own.argmax()), own.shape)
        left, top, right, bottom = item["box"]
        assert left < 4 * column + 2 < right
        assert top < 4 * row + 2 < bottom


@pytest.mark.parametrize("name", ["hrnet", "greatest", "mean_place", "bins"])
def test_points_without_names_are_numbered(name, tmp_path):
    if name == "bins":
        b = models.Builder(size=(64, 48))
        model = b.model(*simcc(b)[1])
    else:
        model, _ = build(name)
    file = save(insert(model).model, tmp_path / "model.onnx")
    picture = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
    (found,) = Explainer(file).explain([picture])
    assert [item.label for item in found.found.chosen] == [f"keypoint {number}" for number in range(JOINTS)]
    outputs = oracle.run(model, picture.transpose(2, 0, 1)[None].astype(np.float32))
    first = next(iter(outputs.values()))[0]
    if name == "mean_place":
        assert found.found.note == "the model gives no scores of its key points"
        assert len(found.found.instances) == JOINTS
        return
    wanted = {"hrnet": lambda: first.reshape(JOINTS, -1).max(axis=1), "greatest": lambda: first[:, 2]}.get(
        name, lambda: np.minimum(*(array[0].max(axis=1) for array in outputs.values()))
    )()
    np.testing.assert_allclose([item.score for item in found.found.chosen], wanted, rtol=1e-4)
    assert [item.score for item in found.found.instances] == pytest.approx([x for x in wanted if x >= 0.3], rel=1e-4)


@pytest.mark.parametrize("ranges", [False, True])
def test_an_absent_point_is_faint_and_has_no_mark(ranges, tmp_path):
    """Beside present ones, alone, and where no key point is in the image."""
    file = save(insert(shape_keypoints(), Options(method="keypoint-map", range=ranges)).model, tmp_path / "model.onnx")
    scene, flat = multi_object_scene(HELD_OUT_SEED).image, np.full((128, 128, 3), 120, np.uint8)
    for found in Explainer(file, labels=CLASS_NAMES).explain([scene, flat]):
        inside = found.found
        there = {item.class_id for item in inside.chosen if item.score >= 0.3}
        assert {item.class_id for item in inside.instances} == there
        for item, own in zip(inside.chosen, inside.scaled(inside.chosen, "shared"), strict=True):
            (alone,) = inside.scaled([item], "shared")
            assert own.fade == alone.fade == pytest.approx(max(item.score / max(inside.predictions[0].score, 0.3), 0.2))
    assert not there
    (found,) = Explainer(file, threshold=0.0).explain([flat])
    assert len(found.found.instances) == len(CLASS_NAMES)
