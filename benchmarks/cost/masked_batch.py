"""Masked runs with many masks at once, against the same model with its masks one by one.

    python -m benchmarks.cost.masked_batch MODEL[@LAYER] ... [--seconds 5] [--batches 0 32] [--json FILE]

MODEL is a plain `.xml` or `.onnx` or the id of a fixture, LAYER a `--target-layer`. For each number of masks at once
(0: the default) prints the time of one inference of one image, how many times faster it is
than one by one, measured in turn, the peak memory of a process that runs each, and the largest difference of the maps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.cost.memory import peak_memory
from benchmarks.lib.runners import open_runner, random_feeds
from benchmarks.lib.tables import Row, Setting, text_table, write_json
from benchmarks.lib.timing import alternate, paired_ratio
from benchmarks.lib.variants import Variant, resolve
from xai_insert import Options, insert_file


def measure(model: str, batches: list[int], seconds: float, folder: Path) -> list[Row]:
    """One row for each number of masks at once."""
    name, _, layer = model.partition("@")
    source = resolve(name, folder)
    paths, form = [], ""
    for batch in (1, *batches):
        options = Options(target_layer=layer or None, output_dtype="f32", mask_batch=batch or None)
        paths.append(folder / f"at_once_{batch}{source.suffix}")
        form = insert_file(source, paths[-1], options).form
    runners = [open_runner(path) for path in paths]
    for runner in runners:
        runner.feed(random_feeds(runner.inputs, 1))
    times = alternate(runners, seconds, fewest=3, warm_up=1)
    maps = [runner.outputs()[-1] for runner in runners]
    del runners
    peaks = [peak_memory(Variant(path), "f32", 1, repeats=1) for path in paths]
    return [
        {
            "model": model,
            "form": form,
            "at once": str(batch or "default"),
            "one by one ms": f"{np.median(times[:, 0]) * 1e3:.0f}",
            "ms": f"{np.median(times[:, index]) * 1e3:.0f}",
            "faster": str(paired_ratio(times[:, 0], times[:, index])),
            "one by one MB": f"{peaks[0] / 1e6:.0f}",
            "MB": f"{peaks[index] / 1e6:.0f}",
            "difference": f"{np.abs(maps[index] - maps[0]).max() / np.abs(maps[0]).max():.0e}",
        }
        for index, batch in enumerate(batches, 1)
    ]


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL[@LAYER]")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    rows: list[Row] = []
    for model in args.models:
        with tempfile.TemporaryDirectory(prefix="xai-insert-") as folder:
            rows += measure(model, args.batches, args.seconds, Path(folder))
        print(rows[-1], file=sys.stderr)
    setting = Setting.here("benchmarks.cost.masked_batch", argv)
    print(text_table(rows), setting.text(), sep="\n\n")
    if args.json:
        write_json(args.json, setting, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
