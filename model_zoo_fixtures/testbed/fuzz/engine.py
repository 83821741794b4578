"""Insert into damaged model files, explain damaged pictures, and say how every call ended.

Each file is a seed (a small network of testbed, or the bundled models) with a few mutations that follow from its
number, so that a number repeats one. Every fourth is a call of `xai-explain` with damaged pictures, labels, metadata,
or results of an earlier run; in some of the others a model that has its map already is damaged, and verified or
stripped. A worker process does the calls, one after the other; the parent watches its time and memory, ends it before
it fills the machine, and starts another when it dies. Whatever was written is loaded and run by its runtime. Files that
were given, and those that planted links lead to, must be as they were.

A worker that dies, or is busy for too long, is no failure by itself: readers of model files have faults of their own.
It counts as one unless the command line, called on the same file and watched likewise, ends with exit code 1 and one
line of error.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_zoo_fixtures.testbed.fuzz.mutations import damage_bytes, damage_ir, damage_onnx
from model_zoo_fixtures.testbed.fuzz.runs import damaged_run
from model_zoo_fixtures.testbed.fuzz.seeds import write_inserted, write_models, write_runs

SECONDS, MEGABYTES = 30.0, 2048
_PATIENCE = 120.0  # for a process that sleeps, or has no turn
_POLL = 0.1
CLEAN = (
    "refused", "inserted", "verified", "stripped", "explained", "like the plain model",
    "crash reported", "hang reported", "memory reported",
)  # fmt: skip
BAD = ("traceback", "rejected", "hang", "memory", "crash", "lost")
_OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {}, {"method": "activation-map"}, {"output_dtype": "f32", "feature_vector": True},
    {"check": False}, {"method": "vit-recipro-cam"}, {"block": 2}, {"top_k": 2}, {"saliency_size": [9, 7]},
)  # fmt: skip
_OF_DETECTORS: tuple[dict[str, Any], ...] = (
    {}, {}, {"num_classes": 4}, {"per_box": True}, {"check": False}, {"saliency_size": [9, 7]},
)  # fmt: skip
_WORN = 5.0, 700.0  # seconds or megabytes after which a worker is replaced: what is left over is not the next file's
WITHOUT_THREADS = "import os; os.environ['OPENBLAS_NUM_THREADS'] = '1'; import xai_insert.cli"
"""What keeps libraries from starting threads when they are imported: a fork would lose them, and wait for them."""
EXPLAINED = 4  # every so many calls is one of xai-explain
GROUPS = ("onnx", "xml", "explain", "verify", "strip")
INSERTED = 0.1  # of the others have their map already
_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Case:
    """One damaged file."""

    number: int
    seed: str
    source: Path
    output: Path
    options: dict[str, Any]
    arguments: tuple[str, ...] | None = None
    action: str = "insert"

    @property
    def group(self) -> str:
        """What is counted together."""
        return self.source.suffix[1:] if self.action == "insert" else self.action

    def given(self) -> dict[Path, bytes]:
        """What no call may change: everything but the output."""
        files = (path for path in self.source.parent.rglob("*") if self.output not in (path, *path.parents))
        own = {self.output, self.output.with_suffix(".bin"), self.output.with_name(f"{self.output.name}.data")}
        return {path: path.read_bytes() for path in files if path not in own and path.is_file()}


@dataclass(frozen=True)
class Outcome:
    """What became of it: one of `CLEAN` or `BAD`, why, seconds and peak memory in MB."""

    kind: str
    detail: str
    seconds: float
    megabytes: float


def damaged(seeds: Sequence[Path], inserted: Sequence[Path], number: int, root_seed: int, folder: Path) -> Case:
    """Write damaged file `number` into `folder`."""
    rng = random.Random(f"{root_seed}/{number}")
    action = rng.choice(("verify", "strip")) if rng.random() < INSERTED else "insert"
    small = [seed for seed in seeds if "shapes" not in seed.stem]
    known = list(inserted) if action != "insert" else small if rng.random() < 0.99 else list(seeds)
    seed = rng.choice(known)
    content = seed.read_bytes()
    source = folder / f"model{seed.suffix}"
    if seed.suffix == ".onnx":
        by_bytes = rng.random() < 0.4
        other = rng.choice([path for path in small if path.suffix == ".onnx"]).read_bytes()
        content = damage_bytes(content, rng, other) if by_bytes else damage_onnx(content, rng)
    else:
        weights = seed.with_suffix(".bin").read_bytes()
        part = rng.random()
        if part < 0.3:
            content = damage_bytes(content, rng)
        elif part < 0.4:
            weights = damage_bytes(weights, rng)
        else:
            content = damage_ir(content, rng)
        source.with_suffix(".bin").write_bytes(weights)
    source.write_bytes(content)
    if action != "insert":
        return Case(number, seed.name, source, folder / f"out{seed.suffix}", {}, action=action)
    to_ir = seed.suffix == ".xml" or rng.random() < 0.2
    options = rng.choice(_OF_DETECTORS if seed.stem.startswith("detector") else _OPTIONS)
    return Case(number, seed.name, source, folder / f"out{'.xml' if to_ir else '.onnx'}", options)


class Watch:
    """Time and memory of a process and its children, from now on."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._start = time.perf_counter()
        self._busy = self._processor_seconds()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def verdict(self) -> str | None:
        """`hang` or `memory` once it has had too much; waiting for the processor is no hang."""
        if self._megabytes() > MEGABYTES:
            return "memory"
        if self.seconds < SECONDS or (self._processor_seconds() - self._busy < SECONDS and self.seconds < _PATIENCE):
            return None
        return "hang"

    def _family(self) -> list[Path]:
        found = [Path(f"/proc/{self._process}")]
        with contextlib.suppress(OSError):
            for children in found[0].glob("task/*/children"):
                found += [Path(f"/proc/{child}") for child in children.read_text().split()]
        return found

    def _processor_seconds(self) -> float:
        total = 0
        for folder in self._family():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15]))  # of itself, and of children that have ended
        return total / os.sysconf("SC_CLK_TCK")

    def _megabytes(self) -> float:
        total = 0
        for folder in self._family():
            with contextlib.suppress(OSError):
                total += int((folder / "statm").read_text().split()[1])
        return total * os.sysconf("SC_PAGE_SIZE") / 2**20


class Worker:
    """A process that inserts into one file after the other, in a child that is replaced when it dies or is worn."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"{WITHOUT_THREADS}; from model_zoo_fixtures.testbed.fuzz.worker import main; main()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
        )
        self._child = self._read()["ready"]

    def run(self, case: Case) -> Outcome:
        """Insert into one file."""
        assert self._process.stdin is not None
        request = {
            "action": case.action, "source": str(case.source), "output": str(case.output),
            "options": case.options, "arguments": case.arguments,
        }  # fmt: skip
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        watch, verdict = Watch(self._child), None
        while verdict is None and not select.select([self._process.stdout], [], [], _POLL)[0]:
            verdict = watch.verdict()
        seconds = watch.seconds
        if verdict is not None:
            self._renew()
            return Outcome(verdict, f"ended after {seconds:.0f} s", seconds, 0)
        answer = self._read()
        if "died" in answer:
            self._child = self._read()["ready"]
            code = answer["died"]
            return Outcome("crash", signal.Signals(-code).name if code < 0 else f"exit {code}", seconds, 0)
        if seconds > _WORN[0] or answer["now"] > _WORN[1]:
            self._renew()
        kind = "memory" if answer["peak"] > MEGABYTES else answer["kind"]
        return Outcome(kind, answer["detail"], seconds, answer["peak"])

    def stop(self) -> None:
        """End both processes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        os.kill(self._child, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def _renew(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        while "ready" not in (answer := self._read()):
            pass
        self._child = answer["ready"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts the workers has ended")
        found: dict[str, Any] = json.loads(line)
        return found


def _pipes(folder: str, names: list[str]) -> list[str]:
    """What no copy can be made of."""
    return [name for name in names if stat.S_ISFIFO(os.lstat(os.path.join(folder, name)).st_mode)]


def through_command_line(case: Case) -> str:
    """How the command line ends on a file that killed the worker or kept it busy: `clean`, or one of `BAD`."""
    options = []
    for key, value in case.options.items():
        flag = "--no-check" if key == "check" else f"--{key.replace('_', '-')}"
        text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
        options += [flag] if isinstance(value, bool) else [flag, text]
    if case.action != "insert":
        options.append(f"--{case.action}")
    if case.action != "verify":
        options += ["-o", str(case.output)]
    command = [sys.executable, "-m", "xai_insert.cli.insert", str(case.source), *options]
    if case.arguments is not None:
        command = [sys.executable, "-m", "xai_insert.cli.explain", *case.arguments]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, cwd=_ROOT, start_new_session=True)
        watch = Watch(process.pid)
        while process.poll() is None:
            verdict = watch.verdict()
            if verdict is not None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return verdict
            time.sleep(_POLL)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if "Traceback" in said:
        return "traceback"
    return "clean" if process.returncode == 0 or (process.returncode == 1 and "error:" in said) else "crash"


def fuzz(
    numbers: Sequence[int], root_seed: int, keep: Path | None = None, *, bundled: bool = True
) -> Iterator[tuple[Case, Outcome]]:
    """Yield every file's outcome; those that end badly are copied to `keep`."""
    with tempfile.TemporaryDirectory(prefix="xai-insert-fuzz-") as scratch:
        (seeds_folder := Path(scratch, "seeds")).mkdir()
        (runs_folder := Path(scratch, "runs")).mkdir()
        (inserted_folder := Path(scratch, "inserted")).mkdir()
        seeds, runs = write_models(seeds_folder, bundled=bundled), write_runs(runs_folder)
        inserted = write_inserted(seeds, inserted_folder)
        worker = Worker()
        try:
            for number in numbers:
                (folder := Path(scratch, "case")).mkdir()
                if number % EXPLAINED:
                    case = damaged(seeds, inserted, number, root_seed, folder)
                else:
                    run = damaged_run(runs, random.Random(f"{root_seed}/{number}"), folder)
                    case = Case(number, *run, action="explain")
                before = case.given()
                outcome = worker.run(case)
                if case.given() != before and outcome.kind in CLEAN:
                    outcome = replace(outcome, kind="lost", detail="a file that was given has changed")
                if outcome.kind in ("crash", "hang", "memory"):
                    ending = through_command_line(case)
                    outcome = replace(outcome, kind=f"{outcome.kind} reported" if ending == "clean" else ending)
                if keep is not None and (outcome.kind in BAD or outcome.kind.endswith("reported")):
                    shutil.copytree(folder, keep / f"{outcome.kind} {number}", dirs_exist_ok=True, ignore=_pipes)
                yield case, outcome
                shutil.rmtree(folder)
        finally:
            worker.stop()
