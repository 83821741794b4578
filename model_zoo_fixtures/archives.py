"""The file of an architecture: the graphs of all its exports without weights, in one ``.tar.xz``.

The exports share names and recipes, so that together they take little more than half of what each would take alone. A
member is called ``<exporter>/<part>``. The parts are the graph (``model.onnx`` or ``model.xml``), ``recipes.json`` and,
for OpenVINO IR, ``kept.bin``: the bytes of all constants that are kept, in the order of their offsets.
"""

import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model_zoo_fixtures.recipes import Recipe

_GRAPHS = {"onnx": "model.onnx", "ir": "model.xml"}
# Graphs are text, or are mostly names: no alignment to words.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0}]


@dataclass(frozen=True)
class Skeleton:
    """A graph without weights.

    Attributes:
        format: ``onnx`` or ``ir``.
        graph: Bytes of the ONNX or XML file; big tensors are empty or, in IR, point to nothing.
        seed: Seed from which all stand-ins are drawn.
        recipes: One for each tensor in the order of the graph, in IR of the offsets; None for one that is kept.
        kept: Bytes of the kept constants of an IR; empty for ONNX.
    """

    format: str
    graph: bytes
    seed: int
    recipes: tuple[Recipe | None, ...]
    kept: bytes = field(default=b"", repr=False)


def write_archive(skeletons: Mapping[str, Skeleton], path: Path) -> None:
    """Write an archive; the same skeletons always give the same bytes.

    Args:
        skeletons: What to write, by exporter.
        path: The file.
    """
    with (
        lzma.open(path, "wb", filters=_FILTERS) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for exporter in sorted(skeletons):
            for part, content in _parts(skeletons[exporter]).items():
                info = tarfile.TarInfo(f"{exporter}/{part}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def read_archive(path: Path) -> dict[str, Skeleton]:
    """Read an archive.

    Args:
        path: A file that ``write_archive`` wrote.

    Returns:
        Its skeletons by exporter.

    Raises:
        FileNotFoundError: There is no such file.
    """
    parts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path, "r:xz") as tar:
        for info in tar:
            exporter, _, part = info.name.partition("/")
            parts.setdefault(exporter, {})[part] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return {exporter: _skeleton(members) for exporter, members in parts.items()}


def replace_in_archive(path: Path, exporter: str, skeleton: Skeleton | None) -> None:
    """Put an export into an archive, or take it out; an archive without exports is removed.

    Args:
        path: The file; made if it is not there.
        exporter: Which export.
        skeleton: What it is now; None if it is no more.
    """
    skeletons = read_archive(path) if path.exists() else {}
    skeletons.pop(exporter, None)
    if skeleton is not None:
        skeletons[exporter] = skeleton
    if skeletons:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_archive(skeletons, path)
    else:
        path.unlink(missing_ok=True)


def kilobytes(skeleton: Skeleton) -> int:
    """What a skeleton takes alone."""
    return round(sum(len(lzma.compress(content)) for content in _parts(skeleton).values()) / 1024)


def _parts(skeleton: Skeleton) -> dict[str, bytes]:
    rows = [None if recipe is None else recipe.to_row() for recipe in skeleton.recipes]
    recipes = json.dumps({"seed": skeleton.seed, "recipes": rows}, separators=(",", ":")).encode()
    kept = {"kept.bin": skeleton.kept} if skeleton.kept else {}
    return {_GRAPHS[skeleton.format]: skeleton.graph, "recipes.json": recipes, **kept}


def _skeleton(parts: Mapping[str, bytes]) -> Skeleton:
    stored = json.loads(parts["recipes.json"])
    recipes = tuple(None if row is None else Recipe.from_row(row) for row in stored["recipes"])
    ((kind, graph),) = ((kind, parts[name]) for kind, name in _GRAPHS.items() if name in parts)
    return Skeleton(kind, graph, int(stored["seed"]), recipes, parts.get("kept.bin", b""))
