"""No file that a model is read from is ever written, whatever the name that it is given by."""

import os
from pathlib import Path

import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.commands import invoke
from xai_insert.cli.insert import main
from xai_insert.cli.worker import run_here


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`good` in both formats, and `apart.onnx` with its weights in three files of its own."""
    model = models.classifier(models.CLOSED["global average pool"])
    onnx.save(model, tmp_path / "good.onnx")
    ov.save_model(ov.Core().read_model(tmp_path / "good.onnx"), tmp_path / "good.xml", compress_to_fp16=False)
    (tmp_path / "sub").mkdir()
    (tmp_path / "out").mkdir()
    onnx.save(model, tmp_path / "apart.onnx")
    names = ["apart.bin", "next.onnx.data", "sub/" + "w" * 130 + ".xml"]
    apart = onnx.load(tmp_path / "apart.onnx")
    for index, tensor in enumerate(apart.graph.initializer):
        onnx.external_data_helper.set_external_data(tensor, names[index % 3])
    onnx.save(apart, tmp_path / "apart.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def link(name, target):
    os.symlink(target, name)


def hard(name, target):
    os.link(target, name)


CALLS = {
    "external weights become the IR's": ("apart.onnx -o apart.xml", None),
    "by another letter case": ("apart.onnx -o APART.xml", ("APART.bin", "apart.bin", hard)),
    "external weights become external weights": ("apart.onnx -o next.onnx", None),
    "external weights become the model": (f"apart.onnx -o sub/{'w' * 130}.xml", None),
    "by way of a folder": ("apart.onnx -o sub/../apart.xml", None),
    "a symlink": ("apart.onnx -o out/a.xml", ("out/a.bin", "../apart.bin", link)),
    "a hard link": ("apart.onnx -o out/a.xml", ("out/a.bin", "apart.bin", hard)),
    "the weights of an IR": ("good.xml -o out/a.xml", ("out/a.bin", "../good.bin", link)),
}


@pytest.mark.parametrize("name", CALLS)
def test_weights_of_the_source(folder, name):
    arguments, made = CALLS[name]
    if made is not None:
        made[2](made[0], made[1])
    before = tree(folder)
    result = invoke(main, *arguments.split(), obj=run_here)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "would overwrite" in result.stderr
    assert tree(folder) == before


def test_other_files_may_be_replaced(folder):
    Path("other.bin").write_bytes(b"")
    Path("other.xml").write_bytes(b"")
    assert invoke(main, "apart.onnx", "-o", "other.xml", obj=run_here).exit_code == 0
    assert invoke(main, "apart.onnx", "-o", "other.xml", obj=run_here).exit_code == 0
    assert invoke(main, "apart.onnx", "-o", "out/apart.onnx", obj=run_here).exit_code == 0


REFUSED = {
    "report over the model read": "good.onnx -o out/a.onnx --report good.onnx",
    "report over weights": "good.xml -o out/a.xml --report good.bin",
    "report over external weights": "apart.onnx -o out/a.onnx --report apart.bin",
    "report over weights, dry": "apart.onnx --dry-run --report apart.bin",
    "report over the model written": "good.xml -o out/a.xml --report out/a.xml",
    "report over the weights written": "good.xml -o out/a.xml --report out/A.bin",
    "report over external weights written": "apart.onnx -o out/a.onnx --report out/a.onnx.data",
    "another source": "out/good.onnx good.onnx -o .",
    "another source's weights": "sub/apart.onnx apart.onnx -o .",
    "two outputs of one name": "good.xml sub/good.xml -o out",
    "two outputs of one pair": "good.xml out/good.XML -o sub",
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_before_any_work(folder, name):
    for path in ("out/good.onnx", "sub/apart.onnx", "sub/good.xml", "out/good.XML"):
        Path(path).write_bytes(Path("good.onnx").read_bytes())
    Path("out/a.xml").write_bytes(b"old")
    before = tree(folder)
    result = invoke(main, *REFUSED[name].split(), obj=pytest.fail)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "would" in result.stderr
    assert tree(folder) == before


def test_a_report_goes_where_links_and_devices_lead(folder):
    Path("kept.json").write_text("old")
    link("r.json", "kept.json")
    assert invoke(main, "good.onnx", "--dry-run", "--report", "r.json", obj=run_here).exit_code == 0
    assert Path("r.json").is_symlink()
    assert '"models"' in Path("kept.json").read_text()
    assert invoke(main, "good.onnx", "--dry-run", "--report", os.devnull, obj=run_here).exit_code == 0
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("path", ["absent/r.json", "out"])
def test_a_report_without_a_place_is_said_before_any_work(folder, path):
    result = invoke(main, "good.onnx", "-o", "out/a.onnx", "--report", path, obj=pytest.fail)
    assert result.exit_code == 1
    assert "cannot write the report" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
