"""Explain a very large folder, and see that memory does not grow with it.

Run from the repository root: ``python -m benchmarks.robustness.soak --images 50000``. The pictures are small and all
different; the model is the bundled classifier of shapes. Memory of the process (resident, read from /proc) is taken
twice a second and set against the number of records in its journal. Growth is the most after the first thousand images,
the writing of the page included, against the most up to there. Returns 1 if it is over 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from xai_insert import insert_file

_ROOT = Path(__file__).parents[2]
_WARM = 1000
_MOST = 0.05
_EACH = 500  # pictures to a folder


def write_pictures(folder: Path, count: int) -> None:
    """Write small pictures, each another one."""
    image = cv2.imread(str(_ROOT / "model_zoo_fixtures" / "shapes" / "images" / "shape_0.png"))
    small = cv2.resize(image, (32, 32))
    for number in range(count):
        (part := folder / f"{number // _EACH:04}").mkdir(parents=True, exist_ok=True)
        small[0, :3] = np.array([number & 255, number >> 8 & 255, number >> 16], np.uint8)[:, None]
        cv2.imwrite(str(part / f"{number:06}.png"), small)


def watch(process: subprocess.Popen[bytes], journal: Path) -> list[tuple[int, float]]:
    """Records and megabytes at each moment, until the process ends."""
    found, records, at = [], 0, 0
    while process.poll() is None:
        time.sleep(0.5)
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            with journal.open("rb") as file:
                file.seek(at)
                text = file.read()
        except (OSError, IndexError):
            continue
        at, records = at + len(text), records + text.count(b"\n")
        if pages:  # or else it has just ended
            found.append((records, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface; returns 1 if memory grew, or an image has no record."""
    parser = argparse.ArgumentParser(description="Explain a very large folder and watch memory.")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--format", choices=(".xml", ".onnx"), default=".xml")
    parser.add_argument("--folder", type=Path, help="where pictures and results go for a time (about 25 KB an image)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="xai-insert-soak-", dir=args.folder) as scratch:
        folder = Path(scratch)
        write_pictures(folder / "in", args.images)
        model, output = folder / f"model{args.format}", folder / "out"
        insert_file(_ROOT / "model_zoo_fixtures" / "shapes" / f"shapes_cnn{args.format}", model)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "xai_insert.cli.explain", "-q", model, folder / "in", "-o", output]
        )
        seen = watch(process, output / "results.jsonl")
        seconds = time.perf_counter() - began
        names = [json.loads(line)["name"] for line in (output / "results.jsonl").open("rb")]
        page = sum(line.startswith(b"xai.record(") for line in (output / "records.js").open("rb"))
    before = max((size for count, size in seen if count <= _WARM), default=0.0)
    after = max((size for count, size in seen if count > _WARM), default=before)
    growth = after / before - 1 if before else 0.0
    whole = process.returncode == 0 and len(set(names)) == len(names) == page == args.images
    result = {
        "images": args.images, "records": len(names), "on the page": page, "exit code": process.returncode,
        "seconds": round(seconds, 1), "images per second": round(args.images / seconds, 1),
        "MB up to the first 1000": round(before), "MB after": round(after), "growth": f"{growth:.1%}",
        "MB at each tenth": [round(size) for _, size in seen[:: max(len(seen) // 10, 1)]],
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    return int(growth > _MOST or not whole)


if __name__ == "__main__":
    sys.exit(main())
