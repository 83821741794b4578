"""Make fixtures of the detectors that ``full`` has exported, and list them in the manifest."""

import argparse
import fnmatch
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from model_zoo_fixtures.archives import Skeleton, kilobytes
from model_zoo_fixtures.export.detectors.match import Array, Found, find_maps, find_scores, read_tensors
from model_zoo_fixtures.export.manifest import add, is_settled
from model_zoo_fixtures.export.strip import DegenerateError, fill, keep, strip

_LARGEST_FIXTURE = 150  # KB
_ATTEMPTS = [(salt, gain) for salt in ("", "b", "c") for gain in (1.0, 0.85, 0.7)]
_LARGEST_SCORE = 60.0
_SMALLEST_DEVIATION = 0.02
_LARGEST_OUTPUT = 1e6
_BOX_ROWS = (4, 5, 32)


@dataclass(frozen=True)
class _Name:
    id: str


@dataclass(frozen=True)
class Answers:
    """What the PyTorch model computed for two images."""

    images: Array
    levels: list[Array]
    features: list[Array]
    anchors: list[int]
    classes: int

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """Read the file that ``full`` wrote."""
        arrays = np.load(path)

        def numbered(prefix: str) -> list[Array]:
            return [arrays[f"{prefix}{index}"] for index in range(100) if f"{prefix}{index}" in arrays]

        anchors = [int(count) for count in arrays["anchors"]]
        return cls(arrays["images"], numbered("level"), numbered("feature"), anchors, int(arrays["classes"]))

    def sizes(self) -> set[int] | None:
        """Numbers of elements that a tensor with scores or features of one image can have; None if any."""
        if not self.levels and len(self.features) == 1:
            return None
        maps = [array[:1].size for array in self.levels + self.features]
        cells = [level[:1].size // self.classes for level in self.levels]
        fused = [count * (self.classes + rows) for count in cells for rows in _BOX_ROWS]
        totals = [sum(array[:1].size for array in arrays) for arrays in (self.levels, self.features)]
        return {*maps, *fused, *totals} - {0}


def find(model: Path, answers: Answers) -> Found:
    """Find raw scores, or feature maps where there are none, in an export.

    Raises:
        ValueError: They are not there.
    """
    ((tensors, _),) = read_tensors(model, answers.images[:1], answers.sizes())
    if answers.levels:
        found = find_scores(tensors, [level[:1] for level in answers.levels], answers.anchors, answers.classes)
    else:
        found = find_maps(tensors, [map_[:1] for map_ in answers.features])
    if found is None:
        raise ValueError("the raw scores of the PyTorch model are nowhere in the export")
    return found


def check_alive(skeleton: Skeleton, answers: Answers, found: Found) -> str:
    """Check that a model with stand-ins for its weights still detects.

    Args:
        skeleton: A model without weights.
        answers: What the PyTorch model computed.
        found: Where scores or features are.

    Returns:
        A line on what was seen.

    Raises:
        DegenerateError: Its scores are constant, saturated or not finite, or it gives no detection.
    """
    with TemporaryDirectory() as folder:
        model = fill(skeleton, Path(folder))
        runs = read_tensors(model, answers.images[:2], answers.sizes())
    pairs = [(_spread(tensors, found), outputs) for tensors, outputs in runs]
    deviation, largest = (np.array([pair[0][index] for pair in pairs]) for index in range(2))
    if not np.isfinite(largest).all() or largest.max() > _LARGEST_SCORE:
        raise DegenerateError(f"stand-in scores are as large as {largest.max():.2g}")
    if deviation.min() < _SMALLEST_DEVIATION:
        raise DegenerateError(f"stand-in scores vary by only {deviation.min():.2g}")
    outputs = [pair[1] for pair in pairs]
    if any(array.size == 0 for arrays in outputs for array in arrays):
        raise DegenerateError("the stand-in gives no detection")
    floats = [array for array in outputs[0] if array.dtype.kind == "f"]
    if not all(np.isfinite(array).all() and np.abs(array).max() < _LARGEST_OUTPUT for array in floats):
        raise DegenerateError("stand-in outputs are not finite, or huge")
    if all(_same(one, other) for one, other in zip(*outputs, strict=True)):
        raise DegenerateError("stand-in outputs do not depend on the image")
    shapes = " ".join(str(list(array.shape)) for array in outputs[0])
    return f"deviation {deviation.min():.2f}, largest {largest.max():.1f}, outputs {shapes}"


def _spread(tensors: dict[str, Array], found: Found) -> tuple[float, float]:
    """Deviation over positions of the median class, of the level where it is smallest; and the largest score."""
    deviations, largest = [], []
    for name in found.names:
        array = tensors[name]
        flat = array.reshape(array.shape[1], -1).T if array.ndim == 4 else array.reshape(-1, array.shape[-1])
        if len(flat) > 1:
            deviations.append(float(np.median(flat.std(axis=0))))
        largest.append(float(np.abs(array).max()))
    return min(deviations), max(largest)


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-4, atol=1e-6))


def _make(path: Path, fixture_id: str, answers: Answers, found: Found) -> tuple[int, str]:
    error: Exception | None = None
    for salt, gain in _ATTEMPTS:
        skeleton = strip(path, fixture_id, gain, salt)
        size_in_kb = kilobytes(skeleton)
        if size_in_kb > _LARGEST_FIXTURE:
            raise ValueError(f"the fixture would take {size_in_kb} KB, for constants that cannot be left out")
        try:
            seen = check_alive(skeleton, answers, found)
        except DegenerateError as caught:
            error = caught
        else:
            keep(skeleton, fixture_id)
            return size_in_kb, f"{seen}, gain {gain}{salt}"
    assert error is not None
    raise error


def _package(name: str) -> str:
    if name == "own":
        return "model_zoo_fixtures 1"
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} unknown"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the full exports are")
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of architectures")
    parser.add_argument("--missing", action="store_true", help="only what is neither there nor known to fail")
    arguments = parser.parse_args()
    table: dict[str, Any] = json.loads((arguments.folder / "table.json").read_text(encoding="utf-8"))
    for name, row in sorted(table.items()):
        if not any(fnmatch.fnmatch(name, pattern) for pattern in arguments.only):
            continue
        chosen = [exporter for exporter in row["exports"] if not (arguments.missing and is_settled(name, exporter))]
        if chosen:
            add(_Name(name), [_result(arguments.folder, name, row, exporter) for exporter in chosen])


def _result(folder: Path, name: str, row: dict[str, Any], exporter: str) -> dict[str, Any]:
    if row["exports"][exporter].startswith("FAILED"):
        return {"exporter": exporter, "failure": row["exports"][exporter].removeprefix("FAILED ")[:140]}
    answers = Answers.read(folder / f"{name}.npz")
    suffix = "xml" if exporter.startswith(("ptir", "onnxir")) else "onnx"
    path = folder / f"{name}.{exporter}.{suffix}"
    try:
        found = find(path, answers)
        size_in_kb, seen = _make(path, f"{name}.{exporter}", answers, found)
    except Exception as error:
        print(f"{name}.{exporter}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return {"exporter": exporter, "failure": f"{type(error).__name__}: {str(error)[:120]}"}
    print(f"{name}.{exporter}: {size_in_kb} KB, {seen}", flush=True)
    expected = {key: row[key] for key in ("kind", "classes", "background", "label_offset", "activation", "anchors")}
    expected["grids"] = row["grids"] or [shape[2:] for shape in row["features"]]
    expected |= {"row": int(found.row), "row_offset": int(found.offset)}
    shape = {"input": row["input"]} if "input" in row else {}
    return shape | {
        "exporter": exporter,
        "task": "detection",
        "package": _package(row["package"]),
        "licence": row["licence"],
        "size": row["size"],
        "expected": expected,
        "tensors": found.names,
        "note": row["note"],
        "kilobytes": size_in_kb,
    }


if __name__ == "__main__":
    main()
