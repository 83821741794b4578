"""How long insertion takes, against reading, compiling once and writing the same model in its format's own runtime.

    python -m benchmarks.cost.insertion_time MODEL... [--rounds 3] [--processor] [--json FILE] [--markdown FILE]

MODEL is the path of a plain `.xml` or `.onnx`, or the id of a fixture of the model zoo. Both sides are run in turn,
after a run of each that is not counted. The time of `insert_file` is split into the calls that it makes: `compile` is
the plain and the inserted model, `run` one run of each. `definition` is the map against masked runs of the model's
head, `place` the proof of the map's place; `+place` is what insertion takes with it over without, in the same rounds.
On a busy machine `--processor` counts the processor's time, that of all threads, instead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.lib.tables import Row, Setting, text_table, write_json, write_markdown
from benchmarks.lib.timing import Ratio, paired_ratio
from benchmarks.lib.variants import resolve
from xai_insert import pipeline, prove
from xai_insert.errors import XaiInsertError
from xai_insert.formats.backend import load
from xai_insert.formats.onnx.runtime import OnnxRunner
from xai_insert.formats.openvino.runtime import OpenVINORunner
from xai_insert.pipeline import insert_file

_FUNCTIONS = {
    pipeline: {"load": "read", "planned": "locate", "opened_sizes": "locate", "splice": "splice"},
    prove: {"check_definition": "definition", "map_shows_place": "place", "places_of": "place"},
    OnnxRunner: {"run": "run"},
    OpenVINORunner: {"run": "run"},
}
_METHODS = {"view": "view", "runner": "compile", "save": "write"}
STAGES = ("read", "view", "locate", "splice", "compile", "run", "definition", "place", "write", "other")

Clock = Callable[[], float]
Seconds = dict[str, float]


@dataclass(frozen=True)
class Result:
    """One model. Times are medians in seconds.

    Attributes:
        model: name of the model.
        bytes: size of its files.
        insertion: the whole of `insert_file`.
        reference: reading, compiling and writing.
        ratio: insertion/reference.
        placing: insertion/insertion without the proof of place.
        stages: parts of `insertion`.
        reference_stages: parts of `reference`.
        error: why there are no figures.
    """

    model: str
    bytes: int = 0
    insertion: float = 0.0
    reference: float = 0.0
    ratio: Ratio | None = None
    placing: Ratio | None = None
    stages: dict[str, float] | None = None
    reference_stages: dict[str, float] | None = None
    error: str = ""

    def row(self) -> Row:
        """The figures as text by column, in milliseconds."""
        if self.ratio is None or self.stages is None or self.reference_stages is None:
            return {"model": self.model, "note": f"FAILED: {self.error}"}
        return {
            "model": self.model,
            "MB": f"{self.bytes / 1e6:.1f}",
            "insert ms": f"{self.insertion * 1e3:.0f}",
            "reference ms": f"{self.reference * 1e3:.0f}",
            "ratio": str(self.ratio),
            "+place": str(self.placing),
            **{stage: f"{self.stages[stage] * 1e3:.0f}" for stage in STAGES},
            **{f"ref. {stage}": f"{seconds * 1e3:.0f}" for stage, seconds in self.reference_stages.items()},
        }


class Stages:
    """Adds up the time of named calls of the main thread; what one of them calls in turn is not counted again."""

    def __init__(self, clock: Clock) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.clock = clock
        self._inside = False

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside or threading.current_thread() is not threading.main_thread():
                return function(*args, **kwargs)
            self._inside = True
            start = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] += self.clock() - start
                self._inside = False

        return call

    @contextmanager
    def watch_insertion(self, backend: type) -> Iterator[None]:
        """Time the calls that `insert_file` makes while the context is open.

        Args:
            backend: class of the loaded model.
        """
        with ExitStack() as stack:
            for owner, names in (*_FUNCTIONS.items(), (backend, _METHODS)):
                for name, stage in names.items():
                    stack.enter_context(patch.object(owner, name, self.timed(stage, getattr(owner, name))))
            yield


def measure(
    source: Path, rounds: int, folder: Path, clock: Clock
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Seconds by stage, with `total` and `other`, of every round of insertion and of the reference."""
    backend = type(load(source, {}))
    inserted = folder / f"inserted{source.suffix}"
    insertions, references = [], []
    for _ in range(rounds + 1):
        for old in folder.glob("*.*"):
            if old.stem in ("inserted", "reference", "reference.onnx"):  # whoever writes over a model compares them
                old.unlink()
        stages = Stages(clock)
        with stages.watch_insertion(backend):
            insertions.append(_total(stages, partial(insert_file, source, inserted)))
        stages = Stages(clock)
        references.append(_total(stages, partial(reference, source, folder, stages)))
    return insertions[1:], references[1:]


def _total(stages: Stages, call: Callable[[], object]) -> dict[str, float]:
    start = stages.clock()
    call()
    total = stages.clock() - start
    return {**stages.seconds, "total": total, "other": total - sum(stages.seconds.values())}


def reference(source: Path, folder: Path, stages: Stages) -> None:
    """Read a plain model, compile it once and write it, in its format's own runtime."""
    (_onnx_reference if source.suffix == ".onnx" else _openvino_reference)(source, folder, stages)


def _openvino_reference(source: Path, folder: Path, stages: Stages) -> None:
    import openvino as ov  # noqa: PLC0415 - not needed for ONNX

    core = ov.Core()
    model = stages.timed("read", core.read_model)(source)
    stages.timed("compile", core.compile_model)(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    stages.timed("write", ov.save_model)(model, folder / "reference.xml", compress_to_fp16=False)


def _onnx_reference(source: Path, folder: Path, stages: Stages) -> None:
    import onnx_ir  # noqa: PLC0415 - not needed for IR
    import onnxruntime as ort  # noqa: PLC0415

    model = stages.timed("read", onnx_ir.load)(source)
    stages.timed("compile", ort.InferenceSession)(source, providers=["CPUExecutionProvider"])
    external = "reference.onnx.data" if Path(f"{source}.data").exists() else None
    stages.timed("write", onnx_ir.save)(model, folder / "reference.onnx", external_data=external)


def measure_model(model: str, rounds: int, clock: Clock = time.perf_counter) -> Result:
    """Measure one model."""
    name = Path(model).name
    with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
        folder = Path(scratch)
        try:
            source = resolve(model, folder)
            insertions, references = measure(source, rounds, folder, clock)
        except (XaiInsertError, RuntimeError, ValueError) as err:
            return Result(name, error=(str(err).strip().splitlines() or [type(err).__name__])[-1])
        weights = Path(f"{source}.data") if source.suffix == ".onnx" else source.with_suffix(".bin")
        size = sum(path.stat().st_size for path in (source, weights) if path.is_file())
    ours = np.array([seconds["total"] for seconds in insertions])
    theirs = np.array([seconds["total"] for seconds in references])
    without = ours - np.array([seconds.get("place", 0.0) for seconds in insertions])
    return Result(
        model=name,
        bytes=size,
        insertion=float(np.median(ours)),
        reference=float(np.median(theirs)),
        ratio=paired_ratio(ours, theirs),
        placing=paired_ratio(ours, without),
        stages=_medians(insertions, STAGES),
        reference_stages=_medians(references, ("read", "compile", "write")),
    )


def _medians(rounds: list[dict[str, float]], stages: tuple[str, ...]) -> dict[str, float]:
    return {stage: statistics.median(seconds.get(stage, 0.0) for seconds in rounds) for stage in stages}


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface; returns 1 if a model could not be measured."""
    parser = argparse.ArgumentParser(description="Measure insertion against reading, compiling once and writing.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a plain .xml or .onnx, or the id of a fixture")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (default: 3)")
    parser.add_argument("--processor", action="store_true", help="count the time of the processor, not of the wall")
    parser.add_argument("--json", type=Path, help="write unrounded results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args(argv)

    clock = time.process_time if args.processor else time.perf_counter
    setting = Setting.here("benchmarks.cost.insertion_time", argv)
    results: list[Result] = []
    for model in args.models:
        print(f"{Path(model).name} ...", file=sys.stderr)
        results.append(measure_model(model, args.rounds, clock))
        rows = [result.row() for result in results]
        if args.json:
            write_json(args.json, setting, [asdict(result) for result in results])
        if args.markdown:
            write_markdown(args.markdown, "Time of an insertion", setting, rows)
    print(text_table(rows), setting.text(), sep="\n\n")
    return int(any(result.error for result in results))


if __name__ == "__main__":
    sys.exit(main())
