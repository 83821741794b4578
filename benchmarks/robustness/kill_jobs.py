"""Kill `xai-insert --jobs 2` at random moments, and see that each model that it leaves is whole.

A part of `benchmarks.robustness.kill_test`. The command and the processes that work for it are killed together, as when
a machine runs out of memory. The next call then has to do all models and to leave nothing else beside them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import onnx
import openvino as ov

from model_zoo_fixtures.testbed import models

_COMMAND = [sys.executable, "-m", "xai_insert.cli.insert", "--jobs", "2", "-q"]
_NAMES = ("global average pool", "flatten", "class convolution")
_PATIENCE = 120.0


def run(runs: int, rng: random.Random) -> Counter[str]:
    """Kill `runs` calls; how often every model was whole and the next call did all, and how often not."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="xai-insert-kill-") as scratch:
        folder = Path(scratch)
        sources, output = _write(folder), folder / "out"
        output.mkdir()
        began = time.perf_counter()
        _start(sources, output).wait(_PATIENCE)
        seconds = time.perf_counter() - began
        expected = tree(output)
        while counts["whole"] + counts["broken"] < runs:
            shutil.rmtree(output)
            output.mkdir()
            process = _start(sources, output)
            time.sleep(rng.random() * seconds)
            if process.poll() is not None:
                counts["not killed"] += 1  # it had come to its end
                continue
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_PATIENCE)
            fault = _fault(output, expected)
            if _start(sources, output).wait(_PATIENCE) or fault is None:
                fault = fault or _difference(tree(output), expected)
            counts["broken" if fault else "whole"] += 1
            if fault:
                print(f"xai-insert --jobs: {fault}", file=sys.stderr)
    return counts


def _write(folder: Path) -> list[Path]:
    made = []
    for name in _NAMES:
        path = folder / f"{name.replace(' ', '_')}.onnx"
        onnx.save(models.classifier(models.CLOSED[name]), path)
        made.append(path)
        ov.save_model(ov.Core().read_model(path), folder / f"{path.stem}_ir.xml", compress_to_fp16=False)
        made.append(folder / f"{path.stem}_ir.xml")
    return made


def _start(sources: list[Path], output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*_COMMAND, *sources, "-o", output], start_new_session=True)


def tree(output: Path) -> dict[str, bytes]:
    """The files in a folder."""
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def _fault(output: Path, expected: dict[str, bytes]) -> str | None:
    """A model that is there and is not whole."""
    found = tree(output)
    for name, content in expected.items():
        if name in found and found[name] != content:
            return f"{name} is not whole"
        if name.endswith(".xml") and name in found and f"{name[:-4]}.bin" not in found:
            return f"{name} has no weights"
    return None


def _difference(found: dict[str, bytes], expected: dict[str, bytes]) -> str | None:
    odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"after the next call {odd[:3]} are not as without a kill" if odd else None
