"""`docs/supported-models.md`, made from a run of the zoo's tests, never by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from xai_insert.graph.view import format_grid

_PROPERTY = "zoo"
_TITLES = {
    "classification": "Classifiers",
    "detection": "Detectors",
    "instance-segmentation": "Instance segmenters",
}
_HEAD = """# Supported models

Written by `pytest --zoo --zoo-table docs/supported-models.md` from what its tests found; not edited by hand.

Each row is an architecture as real exporters write it, with stand-ins for its weights: see
[model_zoo_fixtures](../model_zoo_fixtures/README.md). *Exports* are `legacy` and `dynamo` (ONNX), `ptir` (IR from
PyTorch), `onnxir` (IR from ONNX), `...dyn` with a free batch; those in *italics* are refused or fail. *Difference* is
the worst over the exports: for classifiers of the raw map from masked runs of the head, as a share of the largest
score; for detectors and segmenters the share of bytes more than one level off the definition. *Cost* is the work that
the branch adds.
"""


def record(record_property: Any, fixture: Any, report: Any = None, difference: float = 0.0, refused: str = "") -> None:
    """Keep what a test found for the table.

    Args:
        record_property: pytest's fixture of that name.
        fixture: of the zoo.
        report: of the insertion; None if it was refused.
        difference: of the map from its definition.
        refused: the reason why nothing was inserted.
    """
    row = {"arch": fixture.arch, "exporter": fixture.exporter, "task": fixture.task, "refused": refused}
    row["package"] = f"{fixture.package} {fixture.version}"
    if report is not None:
        row |= {
            "method": f"{report.method}, {report.form}",
            "grid": format_grid(report.saliency_map["shape"][-2:]),
            "mflops": report.mflops,
            "difference": difference,
        }
    record_property(_PROPERTY, json.dumps(row))


class Writer:
    """The plugin that collects rows and writes the table."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called for every phase of every test."""
        if report.when != "call" or "test_zoo" not in report.nodeid:
            return
        self._rows += [json.loads(text) for key, text in report.user_properties if key == _PROPERTY]
        if report.failed:
            self._failed.append(report.nodeid.partition("[")[2].rstrip("]"))

    def pytest_sessionfinish(self) -> None:
        """Called at the end of the run."""
        parts = [_HEAD]
        for task, title in _TITLES.items():
            rows = [row for row in self._rows if row["task"] == task]
            if rows:
                parts.append(_section(title, rows, set(self._failed)))
        self._path.write_text("\n".join(parts), encoding="utf-8")


def _section(title: str, rows: list[dict[str, Any]], failed: set[str]) -> str:
    by_arch: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_arch[row["arch"]].append(row)
    good = sum(not any(_is_bad(row, failed) for row in group) for group in by_arch.values())
    lines = [f"## {title}", "", f"{good} of {len(by_arch)} architectures in every export, {len(rows)} exports.", ""]
    lines += ["| architecture | package | method | map | exports | difference | cost, MFLOPs |", "|" + "---|" * 7]
    lines += [_line(arch, group, failed) for arch, group in sorted(by_arch.items())]
    reasons = sorted({f"* {row['arch']}: {row['refused']}" for row in rows if row["refused"]})
    return "\n".join([*lines, *(["", "Refused:", "", *reasons] if reasons else []), ""])


def _is_bad(row: dict[str, Any], failed: set[str]) -> bool:
    return bool(row["refused"]) or f"{row['arch']}.{row['exporter']}" in failed


def _line(arch: str, group: list[dict[str, Any]], failed: set[str]) -> str:
    done = [row for row in group if "method" in row]
    exports = ", ".join(f"*{r['exporter']}*" if _is_bad(r, failed) else r["exporter"] for r in group)
    if not done:
        return f"| {arch} | {group[0]['package']} | refused | | {exports} | | |"
    methods, grids = (" / ".join(dict.fromkeys(row[key] for row in done)) for key in ("method", "grid"))
    worst = max(row["difference"] for row in done)
    costs = [row["mflops"] for row in done if row["mflops"] is not None]
    cost = f"{max(costs):.1f}" if costs else "follows the input"
    return f"| {arch} | {group[0]['package']} | {methods} | {grids} | {exports} | {worst:.0e} | {cost} |"
