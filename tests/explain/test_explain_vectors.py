"""xai-explain on embeddings, prompts and several images: what is drawn, and how other inputs are fed."""

import json

import numpy as np
import onnx
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


@pytest.mark.parametrize("text", ["ids", "ids=", "=x.npy", "ids=nowhere.npy"])
def test_what_cannot_be_fed_is_wrong_usage(folder, text):
    result, _ = explained(folder, folder / "a.png", "--feed", text)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
