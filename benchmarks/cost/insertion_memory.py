"""Peak memory of inserting into models with their weights inside, against that of the runtime alone.

    python -m benchmarks.cost.insertion_memory FOLDER [--megabytes 50 300 900 1900] [--model FILE.onnx ...] [--json
FILE]

Generates, in FOLDER, the two networks of `benchmarks.cost.big_models` in each size, as ONNX files with their weights
inside and as IR, and runs `xai-insert` on each, with its check and without. A peak is the resident memory of the
largest of its processes as the system counts it. Without the check it stands beside the bound of 150 MB and 1.3 times
the file; with it, beside the peak of a process in which the runtime reads and compiles the file and does nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.lib.tables import Row, Setting, text_table, write_json

_SETTLED, _FACTOR, _SLACK = 150e6, 1.3, 1.2
_READ_ONNX = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
_READ_IR = (
    "import sys, openvino; core = openvino.Core(); "
    "core.compile_model(core.read_model(sys.argv[1]), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})"
)
_TOO_LARGE = 3  # for one file of protobuf
_GENERATE = """
import sys
from pathlib import Path
import onnx, openvino
from benchmarks.cost.big_models import generate
folder, name, size = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
path = generate(folder, size, name)
data = Path(f"{path}.data")
if data.stat().st_size > 2**31 - 2**20:
    data.unlink()
    sys.exit(3)
onnx.save(onnx.load(path), path)
data.unlink()
openvino.save_model(openvino.Core().read_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
"""


def peak(command: Sequence[str]) -> int:
    """Resident memory in bytes, at its peak, of the largest process of a command.

    The system counts from the memory of the process that starts it, which is why this one imports nothing large.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:6])}: {complaint.strip()[-300:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rows(model: Path, goal: Path) -> Iterator[Row]:
    """Figures of one conversion: without the check and with it."""
    size = sum(path.stat().st_size for path in (model, model.with_suffix(".bin")) if path.is_file() and path != goal)
    if model.suffix == ".onnx":
        size = model.stat().st_size
    alone = peak([sys.executable, "-c", _READ_ONNX if goal.suffix == ".onnx" else _READ_IR, str(model)])
    insert = [sys.executable, "-m", "xai_insert.cli.insert", str(model), "-o", str(goal), "-q"]
    for check, bound in ((False, _SETTLED + _FACTOR * size), (True, _SLACK * alone)):
        used = peak(insert if check else [*insert, "--no-check"])
        yield {
            "model": model.stem,
            "from -> to": f"{model.suffix} -> {goal.suffix}",
            "MB": f"{size / 1e6:.0f}",
            "check": "yes" if check else "no",
            "peak MB": f"{used / 1e6:.0f}",
            "/ file": f"{used / size:.2f}",
            "runtime MB": f"{alone / 1e6:.0f}",
            "bound MB": f"{bound / 1e6:.0f}",
            "of the bound": f"{used / bound:.2f}",
        }


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns 1 if a peak is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[50, 300, 900, 1900])
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="measure these ONNX files as well")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    sources = list(args.model)
    for megabytes in args.megabytes:
        for name in ("averaged", "class_token"):
            folder = args.folder / str(megabytes)
            folder.mkdir(parents=True, exist_ok=True)
            source = folder / f"{name}.onnx"
            if not source.with_suffix(".xml").exists():
                command = [sys.executable, "-c", _GENERATE, str(folder), name, str(megabytes / 1e3)]
                done = subprocess.run(command, check=False)
                if done.returncode == _TOO_LARGE:  # its head and attention stand beside the layers
                    print(f"{name} of {megabytes} MB does not fit into one ONNX file", file=sys.stderr)
                    continue
                done.check_returncode()
            sources.append(source)
    found: list[Row] = []
    for source in sources:
        new = source.parent / "inserted"
        new.mkdir(exist_ok=True)
        kinds = [(source, ".onnx"), (source, ".xml")]
        if source.with_suffix(".xml").exists():
            kinds.append((source.with_suffix(".xml"), ".xml"))
        for model, suffix in kinds:
            found += rows(model, new / f"{source.stem}{suffix}")
            print(f"{model} -> {suffix}", file=sys.stderr)
    setting = Setting.here("benchmarks.cost.insertion_memory", argv)
    print(text_table(found), setting.text(), sep="\n\n")
    if args.json:
        write_json(args.json, setting, found)
    return int(any(float(row["of the bound"]) > 1 for row in found))


if __name__ == "__main__":
    sys.exit(main())
