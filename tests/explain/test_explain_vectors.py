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


@pytest.mark.parametrize("text", ["ids", "ids=", "=x.npy", "ids=nowhere.npy"])
def test_what_cannot_be_fed_is_wrong_usage(folder, text):
    result, _ = explained(folder, folder / "a.png", "--feed", text)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
