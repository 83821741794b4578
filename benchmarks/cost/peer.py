"""The same IRs through openvino_xai, in an interpreter of its own, and through this tool.

    python -m benchmarks.cost.peer --peer-python PATH MODEL... [--seconds 4] [--json FILE] [--markdown FILE]

PATH is a Python with ``pip install openvino_xai==1.1.0``, which needs OpenVINO 2024.4 and NumPy 1. Both tools read,
insert and write each plain `.xml` (or fixture of the model zoo) once without and once with time taken; imports are not
counted. The IRs that come out are then timed side by side, with the plain model, in this interpreter's OpenVINO.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks.lib.tables import Row, Setting, text_table, write_json, write_markdown
from benchmarks.lib.timing import Ratio, alternate, paired_ratio
from benchmarks.lib.variants import resolve
from xai_insert import Options, errors, insert_file

_PEER = """
import json, logging, sys, time
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
    print(json.dumps({"seconds": run(), "version": ov.__version__}))
except BaseException as err:
    text = str(err).strip().splitlines() or [type(err).__name__]
    print(json.dumps({"error": text[-1]}))
"""


@dataclass(frozen=True)
class Result:
    """One model through both tools; ratios are of one inference to the plain model's, float32, batch of the export."""

    model: str
    plain_bytes: int
    ours: dict[str, Any]
    peer: dict[str, Any]
    ours_ratio: Ratio | None = None
    peer_ratio: Ratio | None = None
    peer_error: str = ""

    def row(self) -> Row:
        """The figures as text by column."""
        return {
            "model": self.model,
            "insert s": f"{self.ours['seconds']:.2f}",
            "peer insert s": f"{self.peer['seconds']:.2f}" if "seconds" in self.peer else "",
            "growth": _growth(self.ours["bytes"], self.plain_bytes),
            "peer growth": _growth(self.peer["bytes"], self.plain_bytes) if "bytes" in self.peer else "",
            "inserted/plain": str(self.ours_ratio or ""),
            "peer/plain": str(self.peer_ratio or ""),
            "note": f"peer: {self.peer.get('error') or self.peer_error}"[:120] if self.peer_ratio is None else "",
        }


def measure(name: str, source: Path, peer_python: Path, seconds: float, folder: Path) -> Result:
    """Put one plain IR through both tools."""
    ours, theirs = folder / "ours.xml", folder / "peer.xml"
    for _ in range(2):
        start = time.perf_counter()
        insert_file(source, ours, Options(method="auto"))
        took = time.perf_counter() - start
    done = subprocess.run(
        [peer_python, "-c", _PEER, source, theirs], capture_output=True, text=True, check=False, timeout=900
    )
    lines = done.stdout.strip().splitlines()
    answer = json.loads(lines[-1]) if lines else {"error": f"ended with code {done.returncode}"}
    result = {"seconds": took, "bytes": _bytes(ours)}
    plain = _call(source)
    if "error" in answer:
        times = alternate([plain, _call(ours)], seconds)
        return Result(name, _bytes(source), result, answer, paired_ratio(times[:, 1], times[:, 0]))
    answer["bytes"] = _bytes(theirs)
    try:
        peer = _call(theirs)
        peer()
    except RuntimeError as err:
        times = alternate([plain, _call(ours)], seconds)
        ratio = paired_ratio(times[:, 1], times[:, 0])
        text = str(err).strip().splitlines()[-1]
        return Result(name, _bytes(source), result, answer, ratio, peer_error=f"does not run: {text}")
    times = alternate([plain, _call(ours), peer], seconds)
    ratios = [paired_ratio(times[:, column], times[:, 0]) for column in (1, 2)]
    return Result(name, _bytes(source), result, answer, *ratios)


def _call(model: Path) -> Any:
    compiled = ov.Core().compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    port = compiled.input(0)
    sizes = [1 if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape()]
    image = np.random.default_rng(0).standard_normal(sizes).astype(port.get_element_type().to_dtype())
    request = compiled.create_infer_request()
    return lambda: request.infer([image])


def _bytes(xml: Path) -> int:
    return xml.stat().st_size + xml.with_suffix(".bin").stat().st_size


def _growth(after: int, before: int) -> str:
    return f"{(after - before) / 1024:+.0f} KB"


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description="Compare with openvino_xai.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a plain .xml, or the id of a fixture")
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter that has openvino_xai")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per comparison (default: 4)")
    parser.add_argument("--json", type=Path, help="write unrounded results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args(argv)
    setting = Setting.here("benchmarks.cost.peer", argv)
    results = []
    for model in args.models:
        print(f"{Path(model).name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
            folder = Path(scratch)
            try:
                results.append(
                    measure(Path(model).name, resolve(model, folder), args.peer_python, args.seconds, folder)
                )
            except (errors.XaiInsertError, RuntimeError) as err:
                print(f"{model}: {err}", file=sys.stderr)
                continue
        rows = [result.row() for result in results]
        if args.json:
            write_json(args.json, setting, [asdict(result) for result in results])
        if args.markdown:
            write_markdown(args.markdown, "Beside openvino_xai", setting, rows)
    print(text_table([result.row() for result in results]), setting.text(), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
