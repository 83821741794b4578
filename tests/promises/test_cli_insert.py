"""The command line as a newcomer and as CI meet it: what it prints, what it returns, what it leaves on disk."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import openvino as ov
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from model_zoo_fixtures.testbed import models, oracle
from xai_insert import prove, writing
from xai_insert.cli.insert import main
from xai_insert.cli.worker import run_here


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a good model in both formats."""
    model = models.classifier(models.CLOSED["global average pool"])
    onnx.save(model, tmp_path / "good.onnx")
    ov.save_model(ov.Core().read_model(tmp_path / "good.onnx"), tmp_path / "good.xml", compress_to_fp16=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], obj=run_here)


def tree(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def image(batch=2):
    return np.random.default_rng(0).standard_normal((batch, 3, models.SIDE, models.SIDE)).astype(np.float32)


@pytest.mark.parametrize("name", ["good.onnx", "good.xml"])
def test_main_job(folder, name):
    result = call(name, "-o", f"new{Path(name).suffix}")
    assert result.exit_code == 0, result.output
    assert "grid 6x6" in result.output
    assert "predictions identical" in result.output
    written = onnx.load("new.onnx") if name.endswith("onnx") else ov.Core().read_model("new.xml")
    outputs = oracle.run(written, image())
    assert outputs["saliency_map"].shape == (2, 5, 6, 6)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], "a temporary folder is left over"


def test_onnx_becomes_ir(folder):
    assert call("good.onnx", "-o", "new.xml").exit_code == 0
    outputs = oracle.run(ov.Core().read_model("new.xml"), image())
    assert outputs["saliency_map"].dtype == np.uint8


def test_output_that_is_a_file_is_understood(folder):
    """The short form is -o; --output is for an output of the model, none of which ends in .onnx."""
    result = call("good.onnx", "--output", "out.onnx")
    assert result.exit_code == 0, result.output
    assert "note: --output is for an output of the model; taken as -o out.onnx" in result.stderr
    call("good.onnx", "-o", "other.onnx")
    assert (folder / "out.onnx").read_bytes() == (folder / "other.onnx").read_bytes()


def test_dry_run_writes_nothing(folder):
    before = tree(folder)
    result = call("good.xml", "--dry-run")
    assert result.exit_code == 0
    for word in ("logits", "target", "closed form", "mean over the grid", "MFLOPs", "bytes"):
        assert word in result.output
    assert tree(folder) == before


def test_quiet_prints_nothing(folder):
    assert call("good.onnx", "-o", "new.onnx", "-q").output == ""


def test_output_dtype_and_feature_vector(folder):
    assert call("good.onnx", "-o", "new.onnx", "--output-dtype", "f32", "--feature-vector").exit_code == 0
    outputs = oracle.run(onnx.load("new.onnx"), image())
    assert outputs["saliency_map"].dtype == np.float32
    assert outputs["feature_vector"].shape == (2, models.CHANNELS)


def test_several_models_one_report(folder):
    (folder / "broken.onnx").write_bytes((folder / "good.onnx").read_bytes()[:900])
    (folder / "out").mkdir()
    result = call("good.onnx", "broken.onnx", "good.xml", "-o", "out/", "--report", "report.json")
    assert result.exit_code == 1
    assert "1 of 3 models failed" in result.output
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["good.bin", "good.onnx", "good.xml"]
    first, second, third = json.loads((folder / "report.json").read_text())["models"]
    assert first["target"]["grid"] == [6, 6]
    assert first["versions"]["onnxruntime"]
    assert third["versions"]["openvino"]
    assert "is the file whole?" in second["error"]


def test_skip_existing(folder):
    """Models that are there are neither read nor written, and the report keeps what it said of them."""
    (folder / "out").mkdir()
    one, both = [folder / "good.onnx"], [folder / "good.onnx", folder / "good.xml"]
    arguments = ["-o", folder / "out", "--report", folder / "report.json", "--skip-existing"]
    assert call(*one, *arguments).exit_code == 0
    before, first = tree(folder / "out"), json.loads((folder / "report.json").read_text())["models"]
    result = call(*both, *arguments)
    assert result.exit_code == 0
    assert "skipped" in result.stdout
    reports = json.loads((folder / "report.json").read_text())["models"]
    assert reports[0] == first[0]
    assert reports[1]["output"] == str(folder / "out" / "good.xml")
    assert {name: content for name, content in tree(folder / "out").items() if name in before} == before
    (folder / "out" / "good.bin").unlink()
    (folder / "report.json").write_text("none")
    result = call(*both, *arguments)
    assert result.stdout.count("skipped") == 1
    assert (folder / "out" / "good.bin").exists()
    assert json.loads((folder / "report.json").read_text())["models"][0]["lines"][0][0] == "skipped"
    refused = call(*one, "--dry-run", "--skip-existing")
    assert refused.exit_code == 2
    assert "leave it out" in refused.stderr


def text_model():
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"])]
    nodes.append(helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(np.zeros((100, 8), np.float32), "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def audio_model():
    b = models.Builder()
    x = b.node("Conv", "wave", b.weight(4, 1, 9), strides=[4])
    x = b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 4)
    return b.model(x, inputs=[helper.make_tensor_value_info("wave", TensorProto.FLOAT, [1, 1, 16000])])


def one_cell_model():
    b = models.Builder(size=(8, 8), batch=1)
    x = b.node("Conv", b.backbone(), b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[4, 4])
    return b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 6))


def two_outputs_model():
    b = models.Builder()
    x = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
    return b.model(b.linear(x, models.CHANNELS), b.linear(x, models.CHANNELS))


def dense_model():
    b = models.Builder()
    return b.model(b.backbone())


ODD_MODELS = {
    "text.onnx": text_model,
    "audio.onnx": audio_model,
    "cell.onnx": one_cell_model,
    "two.onnx": two_outputs_model,
    "dense.onnx": dense_model,
}

# arguments, exit code, what the message must say
BAD_CALLS = {
    "missing file": ("missing.onnx -o o.onnx", 1, "no such file"),
    "missing weights": ("lonely.xml -o o.xml", 1, "lonely.bin"),
    "truncated onnx": ("half.onnx -o o.onnx", 1, "is the file whole?"),
    "random onnx": ("noise.onnx -o o.onnx", 1, "is the file whole?"),
    "empty onnx": ("empty.onnx -o o.onnx", 1, "is the file whole?"),
    "truncated xml": ("half.xml -o o.xml", 1, "is it whole?"),
    "random xml": ("noise.xml -o o.xml", 1, "not an OpenVINO IR"),
    "truncated weights": ("short.xml -o o.xml", 1, "weights"),
    "text model": ("text.onnx -o o.onnx", 1, "no image input"),
    "audio model": ("audio.onnx -o o.onnx", 1, "no image input"),
    "one cell": ("cell.onnx -o o.onnx", 1, "1x1: nothing to localise"),
    "dense output": ("dense.onnx -o o.onnx", 1, "--method class-score-map says that they are classes"),
    "two outputs": ("two.onnx -o o.onnx", 1, "--output NAME"),
    "unknown output": ("two.onnx --output gem -o o.onnx", 1, "nearest: 'gemm"),
    "unknown layer": ("good.onnx --target-layer Rel -o o.onnx", 1, "nearest: 'Relu_4'"),
    "layer beside the path": ("good.onnx --target-layer Conv_2 -o o.onnx", 1, "some go round it"),
    "layer without grid": ("good.onnx --target-layer Gemm_7 -o o.onnx", 1, "no feature map with a grid"),
    "same file": ("good.onnx -o good.onnx", 1, "same file"),
    "no folder": ("good.onnx -o absent/o.onnx", 1, "absent"),
    "unknown suffix": ("good.onnx -o o.txt", 1, "wanted .xml"),
    "unknown input suffix": ("model.mystery -o o.onnx", 1, "wanted .xml"),
    "kind of input that is no export": ("model.pt -o o.onnx", 1, "a PyTorch file"),
    "IR to ONNX": ("good.xml -o o.onnx", 1, "cannot become ONNX"),
    "unknown input": ("good.onnx --input-shape picture:1,3,12,12 -o o.onnx", 1, "'image'"),
    "sizes that do not fit": ("good.xml --input-shape image:1,4,12,12 -o o.xml", 1, "--input-shape"),
    "malformed sizes": ("good.onnx --input-shape image -o o.onnx", 2, "image:1,3,224,224"),
    "no output": ("good.onnx", 2, "-o"),
    "no model": ("-o o.onnx", 2, "MODEL"),
    "unknown method": ("good.onnx --method ablation-cam -o o.onnx", 2, "recipro-cam"),
    "several models into one file": ("good.onnx good.xml -o o.xml", 2, "folder does not exist"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_end_in_one_clear_line(folder, name):
    arguments, code, expected = BAD_CALLS[name]
    rng = np.random.default_rng(0)
    for file, build in ODD_MODELS.items():
        if file in arguments:
            onnx.save(build(), file)
    content = (folder / "good.onnx").read_bytes()
    (folder / "half.onnx").write_bytes(content[: len(content) // 2])
    (folder / "noise.onnx").write_bytes(rng.bytes(3000))
    (folder / "empty.onnx").touch()
    (folder / "model.pt").touch()
    (folder / "model.mystery").touch()
    text = (folder / "good.xml").read_bytes()
    for stem, xml, weights in (
        ("half", text[: len(text) // 2], (folder / "good.bin").read_bytes()),
        ("noise", rng.bytes(3000), b""),
        ("short", text, (folder / "good.bin").read_bytes()[:100]),
    ):
        (folder / f"{stem}.xml").write_bytes(xml)
        (folder / f"{stem}.bin").write_bytes(weights)
    shutil.copy("good.xml", "lonely.xml")
    before = tree(folder)

    result = call(*arguments.split())

    assert result.exit_code == code, result.output
    assert expected in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if code == 1:
        assert len(result.output.strip().splitlines()) == 1
    assert tree(folder) == before


def test_already_inserted(folder):
    assert call("good.onnx", "-o", "new.onnx").exit_code == 0
    again = call("new.onnx", "-o", "newer.onnx")
    assert again.exit_code == 1
    assert "already has a saliency map" in again.output
    assert not Path("newer.onnx").exists()


def test_a_folder_that_cannot_be_written(folder, monkeypatch):
    monkeypatch.setattr(writing, "os", SimpleNamespace(access=lambda *_: False, W_OK=2))
    result = call("good.onnx", "-o", "new.onnx")
    assert result.exit_code == 1
    assert "cannot be written" in result.output


def test_a_full_disk_leaves_the_old_file(folder, monkeypatch):
    Path("new.onnx").write_bytes(b"old")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xai_insert.formats.onnx.storage.write", full)
    result = call("good.onnx", "-o", "new.onnx")
    assert result.exit_code == 1
    assert "No space left" in result.output
    assert Path("new.onnx").read_bytes() == b"old"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_moved_prediction_is_never_written(folder, monkeypatch):
    monkeypatch.setattr(prove, "random_feeds", _other(prove.random_feeds))
    result = call("good.onnx", "-o", "new.onnx")
    assert result.exit_code == 1
    assert "would move" in result.output
    assert not Path("new.onnx").exists()
    assert call("good.onnx", "-o", "new.onnx", "--no-check").exit_code == 0


def _other(feeds):
    """Another input for the inserted model than for the plain one, whose outputs are others too."""
    return lambda runner, size: {name: array + array.dtype.type(0.1) for name, array in feeds(runner, size).items()}


def test_help_fits_a_screen_and_ends_with_commands():
    lines = call("--help").output.rstrip().splitlines()
    assert len(lines) < 50
    assert "xai-insert model.xml -o model_xai.xml" in lines[-2]
