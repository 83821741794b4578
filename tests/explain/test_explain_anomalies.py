"""Drawing anomaly maps: by the model's threshold, with the outline of what lies over it."""

import json

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest
from click.testing import CliRunner

from model_zoo_fixtures.shapes import semantic
from model_zoo_fixtures.shapes.anomalies import shape_inspector
from model_zoo_fixtures.shapes.dataset import HELD_OUT_SEED, multi_object_scene
from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.anomaly_models import of_pooled
from xai_insert import Explainer, Options, insert
from xai_insert.cli.explain import main as explain


@pytest.fixture(scope="module")
def inspector():
    return shape_inspector()


def save(model, path):
    onnx.save(model, path) if path.suffix == ".onnx" else ov.save_model(model, path, compress_to_fp16=False)
    return path


def test_the_peak_lies_on_a_shape(inspector):
    scenes = [multi_object_scene(HELD_OUT_SEED + index) for index in range(60)]
    outputs = oracle.run(insert(inspector).model, semantic.pixels(scenes))
    hits = []
    for scene, (bytes_,) in zip(scenes, outputs["saliency_map"], strict=True):
        row, column = np.unravel_index(int(bytes_.argmax()), bytes_.shape)
        hits.append(semantic.labels(scene)[row, column] != semantic.BACKGROUND)
    assert np.mean(hits) >= 0.9


@pytest.mark.parametrize("dtype", ["u8", "f32"])
@pytest.mark.parametrize("kind", models.FORMATS)
def test_the_overlay_outlines_what_is_over_the_threshold(inspector, kind, dtype, tmp_path):
    file = tmp_path / ("model.onnx" if kind == "onnx" else "model.xml")
    save(insert(models.as_format(inspector, kind), Options(output_dtype=dtype)).model, file)
    scene = multi_object_scene(HELD_OUT_SEED)
    cv2.imwrite(str(tmp_path / "scene.png"), scene.image[..., ::-1])
    done = CliRunner().invoke(explain, [*map(str, [file, tmp_path / "scene.png", "-o", tmp_path / "out"])])
    assert done.exit_code == 0, done.output
    (record,) = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    plain = oracle.run(inspector, semantic.pixels([scene]))
    assert [item["label"] for item in record["predictions"]] == ["anomalous"]
    assert record["predictions"][0]["score"] == pytest.approx(plain["score"][0], rel=0.01)
    assert len(record["maps"]) == 1
    (found,) = Explainer(file).explain([scene.image])
    (bar,) = found.found.scaled(found.found.chosen, "shared")
    low, limit = min(plain["map"].min(), 0), bar.own.threshold
    assert bar.ends == (f"{low:.3g}", f"{2 * limit - low:.3g}")
    assert bar.text == f"threshold {limit:.3g}"
    assert plain["map"][plain["mask"]].min() >= limit > plain["map"][~plain["mask"]].max()
    inside = np.zeros(scene.image.shape[:2], np.uint8)
    (over,) = found.found.instances
    cv2.fillPoly(inside, [np.round(part * inside.shape[::-1]).astype(np.int32) for part in over.outline], 1)
    mask = plain["mask"][0, 0]
    assert (inside[mask] == 1).mean() > 0.9
    assert (inside[~cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)] == 0).mean() > 0.98


def test_a_normal_image_has_no_outline(inspector, tmp_path):
    file = save(insert(inspector).model, tmp_path / "model.onnx")
    (found,) = Explainer(file).explain([np.full((128, 128, 3), 120, np.uint8)])
    assert [item.label for item in found.predictions] == ["normal"]
    assert not found.found.instances
    assert found.raw_map().max() < 128


def test_a_score_alone_is_drawn(tmp_path):
    b = models.Builder(size=(32, 32))
    score, _ = of_pooled(b)
    file = save(insert(b.model(score)).model, tmp_path / "model.onnx")
    (found,) = Explainer(file).explain([np.full((32, 32, 3), 120, np.uint8)])
    assert found.raw_map().shape == (8, 8)
