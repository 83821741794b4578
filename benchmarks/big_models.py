"""Peak memory of inserting into models above 2 GB.

    python -m benchmarks.big_models FOLDER [--gigabytes 2.2]

Generates, in FOLDER, a network of wide linear layers on patch tokens with random weights, as ONNX with external data
and as IR, and inserts into each in a process of its own. Prints, relative to the size of the model's files: the peak of
the resident memory (which counts the pages of mapped files that were touched, though the system can drop them) and the
peak of the private memory (what was really allocated).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper

_WIDTH = 4096
_CLASSES = 1000
_INTERVAL = 0.005


def generate(folder: Path, gigabytes: float) -> Path:
    """Write `big.onnx` with `big.onnx.data`; the weights are written one after another."""
    layers = max(1, round(gigabytes * 1e9 / (4 * _WIDTH * _WIDTH)))
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    with (folder / "big.onnx.data").open("wb") as data:

        def weight(*shape: int) -> str:
            name = f"weight_{len(weights)}"
            content = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.5 / np.sqrt(shape[0]))
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "big.onnx.data"), ("offset", data.tell()), ("length", content.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            data.write(content.tobytes())
            weights.append(tensor)
            return name

        def node(kind: str, *inputs: str, **attributes: object) -> str:
            name = f"{kind}_{len(nodes)}"
            nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
            return name

        x = node("Conv", "image", weight(_WIDTH, 3, 16, 16), strides=[16, 16])
        weights.append(onnx.numpy_helper.from_array(np.array([0, _WIDTH, -1]), "merged"))
        x = node("Transpose", node("Reshape", x, "merged"), perm=[0, 2, 1])
        for _ in range(layers):
            x = node("Add", x, node("Relu", node("MatMul", x, weight(_WIDTH, _WIDTH))))
        x = node("ReduceMean", x, axes=[1], keepdims=0)
        logits = node("MatMul", x, weight(_WIDTH, _CLASSES))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])
    result = helper.make_tensor_value_info(logits, TensorProto.FLOAT, [1, _CLASSES])
    graph = helper.make_graph(nodes, "big", [image], [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "big.onnx").write_bytes(model.SerializeToString())
    return folder / "big.onnx"


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
    models = [generate(folder, arguments.gigabytes)]
    ov.save_model(ov.Core().read_model(models[0]), folder / "big_ir.xml", compress_to_fp16=False)
    models.append(folder / "big_ir.xml")
    print("| model | GB | resident / file | private / file |\n| --- | ---: | ---: | ---: |")
    for model in models:
        command = [sys.executable, "-m", "benchmarks.big_models", str(folder), "--insert", str(model)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        resident, private = (int(number) / _size(model) for number in run.stdout.split()[-2:])
        print(f"| {model.name} | {_size(model) / 1e9:.2f} | {resident:.2f} | {private:.2f} |", flush=True)


if __name__ == "__main__":
    main()
