"""Take the weights out of an OpenVINO IR, and put stand-ins in, without OpenVINO."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from model_zoo_fixtures.archives import Skeleton
from model_zoo_fixtures.recipes import Recipe, cook, make_recipe

_DTYPES = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "i8": np.int8, "u8": np.uint8}


@dataclass(frozen=True)
class _Constant:
    """One constant of the IR: a range of bytes and how to read it; ``dtype`` is None where it is always kept."""

    offset: int
    size: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None


def strip_ir(source: Path, seed: int) -> Skeleton:
    """Take the weights out of an IR.

    Args:
        source: The ``.xml`` file, its ``.bin`` beside it.
        seed: Seed of the stand-ins.

    Returns:
        The model without weights.
    """
    graph = source.read_bytes()
    weights = source.with_suffix(".bin").read_bytes()
    recipes: list[Recipe | None] = []
    kept = bytearray()
    for constant in _constants(graph):
        content = weights[constant.offset : constant.offset + constant.size]
        recipe = None
        if constant.dtype is not None:
            recipe = make_recipe(np.frombuffer(content, constant.dtype).reshape(constant.shape))
        if recipe is None:
            kept += content
        recipes.append(recipe)
    return Skeleton("ir", graph, seed, tuple(recipes), bytes(kept))


def fill_ir(skeleton: Skeleton, folder: Path) -> Path:
    """Write an IR with stand-ins for its weights.

    Args:
        skeleton: What ``strip_ir`` gave.
        folder: An existing folder.

    Returns:
        Path of the written ``model.xml``; ``model.bin`` is beside it.
    """
    path = folder / "model.xml"
    path.write_bytes(skeleton.graph)
    kept_start = 0
    with path.with_suffix(".bin").open("wb") as stream:
        for constant, recipe in zip(_constants(skeleton.graph), skeleton.recipes, strict=True):
            stream.seek(constant.offset)
            if recipe is not None and constant.dtype is not None:
                stream.write(cook(recipe, constant.shape, constant.dtype, skeleton.seed, constant.offset).tobytes())
            else:
                stream.write(skeleton.kept[kept_start : kept_start + constant.size])
                kept_start += constant.size
    return path


def _constants(graph: bytes) -> Iterator[_Constant]:
    """Give the constants of an IR, those of nested bodies too, by offset; one that is shared comes once."""
    found: dict[int, _Constant] = {}
    for layer in ElementTree.fromstring(graph).iter("layer"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        offset, size = int(data.get("offset", "0")), int(data.get("size", "0"))
        shape = tuple(int(part) for part in data.get("shape", "").split(",") if part.strip())
        scalar_type = _DTYPES.get(data.get("element_type", ""))
        dtype = None if scalar_type is None else np.dtype(scalar_type)
        if dtype is not None and dtype.itemsize * int(np.prod(shape, dtype=np.int64)) != size:
            dtype = None
        if offset not in found or found[offset].size < size:
            found[offset] = _Constant(offset, size, shape, dtype)
    for offset in sorted(found):
        yield found[offset]
