"""An inserted model in the runtimes of JavaScript, and the C++ of docs/explain.md against OpenVINO's headers."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest

from model_zoo_fixtures.testbed.explaining import SHAPES
from xai_insert import insert

MODULES = os.environ.get("XAI_INSERT_NODE_MODULES", "")
"""Folder node_modules with onnxruntime-node and onnxruntime-web."""


@pytest.mark.parametrize("name", ["shapes_cnn", "shapes_vit"])
@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_javascript_reads_the_map(tmp_path, package, name):
    if not (Path(MODULES) / package).is_dir() or not MODULES or shutil.which("node") is None:
        pytest.skip("set XAI_INSERT_NODE_MODULES to a node_modules with onnxruntime-node and onnxruntime-web")
    insert(SHAPES / f"{name}.onnx").save(tmp_path / "xai.onnx")
    session = ort.InferenceSession(tmp_path / "xai.onnx", providers=["CPUExecutionProvider"])
    sizes = [2, *session.get_inputs()[0].shape[1:]]
    pixels = np.random.default_rng(0).uniform(0, 255, sizes).astype(np.float32)
    pixels.tofile(tmp_path / "input.bin")
    script = Path(__file__).parent / "web" / "run.mjs"
    command = ["node", script, package, tmp_path / "xai.onnx", tmp_path / "input.bin", ",".join(map(str, sizes))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    (expected,) = session.run(["saliency_map"], {session.get_inputs()[0].name: pixels})
    assert found["names"] == [output.name for output in session.get_outputs()]
    assert (found["type"], found["dims"]) == ("uint8", list(expected.shape))
    difference = np.abs(np.array(found["values"]).reshape(expected.shape) - expected.astype(int))
    assert (difference <= 1).mean() > 0.99, difference.max()


def test_cpp_of_the_documentation_compiles(tmp_path):
    headers = Path(ov.__file__).parent / "include"
    if shutil.which("g++") is None or not headers.is_dir():
        pytest.skip("wants g++ and the headers in OpenVINO's package")
    (code,) = re.findall(r"```cpp\n(.*?)```", (SHAPES.parents[1] / "docs" / "explain.md").read_text(), re.DOTALL)
    include, _, body = code.partition("\n\n")
    source = tmp_path / "main.cpp"
    source.write_text(f"{include}\nint main() {{\nov::Tensor image;\n{body}\nreturn map[0];\n}}\n")
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", "-isystem", headers, source]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stderr
