"""Results as an aligned table, as Markdown and as JSON, with the machine they come from."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("xai-insert", "openvino", "onnxruntime", "onnx", "onnx-ir", "numpy")

Row = Mapping[str, str]
"""Text by column; rows may lack columns."""


@dataclass(frozen=True)
class Setting:
    """Where and how results were measured.

    Attributes:
        command: the command line, with folders left out.
        machine: processor, cores, memory and load of the machine.
        versions: of Python and the packages that matter.
    """

    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    @classmethod
    def here(cls, module: str, arguments: Sequence[str] | None = None) -> Setting:
        """This process, as `python -m module` with `arguments` (its own, if None)."""
        given = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(["python", "-m", module, *(Path(text).name for text in given)])
        return cls(command, _machine(), _versions())

    def text(self) -> str:
        """Three lines."""
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        versions = ", ".join(f"{key} {value}" for key, value in self.versions.items())
        return f"command: {self.command}\nmachine: {machine}\nversions: {versions}"


def text_table(rows: Sequence[Row]) -> str:
    """Columns aligned by spaces, numbers to the right; columns that are empty throughout are left out."""
    columns = _columns(rows)
    cells = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    right = [_is_numeric(rows, column) for column in columns]
    lines = []
    for line in cells:
        padded = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    columns = _columns(rows)
    rule = ["---:" if _is_numeric(rows, column) else "---" for column in columns]
    lines = [columns, rule, *([row.get(column, "") for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_markdown(path: Path, title: str, setting: Setting, rows: Sequence[Row], summary: str = "") -> None:
    """Write a page with a title, the table, a summary and the setting."""
    parts = [f"# {title}", markdown_table(rows), summary, f"```text\n{setting.text()}\n```"]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def write_json(path: Path, setting: Setting, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the setting and the unrounded results."""
    content = {
        "command": setting.command,
        "machine": setting.machine,
        "versions": setting.versions,
        "results": list(results),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _columns(rows: Sequence[Row]) -> list[str]:
    named = dict.fromkeys(column for row in rows for column in row)
    return [column for column in named if any(row.get(column) for row in rows)]


def _is_numeric(rows: Sequence[Row], column: str) -> bool:
    texts = [row[column] for row in rows if row.get(column)]
    return all(text.lstrip("+-")[:1].isdigit() for text in texts)


def _machine() -> dict[str, Any]:
    machine: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        machine["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GB"
    if hasattr(os, "getloadavg"):
        machine["load"] = round(os.getloadavg()[0], 2)
    return machine


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
