"""What a saliency map costs beside what its arithmetic would cost at the plain model's own rate.

    python -m benchmarks.cost.arithmetic MODEL... [--top-k 5] [--seconds 6] [--json FILE] [--markdown FILE]

MODEL is the path of a plain `.xml` or `.onnx`, or the id of a fixture of the model zoo. Added multiplications, weights
read and values moved are counted on the graphs, as parts of those of the plain model; `bound` is the larger of both.
The measured ratio is the median over pairs of neighbouring runs in float32, with its quartiles, and `plain/plain`
beside it that of two compilations of the same file. With every class, and with the K best of each image.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.lib.runners import open_runner, random_feeds
from benchmarks.lib.tables import Row, Setting, text_table, write_json, write_markdown
from benchmarks.lib.timing import alternate, paired_ratio
from benchmarks.lib.variants import resolve
from benchmarks.lib.work import Work, bound, work_of
from xai_insert.errors import XaiInsertError
from xai_insert.options import Options
from xai_insert.pipeline import insert_file


def measure(model: str, best: int, seconds: float) -> list[Row]:
    """Rows of one model: with the maps of all classes, and with those of the best."""
    with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
        source = resolve(model, Path(scratch))
        variants = {"all": Options(), f"top {best}": Options(top_k=best)}
        paths = {name: Path(scratch, f"{name.replace(' ', '')}{source.suffix}") for name in variants}
        for name, options in variants.items():
            insert_file(source, paths[name], options)
        runners = [open_runner(path) for path in (source, source, *paths.values())]
        for runner in runners:
            runner.feed(random_feeds(runner.inputs, 1))
        times = alternate(runners, seconds)
        plain = work_of(source)
        ratios = [str(paired_ratio(times[:, index], times[:, 0])) for index in range(1, len(runners))]
        counted = [work_of(path) for path in paths.values()]
    name = Path(model).name if Path(model).suffix else model
    return [
        {"model": name, "maps": maps, **_row(plain, work), "measured": ratio, "plain/plain": ratios[0]}
        for maps, work, ratio in zip(variants, counted, ratios[1:], strict=True)
    ]


def _row(plain: Work, inserted: Work) -> Row:
    added = inserted - plain
    return {
        "plain MFLOP": f"{plain.flops / 1e6:.0f}",
        "+MFLOP": f"{added.flops / 1e6:.1f}",
        "plain MB": f"{plain.bytes / 1e6:.1f}",
        "+MB of weights": f"{added.weights / 1e6:.1f}",
        "+MB of values": f"{added.values / 1e6:.1f}",
        "bound": f"{bound(plain, inserted):.3f}",
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface; returns 1 if a model could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a plain .xml or .onnx, or the id of a fixture")
    parser.add_argument("--top-k", type=int, default=5, help="the cheap form: maps of the K best classes (default: 5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="time per model (default: 6)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args(argv)
    setting = Setting.here("benchmarks.cost.arithmetic", argv)
    rows, failed = list[Row](), False
    for model in args.models:
        print(f"{model} ...", file=sys.stderr)
        try:
            rows += measure(model, args.top_k, args.seconds)
        except (XaiInsertError, RuntimeError, ValueError) as err:
            failed = True
            rows.append({"model": model, "note": f"FAILED: {err}"})
        if args.json:
            write_json(args.json, setting, rows)
        if args.markdown:
            write_markdown(args.markdown, "A map against its arithmetic", setting, rows)
    print(text_table(rows), setting.text(), sep="\n\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
