"""The list of fixtures, read from ``manifest.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_zoo_fixtures.archives import read_archive
from model_zoo_fixtures.ir_graphs import fill_ir

ROOT = Path(__file__).parent
GRAPHS = ROOT / "graphs"
MANIFEST = ROOT / "manifest.json"
FAILURES = ROOT / "export" / "failures.json"

Value = str | int | bool | list[int] | list[str] | list[list[int]]


@dataclass(frozen=True)
class Fixture:
    """One export of one architecture.

    Attributes:
        id: ``<arch>.<exporter>``.
        arch: Architecture, with options that matter.
        exporter: How it was exported; explained in the manifest.
        format: ``onnx`` or ``ir``.
        task: What the model does, such as ``classification``.
        package: Package that has the architecture.
        version: Version of that package.
        licence: Licence of the architecture's code, as an SPDX identifier.
        input_shape: Shape of the image input as exported, ``[N, C, H, W]`` where nothing else is said; a free batch is
            written -1.
        expected: What must be found in it; the manifest explains the keys.
        tensors: Of detectors: values or layers with the raw scores of each level, an oracle for tests.
    """

    id: str
    arch: str
    exporter: str
    format: str
    task: str
    package: str
    version: str
    licence: str
    input_shape: tuple[int, ...]
    expected: Mapping[str, Value] = field(hash=False)
    tensors: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file that holds the graph, among those of the architecture's other exports."""
        return GRAPHS / f"{self.arch}.tar.xz"


def fixtures(**filters: Any) -> list[Fixture]:
    """List fixtures.

    Args:
        **filters: Attributes and the values they must have, or collections of allowed values, such as ``format="ir"``
            or ``arch={"resnet50", "vgg11"}``. Keys of ``expected`` can be used likewise: ``collapse="global_average"``.

    Returns:
        The fixtures that pass all filters, in the order of the manifest.

    Raises:
        FileNotFoundError: There is no manifest.
    """
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    listed = [
        _fixture(arch, entry, exporter, manifest["exporters"][exporter])
        for arch, entry in manifest["architectures"].items()
        for exporter in entry["exporters"]
    ]
    return [fixture for fixture in listed if all(_passes(fixture, key, want) for key, want in filters.items())]


def materialise(fixture: Fixture, folder: Path) -> Path:
    """Write a fixture as a model, with stand-ins for its weights; the bytes are the same on every call.

    Args:
        fixture: What to write.
        folder: Where to; made if it is not there.

    Returns:
        Path of ``model.onnx``, or of ``model.xml`` beside its ``model.bin``.

    Raises:
        FileNotFoundError: The graph is missing.
        ImportError: The graph is ONNX, and ``onnx`` is not installed.
    """
    skeleton = read_archive(fixture.path)[fixture.exporter]
    folder.mkdir(parents=True, exist_ok=True)
    if fixture.format == "ir":
        return fill_ir(skeleton, folder)
    from model_zoo_fixtures.onnx_graphs import fill_onnx

    return fill_onnx(skeleton, folder)


def failures() -> dict[str, dict[str, str]]:
    """Why exports are missing: architecture -> exporter -> reason."""
    listed: dict[str, dict[str, str]] = json.loads(FAILURES.read_text(encoding="utf-8"))["architectures"]
    return listed


def _fixture(arch: str, entry: Mapping[str, Any], exporter: str, tool: Mapping[str, Any]) -> Fixture:
    package, _, version = entry["package"].partition(" ")
    batch = -1 if tool["batch"] == "free" else 1
    return Fixture(
        id=f"{arch}.{exporter}",
        arch=arch,
        exporter=exporter,
        format=tool["format"],
        task=entry["task"],
        package=package,
        version=version,
        licence=entry["licence"],
        input_shape=tuple(entry.get("input", (batch, 3, *entry["size"]))),
        expected=entry["expected"],
        tensors=tuple(entry.get("tensors", {}).get(exporter, ())),
    )


def _passes(fixture: Fixture, key: str, want: Any) -> bool:
    have = getattr(fixture, key) if hasattr(fixture, key) else fixture.expected.get(key)
    return have in want if isinstance(want, (set, frozenset, tuple)) and not isinstance(have, tuple) else have == want
