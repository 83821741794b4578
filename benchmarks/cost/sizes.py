"""Time and memory of an insertion against the size of the model, from 1 MB to 2 GB.

    python -m benchmarks.cost.sizes [--megabytes 1 10 100 1000 2000] [--json FILE] [--markdown FILE] [--plot FILE]

The models are stacks of 3x3 convolutions of random weights on a small grid, as IR and as ONNX (with external weights
from 1 GB on). Each insertion runs in a process of its own, which reports its time without the imports and its peak
memory; without the check as well, since the check runs the model three times. The plot wants matplotlib.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

from benchmarks.lib.tables import Row, Setting, text_table, write_json, write_markdown

_CHANNELS, _CLASSES, _SIDE = 512, 10, 16
_CHILD = """
import json, sys, time
from pathlib import Path
import numpy, openvino, onnx_ir, onnxruntime
from xai_insert import Options, insert_file
before = int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS:")).split()[1])
start = time.perf_counter()
insert_file(Path(sys.argv[1]), Path(sys.argv[2]), Options(check=sys.argv[3] == "check"))
seconds = time.perf_counter() - start
peak = int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM:")).split()[1])
print(json.dumps({"seconds": seconds, "peak": peak * 1024, "before": before * 1024}))
"""


def write_model(megabytes: float, folder: Path) -> Path:
    """An ONNX classifier of about this size."""
    channels = _CHANNELS if megabytes >= 20 else 64
    layers = max(1, round(megabytes * 1e6 / (channels * channels * 9 * 4)))
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((channels, 3, 3, 3), np.float32) / 5, "first")]
    nodes = [helper.make_node("Conv", ["image", "first"], ["x0"], pads=[1] * 4, strides=[2, 2])]
    for index in range(layers):
        weight = rng.standard_normal((channels, channels, 3, 3), np.float32) * np.float32((2 / channels / 9) ** 0.5)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"y{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"]))
    weights.append(numpy_helper.from_array(rng.standard_normal((_CLASSES, channels), np.float32), "last"))
    nodes.append(helper.make_node("GlobalAveragePool", [f"x{layers}"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "last"], ["logits"], transB=1))
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, _SIDE, _SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", _CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / f"stack{megabytes:g}.onnx"
    external = {"save_as_external_data": True, "location": f"{path.name}.data"} if megabytes >= 1000 else {}
    onnx.save(model, path, **external)
    return path


def measure(source: Path, check: bool) -> Row:
    """One insertion, in a process of its own."""
    output = source.with_name(f"out{source.suffix}")
    command = [sys.executable, "-c", _CHILD, str(source), str(output), "check" if check else "no"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = [source, source.with_suffix(".bin") if source.suffix == ".xml" else Path(f"{source}.data")]
    size = sum(path.stat().st_size for path in files if path.exists())
    for path in (output, output.with_suffix(".bin"), Path(f"{output}.data")):
        path.unlink(missing_ok=True)
    row = {"MB": f"{size / 1e6:.1f}", "format": "IR" if source.suffix == ".xml" else "ONNX"}
    if done.returncode:
        return row | {"note": (done.stderr.strip().splitlines() or ["failed"])[-1][:160]}
    found = json.loads(done.stdout.splitlines()[-1])
    return row | {
        "check": "yes" if check else "no",
        "seconds": f"{found['seconds']:.2f}",
        "MB per s": f"{size / 1e6 / found['seconds']:.0f}",
        "peak memory MB": f"{found['peak'] / 1e6:.0f}",
        "peak beyond the imports / size": f"{(found['peak'] - found['before']) / size:.2f}",
    }


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw seconds against megabytes, both logarithmic, a line for each format with and without the check."""
    from matplotlib import pyplot  # noqa: PLC0415 - only for pictures

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    for kind, colour in (("IR", "#1f5fa8"), ("ONNX", "#c2571a")):
        for check, style, words in (("yes", "-", "checked"), ("no", "--", "--no-check")):
            chosen = [row for row in rows if row["format"] == kind and row.get("check") == check]
            points = [(float(row["MB"]), float(row["seconds"])) for row in chosen]
            axes.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=f"{kind}, {words}")
    axes.set(xscale="log", yscale="log", xlabel="model, MB", ylabel="insertion, s")
    axes.grid(which="major", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description="Measure insertions from 1 MB to 2 GB.")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 10, 100, 1000, 2000])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--plot", type=Path, help="draw the times into this PNG")
    args = parser.parse_args(argv)
    setting = Setting.here("benchmarks.cost.sizes", argv)
    rows: list[Row] = []
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
            source = write_model(megabytes, Path(scratch))
            ir = source.with_suffix(".xml")
            ov.save_model(ov.Core().read_model(source), ir, compress_to_fp16=False)
            rows += [measure(path, check) for path in (ir, source) for check in (True, False)]
        print(text_table(rows), flush=True)
        if args.json:
            write_json(args.json, setting, rows)
        if args.markdown:
            write_markdown(args.markdown, "Insertion against the size of the model", setting, rows)
        if args.plot:
            plot(rows, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
