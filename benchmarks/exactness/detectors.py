"""How exact the inserted maps of detectors are, against scores that hooks caught in the PyTorch model.

    python -m benchmarks.exactness.detectors FOLDER [--only PATTERN...] [--markdown FILE]

FOLDER holds what `python -m model_zoo_fixtures.export.detectors.full` wrote: exports with all their weights, and beside
each what its PyTorch model computed. For each: what was located, whether the original outputs are bit-identical (or the
largest difference), and the share of pixels of the byte map within one step of the definition, which is computed in
NumPy from the hooked scores, or from the features where no location has a class score.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from model_zoo_fixtures.testbed import detection_oracle, oracle
from model_zoo_fixtures.testbed.oracle import load
from xai_insert import Options, insert_file
from xai_insert.errors import XaiInsertError

HEADER = ("model", "located", "grid", "predictions", "within one step", "seconds", "verdict")
ENOUGH = 0.999


def measure(path: Path, arrays: Any, folder: Path) -> tuple[str, ...]:
    """One row of the table; a model that asks for the number of classes is told it."""
    started = time.perf_counter()
    goal = folder / f"new{path.suffix}"
    told = ""
    try:
        try:
            report = insert_file(path, goal)
        except XaiInsertError as error:
            if "--num-classes" not in str(error):
                raise
            told = ", told the number of classes"
            report = insert_file(path, goal, Options(num_classes=int(arrays["classes"])))
    except Exception as error:
        verdict = f"{type(error).__name__}: {error}".replace("|", "/")[:200]
        return path.name, "-", "-", "-", "-", _since(started), verdict
    seconds = _since(started)
    image = arrays["images"][1:2]
    before, after = (oracle.run(load(model), image) for model in (path, goal))
    map_ = after.pop("saliency_map")
    share, located = _compare(map_, arrays)
    moved = _moved(list(before.values()), list(after.values()))
    verdict = "ok" if share >= ENOUGH else "WRONG"
    shape = "x".join(str(size) for size in map_.shape)
    return path.name, f"{report.method}: {located}{told}", shape, moved, f"{share:.4f}", seconds, verdict


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.1f}"


def _compare(map_: np.ndarray, arrays: Any) -> tuple[float, str]:
    levels = _numbered(arrays, "level")
    if levels:
        anchors, classes = [int(count) for count in arrays["anchors"]], int(arrays["classes"])
        wanted = oracle.scaled(detection_oracle.definition(levels, anchors, classes))
        return _share(map_, wanted), f"{len(levels)} levels"
    best = (0.0, "no feature")
    for index, feature in enumerate(_numbered(arrays, "feature")):
        wanted = oracle.scaled(feature.astype(np.float64).mean(axis=1))
        best = max(best, (_share(map_, wanted), f"feature {index}"))
    return best


def _numbered(arrays: Any, prefix: str) -> list[np.ndarray]:
    return [arrays[f"{prefix}{index}"][1:2] for index in range(100) if f"{prefix}{index}" in arrays]


def _share(ours: np.ndarray, theirs: np.ndarray) -> float:
    return detection_oracle.share_within_one(ours, theirs) if ours.shape == theirs.shape else 0.0


def _moved(before: list[np.ndarray], after: list[np.ndarray]) -> str:
    if all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
        return "identical"
    if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return "other shapes"
    return f"{max(float(np.abs(a.astype(float) - b).max()) for a, b in zip(before, after, strict=True)):.1e}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of file names")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    table = json.loads((arguments.folder / "table.json").read_text(encoding="utf-8"))
    rows = [HEADER]
    for name, entry in sorted(table.items()):
        for exporter, outcome in entry["exports"].items():
            suffix = "xml" if exporter.startswith(("ptir", "onnxir")) else "onnx"
            path = arguments.folder / f"{name}.{exporter}.{suffix}"
            if outcome.startswith("FAILED") or not any(fnmatch.fnmatch(path.name, one) for one in arguments.only):
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(path, np.load(arguments.folder / f"{name}.npz"), Path(folder)))
            print("  ".join(rows[-1]), flush=True)
    good = sum(row[-1] == "ok" for row in rows[1:])
    print(f"{good} of {len(rows) - 1} within one step on {ENOUGH:.1%} of pixels")
    if arguments.markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        arguments.markdown.write_text("\n".join([lines[0], "| --- " * len(HEADER) + "|", *lines[1:]]) + "\n")


if __name__ == "__main__":
    main()
