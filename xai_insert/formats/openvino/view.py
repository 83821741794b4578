"""Read-only view of an `ov.Model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from xai_insert.errors import ModelFileError
from xai_insert.formats.guard import RAISED
from xai_insert.formats.openvino.reader import read
from xai_insert.formats.openvino.vocabulary import OPS
from xai_insert.graph.operators import Operator, Reduction, Regroup, Slices
from xai_insert.graph.shape import with_open
from xai_insert.graph.strided import is_identity_gather
from xai_insert.graph.view import (
    Graph,
    Node,
    Op,
    Shape,
    Value,
    kept_if_few,
)

_PACKED = {
    getattr(ov.Type, name): np.float32 if "f" in name else np.int32
    for name in ("u1", "u2", "u3", "u4", "u6", "i4", "nf4", "f4e2m1", "f8e4m3", "f8e5m2", "f8e8m0")
    if hasattr(ov.Type, name)
}
"""Element types that NumPy does not have, and one that holds their numbers."""


def static_shape(shape: ov.PartialShape) -> Shape | None:
    """Sizes with None where they are dynamic; None if the rank is."""
    if shape.is_static:  # a tenth of the time of the sizes as objects; OpenVINO's iterators take long
        sizes = shape.to_shape()
        return tuple(sizes[axis] for axis in range(len(sizes)))
    if shape.rank.is_dynamic:
        return None
    return tuple(None if dim.is_dynamic else dim.get_length() for dim in shape)


def dtype_name(kind: ov.Type) -> str:
    """NumPy name of an element type, or OpenVINO's where NumPy has none."""
    try:
        return str(np.dtype(kind.to_dtype()).name)
    except (RuntimeError, IndexError):
        return str(kind.get_type_name())


def build_view(model: ov.Model) -> Graph:
    """View of `model`.

    Constant subgraphs (decompressed weights, folded shapes) appear as constants. Floats of any width are float32, as in
    the branch, see `Surgeon`.
    """
    values: dict[tuple[int, int], Value] = {}
    nodes: list[Node] = []
    for native in model.get_ordered_ops():
        kind = native.get_type_name()
        if kind == "Result":
            continue
        key = native.get_instance_id()
        inputs = tuple(values[p.get_node().get_instance_id(), p.get_index()] for p in native.input_values())
        outputs = tuple(_value(native, port) for port in range(native.get_output_size()))
        values.update(((key, port), value) for port, value in enumerate(outputs))
        if kind != "Parameter" and not _fold(native, inputs, outputs):
            nodes.append(_node(native, inputs, outputs))
    return Graph(
        inputs=[values[node.get_instance_id(), 0] for node in model.get_parameters()],
        outputs=[_source(values, result) for result in model.get_results()],
        output_names=[_output_name(result) for result in model.get_results()],
        nodes=nodes,
    )


def _fold(native: ov.Node, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> bool:
    """Turn the outputs of a node into constants where its operands are; whether that was done."""
    kind = native.get_type_name()
    if kind == "Constant":
        outputs[0].load = _reader(native)
        return True
    if not _is_foldable(kind, inputs, outputs) and not _takes_known_sizes(native, inputs):
        return False
    for value in outputs:
        value.load = _evaluator(native, inputs, value.index)
    return True


def _node(native: ov.Node, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> Node:
    """An operation between the values that it reads and gives."""
    kind = read(native, inputs, outputs)
    op = _op(native, inputs, kind)
    if op is Op.RESHAPE and not isinstance(kind, Regroup):
        kind = Regroup()
    node = Node(native.get_friendly_name(), op, native.get_type_name(), inputs, outputs, native, kind)
    node.link()
    return node


def _source(values: Mapping[tuple[int, int], Value], result: ov.Node) -> Value:
    port = result.input_value(0)
    return values[port.get_node().get_instance_id(), port.get_index()]


def _output_name(result: ov.Node) -> str:
    names = result.output(0).get_names()
    return min(names) if names else str(result.input_value(0).get_node().get_friendly_name())


def _value(native: ov.Node, port: int) -> Value:
    output = native.output(port)
    name = native.get_friendly_name() + (f".{port}" if native.get_output_size() > 1 else "")
    dtype = "float32" if output.get_element_type().is_real() else dtype_name(output.get_element_type())
    return Value(name, static_shape(output.get_partial_shape()), dtype, output, index=port)


def _is_foldable(kind: str, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> bool:
    """Constant operands only, or the shape of a value whose shape is static."""
    if kind == "ShapeOf":
        shape = inputs[0].shape
        return shape is not None and None not in shape
    return bool(inputs) and all(v.is_constant for v in inputs) and all(v.shape is not None for v in outputs)


def _takes_known_sizes(native: ov.Node, inputs: tuple[Value, ...]) -> bool:
    """Whether a node takes, of a shape whose batch alone may be open, sizes that are known."""
    if native.get_type_name() not in ("Slice", "StridedSlice", "Gather") or not all(v.is_constant for v in inputs[1:]):
        return False
    shape = inputs[0].made_by(Op.SHAPE)
    if shape is None or shape.read(0).shape is None:
        return False
    taken = _evaluator(native, inputs, 0)()
    return bool(taken.size) and bool((taken >= 0).all())


def _elements(value: Value) -> npt.NDArray[Any]:
    """Elements of a constant, or those of a shape, open sizes as -1."""
    if value.is_constant or value.producer is None:
        elements = np.array(value.elements(), order="C")
        return elements.astype(np.float32) if elements.dtype == np.float16 else elements  # see `_evaluated`
    sizes = with_open(value.producer.read(0).sizes)
    return np.array(sizes, value.native.get_element_type().to_dtype())


def _reader(native: Any) -> Callable[[], npt.NDArray[Any]]:
    kind = native.get_element_type()
    if kind in _PACKED:  # OpenVINO shows their bits as bytes
        return lambda: native.get_data(dtype=_PACKED[kind])
    if kind != ov.Type.bf16:
        return lambda: np.asarray(native.data)
    # NumPy has no bfloat16: OpenVINO shows the bits as another type. They are the upper half of a float32.
    return lambda: (np.asarray(native.data).view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _evaluator(native: ov.Node, inputs: tuple[Value, ...], port: int) -> Callable[[], npt.NDArray[Any]]:
    def evaluate() -> npt.NDArray[Any]:
        if native.get_type_name() == "ShapeOf":
            return np.array(inputs[0].shape, native.get_output_element_type(port).to_dtype())
        results = [
            ov.Tensor(_evaluated(output), output.get_shape() if output.get_partial_shape().is_static else [0])
            for output in native.outputs()
        ]
        operands = [ov.Tensor(_elements(value)) for value in inputs]
        try:
            folded = native.evaluate(results, operands)
        except RAISED as err:
            raise ModelFileError(f"cannot fold {native.get_type_name()} {native.get_friendly_name()!r}") from err
        if not folded:
            raise ModelFileError(f"cannot fold {native.get_type_name()} {native.get_friendly_name()!r}")
        return np.array(results[port].data)

    return kept_if_few(evaluate)


def _evaluated(output: ov.Output) -> ov.Type:
    """Element type in which a constant is folded, see `_reader`; narrow floats in float32, as OpenVINO's CPU does."""
    return ov.Type.f32 if output.get_element_type() in (ov.Type.bf16, ov.Type.f16) else output.get_element_type()


def _op(native: ov.Node, inputs: tuple[Value, ...], kind: Operator) -> Op:
    name = native.get_type_name()
    if (name == "Gather" and is_identity_gather(*inputs[:2])) or isinstance(kind, Regroup):
        return Op.RESHAPE
    if isinstance(kind, Slices) and kind.dropped and kind.single is not None:
        return Op.GATHER
    if name.startswith("Adaptive"):
        return Op.REDUCE if isinstance(kind, Reduction) else Op.OTHER
    return OPS.get(name, Op.OTHER)
