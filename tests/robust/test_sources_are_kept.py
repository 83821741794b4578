"""No file that a model is read from is ever written, whatever the name that it is given by."""

import os
from pathlib import Path

import onnx
import openvino as ov
import pytest

from tests import models
from tests.commands import invoke
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
