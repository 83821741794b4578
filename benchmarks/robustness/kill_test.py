"""Kill both commands at random moments, and see that every model and every picture that they leave is whole.

Run from the repository root: ``python -m benchmarks.robustness.kill_test --runs 100`` does 500. Two models with other
weights and graphs are inserted in turn into the same output, as IR, as ONNX, and as ONNX with external weights. Each
run is killed (SIGKILL) after a random part of the time that a whole run takes; half of the runs are slowed down while
they move their files into place, so that the kill falls there. Runs that came to their end before do not count. Then
the output is loaded and run, and must give exactly what one of the two inserted models gives. The other kinds are
`xai-insert --jobs`, see `benchmarks.robustness.kill_jobs`, and `xai-explain`, see `benchmarks.robustness.kill_explain`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robustness import kill_explain, kill_jobs
from model_zoo_fixtures.testbed import models, replaced_models
from model_zoo_fixtures.testbed.fuzz.engine import WITHOUT_THREADS
from model_zoo_fixtures.testbed.replaced_models import results, write_models

OTHERS = {"xai-insert --jobs": kill_jobs.run, "xai-explain": kill_explain.run}
KINDS = (*replaced_models.KINDS, *OTHERS)
_PAUSE = 0.03
_NURSERY = """
import json, os, sys, time
from pathlib import Path
import onnx_ir, onnxruntime, openvino
from xai_insert import insert_file
import xai_insert.formats.onnx.model, xai_insert.formats.openvino.model
replace = os.replace
def slowly(*args):
    print("moving", flush=True)
    time.sleep(slow)
    replace(*args)
    time.sleep(slow)
for line in sys.stdin:
    source, output, slow = json.loads(line)
    child = os.fork()
    if not child:
        try:
            os.replace = slowly if slow else replace
            insert_file(Path(source), Path(output))
        finally:
            print("done", flush=True)
            os._exit(0)
    print("started", child, flush=True)
    sys.stdin.readline()
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


class Nursery:
    """A process that has imported what an insertion needs and starts each one as a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{WITHOUT_THREADS}\n{_NURSERY}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, source: Path, output: Path, slow: float) -> int:
        """Start an insertion, which moves its files slowly into place if told so; returns its process."""
        self._said: list[str] = []
        self._write(json.dumps([str(source), str(output), slow]))
        return int(self.wait_for("started").split()[1])

    def wait_for(self, *words: str) -> str:
        """The next line that begins with one of `words`."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(line.split()[0])
            if self._said[-1] in words:
                return line
        raise RuntimeError("the process that starts insertions has ended")

    def end(self) -> bool:
        """Wait for the insertion, which was killed or ends by itself; whether it had come to its end."""
        self._write("")
        self.wait_for("ended")
        return "done" in self._said

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def run(kind: str, runs: int, rng: random.Random) -> Counter[str]:
    """Kill `runs` insertions of one kind; how often the output was old, new, or broken."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="xai-insert-kill-") as scratch:
        folder = Path(scratch)
        sources = write_models(folder, kind)
        image = np.random.default_rng(0).standard_normal((1, 3, models.SIDE, models.SIDE)).astype(np.float32)
        expected, whole = [], 0.0
        suffix = sources[0].suffix
        nursery = Nursery()
        for index, source in enumerate(sources):
            began = time.perf_counter()
            nursery.start(source, folder / f"expected{index}{suffix}", 0)
            nursery.end()
            whole = time.perf_counter() - began
            expected.append(results(folder / f"expected{index}{suffix}", image))
        (goal_folder := folder / "goal").mkdir()
        goal = goal_folder / f"model{suffix}"
        nursery.start(sources[1], goal, 0)
        nursery.end()
        current = 1
        for number in itertools.count():
            if sum(counts[word] for word in ("old", "new", "mixed", "broken")) == runs:
                break
            slow = _PAUSE * (number % 2)
            process = nursery.start(sources[1 - current], goal, slow)
            if slow:
                nursery.wait_for("moving", "done")  # moving files into place is what follows
            time.sleep(rng.random() * (12 * _PAUSE if slow else whole))
            os.kill(process, signal.SIGKILL)
            ended = nursery.end()
            try:
                found = results(goal, image)
            except Exception as err:  # whatever a broken model raises
                counts["broken"] += 1
                print(f"{kind} run {number}: {str(err).splitlines()[-1]}", file=sys.stderr)
                current = 0
                nursery.start(sources[0], goal, 0)
                nursery.end()
                continue
            same = [index for index in (0, 1) if _equal(found, expected[index])]
            if not same:
                counts["mixed"] += 1
            elif same[0] == current:
                counts["old"] += 1
            else:
                counts["new, not killed" if ended else "new"] += 1
                current = same[0]
            counts["files left beside it"] = len(os.listdir(goal_folder)) - len(goal_files(goal))
        nursery.stop()
    return counts


def goal_files(goal: Path) -> list[Path]:
    """The files of the model itself."""
    files = (goal, goal.with_suffix(".bin"), Path(f"{goal}.data"))
    return [path for path in files if path.exists()]


def _equal(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface; returns 1 if an output was not whole."""
    parser = argparse.ArgumentParser(description="Kill both commands at random moments.")
    parser.add_argument("--runs", type=int, default=200, help="kills of each kind (default: 200)")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    counts = {
        kind: OTHERS[kind](args.runs, rng) if kind in OTHERS else run(kind, args.runs, rng) for kind in args.kinds
    }
    print(json.dumps(counts, indent=2))
    return int(any(count["broken"] + count["mixed"] + count["the other one failed"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
