"""Rows for many images: memory, shards side by side, and the price of Ray.

    python -m benchmarks.cost.rows memory [--images 100000]
    python -m benchmarks.cost.rows shards [--images 400]
    python -m benchmarks.cost.rows engines MODEL [--images 2000]

`memory` runs a model that takes no time on links to the bundled images, and prints resident memory as the rows grow;
then it opens the folder again, as a run does that goes on. `shards` compares the rows of two, four and eight processes
with those of one. `engines` compares images a second with Ray and without on one machine, start-up left out: from the
first part that is written to the last. Needs the extra `ray` for that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.many_images import SHAPES, link_images
from benchmarks.lib.tables import Row, Setting, markdown_table
from xai_insert.explain.columns import sources_in
from xai_insert.explain.explained import Explained, Prediction
from xai_insert.explain.listing import stream_images
from xai_insert.explain.preprocessing import View
from xai_insert.explain.stream import PartFiles, explain_all

_ROOT = Path(__file__).parents[2]
_MARKS = 10


class Blank:
    """A classifier that takes no time: one map of 7x7."""

    settings = ()

    class engine:  # noqa: N801 - as a model has one
        """What runs it."""

        parallel = 1
        runtime = "none"

    def explain(self, image: Any) -> Explained:
        """Say the same of every image."""
        del image
        best = Prediction(0, "a", 1.0)
        return Explained([best], [best], np.zeros((1, 7, 7), np.uint8), View())


def resident() -> float:
    """Memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


def memory(count: int, scratch: Path) -> list[Row]:
    """Resident memory as rows are written, and when the folder is opened again."""
    images = scratch / "images"
    images.mkdir()
    link_images(images, count)
    rows: list[Row] = []
    seen, start = 0, time.monotonic()

    def mark(_: object) -> None:
        nonlocal seen
        seen += 1
        if seen % (count // _MARKS) == 0:
            rate = seen / (time.monotonic() - start)
            rows.append({"images": f"{seen:,}", "resident MB": f"{resident():.1f}", "images/s": f"{rate:.0f}"})

    model: Any = Blank()
    explain_all(model, PartFiles.made(scratch / "out", "jsonl", "", {}), stream_images([images]), mark)
    before = resident()
    again = PartFiles.made(scratch / "out", "jsonl", "", {})
    counts = explain_all(model, again, stream_images([images]))
    assert (counts.done, counts.known) == (0, count)
    rows.append({"images": "opened again", "resident MB": f"{resident():.1f} (before: {before:.1f})", "images/s": ""})
    return rows


def shards(count: int, scratch: Path) -> list[Row]:
    """The rows of several processes side by side, against those of one."""
    images = scratch / "images"
    images.mkdir()
    link_images(images, count)
    wanted, rows = None, list[Row]()
    for number in (1, 2, 4, 8):
        output, start = scratch / str(number), time.monotonic()
        runs = [
            subprocess.Popen([*_command(SHAPES / "shapes_cnn.xml", images, output), "--shard", f"{n}/{number}", "-q"])
            for n in range(1, number + 1)
        ]
        codes = [run.wait() for run in runs]
        found = [json.loads(line) for part in output.glob("part-*") for line in part.read_text().splitlines()]
        maps = {row["source"]: [item["data"] for item in row["maps"]] for row in found}
        wanted = wanted or maps
        rows.append(
            {
                "shards": str(number),
                "rows": str(len(found)),
                "images": str(len(maps)),
                "same maps as one run": "yes" if maps == wanted and not any(codes) else "no",
                "seconds": f"{time.monotonic() - start:.0f}",
            }
        )
    return rows


def engines(model: Path, count: int, scratch: Path, extra: list[str]) -> list[Row]:
    """Images a second of one machine, with Ray and without, taking turns."""
    images = scratch / "images"
    images.mkdir()
    link_images(images, count)
    rows: list[Row] = []
    for turn in range(2):
        for name, options in (("none", []), ("ray", ["--engine", "ray"])):
            output = scratch / f"{name}{turn}"
            command = [*_command(model, images, output), "-q", *options, *extra]
            subprocess.run(command, check=True, start_new_session=True)  # Ray's processes have sessions of their own
            parts = sorted(output.glob("part-*"), key=lambda part: part.stat().st_mtime_ns)
            sizes = [sum(1 for _ in sources_in(part)) for part in parts]
            seconds = (parts[-1].stat().st_mtime_ns - parts[0].stat().st_mtime_ns) / 1e9
            rows.append({"engine": name, "rows": str(sum(sizes)), "images/s": f"{sum(sizes[1:]) / seconds:.1f}"})
    return rows


def _command(model: Path, images: Path, output: Path) -> list[str]:
    command = [sys.executable, "-m", "xai_insert.cli.explain", str(model), str(images), "-o", str(output)]
    return [*command, "--format", "jsonl"]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "shards", "engines"])
    parser.add_argument("model", nargs="?", type=Path, default=SHAPES / "shapes_cnn.xml")
    parser.add_argument("--images", type=int)
    arguments, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if arguments.what == "memory":
            rows = memory(arguments.images or 100_000, scratch)
        elif arguments.what == "shards":
            rows = shards(arguments.images or 400, scratch)
        else:
            rows = engines(arguments.model.resolve(), arguments.images or 2000, scratch, extra)
    print(markdown_table(rows))
    print(Setting.here("benchmarks.cost.rows").text())


if __name__ == "__main__":
    main()
