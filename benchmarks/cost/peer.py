"""The same models through this tool, through openvino_xai, and through their own runtimes, in one run.

    python -m benchmarks.cost.peer --peer-python PATH MODEL... [--seconds 4] [--rounds 3] [--json FILE]

PATH is a Python with ``pip install openvino_xai==1.1.0``, which needs OpenVINO 2024.4 and NumPy 1. MODEL is a plain
`.xml` or `.onnx`, or the id of a fixture of the model zoo. *Insert* is reading, inserting with our check and writing;
*alone* is reading, compiling once and writing by OpenVINO, or onnx-ir and onnxruntime, in turn with it; openvino_xai,
which has no check and writes IRs alone, takes the same IRs in an interpreter of its own. Each is done once more before,
and imports are not counted. What comes out is timed side by side with the plain model in this interpreter: float32, the
batch of the export.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost.insertion_time import Stages, reference
from benchmarks.lib.runners import Runner, open_runner, random_feeds
from benchmarks.lib.tables import Row, Setting, text_table, write_json, write_markdown
from benchmarks.lib.timing import Ratio, alternate, paired_ratio
from benchmarks.lib.variants import resolve
from xai_insert import errors, insert_file

_PEER = """
import json, logging, statistics, sys, time
import openvino as ov
import openvino_xai as xai
logging.disable(logging.CRITICAL)
def run():
    start = time.perf_counter()
    model = ov.Core().read_model(sys.argv[1])
    inserted = xai.insert_xai(model, task=xai.Task.CLASSIFICATION)
    ov.save_model(inserted, sys.argv[2], compress_to_fp16=False)
    return time.perf_counter() - start
try:
    run()
    print(json.dumps({"seconds": statistics.median(run() for _ in range(int(sys.argv[3])))}))
except BaseException as err:
    text = str(err).strip().splitlines() or [type(err).__name__]
    print(json.dumps({"error": text[-1]}))
"""
_NO_ONNX = "writes no ONNX"


@dataclass(frozen=True)
class Result:
    """One model.

    Attributes:
        model: its name.
        seconds: of an insertion; the median.
        alone: of its runtime alone.
        peer: of an insertion by openvino_xai; None if it makes none.
        ratio: insertion/alone.
        growth: bytes that the file grows by.
        peer_growth: likewise, by openvino_xai.
        inference: inserted/plain.
        peer_inference: likewise, of what openvino_xai made.
        note: why there are no figures of openvino_xai.
    """

    model: str
    seconds: float
    alone: float
    peer: float | None
    ratio: Ratio
    growth: int
    peer_growth: int | None
    inference: Ratio
    peer_inference: Ratio | None
    note: str

    def row(self) -> Row:
        """The figures as text by column."""
        return {
            "model": self.model,
            "insert s": f"{self.seconds:.2f}",
            "alone s": f"{self.alone:.2f}",
            "insert/alone": str(self.ratio),
            "peer insert s": "" if self.peer is None else f"{self.peer:.2f}",
            "growth": _kilobytes(self.growth),
            "peer growth": "" if self.peer_growth is None else _kilobytes(self.peer_growth),
            "inserted/plain": str(self.inference),
            "peer/plain": str(self.peer_inference or ""),
            "note": self.note and f"peer: {self.note}"[:120],
        }


def measure(source: Path, peer_python: Path, seconds: float, rounds: int, folder: Path) -> Result:
    """Put one plain model through all of them."""
    ours, theirs = folder / f"ours{source.suffix}", folder / "peer.xml"
    times = np.array([_round(source, ours, folder) for _ in range(rounds + 1)])[1:]
    took, note = _peer(source, theirs, peer_python, rounds)
    callers: list[Runner] = [_runner(path) for path in (source, ours)]
    if took is not None:
        try:
            callers.append(_runner(theirs))
            callers[-1]()
        except RuntimeError as err:
            callers, note = callers[:2], f"does not run: {str(err).strip().splitlines()[-1]}"
    runs = alternate(callers, seconds)
    inferences = [paired_ratio(runs[:, index], runs[:, 0]) for index in range(1, len(callers))]
    return Result(
        source.name,
        float(np.median(times[:, 0])),
        float(np.median(times[:, 1])),
        took,
        paired_ratio(times[:, 0], times[:, 1]),
        _bytes(ours) - _bytes(source),
        None if took is None else _bytes(theirs) - _bytes(source),
        inferences[0],
        inferences[1] if len(inferences) > 1 else None,
        note,
    )


def _round(source: Path, ours: Path, folder: Path) -> list[float]:
    """Seconds of an insertion and of the runtime alone."""
    for old in folder.glob("ours*"):  # whoever writes over a model compares them
        old.unlink()
    calls: list[Callable[[], object]] = [
        partial(insert_file, source, ours),
        partial(reference, source, folder, Stages(time.perf_counter)),
    ]
    found = []
    for call in calls:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def _peer(source: Path, goal: Path, python: Path, rounds: int) -> tuple[float | None, str]:
    """Seconds of an insertion by openvino_xai; or None and why."""
    if source.suffix == ".onnx":
        return None, _NO_ONNX
    command = [python, "-c", _PEER, source, goal, str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    lines = done.stdout.strip().splitlines()
    answer: dict[str, Any] = json.loads(lines[-1]) if lines else {"error": f"ended with code {done.returncode}"}
    return answer.get("seconds"), answer.get("error", "")


def _runner(model: Path) -> Runner:
    runner = open_runner(model)
    runner.feed(random_feeds(runner.inputs, 1))
    return runner


def _bytes(model: Path) -> int:
    weights = Path(f"{model}.data") if model.suffix == ".onnx" else model.with_suffix(".bin")
    return sum(path.stat().st_size for path in (model, weights) if path.is_file())


def _kilobytes(size: int) -> str:
    return f"{size / 1024:+.0f} KB"


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface; returns 1 if a model could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a plain .xml or .onnx, or the id of a fixture")
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter that has openvino_xai")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per comparison of inferences (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="insertions of each (default: 3)")
    parser.add_argument("--json", type=Path, help="write unrounded results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args(argv)
    setting = Setting.here("benchmarks.cost.peer", argv)
    results, rows = list[Result](), list[Row]()
    for model in args.models:
        print(f"{Path(model).name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
            folder = Path(scratch)
            try:
                found = measure(resolve(model, folder), args.peer_python, args.seconds, args.rounds, folder)
            except (errors.XaiInsertError, RuntimeError) as err:
                rows.append({"model": model, "note": f"FAILED: {err}"})
            else:
                results.append(found)
                rows.append(found.row())
        if args.json:
            write_json(args.json, setting, [asdict(result) for result in results])
        if args.markdown:
            write_markdown(args.markdown, "Beside openvino_xai and the runtimes alone", setting, rows)
    print(text_table(rows), setting.text(), sep="\n\n")
    return int(len(results) < len(rows))


if __name__ == "__main__":
    sys.exit(main())
