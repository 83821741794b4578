"""Peak memory of inserting into models above 2 GB.

    python -m benchmarks.cost.big_models FOLDER [--gigabytes 2.2]

Generates, in FOLDER, networks of wide linear layers on patch tokens with random weights, one that averages them and one
with a last block of attention from which a class token is read, as ONNX with external data and as IR, and inserts into
each in a process of its own. Prints, relative to the size of the model's files: the peak of
the resident memory (which counts the pages of mapped files that were touched, though the system can drop them) and the
peak of the private memory (what was really allocated).
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper

_WIDTH, _HEADS, _PATCHES = 4096, 32, 16
_CLASSES = 1000
_INTERVAL = 0.005
AVERAGED, CLASS_TOKEN = "averaged", "class_token"


def generate(folder: Path, gigabytes: float, name: str) -> Path:
    """Write `<name>.onnx` with `<name>.onnx.data`; the weights are written one after another."""
    layers = max(1, round(gigabytes * 1e9 / (4 * _WIDTH * _WIDTH)))
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    with (folder / f"{name}.onnx.data").open("wb") as data:

        def weight(*shape: int) -> str:
            content = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.5 / np.sqrt(shape[-2]))
            tensor = TensorProto(name=f"weight_{len(weights)}", data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", f"{name}.onnx.data"), ("offset", data.tell()), ("length", content.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            data.write(content.tobytes())
            weights.append(tensor)
            return tensor.name

        def numbers(*content: float, dtype: type = np.int64) -> str:
            weights.append(onnx.numpy_helper.from_array(np.array(content, dtype), f"numbers_{len(weights)}"))
            return weights[-1].name

        def node(kind: str, *inputs: str, **attributes: object) -> str:
            result = f"{kind}_{len(nodes)}"
            nodes.append(helper.make_node(kind, list(inputs), [result], name=f"node_{result}", **attributes))
            return result

        def heads(x: str, *perm: int) -> str:
            linear = node("MatMul", x, weight(_WIDTH, _WIDTH))
            parts = node("Reshape", linear, numbers(0, _PATCHES + 1, _HEADS, _WIDTH // _HEADS))
            return node("Transpose", parts, perm=perm)

        def attention(x: str) -> str:
            inner = node("LayerNormalization", x, numbers(*[1.0] * _WIDTH, dtype=np.float32), axis=-1)
            query, key, value = heads(inner, 0, 2, 1, 3), heads(inner, 0, 2, 3, 1), heads(inner, 0, 2, 1, 3)
            scaled = node("Mul", query, numbers((_HEADS / _WIDTH) ** 0.5, dtype=np.float32))
            mixed = node("MatMul", node("Softmax", node("MatMul", scaled, key), axis=-1), value)
            joined = node("Reshape", node("Transpose", mixed, perm=[0, 2, 1, 3]), numbers(0, _PATCHES + 1, _WIDTH))
            return node("Add", x, node("MatMul", joined, weight(_WIDTH, _WIDTH)))

        x = node("Conv", "image", weight(_WIDTH, 3, 16, 16), strides=[16, 16])
        x = node("Transpose", node("Reshape", x, numbers(0, _WIDTH, _PATCHES)), perm=[0, 2, 1])
        if name == CLASS_TOKEN:
            x = node("Concat", weight(1, 1, _WIDTH), x, axis=1)
        for _ in range(layers):
            x = node("Add", x, node("Relu", node("MatMul", x, weight(_WIDTH, _WIDTH))))
        if name == CLASS_TOKEN:
            x = node("Gather", attention(x), numbers(0), axis=1)
            x = node("Reshape", x, numbers(-1, _WIDTH))
        else:
            x = node("ReduceMean", x, axes=[1], keepdims=0)
        logits = node("MatMul", x, weight(_WIDTH, _CLASSES))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])
    result = helper.make_tensor_value_info(logits, TensorProto.FLOAT, [1, _CLASSES])
    graph = helper.make_graph(nodes, name, [image], [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def insert_and_watch(source: Path, goal: Path) -> tuple[int, int]:
    """Insert in this process; peaks of resident and of private memory in bytes."""
    from xai_insert import insert_file  # noqa: PLC0415 - in the measured process alone

    private, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            private[0] = max(private[0], _status("RssAnon"))
            time.sleep(_INTERVAL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        print(insert_file(source, goal).text(), file=sys.stderr)
    finally:
        stop.set()
        watcher.join()
    return _status("VmHWM"), private[0]


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024


def _size(model: Path) -> int:
    parts = (model, model.with_suffix(".bin"), Path(f"{model}.data"))
    return sum(path.stat().st_size for path in parts if path.exists())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--insert", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.insert:
        goal = folder / "new" / arguments.insert.name
        goal.parent.mkdir(exist_ok=True)
        print(*insert_and_watch(arguments.insert, goal))
        return
    print("| model | GB | resident / file | private / file |\n| --- | ---: | ---: | ---: |")
    for name, suffix in itertools.product((AVERAGED, CLASS_TOKEN), (".onnx", ".xml")):
        model = folder / f"{name}{suffix}"
        if suffix == ".onnx":
            generate(folder, arguments.gigabytes, name)
        else:
            ov.save_model(ov.Core().read_model(model.with_suffix(".onnx")), model, compress_to_fp16=False)
        command = [sys.executable, "-m", "benchmarks.cost.big_models", str(folder), "--insert", str(model)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        resident, private = (int(number) / _size(model) for number in run.stdout.split()[-2:])
        print(f"| {model.name} | {_size(model) / 1e9:.2f} | {resident:.2f} | {private:.2f} |", flush=True)


if __name__ == "__main__":
    main()
