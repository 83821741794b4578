"""How exact the inserted maps are: predictions in two precisions, and the raw map against its definition.

    python -m benchmarks.exactness.classifiers MODEL... [--markdown FILE]

MODEL is a path or the id of a fixture of the zoo. For each: whether the original outputs are bit-identical in float32
and in the runtime's default precision (largest difference otherwise), the largest difference of the raw map from the
definition relative to the largest score, and the mean over classes of their correlation. The definition is computed
outside the tool: the plain model is cut at the reported target, masked in NumPy and run position by position.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov

from benchmarks.lib.variants import resolve
from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.oracle import image_for, load
from xai_insert import Options, Report, insert_file
from xai_insert.methods.kernels import patch_weights

HEADER = ("model", "method", "predictions f32", "predictions default", "map difference", "mean correlation")


def measure(path: Path, folder: Path) -> tuple[str, ...]:
    """One row of the table."""
    goal = folder / f"raw{path.suffix}"
    report = insert_file(path, goal, Options(output_dtype="f32"))
    plain = load(path)
    image = image_for(plain)
    before, after = oracle.run(plain, image), oracle.run(load(goal), image)
    parts = oracle.Parts(plain, report.target["name"], report.logits["name"])
    feature = parts.feature(image)
    scores = np.stack([parts.head(image, feature * mask) for mask in _masks(report, feature.shape)], axis=-1)
    raw = after["saliency_map"].reshape(scores.shape).astype(np.float64)
    scale = max(float(np.abs(scores).max()), float(np.abs(parts.logits(image)).max()))
    difference = float(np.abs(raw - scores).max()) / scale
    form = f"{report.method}, {report.form}"
    default = "as f32" if isinstance(plain, onnx.ModelProto) else _moved(*_default_precision(path, goal, image))
    moved = _moved(list(before.values()), [after[name] for name in before])
    return path.stem, form, moved, default, f"{difference:.1e}", f"{_correlation(raw, scores):.6f}"


def _masks(report: Report, shape: Sequence[int]) -> list[np.ndarray]:
    height, width = report.target["grid"]
    cells = height * width
    if report.method == "vit-recipro-cam":
        weights = patch_weights((height, width), shape[1] - cells, "gaussian")
        return [row.reshape(1, -1, 1) for row in weights]
    sizes = [shape[axis] if axis in report.target["grid_axes"] else 1 for axis in range(len(shape))]
    return [row.reshape(sizes) for row in np.eye(cells, dtype=np.float32)]


def _default_precision(plain: Path, inserted: Path, image: np.ndarray) -> tuple[list[Any], list[Any]]:
    runs = []
    for path in (plain, inserted):
        compiled = ov.Core().compile_model(path, "CPU")
        runs.append([np.array(value) for value in compiled([image]).values()])
    return runs[0], runs[1][: len(runs[0])]


def _moved(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> str:
    if all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
        return "identical"
    return f"{max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True)):.1e}"


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / np.where(norms > 0, norms, 1)).mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows = [HEADER]
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(resolve(name, Path(folder)), Path(folder)))
        print("  ".join(rows[-1]), flush=True)
    if arguments.markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        arguments.markdown.write_text("\n".join([lines[0], "| --- " * len(HEADER) + "|", *lines[1:]]) + "\n")


if __name__ == "__main__":
    main()
