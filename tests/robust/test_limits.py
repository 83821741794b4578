"""What a model may take while it is read goes by the files that it names, not by what lies beside them."""

import os
from pathlib import Path

import onnx
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.commands import invoke
from xai_insert import insert_file
from xai_insert.cli.insert import main
from xai_insert.cli.worker import run_here
from xai_insert.files import size

HUGE = 100 << 30


@pytest.fixture
def folder(tmp_path, monkeypatch):
    model = models.classifier(models.CLOSED["global average pool"])
    onnx.save(model, tmp_path / "whole.onnx")
    onnx.save(model, tmp_path / "apart.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    for name in ("neighbour.bin", "whole.bin", "whole.onnx.data", "apart.data"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(HUGE)  # takes no room
    (tmp_path / "model.xml").write_text("<net/>")
    (tmp_path / "model.bin").write_bytes(bytes(500))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("whole.onnx", ["whole.onnx"]),
        ("apart.onnx", ["apart.onnx", "weights"]),
        ("model.xml", ["model.xml", "model.bin"]),
        ("absent.onnx", []),
    ],
)
def test_only_named_files_count(folder, source, files):
    assert size(Path(source)) == sum(Path(name).stat().st_size for name in files)


def test_the_report_counts_them_too(folder):
    report = insert_file(Path("apart.onnx"), Path("new.onnx"))
    assert report.bytes_before == sum(Path(name).stat().st_size for name in ("apart.onnx", "weights"))


def test_pipes_and_noise_count_nothing(folder):
    os.mkfifo("pipe.onnx")
    assert size(Path("pipe.onnx")) == 0
    Path("noise.onnx").write_bytes(b"\x0a\x08location\x12\x05pipe." + b"\x0a\x08location\x12")
    os.mkfifo("pipe.")
    assert size(Path("noise.onnx")) == Path("noise.onnx").stat().st_size


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_pipe_is_not_waited_for(folder, suffix):
    os.mkfifo(f"pipe{suffix}")
    Path("out.xml").write_text("old")
    result = invoke(main, f"pipe{suffix}", "-o", "out.xml", obj=run_here)
    assert (result.exit_code, result.stderr) == (1, f"error: pipe{suffix}: not a plain file\n")
    assert Path("out.xml").read_text() == "old"
