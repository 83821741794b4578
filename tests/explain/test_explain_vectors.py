"""xai-explain on embeddings, prompts and several images: what is drawn, and how other inputs are fed."""

import json
from base64 import b64decode

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest
from click.testing import CliRunner
from PIL import Image

from model_zoo_fixtures.testbed.vector_models import LENGTH, WIDTH, WORDS, both, joined, model_of, run, texts_first, two
from xai_insert import Options, insert_file
from xai_insert.cli.explain import main
from xai_insert.explain.explainer import Explainer

IDS = np.random.default_rng(4).integers(0, WORDS, (3, LENGTH))


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "ids.npy", IDS)
    np.save(tmp_path / "reference.npy", np.ones((1, WIDTH), np.float32))
    np.save(tmp_path / "other.npy", np.ones((1, 3, 12, 12), np.float32))
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "labels.txt").write_text("a cat\na dog\na bird\n")
    return tmp_path


def load(path):
    return onnx.load(path) if path.suffix == ".onnx" else ov.Core().read_model(path)


def write(folder, model, suffix="onnx", **options):
    path = folder / f"model.{suffix}"
    onnx.save(model, folder / "plain.onnx")
    insert_file(folder / "plain.onnx", path, Options(check=False, **options))
    return path


def explained(folder, path, *more):
    arguments = [str(path), str(folder / "a.png"), "-o", str(folder / "out"), *map(str, more)]
    result = CliRunner().invoke(main, arguments)
    lines = (folder / "out/results.jsonl").read_text().splitlines() if result.exit_code == 0 else []
    return result, [json.loads(line) for line in lines]


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_prompts_are_named_by_the_labels(folder, suffix):
    path = write(folder, both(texts_first)[0], suffix)
    fed = ["--feed", f"ids={folder / 'ids.npy'}"]
    result, records = explained(folder, path, *fed, "--labels", folder / "labels.txt", "--classes", "all")
    assert result.exit_code == 0, result.output
    assert {item["label"] for item in records[0]["maps"]} == {"a cat", "a dog", "a bird"}
    assert sum(item["score"] for item in records[0]["predictions"]) == pytest.approx(1)
    refused, _ = explained(folder, path)
    assert refused.exit_code == 1
    assert "the model also reads ids [?, 4]" in refused.output
    assert "--feed ids=FILE.npy" in refused.output
    assert (
        "no input is named 'idz'" in explained(folder, path, *fed, "--feed", fed[1].replace("ids=", "idz="))[0].output
    )


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
@pytest.mark.parametrize("reference", ["self", "input"])
def test_an_embedding_has_one_map_and_its_product(folder, reference, suffix):
    path = write(folder, model_of(), suffix, reference=reference)
    more = ["--feed", f"reference={folder / 'reference.npy'}"] if reference == "input" else []
    result, records = explained(folder, path, *more)
    assert result.exit_code == 0, result.output
    (drawn,) = records[0]["maps"]
    assert drawn["label"] == ("like itself" if reference == "self" else "like the reference")
    if reference == "self":
        assert drawn["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_the_map_is_that_of_the_image_that_is_shown(folder, suffix):
    path = write(folder, two(joined)[0], suffix, output_dtype="f32")
    pixels = np.asarray(Image.open(folder / "a.png"))
    other = np.load(folder / "other.npy")
    first = Explainer(path, fed={"other": other}).explain([pixels])[0].raw_map(0)
    second = Explainer(path, fed={"image": other}).explain([pixels])[0].raw_map(0)
    assert first.shape == second.shape == (6, 6)
    feeds = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    model = onnx.load(write(folder, two(joined)[0], output_dtype="f32"))
    wanted = [run(model, feeds, other=other)["saliency_map"], run(model, other, other=feeds)["saliency_map_2"]]
    for found, raw in zip((first, second), wanted, strict=True):  # OpenVINO may compute in bfloat16
        np.testing.assert_allclose(found, raw[0, 0], atol=0.02 * np.abs(raw[0, 0]).max())


@pytest.mark.parametrize("fed", ["image", "other"])
def test_each_image_is_drawn_with_its_own_map(folder, fed):
    """The one that is fed as a picture again, with the preparation of the other undone."""
    path = write(folder, two(joined)[0], output_dtype="f32")
    fed_pixels = np.random.default_rng(1).integers(0, 255, (12, 12, 3), np.uint8)
    prepared = ((fed_pixels - 100.0) / 50).transpose(2, 0, 1)[None].astype(np.float32)
    np.save(folder / "fed.npy", prepared)
    more = [
        "--feed",
        f"{fed}={folder / 'fed.npy'}",
        "--mean",
        "100",
        "--scale",
        "50",
        "--raw",
        "npy",
        "--classes",
        "0,2",
    ]
    for more_again in (more, [*more, "--overwrite"], more):
        result = CliRunner().invoke(main, [str(path), str(folder / "a.png"), "-o", str(folder / "out"), *more_again])
        assert result.exit_code == 0, result.output
    lines = (folder / "out/results.jsonl").read_text().splitlines()
    records = {item["name"]: item for item in map(json.loads, lines)}
    assert set(records) == {"a", f"a.{fed}"}
    given = {"image": Image.open(folder / "a.png"), "other": Image.open(folder / "a.png")}
    feeds = {name: ((np.asarray(item) - 100.0) / 50).transpose(2, 0, 1)[None] for name, item in given.items()}
    feeds = {name: array.astype(np.float32) for name, array in {**feeds, fed: prepared}.items()}
    found = run(onnx.load(path), feeds["image"], other=feeds["other"])
    for name, record in records.items():
        own = found["saliency_map_2" if (name == "a.other") or (name == "a" and fed == "image") else "saliency_map"]
        assert [item["class_id"] for item in record["maps"]] == [0, 2]
        for item in record["maps"]:
            np.testing.assert_allclose(np.load(folder / "out" / item["raw"]), own[0, item["class_id"]], atol=1e-5)
            assert (folder / "out" / item["overlay"]).is_file()
    shown = np.asarray(Image.open(folder / "out" / records[f"a.{fed}"]["image"]).resize((12, 12)), np.float32)
    assert np.corrcoef(shown.ravel(), fed_pixels.ravel().astype(np.float32))[0, 1] > 0.9


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
@pytest.mark.parametrize("batch", [2, "N"])
def test_each_image_has_its_own_map_in_python(folder, batch, suffix):
    """Beside each image the one that is fed is explained; in a batch that is baked in each has its own."""
    path = write(folder, two(joined, batch=batch)[0], suffix, output_dtype="f32")
    rng = np.random.default_rng(2)
    given = rng.integers(0, 255, (2, 12, 12, 3), np.uint8)
    fed = rng.integers(0, 255, (2 if batch == 2 else 1, 3, 12, 12)).astype(np.float32)
    found = Explainer(path, fed={"other": fed}).explain(list(given))
    others = fed if batch == 2 else np.repeat(fed, 2, 0)
    outputs = run(load(path), given.transpose(0, 3, 1, 2).astype(np.float32), other=others)
    for number, item in enumerate(found):
        (other,) = item.others.values()
        for said, name in ((item, "saliency_map"), (item.others["other"], "saliency_map_2")):
            maps = np.stack([said.raw_map(class_id) for class_id in range(5)])
            np.testing.assert_allclose(maps, outputs[name][number], atol=1e-4)
        np.testing.assert_array_equal(other.image, others[number].transpose(1, 2, 0))
        assert other.overlay().shape == (12, 12, 3)


def test_rows_hold_the_maps_of_each_image_and_go_by_what_is_fed(folder):
    path = write(folder, two(joined)[0], output_dtype="f32")
    more = ["--format", "jsonl", "--classes", "1", "--feed"]
    result = CliRunner().invoke(
        main, [str(path), str(folder / "a.png"), "-o", str(folder / "out"), *more, f"other={folder / 'other.npy'}"]
    )
    assert result.exit_code == 0, result.output
    (part,) = (folder / "out").glob("part-*.jsonl")
    maps = json.loads(part.read_text())["maps"]
    assert [(item["class_id"], item["input"]) for item in maps] == [(1, None), (1, "other")]
    pixels = np.asarray(Image.open(folder / "a.png"), np.float32).transpose(2, 0, 1)[None]
    found = run(onnx.load(path), pixels, other=np.load(folder / "other.npy"))
    for item, name in zip(maps, ("saliency_map", "saliency_map_2"), strict=True):
        data = np.frombuffer(b64decode(item["data"]), "<f4").reshape(item["height"], item["width"])
        np.testing.assert_allclose(data, found[name][0, 1], atol=1e-4)
    np.save(folder / "another.npy", np.load(folder / "other.npy") * 2)
    result = CliRunner().invoke(
        main, [str(path), str(folder / "a.png"), "-o", str(folder / "out"), *more, f"other={folder / 'another.npy'}"]
    )
    assert "other settings" in result.output, "rows of what was fed before are not its own"


def test_a_video_of_each_image(folder):
    path = write(folder, two(joined)[0])
    film = cv2.VideoWriter(str(folder / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    for value in (0, 90, 180):
        film.write(np.full((24, 32, 3), value, np.uint8))
    film.release()
    feed = f"other={folder / 'other.npy'}"
    result = CliRunner().invoke(main, [str(path), str(folder / "film.avi"), "-o", str(folder / "out"), "--feed", feed])
    assert result.exit_code == 0, result.output
    assert {item.name for item in (folder / "out/videos").iterdir()} == {"film.mp4", "film.other.mp4"}
    for name in ("film.mp4", "film.other.mp4"):
        assert cv2.VideoCapture(str(folder / "out/videos" / name)).get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize("text", ["ids", "ids=", "=x.npy", "ids=nowhere.npy"])
def test_what_cannot_be_fed_is_wrong_usage(folder, text):
    result, _ = explained(folder, folder / "a.png", "--feed", text)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
