"""`xai-evaluate`: figures of the bundled models on shapes whose boxes are known, and the gate between two models."""

import json
import shutil

import cv2
import numpy as np
import pytest

from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, HELD_OUT_SEED, classification_scene
from model_zoo_fixtures.testbed.commands import invoke
from model_zoo_fixtures.testbed.explaining import IMAGES, SHAPES
from xai_insert import Explainer, Options, insert_file
from xai_insert.cli.evaluate import main
from xai_insert.evaluate import metrics
from xai_insert.evaluate.evaluation import Evaluation
from xai_insert.evaluate.shuffled import write_shuffled
from xai_insert.evaluate.subject import Subject
from xai_insert.evaluate.summary import Spread
from xai_insert.evaluate.worst import Worst
from xai_insert.explain.files import Source

MODEL = SHAPES / "shapes_cnn.xml"
GRID = np.zeros((1, 8, 12, 12), np.uint8)


def call(*arguments):
    return invoke(main, *arguments)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "yeti"}]}
    data["categories"] += [{"id": 10 + index, "name": name} for index, name in enumerate(CLASS_NAMES)]
    for index in range(4):
        scene = classification_scene(HELD_OUT_SEED + index)
        cv2.imwrite(str(folder / f"{index}.png"), scene.image[..., ::-1])
        left, top, right, bottom = scene.target.box
        data["images"].append({"id": index, "file_name": f"{index}.png", "width": 96, "height": 96})
        box = {"category_id": 10 + scene.target.class_id, "bbox": [left, top, right - left, bottom - top]}
        data["annotations"].append({"image_id": index, **box})
    (folder / "coco.json").write_text(json.dumps(data))
    return folder


def test_figures_of_shapes(scenes, tmp_path):
    result = call(MODEL, scenes, "--annotations", scenes / "coco.json", "--steps", 8, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    own, blind, noise = (figures["maps"][name] for name in ("recipro-cam", "centred Gaussian", "random"))
    for key in ("insertion", "road", "arcc", "pointing", "energy"):
        assert own[key]["mean"] > max(blind[key]["mean"], noise[key]["mean"]), key
    assert own["deletion"]["mean"] < min(blind["deletion"]["mean"], noise["deletion"]["mean"])
    assert own["pointing"] == {"mean": 1, "standard_deviation": 0, "standard_error": 0, "images": 4}
    assert abs(figures["sanity"]["mean"]) < 0.5
    assert abs(figures["maps"]["shuffled weights"]["road"]["mean"]) < own["road"]["mean"] / 2
    assert "insertion ↑" in result.stdout
    assert "±" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == ["0", "1", "2", "3"]
    worst = [line["maps"]["recipro-cam"]["arcc"] for line in lines]
    assert worst == sorted(worst)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "<script" not in page


@pytest.mark.parametrize("name", ["shapes_vit.onnx", "shapes_detector.xml", "shapes_segmenter.onnx"])
def test_other_tasks(name, tmp_path):
    """A score falls where its class's pixels go, whatever the score is."""
    found = Evaluation(Subject(Explainer(SHAPES / name)), steps=4).measure(Source(IMAGES[0], "0"))
    own, noise = (found["maps"][key] for key in (next(iter(found["maps"])), "random"))
    assert own["road"] > noise["road"]
    assert own["insertion"] > own["deletion"]


def test_a_model_of_one_map_for_all_classes():
    found = Evaluation(Subject(Explainer(SHAPES / "shapes_two_stage.onnx")), steps=2).measure(Source(IMAGES[0], "0"))
    assert set(found["maps"]) == {"activation-map", "centred Gaussian", "random"}


@pytest.mark.parametrize("name", ["shapes_cnn.onnx", "shapes_vit.xml", "int8/shapes_cnn.xml", "int8/shapes_vit.xml"])
def test_shuffled_weights_are_the_same_numbers(name, tmp_path):
    """And the map is one of the other model, not of this."""
    source = tmp_path / f"model{name[name.index('.') :]}"
    insert_file(SHAPES / name, source, Options(check=False))
    before = Explainer(source).explain([IMAGES[0]])[0]
    written = write_shuffled(source, before.found.saliency_map[None], tmp_path)
    after = Explainer(written).explain([IMAGES[0]])[0]
    assert after.found.saliency_map.shape == before.found.saliency_map.shape
    maps = [item.raw_map(before.predictions[0].class_id) for item in (before, after)]
    assert (metrics.correlation(*maps) or 0) < 0.9
    assert [item.score for item in after.predictions] != [item.score for item in before.predictions]


# The gate


def test_the_gate(tmp_path, scenes):
    good = SHAPES / "int8" / "shapes_cnn.xml"
    ruined = write_shuffled(good, GRID, tmp_path)
    result = call(MODEL, scenes, "--against", good, "--fail-under", 0.99, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    result = call(MODEL, scenes, "--against", ruined, "--fail-under", 0.9, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "the maps agree too little: mean correlation" in result.stderr
    figures = json.loads((tmp_path / "out" / "comparison.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    values = [line["correlation"] for line in lines]
    assert values == sorted(values)
    assert figures["correlation"]["mean"] == pytest.approx(np.mean(values))
    assert figures["peak_distance"]["mean"] > 0
    assert (tmp_path / "out" / "index.html").read_text().count("data:image/jpeg;base64,") == 8


def test_a_model_agrees_with_itself_in_the_other_format(scenes):
    result = call(MODEL, scenes, "--against", SHAPES / "shapes_cnn.onnx", "--fail-under", 0.999)
    assert result.exit_code == 0, result.output
    assert "100.0% the same" in result.stdout


# What is wrong is said in one line


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing"], 1, "no images in"),
        (["scenes", "--annotations", "none.json"], 1, "no such annotations"),
        (["scenes", "--annotations", "nothing"], 1, "no annotations in"),
        (["other", "--annotations", "coco.json"], 1, "has annotations of none of the 1 images"),
        (["scenes", "--annotations", "strange.json"], 1, "classes unknown to the model: a0, a1, a2"),
        (["scenes", "--fail-under", "0.5"], 2, "give --against"),
        (["scenes", "--against", "none.xml"], 1, "no such file"),
        (["scenes", "-o", "taken"], 1, "not of an earlier evaluation"),
        (["broken"], 1, "not an image"),
    ],
)
def test_one_line(arguments, code, said, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "index.html").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"none")
    (tmp_path / "other").mkdir()
    shutil.copy(IMAGES[0], tmp_path / "other")
    shutil.copytree(scenes, tmp_path / "scenes")
    shutil.copy(scenes / "coco.json", tmp_path)
    data = json.loads((scenes / "coco.json").read_text())
    data["categories"] = [{**item, "name": f"a{index}"} for index, item in enumerate(data["categories"][1:])]
    (tmp_path / "strange.json").write_text(json.dumps(data))
    result = call(MODEL, *arguments)
    assert result.exit_code == code
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_an_image_that_cannot_be_read_is_left_out(scenes, tmp_path):
    shutil.copy(scenes / "0.png", tmp_path)
    (tmp_path / "bad.png").write_bytes(b"none")
    result = call(MODEL, tmp_path, "--against", MODEL)
    assert result.exit_code == 1
    assert "bad.png" in result.stderr
    assert "skipped" in result.stderr
    assert "1.000 ± 0.000" in result.stdout


# Adding up


def test_mean_and_spread():
    values = np.random.default_rng(0).standard_normal(100) + 1e6
    spread = Spread()
    for value in values:
        spread.add(value)
    assert spread.mean == pytest.approx(values.mean())
    assert spread.deviation == pytest.approx(values.std(ddof=1), rel=1e-6)
    assert spread.error == pytest.approx(values.std(ddof=1) / 10, rel=1e-6)


def test_the_worst_are_kept_and_all_are_written(tmp_path):
    values = np.random.default_rng(0).permutation(1000)
    worst = Worst(lambda record: record["value"])
    for value in values:
        worst.add({"value": int(value)})
    assert [record["value"] for record in worst.shown()] == list(range(24))
    worst.write(tmp_path / "all.jsonl")
    assert [json.loads(line)["value"] for line in (tmp_path / "all.jsonl").read_text().splitlines()] == list(
        range(1000)
    )
