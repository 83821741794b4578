"""What a saliency map costs: plain, inserted and the definition written out, side by side in one run.

    python -m benchmarks.cost.overhead MODEL... [--batch 1,8] [--seconds 6] [--image FILE] [--throughput] [--memory]
                                           [--bit-identical] [--control] [--json FILE] [--markdown FILE]

MODEL is the path of a plain `.xml` or `.onnx`, or the id of a fixture of the model zoo, such as `resnet50.ptir`.

`plain` is the model as it came, `inserted` what `xai-insert` makes of it by default, and the definition runs the rest
of the model once per position of the map. IR runs on OpenVINO in float32 and in the device's default precision, ONNX on
onnxruntime, all on the CPU; with `--throughput` several requests of an IR run at once. Plain and inserted are run in
turn; a ratio is the median over pairs of neighbouring runs, with its quartiles. `fastest` is the ratio of the fastest
runs: a second opinion where the machine has other work to do.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np

from benchmarks.cost.memory import peak_memory
from benchmarks.lib.runners import precisions, random_feeds
from benchmarks.lib.tables import Row, Setting, text_table, write_json, write_markdown
from benchmarks.lib.timing import Ratio, alternate, paired_ratio
from benchmarks.lib.variants import Variants, build, for_batch, resolve
from xai_insert.errors import XaiInsertError

_DEFINITION_ROUNDS = (3, 15)
_STATIC = "static batch 1"


@dataclass(frozen=True)
class Result:
    """One model at one batch size in one precision. Times are medians in milliseconds, sizes are bytes.

    Attributes:
        model: name of the model.
        runtime: `openvino` or `onnxruntime`.
        precision: what the compiled model computes in, as it says.
        is_default: whether that is the device's choice rather than ours.
        batch: images per run.
        note: how the batch size came about, or why there are no figures.
        plain: time of the plain model.
        inserted: time of the inserted model.
        ratio: inserted/plain.
        fastest: ratio of the fastest runs.
        control: plain/plain, of two compilations of the same file: the noise of `ratio`.
        rounds: pairs of runs.
        definition: time of the definition.
        definition_ratio: definition/plain.
        memory: peak memory of a process, by variant.
        growth: added to the model's files.
        growth_percent: the same in percent of the plain files.
        moved: largest absolute difference of an original output, and the same relative to its largest element.
    """

    model: str
    runtime: str
    precision: str
    is_default: bool
    batch: int
    note: str = ""
    plain: float | None = None
    inserted: float | None = None
    ratio: Ratio | None = None
    fastest: float | None = None
    control: Ratio | None = None
    rounds: int = 0
    definition: float | None = None
    definition_ratio: Ratio | None = None
    memory: dict[str, int] | None = None
    growth: int | None = None
    growth_percent: float | None = None
    moved: tuple[float, float] | None = None

    def row(self) -> Row:
        """The figures as text by column."""
        memory = self.memory or {}
        plain_memory = memory.get("plain", 0)
        texts = {
            "model": self.model,
            "runtime": self.runtime,
            "precision": self.precision + (" (default)" if self.is_default else ""),
            "batch": str(self.batch or ""),
            "plain ms": _number(self.plain, 2),
            "inserted ms": _number(self.inserted, 2),
            "inserted/plain": "" if self.ratio is None else str(self.ratio),
            "fastest": _number(self.fastest, 3),
            "plain/plain": "" if self.control is None else str(self.control),
            "rounds": str(self.rounds or ""),
            "definition ms": _number(self.definition, 2),
            "definition/plain": "" if self.definition_ratio is None else str(self.definition_ratio),
            "peak MB": _number(plain_memory / 1e6 if memory else None, 0),
        }
        for name in ("inserted", "definition"):
            texts[f"{name} +MB"] = f"{(memory[name] - plain_memory) / 1e6:+.1f}" if name in memory else ""
        if self.growth is not None and self.growth_percent is not None:
            texts["file +KB"], texts["file +%"] = f"{self.growth / 1024:+.1f}", f"{self.growth_percent:+.2f}"
        if self.moved is not None:
            texts["outputs moved"] = (
                "0" if self.moved[0] == 0 else f"{self.moved[0]:.1e} (relative {self.moved[1]:.1e})"
            )
        return {**texts, "note": self.note}


def measure(
    model: str, variants: Variants, args: argparse.Namespace, *, runtime: str, precision: str | None, batch: int
) -> Result:
    """Measure one setting.

    Args:
        model: name for the result.
        variants: the model files, fit for `batch`.
        args: of the command line.
        runtime: name for the result.
        precision: see `open_runner`.
        batch: images per run.
    """
    opened = [variants.plain, variants.inserted, *([variants.plain] if args.control else [])]
    calls = [variant.open(precision, throughput=args.throughput) for variant in opened]
    plain, inserted = calls[:2]
    feeds = random_feeds(plain.inputs, batch)
    if args.image is not None:
        feeds[0] = np.load(args.image).astype(feeds[0].dtype)
    for call in calls:
        call.feed(feeds)
    times = alternate(calls, args.seconds)
    first = times[:, 0]
    moved = _moved(plain.outputs(), inserted.outputs()) if args.bit_identical else None
    report = variants.report
    added = (report.bytes_after or 0) - (report.bytes_before or 0)
    definition, definition_ratio = None, None
    if variants.definition is not None:
        slow = variants.definition.open(precision, throughput=args.throughput)
        slow.feed(feeds)
        pairs = alternate([plain, slow], args.seconds / 3, *_DEFINITION_ROUNDS)
        definition, definition_ratio = _milliseconds(pairs[:, 1]), paired_ratio(pairs[:, 1], pairs[:, 0])
    memory = None
    if args.memory:
        memory = {which: peak_memory(variant, precision, batch) for which, variant in variants.items()}
    return Result(
        model=model,
        runtime=runtime,
        precision=plain.precision,
        is_default=precision is None,
        batch=batch,
        note=variants.note if variants.definition else "; ".join(filter(None, [variants.note, report.form])),
        plain=_milliseconds(first),
        inserted=_milliseconds(times[:, 1]),
        ratio=paired_ratio(times[:, 1], first),
        fastest=float(times[:, 1].min() / first.min()),
        control=paired_ratio(times[:, 2], first) if args.control else None,
        rounds=len(times),
        definition=definition,
        definition_ratio=definition_ratio,
        memory=memory,
        growth=added,
        growth_percent=100 * added / (report.bytes_before or 1),
        moved=moved,
    )


def measure_model(model: str, args: argparse.Namespace) -> list[Result]:
    """Measure one model in every precision and batch size.

    A model that cannot be measured gives a result that says why.
    """
    name = Path(model).name.removesuffix(".xml").removesuffix(".onnx")
    results = []
    with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
        folder = Path(scratch)
        try:
            source = resolve(model, folder)
            runtime = "onnxruntime" if source.suffix == ".onnx" else "openvino"
            variants = build(source, folder)
            for batch in args.batches:
                fit = for_batch(variants, batch, folder / f"batch{batch}")
                for precision in precisions(source):
                    if fit is None:
                        results.append(Result(name, runtime, precision or "default", False, batch, _STATIC))
                        continue
                    print(f"{name}, batch {batch}, {precision or 'default'} ...", file=sys.stderr)
                    results.append(measure(name, fit, args, runtime=runtime, precision=precision, batch=batch))
        except (XaiInsertError, RuntimeError, ValueError) as err:
            reason = (str(err).strip().splitlines() or [type(err).__name__])[-1]
            results.append(Result(name, "", "", False, 0, f"FAILED: {shorten(reason, 120)}"))
    return results


def summary(results: Sequence[Result]) -> str:
    """One line per runtime, precision and batch size: the median over the models, and the worst."""
    groups: dict[tuple[str, str, int], list[Result]] = defaultdict(list)
    for result in results:
        if result.ratio is not None:
            groups[result.runtime, result.precision, result.batch].append(result)
    lines = []
    for (runtime, precision, batch), group in groups.items():
        ratios = {result.model: result.ratio.median for result in group if result.ratio is not None}
        worst = max(ratios, key=lambda model: ratios[model])
        middle = statistics.median(ratios.values())
        lines.append(
            f"{runtime} {precision}, batch {batch}: inserted/plain {middle:.3f} (median of {len(ratios)}), "
            f"at most {ratios[worst]:.3f} ({worst})"
        )
    return "\n".join(lines)


def _moved(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> tuple[float, float]:
    """Largest absolute and largest relative difference of the outputs that both models have."""
    absolute = relative = 0.0
    for expected, actual in zip(before, after, strict=False):
        apart = float(np.abs(expected.astype(np.float64) - actual.astype(np.float64)).max(initial=0.0))
        scale = float(np.abs(expected.astype(np.float64)).max(initial=0.0)) or 1.0
        absolute, relative = max(absolute, apart), max(relative, apart / scale)
    return absolute, relative


def _milliseconds(times: np.ndarray) -> float:
    return float(np.median(times)) * 1e3


def _number(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface; returns 1 if a model could not be measured."""
    parser = argparse.ArgumentParser(description="Measure plain, inserted and the definition side by side.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a plain .xml or .onnx, or the id of a fixture")
    parser.add_argument("--batch", dest="batches", type=_numbers, default=[1, 8], help="batch sizes (default: 1,8)")
    parser.add_argument("--seconds", type=float, default=6.0, help="time per measurement (default: 6)")
    parser.add_argument("--image", type=Path, help="a .npy file for the first input; default: random numbers")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, in processes of their own")
    parser.add_argument("--bit-identical", action="store_true", help="also compare the original outputs")
    parser.add_argument("--throughput", action="store_true", help="several requests at once instead of one (IR)")
    parser.add_argument("--control", action="store_true", help="also time the plain model against itself")
    parser.add_argument("--json", type=Path, help="write unrounded results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args(argv)

    setting = Setting.here("benchmarks.cost.overhead", argv)
    results: list[Result] = []
    for model in args.models:
        results += measure_model(model, args)
        rows = [result.row() for result in results]
        if args.json:
            write_json(args.json, setting, [asdict(result) for result in results])
        if args.markdown:
            write_markdown(args.markdown, "Cost of a saliency map", setting, rows, summary(results))
    print(text_table(rows), summary(results), setting.text(), sep="\n\n")
    return int(any(result.note.startswith("FAILED") for result in results))


if __name__ == "__main__":
    sys.exit(main())
