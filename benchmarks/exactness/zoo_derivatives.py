"""Fixtures of the zoo that run masked or are refused by default: has the best class a map of exact derivatives?

    python -m benchmarks.exactness.zoo_derivatives [--only ID-OR-TASK ...] [--details]

Every fixture is planned with the default options, which writes nothing. Those whose map needs masked runs, has no map
by masks or is refused get `--method hirescam`, and the file is run. The oracle is outside of the tool: the head of the
plain model, cut at the feature map, is run with one cell a little larger and smaller, three of the loudest and three by
chance: the change of the best class's score is what the map says there. `off` is the largest difference as a share of
the largest value, empty for a map that several feature maps make together; slopes of six steps tell how sure the oracle
itself is, in float32. Exit code 1 if a classifier has no such map, or one that is off by more than two hundredths and
twice that. Some minutes for the whole zoo.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.tables import text_table
from model_zoo_fixtures import Fixture, fixtures, materialise
from model_zoo_fixtures.testbed import oracle
from xai_insert import Options, Report, insert_file
from xai_insert.errors import XaiInsertError
from xai_insert.formats.backend import load
from xai_insert.tasks.choose import make_plan

_CELLS, _STEPS, _CLOSE = 6, (5e-2, 2e-2, 1e-2, 5e-3, 2e-3, 1e-3), 2e-2
_CLASSIFIERS = ("classification", "video-classification")


def reason_of(path: Path, fixture: Fixture) -> str:
    """Why a fixture counts; empty if it has a map in closed form."""
    loaded = load(path, {})
    graph = loaded.view()
    try:
        plan = make_plan(loaded, graph, Options())
    except XaiInsertError:  # undecoded heads, whose widths fit several readings
        try:
            plan = make_plan(loaded, graph, Options(num_classes=fixture.expected.get("classes")))
        except XaiInsertError as err:
            return f"refused: {str(err)[:80]}"
    form = plan.form.value
    return "" if form not in ("masked runs", "derivative") else form


def off_by(path: Path, made: Path, report: Report) -> tuple[float, ...] | None:
    """How far the map is from slopes of the plain model's scores, and how sure those are.

    None for a map that is made of several feature maps.
    """
    if " and '" in report.reason.partition(";")[0]:
        return None
    plain = oracle.load(path)
    image = oracle.image_for(plain)
    parts = oracle.Parts(plain, report.target["name"], report.logits["name"])
    feature, logits = parts.feature(image), parts.logits(image)
    best = int(logits[0].argmax())
    raw = oracle.run(oracle.load(made), image)["saliency_map"][0].reshape(-1)
    axes = report.target["grid_axes"]
    loud = np.argsort(-np.abs(raw))[: _CELLS // 2]
    others = np.random.default_rng(0).choice(len(raw), min(_CELLS // 2, len(raw)), replace=False)
    wanted = [np.eye(len(raw))[cell] for cell in (*loud, *others)]
    masks = []
    for chosen in wanted:
        mask = np.zeros([size if axis in axes else 1 for axis, size in enumerate(feature.shape)])
        mask.reshape(-1)[mask.size - len(raw) :] = chosen  # class tokens come before
        masks.append(mask)

    def slopes(step: float) -> np.ndarray:
        ends = [
            [parts.head(image, (feature * (1 + way * step * mask)).astype(np.float32))[0, best] for way in (1, -1)]
            for mask in masks
        ]
        return np.subtract(*np.transpose(ends)).astype(np.float64) / (2 * step)

    found = np.array([slopes(step) for step in _STEPS])
    apart = np.abs(np.diff(found, axis=0))
    steady = apart.argmin(axis=0)  # larger steps cross the kinks of rectifiers, smaller ones are rounded
    said = np.array([(raw * chosen).sum() for chosen in wanted])
    true = np.take_along_axis(found[1:], steady[None], 0)[0]
    scale = np.abs(raw).max()
    return tuple(float(np.abs(item).max() / scale) for item in (said - true, apart.min(axis=0)))


def row_of(fixture: Fixture, folder: Path) -> dict[str, Any] | None:
    """What is found for one fixture; None if it does not count."""
    path = materialise(fixture, folder)
    why = reason_of(path, fixture)
    if not why:
        return None
    row = {
        "fixture": fixture.id,
        "by default": why,
        "off": "",
        "oracle's own": "",
        "predictions moved": "",
        "own check": "",
        "verdict": "",
    }
    made = folder / f"new{path.suffix}"
    try:
        report = insert_file(path, made, Options(method="hirescam", output_dtype="f32"))
    except XaiInsertError as err:
        return row | {"verdict": f"no map: {str(err)[:80]}"}
    off = off_by(path, made, report)
    row |= {"predictions moved": f"{report.output_difference:.0e}", "own check": f"{report.map_difference:.0e}"}
    if off is not None:
        row |= {"off": f"{off[0]:.0e}", "oracle's own": f"{off[1]:.0e}"}
    is_close = off is None or off[0] <= max(_CLOSE, 2 * off[1])
    return row | {"verdict": "exact" if report.form == "derivative" and is_close else "wrong"}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="ids, architectures, tasks or exporters of the zoo")
    parser.add_argument("--details", action="store_true", help="a line for each fixture as soon as it is done")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    rows, failed = [], 0
    for fixture in fixtures():
        if arguments.only and not {fixture.id, fixture.arch, fixture.task, fixture.exporter}.intersection(
            arguments.only
        ):
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = row_of(fixture, Path(folder))
        if row is None:
            continue
        rows.append(row)
        failed += row["verdict"] != "exact" and fixture.task in _CLASSIFIERS
        if arguments.details:
            print(*row.values(), sep=" | ", flush=True)
    print(text_table(rows) if rows else "none", f"{failed} classifiers without an exact map", sep="\n\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
