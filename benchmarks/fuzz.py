"""Insert into damaged model files, and see that every one ends cleanly.

Run from the repository root: ``python -m benchmarks.fuzz --count 20000``. Each file is a seed (a small network of
the tests, or the bundled models) with a few mutations that follow from its number, so that `--only N` repeats one.
A worker process does the insertions, one after the other; the parent watches its time and memory, and starts another
when it dies. Whatever was written is loaded and run by its runtime.

A worker that dies is no failure by itself: readers of model files have faults of their own. It counts as one unless
the command line, called on the same file, ends with exit code 1 and one line of error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mutations import damage_bytes, damage_ir, damage_onnx

SECONDS, MEGABYTES = 30.0, 2048
_PATIENCE = 120.0  # for a process that sleeps, or has no turn
_LIMIT = 12 << 30  # spares the machine
CLEAN = ("refused", "inserted", "like the plain model", "crash reported", "hang reported")
BAD = ("traceback", "rejected", "hang", "memory", "crash")
_OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {}, {"method": "activation-map"}, {"output_dtype": "f32", "feature_vector": True},
    {"check": False}, {"method": "vit-recipro-cam"}, {"block": 2},
)  # fmt: skip
_EVERY = 400  # a fresh worker now and then, so that a leak is not blamed on a file


@dataclass(frozen=True)
class Case:
    """One damaged file."""

    number: int
    seed: str
    source: Path
    output: Path
    options: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of it: one of `CLEAN` or `BAD`, why, seconds and peak memory in MB."""

    kind: str
    detail: str
    seconds: float
    megabytes: float


def write_seeds(folder: Path, *, bundled: bool = True) -> list[Path]:
    """Write the undamaged models, each in both formats."""
    import onnx  # noqa: PLC0415 - the worker does without
    import openvino as ov  # noqa: PLC0415

    from tests import models  # noqa: PLC0415
    from tests.test_vit_recipro_cam import CLOSED as TRANSFORMERS  # noqa: PLC0415

    made = {name: models.classifier(network) for name, network in {**models.CLOSED, **models.MASKED}.items()}
    made |= {name: models.classifier(network, batch=1) for name, network in models.STATIC.items()}
    for name in ("plain", "fused projection", "pair bias", "class attention"):
        made[f"transformer {name}"] = models.classifier(TRANSFORMERS[name], size=(8, 12))
    for name, model in made.items():
        onnx.save(model, folder / f"{name}.onnx")
    if bundled:
        shapes = Path(__file__).parents[1] / "model_zoo_fixtures" / "shapes"
        for name in ("shapes_cnn", "shapes_vit"):
            shutil.copy(shapes / f"{name}.onnx", folder)
    for path in sorted(folder.glob("*.onnx")):
        ov.save_model(ov.Core().read_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
    return sorted(path for path in folder.iterdir() if path.suffix in (".onnx", ".xml"))


def damaged(seeds: Sequence[Path], number: int, root_seed: int, folder: Path) -> Case:
    """Write damaged file `number` into `folder`."""
    rng = random.Random(f"{root_seed}/{number}")
    small = [seed for seed in seeds if seed.stat().st_size < 100_000 and "shapes" not in seed.stem]
    seed = rng.choice(small if rng.random() < 0.99 else list(seeds))
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
    to_ir = seed.suffix == ".xml" or rng.random() < 0.2
    return Case(number, seed.name, source, folder / f"out{'.xml' if to_ir else '.onnx'}", rng.choice(_OPTIONS))


class Worker:
    """A process that inserts into one file after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fuzz", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
        )

    def run(self, case: Case) -> Outcome:
        """Insert into one file; afterwards the worker may be dead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"source": str(case.source), "output": str(case.output), "options": case.options}
        start = time.perf_counter()
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        busy, ready = _processor_seconds(self._process.pid), False
        while not ready and _processor_seconds(self._process.pid) - busy < SECONDS:
            ready = bool(select.select([self._process.stdout], [], [], 1.0)[0])
            if time.perf_counter() - start > _PATIENCE:
                break
        seconds = time.perf_counter() - start
        if not ready:
            self.stop()
            return Outcome("hang", f"no answer in {SECONDS:.0f} s", seconds, 0)
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            return Outcome("crash", signal.Signals(-code).name if code < 0 else f"exit {code}", seconds, 0)
        answer = json.loads(line)
        kind = "memory" if answer["megabytes"] > MEGABYTES else answer["kind"]
        return Outcome(kind, answer["detail"], seconds, answer["megabytes"])

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def _processor_seconds(process: int) -> float:
    """Time that a process has had of the processors: other work on the machine does not make it hang."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve() -> None:
    """The worker: a request per line on stdin, an answer per line on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # native libraries print
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        request = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")  # peak memory from here on
        kind, detail = _insert(Path(request["source"]), Path(request["output"]), request["options"])
        answer = {"kind": kind, "detail": detail, "megabytes": _peak()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _peak() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _insert(source: Path, output: Path, options: dict[str, Any]) -> tuple[str, str]:
    from xai_insert import Options, insert_file  # noqa: PLC0415 - the parent does not pay for it
    from xai_insert.errors import XaiInsertError  # noqa: PLC0415

    try:
        insert_file(source, output, Options(**options))
    except XaiInsertError as err:
        text = " ".join(str(err).split())
        return "refused", f"{type(err).__name__}: {text[:300]}"
    except MemoryError:
        return "memory", traceback.format_exc()[-1500:]
    except Exception:  # what the fuzzer is for
        return "traceback", traceback.format_exc()[-1500:]
    checked = options.get("check", True)
    try:
        _run(output, just_load=not checked)
    except Exception as err:  # whatever the runtime raises
        # The check runs in float32; where the runtime's default precision refuses the plain model, nothing is lost.
        kind = "rejected" if _works(source, just_load=not checked) else "like the plain model"
        return kind, f"{type(err).__name__}: {err}"[:500]
    return "inserted", ""


def _works(path: Path, *, just_load: bool) -> bool:
    try:
        _run(path, just_load=just_load)
    except Exception:  # whatever the runtime raises
        return False
    return True


def _run(path: Path, *, just_load: bool) -> None:
    """Load and run what was written."""
    rng = np.random.default_rng(0)
    if path.suffix == ".onnx":
        from xai_insert.formats.onnx.runtime import _TYPES as types  # noqa: PLC0415, N811
        from xai_insert.formats.onnx.runtime import _session, ort  # noqa: PLC0415

        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = _session(str(path), options)
        if just_load:
            return
        feeds = {
            arg.name: _random(
                rng, [d if isinstance(d, int) else None for d in arg.shape], types.get(arg.type, arg.type[7:-1])
            )
            for arg in session.get_inputs()
        }
        session.run(None, feeds)
        return
    import openvino as ov  # noqa: PLC0415

    compiled = ov.Core().compile_model(str(path), "CPU")
    if just_load:
        return
    from xai_insert.formats.openvino.view import dtype_name, static_shape  # noqa: PLC0415

    compiled(
        {
            index: _random(rng, static_shape(port.get_partial_shape()) or (), dtype_name(port.get_element_type()))
            for index, port in enumerate(compiled.inputs)
        }
    )


def _random(rng: np.random.Generator, shape: Sequence[int | None], dtype: str) -> Any:
    from xai_insert.feeds import random_array  # noqa: PLC0415

    return random_array(rng, tuple(shape), dtype, size=12)


def handled_by_cli(case: Case) -> bool:
    """Whether the command line ends cleanly on the file that killed the worker or kept it busy."""
    options = []
    for key, value in case.options.items():
        flag = "--no-check" if key == "check" else f"--{key.replace('_', '-')}"
        options += [flag] if isinstance(value, bool) else [flag, str(value)]
    command = [sys.executable, "-m", "xai_insert.cli.insert", str(case.source), "-o", str(case.output), *options]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False, cwd=Path(__file__).parents[1]
        )
    except subprocess.TimeoutExpired:
        return False
    clean = done.returncode == 0 or (done.returncode == 1 and "error:" in done.stderr)
    return clean and "Traceback" not in done.stderr


def fuzz(
    numbers: Sequence[int], root_seed: int, keep: Path | None = None, *, bundled: bool = True
) -> Iterator[tuple[Case, Outcome]]:
    """Yield every file's outcome; those that end badly are copied to `keep`."""
    with tempfile.TemporaryDirectory(prefix="xai-insert-fuzz-") as scratch:
        (seeds_folder := Path(scratch, "seeds")).mkdir()
        seeds = write_seeds(seeds_folder, bundled=bundled)
        worker = Worker()
        try:
            for done, number in enumerate(numbers):
                (folder := Path(scratch, "case")).mkdir()
                case = damaged(seeds, number, root_seed, folder)
                if not worker.alive or done % _EVERY == 0:
                    worker.stop()
                    worker = Worker()
                outcome = worker.run(case)
                if outcome.kind in ("crash", "hang") and handled_by_cli(case):
                    outcome = Outcome(f"{outcome.kind} reported", outcome.detail, outcome.seconds, outcome.megabytes)
                if keep is not None and (outcome.kind in BAD or outcome.kind.endswith("reported")):
                    shutil.copytree(folder, keep / f"{outcome.kind} {number}", dirs_exist_ok=True)
                yield case, outcome
                shutil.rmtree(folder)
        finally:
            worker.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line interface; returns 1 if a file ended badly."""
    parser = argparse.ArgumentParser(description="Insert into damaged model files.")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first file")
    parser.add_argument("--only", type=int, action="append", help="repeat one file; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that end badly")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        serve()
        return 0
    numbers = args.only or range(args.start, args.start + args.count)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    counts: Counter[tuple[str, str]] = Counter()
    slowest = largest = 0.0
    for case, outcome in fuzz(numbers, args.seed, args.keep):
        counts[case.source.suffix[1:], outcome.kind] += 1
        slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.megabytes)
        if outcome.kind in BAD or outcome.kind.endswith("reported") or args.only:
            print(f"{case.number} {case.seed} {case.options} {outcome}", file=sys.stderr, flush=True)
    summary = {
        "files": sum(counts.values()),
        "counts": {suffix: {kind: counts[suffix, kind] for kind in (*CLEAN, *BAD)} for suffix in ("onnx", "xml")},
        "slowest_seconds": round(slowest, 2),
        "largest_megabytes": round(largest),
    }
    print(json.dumps(summary, indent=2))
    if args.json:
        args.json.write_text(json.dumps(summary, indent=2) + "\n")
    return int(any(counts[suffix, kind] for suffix in ("onnx", "xml") for kind in BAD))


if __name__ == "__main__":
    sys.exit(main())
