"""The file of a fixture: a graph without weights and the recipes for them, in one ``.tar.xz``.

Members are the graph (``model.onnx`` or ``model.xml``), ``recipes.json`` and, for OpenVINO IR, ``kept.bin``: the bytes
of all constants that are kept, in the order of their offsets.
"""

import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from model_zoo_fixtures.recipes import Recipe


@dataclass(frozen=True)
class Archive:
    """A graph without weights.

    Attributes:
        graph: Bytes of the ONNX or XML file; big tensors are empty or, in IR, point to nothing.
        seed: Seed from which all stand-ins are drawn.
        recipes: Number of a tensor in the graph -> its recipe. In IR the number is the constant's offset.
        kept: Bytes of the kept constants of an IR; empty for ONNX.
    """

    graph: bytes
    seed: int
    recipes: dict[int, Recipe]
    kept: bytes = field(default=b"", repr=False)


def write_archive(archive: Archive, path: Path) -> None:
    """Write an archive; the same archive always gives the same bytes.

    Args:
        archive: What to write.
        path: Its file; the part of the name before ``.tar.xz`` ends with ``.onnx`` or ``.ir``.
    """
    rows = {str(index): recipe.to_row() for index, recipe in archive.recipes.items()}
    recipes = json.dumps({"seed": archive.seed, "recipes": rows}, separators=(",", ":")).encode()
    members = {_graph_name(path): archive.graph, "recipes.json": recipes}
    if archive.kept:
        members["kept.bin"] = archive.kept
    with tarfile.open(path, "w:xz", preset=9, format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def read_archive(path: Path) -> Archive:
    """Read an archive.

    Args:
        path: A file that ``write_archive`` wrote.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: There is no such file.
        KeyError: The file lacks its graph or its recipes.
    """
    with tarfile.open(path, "r:xz") as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}  # type: ignore[union-attr]
    stored = json.loads(members["recipes.json"])
    recipes = {int(index): Recipe.from_row(row) for index, row in stored["recipes"].items()}
    return Archive(members[_graph_name(path)], int(stored["seed"]), recipes, members.get("kept.bin", b""))


def _graph_name(path: Path) -> str:
    return "model.onnx" if path.name.endswith(".onnx.tar.xz") else "model.xml"
