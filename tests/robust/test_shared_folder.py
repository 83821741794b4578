"""Several runs of `xai-explain` in one folder, and a model that is replaced while it is read."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.explaining import IMAGES, SHAPES, WithMap, call, fine, on_page, records
from xai_insert import insert_file
from xai_insert.errors import ModelFileError
from xai_insert.explain import runtime, sharing
from xai_insert.explain.errors import RunError
from xai_insert.explain.journal import Journal, Records

ROOT = Path(__file__).parents[2]
MODEL = WithMap("shapes_cnn.xml")
FACTS = {"source": "", "size": [1, 1], "predictions": [], "maps": []}


def start(*arguments):
    command = [sys.executable, "-m", "xai_insert.cli.explain", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def record(name):
    return {"name": name, "image": f"images/{name}.jpg", "data": f"data/{name}.js", **FACTS}


def sections(output):
    return len(on_page(output))


def test_two_runs_at_once_keep_every_record(tmp_path):
    names = [f"{index:03}" for index in range(200)]
    for number, name in enumerate(names):
        folder = tmp_path / f"part{number % 2}"
        folder.mkdir(exist_ok=True)
        shutil.copy(IMAGES[number % len(IMAGES)], folder / f"{name}.png")
    output = tmp_path / "out"
    runs = [start(MODEL, tmp_path / f"part{number}", "-o", output) for number in (0, 1)]
    for run in runs:
        lines, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        assert "100 drawn" in lines
    assert sorted(item["name"] for item in records(output)) == names
    assert sections(output) == 200


def test_the_page_shows_the_images_of_all_runs(tmp_path):
    fine(MODEL, IMAGES[0], "-o", tmp_path)
    fine(MODEL, IMAGES[1], "-o", tmp_path)
    assert sections(tmp_path) == len(records(tmp_path)) == 2


def test_journals_side_by_side(tmp_path):
    """The second finds the first at work; a line that a third one left half written costs no other its own."""
    path = tmp_path / "results.jsonl"
    path.write_text("noise\n" + json.dumps(record("old")) + "\n" + json.dumps(record("old")) + "\n")
    first, second = Journal(path, tmp_path), Journal(path, tmp_path)
    with first:
        assert first.odd == 1
        first.append(record("a"))
        with second:
            second.append(record("b"))
            with path.open("ab") as file:
                file.write(b'{"name": "half')
            first.append(record("c"))
            second.append(record("a"))
        assert path.read_text().count('"a"') == 2, "put in order while another run had it open"
        first.append(record("d"))
    assert list(Records(path)) == ["old", "a", "b", "c", "d"]
    assert len(path.read_text().splitlines()) == 5
    assert (tmp_path / "results.set-aside.txt").read_text() == 'noise\n{"name": "half\n'


def test_a_drive_without_locks_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "fcntl", None)
    result = fine(MODEL, IMAGES[0], "-o", tmp_path)
    assert "has no locks: let one run at a time write into it" in result.stderr
    assert len(records(tmp_path)) == 1


def test_a_lock_that_the_drive_refuses(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(sharing.fcntl, "flock", refuse)
    assert "has no locks" in fine(MODEL, IMAGES[0], "-o", tmp_path).stderr


# A model that changes


@pytest.mark.parametrize("place", ["the model", "its weights", "weights by another name"])
def test_resuming_goes_by_the_content_of_every_file(tmp_path, place):
    """Of the same size and time."""
    model = onnx.load(SHAPES / "shapes_cnn.onnx")
    path = tmp_path / "m.onnx"
    location = {"the model": None, "its weights": "m.onnx.data", "weights by another name": "w"}[place]
    onnx.save(model, path, save_as_external_data=location is not None, location=location, size_threshold=256)
    output = tmp_path / "out"
    fine(path, IMAGES[0], "-o", output)
    assert "1 already there" in fine(path, IMAGES[0], "-o", output).stdout
    changed = path if location is None else tmp_path / location
    before, content = changed.stat(), bytearray(changed.read_bytes())
    largest = max((item.raw_data for item in onnx.load(path).graph.initializer), key=len)
    at = content.index(largest)
    content[at : at + 4] = np.float32(0.125).tobytes()
    changed.write_bytes(content)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed.stat().st_size == before.st_size
    assert "1 drawn" in fine(path, IMAGES[0], "-o", output).stdout


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path, loads = tmp_path / "m.onnx", []
    shutil.copy(SHAPES / "shapes_cnn.onnx", path)

    def load(*arguments):
        loads.append(path.read_bytes())
        if len(loads) == 1:
            (tmp_path / "new").write_bytes((SHAPES / "shapes_vit.onnx").read_bytes())
            os.replace(tmp_path / "new", path)
            raise ModelFileError("half of it was of another model")
        return arguments

    monkeypatch.setattr(runtime, "load_engine", load)
    _, content = runtime.load_settled(path)
    assert len(loads) == 2
    assert content == runtime.digest([path])


def test_a_model_that_never_settles(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    shutil.copy(SHAPES / "shapes_cnn.onnx", path)
    monkeypatch.setattr(runtime, "load_engine", lambda *_: path.write_bytes(path.read_bytes() + b"\0"))
    with pytest.raises((RunError, ModelFileError)):
        runtime.load_settled(path)


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_inserting_and_explaining_one_model_at_once(tmp_path, suffix):
    """While one of two models takes the other's place all the time, what is loaded is one of them, whole."""
    sources = []
    for name in ("global average pool", "flatten"):
        model = models.classifier(models.CLOSED[name], batch=1)
        source = tmp_path / f"{name}.onnx"
        onnx.save(model, source, save_as_external_data=suffix == ".onnx", location=f"{name}.data", size_threshold=0)
        sources.append(source)
    feed = np.random.default_rng(0).standard_normal((1, 3, models.SIDE, models.SIDE)).astype(np.float32)
    wanted = []
    for index, source in enumerate(sources):
        insert_file(source, tmp_path / f"wanted{index}{suffix}")
        wanted.append(run(tmp_path / f"wanted{index}{suffix}", feed))
    goal, over = tmp_path / f"goal{suffix}", threading.Event()
    insert_file(sources[0], goal)

    def replace():
        while not over.is_set():
            for source in sources[::-1]:
                insert_file(source, goal)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(12):
            try:
                found = run(goal, feed)
            except RunError as err:
                assert "was replaced while it was read" in str(err)  # noqa: PT017 - which is allowed, not wanted
                continue
            assert any(np.array_equal(found, item) for item in wanted)
    finally:
        over.set()
        thread.join()


def run(path, feed):
    engine, _ = runtime.load_settled(path)
    return engine.infer(feed).saliency_map


def test_a_run_beside_an_insertion_into_its_folder(tmp_path):
    """Neither waits for the other: a run holds its folder for hours."""
    (tmp_path / "images").mkdir()
    with Journal(tmp_path / "results.jsonl", tmp_path / "images"):
        insert_file(SHAPES / "shapes_cnn.onnx", tmp_path / "model.onnx")
    assert call(tmp_path / "model.onnx", IMAGES[0], "-o", tmp_path).exit_code == 0


def test_a_journal_that_cannot_be_read_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(record("a")) + "\nnoise\n")
    real = os.open

    def refuse(name, flags, *mode, **how):
        if str(name) == str(path) and not flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(24, "Too many open files")
        return real(name, flags, *mode, **how)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunError, match="Too many open files"):
        Journal(path, tmp_path).__enter__()
    assert path.read_text() == json.dumps(record("a")) + "\nnoise\n"
