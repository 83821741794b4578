"""`docs/supported-models.md`, made from runs of the zoo's tests, never by hand.

`pytest --zoo --zoo-table ROWS.json` keeps what a run found beside what earlier runs, over other parts of the zoo, left
there; `python -m tests.zoo.zoo_table ROWS.json docs/supported-models.md` writes the table. With a name that ends with
`.md`, pytest writes the table of that run at once.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_zoo_fixtures import Fixture, failures, fixtures
from xai_insert import Options, insert_file
from xai_insert.graph.view import format_grid

PROPERTY = "zoo"
Row = dict[str, Any]
_TITLES = {
    "classification": "Classifiers",
    "detection": "Detectors",
    "instance-segmentation": "Instance segmenters",
    "segmentation": "Semantic segmenters",
    "image-text": "Image and text",
    "embedding": "Embeddings",
    "image-pair": "Two images",
    "video-classification": "Classifiers of clips",
    "keypoints": "Key points",
    "anomaly": "Anomaly detectors",
}
_EXPORTERS = ("legacy", "dynamo", "ptir", "onnxir", "legacydyn", "ptirdyn")
_HEAD = """# Supported models

What this page shows: for each architecture that is tested, as each exporter writes it, the method that is found, the
size of its map, and how far that map is from its definition. Search for the name of your network: if it stands here,
or is built like one that does, it works; if its row says *refused*, the reason stands below the table. A network that
is not here is no worse off, since nothing is decided by names: `xai-insert MODEL --dry-run` says what is found in it.

Written by the zoo's tests from what they found (`pytest --zoo --zoo-table docs/supported-models.md`); not edited by
hand.

Each row is an architecture as real exporters write it, with stand-ins for its weights: see
[model_zoo_fixtures](../model_zoo_fixtures/README.md). The exporters are `legacy` and `dynamo` (ONNX from PyTorch),
`ptir` (IR from PyTorch), `onnxir` (IR from ONNX) and, with a free batch, `legacydyn` and `ptirdyn`. What stands below
them is how far the map is from its definition, computed outside the tool: for classifiers the largest difference of the
raw map from masked runs of the head, as a share of the largest score; for all others the share of bytes
more than one level off; for hirescam how far slopes of the scores are from the derivatives. *refused* and *failed* have
their reasons below the table; an empty cell is not in the zoo. *Cost* is the work that the branch adds to one image, in
MFLOPs.
"""


def record(
    record_property: Any,
    fixture: Fixture,
    report: Any = None,
    difference: float = 0.0,
    refused: str = "",
    *,
    exact: bool | None = None,
) -> None:
    """Keep what a test found for the table.

    Args:
        record_property: pytest's fixture of that name.
        fixture: of the zoo.
        report: of the insertion; None if it was refused.
        difference: of the map from its definition.
        refused: the reason why nothing was inserted.
        exact: whether it has a map of exact derivatives; None where its map needs no masked runs.
    """
    row: Row = {"id": fixture.id, "refused": refused} | ({} if exact is None else {"exact": exact})
    if report is not None:
        row |= {
            "method": f"{report.method}, {report.form}",
            "grid": format_grid(_sides(report.saliency_map["shape"])),
            "mflops": report.mflops,
            "difference": difference,
        }
    record_property(PROPERTY, json.dumps(row))


def exact_map(path: Path, folder: Path) -> bool:
    """Whether the best class has a map of exact derivatives, which insertion holds against the scores' own slopes."""
    report = insert_file(path, folder / f"exact{path.suffix}", Options(method="hirescam"))
    found = report.map_difference
    return report.form == "derivative" and found is not None and found <= 2e-2 and report.output_difference <= 5e-6


def _sides(shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """Rows and columns of a map, of clips time before them."""
    return tuple(shape[2:] if len(shape) == 5 else shape[-2:])


class Writer:
    """The plugin that collects rows and writes them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called for every phase of every test."""
        if "test_zoo" not in report.nodeid or "::test_fixture[" not in report.nodeid:
            return
        name = report.nodeid.partition("[")[2].rstrip("]")
        if report.when == "call":
            recorded = [json.loads(text) for key, text in report.user_properties if key == PROPERTY]
            self._rows[name] = recorded[0] if recorded else {"id": name, "refused": ""}
        if report.failed:
            self._rows.setdefault(name, {"id": name, "refused": ""})["failed"] = _last_line(report.longreprtext)

    def pytest_sessionfinish(self) -> None:
        """Called at the end of the run."""
        if self._path.suffix == ".json":
            before = json.loads(self._path.read_text()) if self._path.exists() else {}
            self._path.write_text(json.dumps(before | self._rows, indent=0))
        else:
            self._path.write_text(table(list(self._rows.values())), encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """The text of the table, of rows that `Writer` has collected; what is no longer in the zoo is left out."""
    found = {row["id"]: row for row in rows}
    listed = [(fixture, found[fixture.id]) for fixture in fixtures() if fixture.id in found]
    parts = [_HEAD]
    for task, title in _TITLES.items():
        chosen = [(fixture, row) for fixture, row in listed if fixture.task == task]
        if chosen:
            parts.append(_section(title, chosen))
    parts.append(_not_exported())
    return "\n".join(parts)


def cells(text: str) -> set[str]:
    """Ids of the fixtures that stand in a table."""
    ids: set[str] = set()
    columns: list[str] = []
    for line in text.splitlines():
        entries = [entry.strip() for entry in line.strip("|").split("|")]
        if line.startswith("| architecture"):
            columns = entries
        elif line.startswith("| "):
            row = dict(zip(columns, entries, strict=True))
            ids |= {f"{row['architecture']}.{name}" for name in _EXPORTERS if row.get(name)}
    return ids


def _section(title: str, listed: Sequence[tuple[Fixture, Row]]) -> str:
    by_arch: dict[str, list[tuple[Fixture, Row]]] = defaultdict(list)
    for fixture, row in listed:
        by_arch[fixture.arch].append((fixture, row))
    exporters = [name for name in _EXPORTERS if any(fixture.exporter == name for fixture, _ in listed)]
    good = sum(all(not _reason(row) for _, row in group) for group in by_arch.values())
    good_exports = sum(not _reason(row) for _, row in listed)
    lines = [
        f"## {title}",
        "",
        f"Found in every export: {good} of {len(by_arch)} architectures ({100 * good / len(by_arch):.1f} %), "
        f"{good_exports} of {len(listed)} exports.",
        "",
        *_exact([row for _, row in listed if "exact" in row]),
        "| " + " | ".join(["architecture", "package", "method", "map", *exporters, "cost"]) + " |",
        "|" + "---|" * (5 + len(exporters)),
        *(_line(arch, group, exporters) for arch, group in by_arch.items()),
    ]
    reasons = _grouped((fixture.arch, fixture.exporter, _reason(row)) for fixture, row in listed if _reason(row))
    return "\n".join([*lines, *(["", "Not found:", "", *reasons] if reasons else []), ""])


def _exact(rows: Sequence[Row]) -> list[str]:
    """How many of the exports have an exact map that are refused by Recipro-CAM or run masked."""
    if not rows:
        return []
    count = sum(row["exact"] for row in rows)
    return [
        f"Of the {len(rows)} exports for which Recipro-CAM has no map, or has to run the rest of the model masked, "
        f"{count} have one of exact derivatives (`--method hirescam`).",
        "",
    ]


def _line(arch: str, group: Sequence[tuple[Fixture, Row]], exporters: Sequence[str]) -> str:
    done = [row for _, row in group if "method" in row]
    methods, grids = (" / ".join(dict.fromkeys(row[key] for row in done)) for key in ("method", "grid"))
    by_exporter = {fixture.exporter: _cell(row) for fixture, row in group}
    costs = [row["mflops"] for row in done]
    cost = "" if not costs else "follows the input" if None in costs else f"{max(costs):.1f}"
    entries = [arch, f"{group[0][0].package} {group[0][0].version}", methods, grids]
    return "| " + " | ".join([*entries, *(by_exporter.get(name, "") for name in exporters), cost]) + " |"


def _cell(row: Row) -> str:
    if "failed" in row:
        return "*failed*"
    if row["refused"]:
        return "*refused*"
    return f"{row['difference']:.0e}" if row["difference"] else "0"


def _reason(row: Row) -> str:
    return row.get("failed") or row["refused"]


def _not_exported() -> str:
    rows = [(arch, exporter, reason) for arch, reasons in failures().items() for exporter, reason in reasons.items()]
    return "\n".join(["## Not exported", "", "What the exporters themselves could not write:", "", *_grouped(rows), ""])


def _grouped(rows: Any) -> list[str]:
    """A line for each architecture and reason."""
    by_reason: dict[tuple[str, str], list[str]] = defaultdict(list)
    for arch, exporter, reason in rows:
        by_reason[arch, reason].append(exporter)
    return [f"* {arch} ({', '.join(names)}): {reason}" for (arch, reason), names in by_reason.items()]


def _last_line(text: str) -> str:
    """The error of a failed test, without its traceback."""
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (errors or ["no message"])[0][:200].replace("|", "/")


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(table(list(json.loads(source.read_text()).values())), encoding="utf-8")
