"""Half precision as float32: in copied nodes, and in models for which onnxruntime's CPU has no kernels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from xai_insert.formats.guard import taking_apart

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_BFLOAT16 = (ir.DataType.BFLOAT16,)


def is_packed(value: ir.Value) -> bool:
    """Whether elements stand several in a byte, which onnxruntime dequantises and neither casts nor reshapes."""
    return value.dtype is not None and value.dtype.bitwidth < 8


def widen_attribute(attribute: ir.Attr, kinds: Collection[ir.DataType] = HALF) -> ir.Attr:
    """An attribute that names, or holds elements of, one of `kinds`, with float32 in its place."""
    if attribute.name in ("to", "dtype") and attribute.type == ir.AttributeType.INT:
        return ir.AttrInt64(attribute.name, ir.DataType.FLOAT) if attribute.as_int() in kinds else attribute
    if attribute.type == ir.AttributeType.TENSOR and (tensor := attribute.as_tensor()).dtype in kinds:
        return ir.AttrTensor(attribute.name, ir.tensor(tensor.numpy().astype(np.float32)))
    return attribute


def holds_bfloat16(model: ir.Model) -> bool:
    """Whether the model computes in bfloat16, for which onnxruntime's CPU has hardly an operation."""
    return any(value.dtype in _BFLOAT16 for value in (*model.graph.initializers.values(), *model.graph.inputs))


def widen_bfloat16(model: ir.Model) -> ir.Model:
    """A copy of a bfloat16 model that computes the same in float32."""
    twin = model.clone()
    for graph in (twin.graph, *twin.graph.subgraphs()):
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
            if value.dtype in _BFLOAT16:
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for value in graph.initializers.values():
            _widen_stored(value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                node.attributes[name] = widen_attribute(attribute, _BFLOAT16)
    return twin


def _widen_stored(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is not None and tensor.dtype in _BFLOAT16:
        with taking_apart(f"the constant {tensor.name!r}"):
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
