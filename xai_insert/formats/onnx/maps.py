"""Models whose outputs are maps or sequences of maps (ZipMap), for which onnx-ir has no type.

The types are kept aside while a model is read and edited, and put back when it is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from xai_insert.formats.onnx.stored import StoredTensor, exchanged, parse, written

if TYPE_CHECKING:
    import onnx

_ADDRESS = "*/_ORT_MEM_ADDR_/*"
"""By this name onnxruntime hands its weights to OpenVINO: the offset is an address."""
_KEPT = "xai_insert.type"


def read(path: Path) -> ir.Model:
    """Read a file; large weights, and those in other files, stay where they are."""
    import onnx  # noqa: PLC0415 - the parser

    return parse(path, lambda content: from_proto(onnx.ModelProto.FromString(content)))


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """What `onnx_ir.from_proto` gives, for any types of outputs."""
    if not _has_maps(proto):
        return ir.from_proto(proto)
    twin = type(proto)()
    twin.CopyFrom(proto)
    types = {}
    for value in twin.graph.output:
        if _is_map(value.type):
            types[value.name] = value.type.SerializeToString()
            value.ClearField("type")
    plain = [value for value in twin.graph.value_info if not _is_map(value.type)]
    del twin.graph.value_info[:]
    twin.graph.value_info.extend(plain)
    model = ir.from_proto(twin)
    for output in model.graph.outputs:
        if output.name in types:
            output.meta[_KEPT] = types[output.name]
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The message of a model, with the types that were kept aside."""
    proto = ir.to_proto(model)
    for value, output in zip(model.graph.outputs, proto.graph.output, strict=True):
        if _KEPT in value.meta:
            output.type.ParseFromString(value.meta[_KEPT])
    return proto


def write(model: ir.Model, path: Path) -> None:
    """Write a model whose external weights are where they are to be."""
    with path.open("wb") as file:
        for part in written(model, lambda part: to_proto(part).SerializeToString()):
            file.write(part)


def in_memory(model: ir.Model) -> bytes:
    """The bytes of a model for OpenVINO, which finds stored tensors at their addresses in this process."""

    def there(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return tensor.outside(_ADDRESS, tensor.address) if isinstance(tensor, StoredTensor) else tensor

    with exchanged(model, there):
        content: bytes = to_proto(model).SerializeToString()
    return content


def _has_maps(proto: onnx.ModelProto) -> bool:
    return any(_is_map(value.type) for value in (*proto.graph.output, *proto.graph.value_info))


def _is_map(kind: onnx.TypeProto) -> bool:
    while kind.HasField("sequence_type"):
        kind = kind.sequence_type.elem_type
    return bool(kind.HasField("map_type"))
