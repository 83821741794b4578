"""The same model gives the same bytes: in another process, folder and order of hashes, and beside other runs."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.transformer_models import CLOSED as TRANSFORMERS
from xai_insert import insert_file

INSERT_ALL = """
import sys
from pathlib import Path
from xai_insert import Options, insert_file
for source in sorted(Path(sys.argv[1]).glob("*.[ox][nm]*[lx]")):
    insert_file(source, Path(sys.argv[2], source.name), Options(feature_vector=True))
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Models of every method and form, in both formats; one with external weights."""
    folder = tmp_path_factory.mktemp("plain")
    made = {
        "pooled": models.classifier(models.CLOSED["average and maximum joined"]),
        "flatten": models.classifier(models.CLOSED["flatten"]),
        "masked": models.classifier(models.MASKED["attention"]),
        "tokens": models.classifier(TRANSFORMERS["plain"], size=(8, 12)),
    }
    for name, model in made.items():
        onnx.save(model, folder / f"{name}.onnx")
        ov.save_model(ov.Core().read_model(folder / f"{name}.onnx"), folder / f"{name}.xml", compress_to_fp16=False)
    onnx.save(
        made["pooled"],
        folder / "external.onnx",
        save_as_external_data=True,
        location="external.onnx.data",
        size_threshold=0,
    )
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def insert_all(plain, output, **environment):
    output.mkdir(parents=True)
    command = [sys.executable, "-c", INSERT_ALL, str(plain), str(output)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env={**os.environ, **environment})
    return content(output)


@pytest.fixture(scope="module")
def expected(plain, tmp_path_factory):
    """What one process makes of them, alone."""
    return insert_all(plain, tmp_path_factory.mktemp("out") / "a", PYTHONHASHSEED="0", OMP_NUM_THREADS="1")


def test_same_bytes_whatever_the_process(plain, expected, tmp_path):
    second = insert_all(plain, tmp_path / "longer" / "name", PYTHONHASHSEED="12345", OMP_NUM_THREADS="3", LANG="C")
    assert second == expected
    assert len(expected) == 2 * 4 + 4 + 2


def test_same_bytes_again_in_one_process(plain, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for source in ("pooled.xml", "tokens.onnx", "tokens.xml"):
            insert_file(plain / source, tmp_path / name / source)
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.long
def test_concurrent_runs_do_not_disturb_each_other(plain, expected, tmp_path):
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda index: insert_all(plain, tmp_path / f"beside{index}"), range(3)))
    assert found == [expected] * 3


def test_concurrent_threads_and_one_goal(plain, tmp_path):
    """Several insertions of one model into one file: it is whole at the end, whoever came last."""
    insert_file(plain / "pooled.xml", tmp_path / "alone.xml")
    (goal := tmp_path / "goal").mkdir()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: insert_file(plain / "pooled.xml", goal / "out.xml"), range(8)))
    assert (goal / "out.xml").read_bytes() == (tmp_path / "alone.xml").read_bytes()
    assert (goal / "out.bin").read_bytes() == (tmp_path / "alone.bin").read_bytes()
    assert sorted(path.name for path in goal.iterdir()) == ["out.bin", "out.xml"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_two_models_and_one_goal(plain, tmp_path, monkeypatch, suffix):
    """Whoever moves its files first has moved all of them before the other one begins."""
    names = {".xml": ("pooled", "flatten"), ".onnx": ("external", "external2")}[suffix]
    if suffix == ".onnx":
        settings = {"save_as_external_data": True, "location": "external2.onnx.data", "size_threshold": 0}
        onnx.save(models.classifier(models.CLOSED["flatten"]), plain / "external2.onnx", **settings)
    expected = []
    for name in names:
        (tmp_path / name).mkdir()
        insert_file(plain / f"{name}{suffix}", tmp_path / name / f"out{suffix}")
        expected.append(content(tmp_path / name))
    (goal := tmp_path / "goal").mkdir()
    replace, both, arrived = os.replace, threading.Barrier(2), set()

    def slowly(*paths):
        if threading.current_thread() not in arrived:
            arrived.add(threading.current_thread())
            with contextlib.suppress(threading.BrokenBarrierError):  # the other one is kept waiting, as it should be
                both.wait(0.5)
        time.sleep(0 if threading.current_thread() is slower else 0.03)
        replace(*paths)
        time.sleep(0.2 if threading.current_thread() is slower else 0)

    def run(name):
        insert_file(plain / f"{name}{suffix}", goal / f"out{suffix}")

    monkeypatch.setattr(os, "replace", slowly)
    slower, other = (threading.Thread(target=run, args=[name]) for name in names)
    for thread in (slower, other):
        thread.start()
    for thread in (slower, other):
        thread.join()
    assert content(goal) in expected
