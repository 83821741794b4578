"""What an ONNX file from an unknown source could do before anything is run, and refusing it.

Weights may lie in other files, which the model names; tensors may declare sizes that nothing backs.
"""

from __future__ import annotations

import math
import os
import stat
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from xai_insert.errors import ModelFileError
from xai_insert.formats.onnx.stored import tensors
from xai_insert.graph.view import format_shape

_MOST_PACKED = 8  # a small int64 is stored in one byte at best
_SMALL = 1 << 12
_LATEST = 10_000  # readers count down from the version of an operator set to the last one that they know


def require_safe(model: ir.Model, folder: Path) -> None:
    """Refuse external weights outside the model's folder, tensors larger than what is stored, and odd versions.

    Args:
        model: as read from a file; no weight has been touched yet.
        folder: where the file lies.

    Raises:
        ModelFileError: naming the tensor, or what else is wrong.
    """
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _require_inside(tensor, folder)
        elif isinstance(tensor, ir.TensorProtoTensor):
            _require_stored(tensor)
    for domain, version in model.opset_imports.items():
        if version is not None and version > _LATEST:
            raise ModelFileError(f"operator set {domain!r} is of version {version}, which is none; is the file whole?")
    for node in model.graph.all_nodes():
        _require_operands(node, model.opset_imports.get(node.domain))
    for value in model.graph.inputs:
        _require_sizes(value)


def _require_sizes(value: ir.Value) -> None:
    sizes = [size for size in value.shape or () if isinstance(size, int)]
    if any(size < -1 for size in sizes):  # -1 is an open size
        raise ModelFileError(
            f"input {value.name!r} declares a negative size; give its sizes: --input-shape {value.name}:1,3,224,224"
        )


def _require_operands(node: ir.Node, version: int | None) -> None:
    """Refuse a node with fewer operands than its operator needs; of operators that nobody knows, nothing is known."""
    needed = _operands(node.op_type, version or 1, node.domain)
    if len(node.inputs) < needed:
        raise ModelFileError(
            f"{node.op_type} {node.name!r} needs {needed} operands and has {len(node.inputs)}; is the file whole?"
        )


@lru_cache(maxsize=1024)
def _operands(operator: str, version: int, domain: str) -> int:
    """How many operands an operator names at least, those left out among them."""
    try:
        return int(onnx.defs.get_schema(operator, version, domain).min_input)
    except onnx.defs.SchemaError:
        return 0


def _require_inside(tensor: ir.ExternalTensor, folder: Path) -> None:
    location = str(tensor.location)
    what = f"the weights of {tensor.name!r}"
    _require_relative(location, what)
    info = _found(folder / location, folder, location, what)
    offset, length = tensor.offset or 0, tensor.length
    needed = _bytes(tensor)
    if offset < 0 or (length is not None and length < needed) or offset + needed > info.st_size:
        raise ModelFileError(
            f"{what} need {needed} bytes at {offset}, but {location[:200]!r} has {info.st_size}; is the file whole?"
        )


def _require_relative(location: str, what: str) -> None:
    """Refuse a path that is none, or leads out of a folder by its words."""
    plain = PurePosixPath(location.replace("\\", "/"))
    if not location or "\0" in location:
        raise ModelFileError(f"{what} name no file")
    if plain.is_absolute() or PureWindowsPath(location).anchor or ".." in plain.parts:
        raise ModelFileError(f"{what} lie outside the model's folder: {location[:200]!r}; refused")


def _found(path: Path, folder: Path, location: str, what: str) -> os.stat_result:
    """The file of weights; refuses one that is none, or lies elsewhere by way of a link."""
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
        info = path.stat()
    except (OSError, RuntimeError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else "a link leads nowhere"
        raise ModelFileError(f"{what} cannot be found at {location[:200]!r}: {reason}") from err
    if not inside:
        raise ModelFileError(f"{what} lie outside the model's folder, by way of a link: {location[:200]!r}; refused")
    if not stat.S_ISREG(info.st_mode):
        raise ModelFileError(f"{what} are no plain file: {location[:200]!r}; refused")
    return info


def _require_stored(tensor: ir.TensorProtoTensor) -> None:
    needed, stored = _bytes(tensor), tensor.raw.ByteSize()
    most = stored if tensor.raw.HasField("raw_data") else _MOST_PACKED * stored
    if tensor.raw.HasField("raw_data") and needed <= _SMALL:  # below that, names may be longer than what is stored
        most = stored = len(tensor.raw.raw_data)
    if tensor.dtype != ir.DataType.STRING and needed > most:
        shape = format_shape(tuple(tensor.shape.numpy()))
        raise ModelFileError(f"{tensor.name!r} {shape} would take {needed} bytes, the file holds {stored} of it")


def _bytes(tensor: ir.ExternalTensor | ir.TensorProtoTensor) -> int:
    sizes = tuple(tensor.shape.numpy())
    if any(size < 0 for size in sizes):
        raise ModelFileError(f"{tensor.name!r} {format_shape(sizes)} declares a negative size")
    return 0 if tensor.dtype == ir.DataType.STRING else math.ceil(math.prod(sizes) * tensor.dtype.bitwidth / 8)
