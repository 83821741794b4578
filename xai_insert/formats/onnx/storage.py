"""Writing ONNX files whose weights are in files of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from xai_insert.formats.onnx.maps import write
from xai_insert.formats.onnx.names import name_of


def save(model: ir.Model, folder: Path, name: str) -> list[Path]:
    """Write `model` as `name` into `folder`; returns its files, the main one last.

    Weights in files stay as they are there, offset by offset: the files are copied whole, as `<name>.data` or, if there
    are several, `<name>.data`, `<name>.1.data`, ..., and never read into memory.
    """
    outside = _outside(model)
    copies: dict[Path, Path] = {}
    try:
        for value, tensor in outside:
            source = Path(tensor.path)
            if source not in copies:
                copies[source] = folder / (f"{name}.{len(copies)}.data" if copies else f"{name}.data")
                shutil.copyfile(source, copies[source])
            value.const_value = ir.ExternalTensor(
                copies[source].name,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=name_of(tensor),
                base_dir=folder,
            )
        write(model, folder / name)
    finally:
        for value, tensor in outside:
            value.const_value = tensor
    return [*copies.values(), folder / name]


def external_files(model: ir.Model) -> set[Path]:
    """The files that weights of `model` lie in."""
    return {Path(tensor.path) for _, tensor in _outside(model)}


def _outside(model: ir.Model) -> list[tuple[ir.Value, ir.ExternalTensor]]:
    return [
        (value, value.const_value)
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
