"""Kill `xai-explain` at random moments, and see that what its journal says is whole and that the next run finishes.

A part of `benchmarks.robustness.kill_test`. Every second run has another one beside it in the same folder, which is not
killed.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from model_zoo_fixtures.testbed import models
from xai_insert import insert_file
from xai_insert.explain.journal import FOLDERS, is_sound, written

PICTURES = 120
_COMMAND = [sys.executable, "-m", "xai_insert.cli.explain"]
_PATIENCE = 120.0


def run(runs: int, rng: random.Random) -> Counter[str]:
    """Kill `runs` runs; how often all that was recorded was there and the next run finished, and how often not."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="xai-insert-kill-") as scratch:
        folder = Path(scratch)
        model, parts = _write(folder)
        whole = folder / "whole"
        process = _start(model, parts, whole)
        seconds = -_begun(process, whole)
        process.wait(_PATIENCE)
        seconds += time.perf_counter()  # from the journal to the end
        expected = tree(whole)
        while counts["whole"] + counts["broken"] < runs:
            output = folder / "out"
            beside = None
            if (counts["whole"] + counts["broken"]) % 2:
                beside = _start(model, parts[1:], output)
            process = _start(model, parts[: 1 if beside else 2], output)
            _begun(process, output)
            time.sleep(rng.random() * seconds / (2 if beside else 1))
            process.send_signal(signal.SIGKILL)
            is_killed = process.wait(_PATIENCE) == -signal.SIGKILL
            if beside is not None and beside.wait(_PATIENCE):
                counts["the other one failed"] += 1
            if not is_killed:
                counts["not killed"] += 1  # it had come to its end
                shutil.rmtree(output)
                continue
            fault = _fault(output, expected)
            if _start(model, parts, output).wait(_PATIENCE) or fault is None:
                fault = fault or _difference(tree(output), expected)
            counts["broken" if fault else "whole"] += 1
            if fault:
                print(f"xai-explain: {fault}", file=sys.stderr)
            shutil.rmtree(output, ignore_errors=True)
    return counts


def _write(folder: Path) -> tuple[Path, list[Path]]:
    onnx.save(models.classifier(models.CLOSED["global average pool"], batch=1), folder / "plain.onnx")
    insert_file(folder / "plain.onnx", folder / "model.onnx")
    parts = [folder / "a", folder / "b"]
    for number in range(PICTURES):
        part = parts[number % 2]
        part.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), np.uint8)
        (part / f"{number:04}.png").write_bytes(b"P6 20 24 255\n" + pixels.tobytes())
    return folder / "model.onnx", parts


def _start(model: Path, parts: list[Path], output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*_COMMAND, "-q", model, *parts, "-o", output], stdout=subprocess.DEVNULL)


def _begun(process: subprocess.Popen[bytes], output: Path) -> float:
    """Wait until a run has its journal, or has ended; the moment."""
    while process.poll() is None and not (output / "results.jsonl").exists():
        time.sleep(0.005)
    return time.perf_counter()


def tree(output: Path) -> dict[str, bytes]:
    """The results: every file but the journal and the page's list, their lines in any order, without `run.js`."""
    found = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    found.pop("run.js", None)  # it holds the date
    for name in ("results.jsonl", "records.js"):
        found[name] = b"\n".join(sorted(found.get(name, b"").splitlines()))
    return found


def _fault(output: Path, expected: dict[str, bytes]) -> str | None:
    """What is wrong after the kill: a record whose files are not there, or a result that is not whole."""
    journal = output / "results.jsonl"
    *lines, _ = journal.read_bytes().split(b"\n") if journal.exists() else [b""]
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # cut off by the kill, and ended by the other run
    if not all(is_sound(record) for record in records):
        return "a line is no record"
    for name in [name for record in records for name in written(record)]:
        if not (output / name).is_file():
            return f"{name} is recorded, and not there"
    for path in [path for name in FOLDERS for path in (output / name).glob("*") if not path.name.startswith(".")]:
        if path.read_bytes() != expected.get(str(path.relative_to(output))):
            return f"{path.name} is not whole"
    return None


def _difference(found: dict[str, bytes], expected: dict[str, bytes]) -> str | None:
    found.pop("results.set-aside.txt", None)
    odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"after the next run {odd[:3]} are not as without a kill" if odd else None
