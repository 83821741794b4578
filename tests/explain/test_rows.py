"""`xai-explain --format jsonl|parquet`: a row for each image, once, whoever writes it."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from model_zoo_fixtures.testbed.explaining import IMAGES, SHAPES, WithMap, call, fine, rows
from xai_insert import Explainer
from xai_insert.explain.errors import RunError
from xai_insert.explain.explained import Explained, Prediction
from xai_insert.explain.files import Source
from xai_insert.explain.listing import Shard, stream_images
from xai_insert.explain.preprocessing import View
from xai_insert.explain.stream import PART, PartFiles, explain_all

ROOT = Path(__file__).parents[2]
MODEL = WithMap("shapes_cnn.xml")


def parquet_rows(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = [row for part in sorted(folder.glob("part-*.parquet")) for row in parquet.read_table(part).to_pylist()]
    return sorted(found, key=lambda row: row["source"])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for number in range(40):
        place = folder / f"part{number % 3}"
        place.mkdir(exist_ok=True)
        shutil.copy(IMAGES[number % len(IMAGES)], place / f"{number:03}.png")
    return folder


def start(*arguments):
    command = [sys.executable, "-m", "xai_insert.cli.explain", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["shapes_cnn.xml", "shapes_detector.xml", "shapes_two_stage.onnx"])
def test_a_row_says_what_the_model_says(name, tmp_path):
    fine(SHAPES / name, IMAGES[0], IMAGES[1], "-o", tmp_path, "--format", "jsonl")
    explainer = Explainer(SHAPES / name)
    for row, image in zip(rows(tmp_path), IMAGES, strict=False):
        (found,) = explainer.explain([image])
        assert row["source"] == str(image.resolve())
        assert [row["width"], row["height"]] == found.to_dict()["size"]
        assert row["error"] is None
        for item, expected in zip(row["predictions"], found.to_dict()["predictions"], strict=True):
            assert item["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert (item["class_id"], item["box"] is None) == (expected["class_id"], "box" not in expected)
        assert row["maps"]
        for item in row["maps"]:
            saliency = np.frombuffer(base64.b64decode(item["data"]), item["dtype"])
            expected = found.raw_map(item["class_id"])
            np.testing.assert_allclose(saliency.reshape(item["height"], item["width"]), expected, atol=1)


def test_no_pictures(many, tmp_path):
    result = fine(MODEL, many, "-o", tmp_path, "--format", "jsonl", "--classes", "top3")
    assert "40 explained" in result.stdout
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".json"}
    assert [len(row["maps"]) for row in rows(tmp_path)] == [3] * 40
    assert (
        "0 explained, 40 already there"
        in fine(MODEL, many, "-o", tmp_path, "--format", "jsonl", "--classes", "top3").stdout
    )
    assert len(rows(tmp_path)) == 40


@pytest.mark.parametrize("count", [2, 4, 8])
def test_shards_are_the_whole(many, count):
    whole = {source.path for source in stream_images([many])}
    shards = [{source.path for source in Shard(index + 1, count).of(stream_images([many]))} for index in range(count)]
    assert sum(map(len, shards)) == len(whole) == 40
    assert set().union(*shards) == whole
    assert all(shards)


def test_shards_side_by_side_give_the_rows_of_one_run(many, tmp_path):
    fine(MODEL, many, "-o", tmp_path / "one", "--format", "jsonl")
    runs = [start(MODEL, many, "-o", tmp_path / "two", "--format", "jsonl", "--shard", f"{n}/2") for n in (1, 2)]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    one, two = ([json.dumps(row) for row in rows(tmp_path / name)] for name in ("one", "two"))
    assert len(two) == 40
    assert [json.loads(row)["source"] for row in one] == [json.loads(row)["source"] for row in two]
    assert [json.loads(row)["maps"] for row in one] == [json.loads(row)["maps"] for row in two]


def test_pictures_can_be_shared_out_as_well(many, tmp_path):
    counts = [fine(MODEL, many / "part0", "-o", tmp_path, "--shard", f"{n}/2").stdout for n in (1, 2)]
    assert sum(int(text.splitlines()[1].split()[0]) for text in counts) == 14
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 14


def test_a_killed_run_goes_on(many, tmp_path):
    output = tmp_path / "out"
    run = start(MODEL, many, "-o", output, "--format", "jsonl")
    while not (output / "run.json").exists():
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    fine(MODEL, many, "-o", output, "--format", "jsonl")
    names = [row["source"] for row in rows(output)]
    assert len(names) == len(set(names)) == 40
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    fine(MODEL, *IMAGES[:3], "-o", tmp_path / "p", "--format", "parquet")
    fine(MODEL, *IMAGES[:3], "-o", tmp_path / "j", "--format", "jsonl")
    for row, other in zip(parquet_rows(tmp_path / "p"), rows(tmp_path / "j"), strict=True):
        for item in row["maps"]:
            item["data"] = base64.b64encode(item["data"]).decode()
        assert row == other
    assert "3 already there" in fine(MODEL, *IMAGES[:3], "-o", tmp_path / "p", "--format", "parquet").stdout


def test_an_image_that_cannot_be_read_has_a_row(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"none")
    shutil.copy(IMAGES[0], tmp_path / "in" / "b.png")
    result = call(MODEL, tmp_path / "in", "-o", tmp_path / "out", "--format", "jsonl")
    assert result.exit_code == 1
    assert "1 explained, 1 not readable" in result.stdout
    bad, good = rows(tmp_path / "out")
    assert "a.png" in bad["error"]
    assert good["error"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["in", "--format", "jsonl", "--opacity", "0.5"], 2, "does not go by --opacity"),
        (["in", "--engine", "ray"], 2, "give --format jsonl or parquet"),
        (["in", "--address", "a:1"], 2, "give --engine ray"),
        (["in", "--shard", "3/2"], 2, "not I/N"),
        (["in/none", "--format", "jsonl"], 1, "no images in"),
        (["in", "--format", "jsonl", "-o", "other"], 1, "rows of another model"),
        (["in", "--format", "jsonl", "-o", "pictures"], 1, "results of another kind of run"),
        (["film.mp4", "--format", "jsonl"], 2, "not for videos"),
    ],
)
def test_one_line(arguments, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "none").mkdir(parents=True)
    (tmp_path / "film.mp4").write_bytes(b"")
    for name in ("other", "pictures"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "run.json").write_text('{"format": "jsonl", "settings": "of another"}')
    (tmp_path / "pictures" / "results.jsonl").write_text("")
    shutil.copy(IMAGES[0], tmp_path / "in")
    result = call(MODEL, *arguments, *([] if "-o" in arguments else ["-o", "out"]))
    assert result.exit_code == code
    assert said in result.stderr.splitlines()[-1]


def test_links_and_folders_given_twice(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copy(IMAGES[0], tmp_path / "a" / "b" / "x.png")
    os.symlink(tmp_path / "a", tmp_path / "a" / "b" / "round")
    given = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a", tmp_path / "a" / "b" / "x.png"]
    assert [source.path for source in stream_images(given)] == [tmp_path / "a" / "b" / "x.png"]


# However many


class Blank:
    """A model that takes no time."""

    settings = ()

    class engine:  # noqa: N801
        parallel = 1
        runtime = "none"

    def explain(self, image):
        return Explained([Prediction(0, "a", 1.0)], [Prediction(0, "a", 1.0)], np.zeros((1, 7, 7), np.uint8), View())


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr("xai_insert.explain.stream.files.read_image", lambda _: np.zeros((1, 1, 3), np.uint8))

    def images(count):
        return (Source(Path("x.png"), f"{number:07}") for number in range(count))

    peaks = []
    for count in (2 * PART, 16 * PART):
        parts = PartFiles.made(tmp_path / str(count), "jsonl", "", {})
        tracemalloc.start()
        counts = explain_all(Blank(), parts, images(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert counts.done == count
    assert peaks[1] < 1.2 * peaks[0]
    again = PartFiles.made(tmp_path / str(16 * PART), "jsonl", "", {})
    assert explain_all(Blank(), again, images(16 * PART + 3)).known == 16 * PART
    assert len(rows(tmp_path / str(16 * PART))) == 16 * PART + 3


def test_what_was_done_is_kept_when_the_model_fails(tmp_path, monkeypatch):
    class Failing(Blank):
        def explain(self, image):
            if image.shape[0] == 4:
                raise RunError("no")
            return super().explain(image)

    def read(path):
        return np.zeros((int(path.name), 1, 3), np.uint8)

    monkeypatch.setattr("xai_insert.explain.stream.files.read_image", read)
    parts = PartFiles.made(tmp_path, "jsonl", "", {})
    with pytest.raises(RunError, match="no"):
        explain_all(Failing(), parts, [Source(Path(str(number)), str(number)) for number in range(1, 9)])
    assert [row["source"] for row in rows(tmp_path)] == ["1", "2", "3"]
