"""Sizes and element types of every value of an ONNX model.

By ONNX's own inference and, where that fails, by OpenVINO's ONNX reader or, for models that it cannot read, after
onnxruntime has folded constants. Real exports carry computed reshapes and pads through which ONNX's inference cannot
see (a fifth of a Swin's values). OpenVINO and onnxruntime are imported for those models only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from xai_insert.formats.onnx.maps import to_proto, untyped
from xai_insert.graph.view import Shape

_LARGE = 1 << 16
"""Bytes of a weight that is not handed to another library."""
_IMAGE_RANK = 4
ML_DOMAIN = "ai.onnx.ml"
"""Classical learners and what names classes: they come behind the scores, and have shapes that nobody asks for."""


@dataclass(frozen=True)
class Inferred:
    """What inference tells of the values of a model, by their names."""

    shapes: Mapping[str, Shape]
    types: Mapping[str, ir.DataType]

    def type_of(self, value: ir.Value) -> ir.DataType | None:
        """Element type of a value of the model."""
        return value.dtype or self.types.get(value.name or "")


def infer(model: ir.Model, input_shapes: Mapping[str, Shape]) -> Inferred:
    """Sizes and element types; `model` is unchanged.

    Args:
        model: the model to study.
        input_shapes: sizes of graph inputs that are to be taken instead of the stored ones.
    """
    values = [v for node in model.graph.all_nodes() for v in node.outputs] + list(model.graph.inputs)
    before = [(value, value.shape, value.type) for value in values]
    try:
        _infer_alone(model, input_shapes)
        types = {value.name: value.dtype for value in values if value.name and value.dtype is not None}
        shapes = _shapes(values)
    finally:
        for value, shape, type_ in before:
            value.shape, value.type = shape, type_
    if _is_incomplete(model, shapes):
        content = _without_weights(model)
        known, kinds = _read_shapes(content, input_shapes)
        shapes.update(known or _folded_shapes(content, input_shapes))
        types = {name: ir.DataType.from_numpy(np.dtype(kind)) for name, kind in kinds.items()} | types
        _fill_in_transposes(model, shapes)
    return Inferred(shapes, types)


def _infer_alone(model: ir.Model, input_shapes: Mapping[str, Shape]) -> None:
    """ONNX's own inference; changes the values of `model`."""
    for value in model.graph.inputs:
        if (given := input_shapes.get(value.name or "")) is not None:
            value.shape = ir.Shape(given)
    with untyped(model.graph):
        passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _without_weights(model: ir.Model) -> bytes:
    """The model as bytes with its large floats as inputs: no size depends on their content."""
    twin = model.clone()
    graph = twin.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and _is_large(tensor):
            value.const_value, value.type, value.shape = (
                None,
                ir.TensorType(tensor.dtype),
                ir.Shape(tensor.shape.numpy()),
            )
            graph.initializers.pop(value.name or "")
            if not value.is_graph_input():
                graph.inputs.append(value)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=value.name)
    for node in [node for node in graph if node.op_type == "Constant" and "value" in node.attributes]:
        tensor, value = node.attributes["value"].as_tensor(), node.outputs[0]
        if _is_large(tensor) and not value.is_graph_output():
            name, value.name = value.name, None
            weight = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
            ir.convenience.replace_all_uses_with(value, weight)
            graph.inputs.append(weight)
            graph.remove(node, safe=True)
    content: bytes = to_proto(twin).SerializeToString()
    return content


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= _LARGE and tensor.dtype.is_floating_point()


def _shapes(values: Iterable[ir.Value]) -> dict[str, Shape]:
    return {value.name: _sizes(value.shape) for value in values if value.name and value.shape is not None}


def _read_shapes(content: bytes, input_shapes: Mapping[str, Shape]) -> tuple[Mapping[str, Shape], Mapping[str, str]]:
    """Sizes and element types by OpenVINO; empty if it cannot read the model or is not installed."""
    if importlib.util.find_spec("openvino") is None:
        return {}, {}
    from xai_insert.formats.openvino.shapes import read_shapes  # noqa: PLC0415 - only for models that need it

    return read_shapes(content, input_shapes)


def _folded_shapes(content: bytes, input_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Sizes after onnxruntime has folded constants; empty if it cannot read the model."""
    from xai_insert.formats.onnx.runtime import folded  # noqa: PLC0415 - only for models that need it

    model = folded(content)
    if model is None:
        return {}
    _infer_alone(model, input_shapes)
    return _shapes(value for node in model.graph for value in node.outputs)


def ranks(model: ir.Model) -> Mapping[str, int]:
    """Number of axes of each value as onnxruntime infers them, whose own operators ONNX does not know."""
    from xai_insert.formats.onnx.runtime import typed_ranks  # noqa: PLC0415 - only for models that need it

    return typed_ranks(model)


def _fill_in_transposes(model: ir.Model, shapes: dict[str, Shape]) -> None:
    """Sizes after the transposes that OpenVINO's reader merges with the product behind them."""
    for node in model.graph:
        source = shapes.get(node.inputs[0].name or "") if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "Transpose" and source is not None and "perm" in node.attributes:
            shapes[node.outputs[0].name or ""] = tuple(source[axis] for axis in node.attributes["perm"].as_ints())


def _sizes(shape: ir.Shape) -> Shape:
    return tuple(dim if isinstance(dim, int) else None for dim in shape)


def _is_incomplete(model: ir.Model, shapes: Mapping[str, Shape]) -> bool:
    """Whether a value has no rank, or an unknown size although the inputs' only unknown size is the batch.

    Beside images, which have four axes, a text may be of any length.
    """
    inputs = [shapes.get(value.name or "") for value in model.graph.inputs]
    inputs = [shape for shape in inputs if shape is None or len(shape) == _IMAGE_RANK] or inputs
    sizes_known = all(shape is not None and None not in shape[1:] for shape in inputs)
    for node in model.graph:
        if node.domain == ML_DOMAIN:
            continue
        for value in node.outputs:
            if not value.uses() and not value.is_graph_output():
                continue
            shape = shapes.get(value.name or "")
            if shape is None or (sizes_known and None in shape[1:]):
                return True
    return False
