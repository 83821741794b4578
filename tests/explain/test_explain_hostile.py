"""Folders and names that came from elsewhere: nothing outside the output folder is touched, and a run goes on."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from model_zoo_fixtures.testbed.explaining import on_page
from xai_insert import Options, insert_file
from xai_insert.cli.explain import main
from xai_insert.explain.journal import is_below, is_sound

SHAPES = Path(__file__).resolve().parents[2] / "model_zoo_fixtures" / "shapes"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    insert_file(SHAPES / "shapes_cnn.onnx", path, Options(check=False))
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(next((SHAPES / "images").iterdir()), folder / "one.jpg")
    return folder


def explain(model, *given, output):
    return CliRunner().invoke(main, [str(model), *map(str, given), "-o", str(output)])


def records(output):
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


def planted(output, change):
    """Give a record of an earlier run other file names, so that the next run would replace what they name."""
    (record,) = records(output)
    change(record)
    record["settings"] = "of another model"
    (output / "results.jsonl").write_text(json.dumps(record) + "\n")


@pytest.mark.parametrize(
    "name", ["/absolute", "../victim.txt", "images/../../victim.txt", "images", "maps/..", "images/a\0b"]
)
def test_no_record_names_a_file_elsewhere(tmp_path, model, images, name):
    output, victim = tmp_path / "out", tmp_path / "victim.txt"
    victim.write_text("mine")
    assert explain(model, images, output=output).exit_code == 0
    planted(output, lambda record: record.update(image=str(victim) if name == "/absolute" else name))
    done = explain(model, images, output=output)
    assert done.exit_code == 0, done.output
    assert victim.read_text() == "mine"
    assert "1 lines of an earlier results.jsonl were set aside" in done.output
    assert len(records(output)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "{}",
        "null",
        '{"name": 1}',
        '{"name": "x", "maps": 3}',
        "[" * 5000,
        "\x00",
        '{"name": "one", "size": [0, 0]}',
    ],
)
def test_malformed_records_are_set_aside(tmp_path, model, images, line):
    output = tmp_path / "out"
    output.mkdir()
    (output / "results.jsonl").write_text(line + "\n")
    done = explain(model, images, output=output)
    assert done.exit_code == 0, done.output
    assert [record["name"] for record in records(output)] == ["one"]


def test_planted_links_are_not_written_through(tmp_path, model, images):
    output, victim = tmp_path / "out", tmp_path / "victim.txt"
    victim.write_text("mine")
    assert explain(model, images, output=output).exit_code == 0
    for name in ("index.html", "results.jsonl"):
        (output / name).unlink()
        (output / name).symlink_to(victim)
        (output / f".{name}.part").symlink_to(victim)
    assert explain(model, images, output=output).exit_code == 0
    assert victim.read_text() == "mine"
    assert not (output / "index.html").is_symlink()


def test_a_linked_folder_is_refused(tmp_path, model, images):
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    output.mkdir()
    elsewhere.mkdir()
    (output / "maps").symlink_to(elsewhere)
    done = explain(model, images, output=output)
    assert done.exit_code == 1
    assert "is a link" in done.output
    assert not list(elsewhere.iterdir())


def test_one_bad_name_ends_no_run(tmp_path, model, images):
    output, picture = tmp_path / "out", next(images.iterdir())
    odd = [os.fsdecode(b"caf\xe9.jpg"), "x" * 240 + ".jpg", "new\nline.jpg"]
    for name in odd:
        shutil.copy(picture, images / name)
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    done = explain(model, images, pipe, output=output)
    assert done.exit_code == 1
    assert "not a regular file" in done.output
    assert len(records(output)) == 1 + len(odd)
    assert len(on_page(output)) == 1 + len(odd)


def test_two_links_of_one_stem(tmp_path, model, images):
    picture = next(images.iterdir())
    links = [tmp_path / name / "same.jpg" for name in ("a", "b")]
    for link in links:
        link.parent.mkdir()
        link.symlink_to(picture)
    output = tmp_path / "out"
    assert explain(model, *links, output=output).exit_code == 0
    assert len({record["name"] for record in records(output)}) == 2


def test_resuming_goes_by_the_content_of_the_model(tmp_path, images):
    """Other weights of the same size and time are another model."""
    model, output = tmp_path / "model.xml", tmp_path / "out"
    insert_file(SHAPES / "shapes_cnn.xml", model, Options(check=False))
    assert explain(model, images, output=output).exit_code == 0
    before = records(output)[0]["settings"]
    weights = model.with_suffix(".bin")
    state = weights.stat()
    content = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    content[100] ^= 1
    weights.write_bytes(content.tobytes())
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert explain(model, images, output=output).exit_code == 0
    assert records(output)[0]["settings"] != before


def test_a_record_names_its_own_files_only(tmp_path, model, images):
    shutil.copy(images / "one.jpg", images / "two.jpg")
    output = tmp_path / "out"
    assert explain(model, images, output=output).exit_code == 0
    one, two = records(output)
    one.update(image=two["image"], settings="of another model")
    (output / "results.jsonl").write_text(json.dumps(one) + "\n" + json.dumps(two) + "\n")
    assert explain(model, images / "one.jpg", output=output).exit_code == 0
    assert (output / two["image"]).is_file()


def test_a_journal_that_is_a_pipe(tmp_path, model, images):
    output = tmp_path / "out"
    output.mkdir()
    os.mkfifo(output / "results.jsonl")
    assert explain(model, images, output=output).exit_code == 0
    assert len(records(output)) == 1


def test_a_name_longer_than_any_folder_takes(tmp_path, model, images):
    done = explain(model, images, tmp_path / ("x" * 300), output=tmp_path / "out")
    assert done.exit_code == 1
    assert "File name too long" in done.output
    assert len(records(tmp_path / "out")) == 1


def test_sound_records():
    good = {
        "name": "a", "source": "a.jpg", "image": "images/a.jpg", "data": "data/a.js", "size": [1, 1],
        "predictions": [], "maps": [],
    }  # fmt: skip
    assert is_sound(good)
    assert not is_sound({**good, "predictions": [{"label": "x"}]})
    assert not is_sound({**good, "maps": [{"title": "t", "overlay": "../x", "raw": None, "grid": [1, 1]}]})
    assert is_below("maps/a.png")
    assert not is_below("results.jsonl")
