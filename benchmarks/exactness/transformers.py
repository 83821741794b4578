"""How exact the maps of transformers are: architectures x exporters x batches, against the definition in PyTorch.

    python -m benchmarks.exactness.transformers [--only PATTERN] [--exporter NAME] [--json FILE]... [--markdown FILE]

Each network gets random weights that keep its activations at their scale and is exported with a batch of one, and with
a free batch that is run with three images (a batch of three where the exporter writes the batch into the graph). The
raw map in float32 is compared with the definition computed in PyTorch (hooks mask the tokens before the last attention,
or the pooled features, and the network runs again): largest difference relative to the largest score, and the mean over
classes of the correlation. The original outputs are compared bit by bit, in float32 and in the default precision.

`--json FILE` adds the rows to a file; without PATTERN, the table of such a file is written with `--markdown`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.exactness.vit_cases import CASES, Case  # before torch: it mends torchvision's import
from benchmarks.exactness.vit_definition import definition, plain_scores
from model_zoo_fixtures.export.exporters import EXPORTERS, quiet
from model_zoo_fixtures.export.init import random_images, reinitialise
from xai_insert import Options, insert_file
from xai_insert.errors import XaiInsertError
from xai_insert.formats.backend import load

import onnx  # isort: skip
import openvino as ov  # isort: skip
import timm  # isort: skip
import torch  # isort: skip
from model_zoo_fixtures.testbed import oracle  # isort: skip

Array = np.ndarray
BATCH = 3
_SAME = 1e-4  # of the largest score: an export that is off by more is no export
SUMMARY = ("architecture", "method", "exports", "difference", "correlation", "outputs moved", "not measured")


@dataclass
class Row:
    """One export.

    Attributes:
        note: why there is no measurement.
        moved: largest change of an original output relative to its largest element, in float32 and in the default
            precision; 0 is identical; None where the runtime has one precision only.
        difference: largest difference of the raw map, relative to the largest score.
        correlation: mean over classes.
    """

    case: str
    exporter: str
    batch: str
    method: str = ""
    note: str = ""
    moved: list[float | None] = field(default_factory=list)
    difference: float = 0.0
    correlation: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """As text: where, method, outputs moved in float32 and default precision, difference, correlation."""
        if self.note:
            return (self.case, self.exporter, self.batch, self.note, "", "", "", "")
        moved = ["as f32" if m is None else "identical" if m == 0 else f"{m:.1e}" for m in self.moved]
        return (
            *(self.case, self.exporter, self.batch, self.method, *moved),
            *(f"{self.difference:.1e}", f"{self.correlation:.6f}"),
        )


def summarise(rows: list[Row]) -> list[tuple[str, ...]]:
    """One line of SUMMARY for each architecture."""
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        own = [row for row in rows if row.case == case]
        measured = [row for row in own if not row.note]
        moved = [f"{row.exporter}, batch {row.batch[0]}: {max(m or 0 for m in row.moved):.1e}" for row in measured]
        notes = dict.fromkeys(f"{row.exporter}: {row.note[:60]}" for row in own if row.note)
        lines.append(
            (
                case,
                "; ".join(dict.fromkeys(row.method for row in measured)),
                str(len(measured)),
                f"{max((row.difference for row in measured), default=0):.1e}",
                f"{min((row.correlation for row in measured), default=0):.6f}",
                "; ".join(m for m, row in zip(moved, measured, strict=True) if any(row.moved)) or "none",
                "; ".join(notes),
            )
        )
    return lines


class Subject:
    """A network, its images, and its definition for each grid."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.images = random_images(BATCH, case.size, seed=5)
        self.model = self.make()
        with torch.no_grad():
            self.scores = plain_scores(self.model(self.images))
        self._maps: dict[tuple[int, int], Array] = {}

    def make(self) -> torch.nn.Module:
        """Build the network anew, with the same weights."""
        torch.manual_seed(0)
        model = self.case.build()
        reinitialise(model, self.case.id, self.case.size)
        return model

    def maps(self, grid: tuple[int, int]) -> Array:
        """The definition, `[3, K, h, w]`."""
        if grid not in self._maps:
            self._maps[grid] = definition(self.model, self.case, self.images, grid)
        return self._maps[grid]


def _dynamo_dynamic(model: torch.nn.Module, images: torch.Tensor, stem: Path) -> Path:
    path = stem.with_name(stem.name + ".onnx")
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model, (images,), str(path), dynamo=True, external_data=False, verbose=False, dynamic_shapes=shapes
    )
    return path


_DYNAMIC: dict[str, Callable[[torch.nn.Module, torch.Tensor, Path], Path]] = {
    "legacy": EXPORTERS["legacydyn"],
    "dynamo": _dynamo_dynamic,
    "ptir": EXPORTERS["ptirdyn"],
}


def measure(subject: Subject, exporter: str, batch: int, folder: Path) -> Row:
    """Export, insert, compare."""
    row = Row(subject.case.id, exporter, str(batch))
    try:
        path, row.batch = _export(subject, exporter, batch, folder)
    except Exception as err:  # exporters fail in many ways, and that is no fault of the insertion
        lines = [line for line in str(err).splitlines() if line.strip()] or [""]
        row.note = f"no export: {type(err).__name__}: {lines[0][:100]}"
        return row
    images = subject.images[:batch]
    goal = folder / f"inserted{path.suffix}"
    try:
        options = Options(output_dtype="f32", output=_output_name(path, subject.case))
        report = insert_file(path, goal, options)
    except XaiInsertError as err:
        row.note = f"refused: {type(err).__name__}: {err}"
        return row
    row.method = f"{report.method}, {report.form}"
    plain, inserted = _load(path), _load(goal)
    before, after = oracle.run(plain, images.numpy()), oracle.run(inserted, images.numpy())
    raw = after["saliency_map"].astype(np.float64)
    row.moved = [_moved(list(before.values()), list(after.values()))]
    row.moved.append(_default_moved(path, goal, images.numpy()) if path.suffix == ".xml" else None)
    expected = subject.maps((raw.shape[2], raw.shape[3]))[:batch]
    scale = max(float(np.abs(expected).max()), float(np.abs(subject.scores).max()))
    row.difference = float(np.abs(raw - expected).max()) / scale
    row.correlation = _correlation(raw, expected)
    return row


def _export(subject: Subject, exporter: str, batch: int, folder: Path) -> tuple[Path, str]:
    images = subject.images[:batch]
    if batch == 1:
        return _written(subject, EXPORTERS[exporter], images, folder / "one"), "1"
    try:
        return _written(subject, _DYNAMIC[exporter], images, folder / "free"), f"{batch}, free"
    except Exception:  # the exporter cannot leave the batch open, or writes it into the graph
        return _written(subject, EXPORTERS[exporter], images, folder / "three"), f"{batch}, fixed"


def _written(
    subject: Subject, export: Callable[[torch.nn.Module, torch.Tensor, Path], Path], images: torch.Tensor, stem: Path
) -> Path:
    """The export, with fused attention if the exporter knows it; it gives what the network gives."""
    try:
        with torch.no_grad():
            return _proven(subject, export(subject.model, images, stem), images)
    except Exception:
        timm.layers.set_fused_attn(False)
        try:
            with torch.no_grad():
                return _proven(subject, export(subject.make(), images, stem), images)
        finally:
            timm.layers.set_fused_attn(True)


def _proven(subject: Subject, path: Path, images: torch.Tensor) -> Path:
    found = next(iter(oracle.run(_load(path), images.numpy()).values()))
    expected = subject.scores[: len(images)]
    apart = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if apart > _SAME * float(np.abs(expected).max()):
        raise ValueError(f"the export's scores differ by {apart:.1e}")
    return path


def _output_name(path: Path, case: Case) -> str | None:
    """The name of the first output, where it has to be chosen."""
    return load(path, {}).view().output_names[0] if case.has_several_outputs else None


def _load(path: Path) -> onnx.ModelProto | ov.Model:
    return onnx.load(path) if path.suffix == ".onnx" else ov.Core().read_model(path)


def _default_moved(plain: Path, inserted: Path, images: Array) -> float:
    runs = []
    for path in (plain, inserted):
        runs.append([np.array(value) for value in ov.Core().compile_model(path, "CPU")([images]).values()])
    return _moved(runs[0], runs[1])


def _moved(before: list[Array], after: list[Array]) -> float:
    pairs = list(zip(before, after, strict=False))
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def _correlation(a: Array, b: Array) -> float:
    a, b = (x.reshape(*x.shape[:2], -1) - x.mean((2, 3))[..., None] for x in (a, b))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / np.where(norms > 0, norms, 1)).mean())


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="pattern of architectures to measure")
    parser.add_argument("--exporter", action="append", choices=list(_DYNAMIC))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    rows = [Row(**entry) for entry in json.loads(arguments.json.read_text())] if _exists(arguments.json) else []
    for case in CASES:
        if arguments.only is not None and not fnmatch.fnmatch(case.id, arguments.only):
            continue
        if arguments.only is None and arguments.markdown and rows:
            continue
        subject = Subject(case)
        for exporter in arguments.exporter or _DYNAMIC:
            for batch in (1, BATCH):
                with tempfile.TemporaryDirectory() as folder:
                    row = measure(subject, exporter, batch, Path(folder))
                rows = [r for r in rows if (r.case, r.exporter, r.batch[0]) != (row.case, row.exporter, row.batch[0])]
                rows.append(row)
                print(" | ".join(row.cells()), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if arguments.markdown:
        lines = ["| " + " | ".join(cells) + " |" for cells in (SUMMARY, *summarise(rows))]
        arguments.markdown.write_text("\n".join([lines[0], "| --- " * len(SUMMARY) + "|", *lines[1:]]) + "\n")


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


if __name__ == "__main__":
    main()
