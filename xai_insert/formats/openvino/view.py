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
from xai_insert.graph.operators import Regroup
from xai_insert.graph.view import (
    Graph,
    Node,
    Op,
    Shape,
    Use,
    Value,
    constant_of,
    is_identity_gather,
    slice_attrs,
    volume,
)

_PACKED = {
    getattr(ov.Type, name): np.float32 if "f" in name else np.int32
    for name in ("u1", "u2", "u3", "u4", "u6", "i4", "nf4", "f4e2m1", "f8e4m3", "f8e5m2", "f8e8m0")
    if hasattr(ov.Type, name)
}
"""Element types that NumPy does not have, and one that holds their numbers."""


def static_shape(shape: ov.PartialShape) -> Shape | None:
    """Sizes with None where they are dynamic; None if the rank is."""
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
        if kind == "Parameter":
            continue
        if kind == "Constant":
            outputs[0].load = _reader(native)
        elif _is_foldable(kind, inputs, outputs) or _takes_known_sizes(native, inputs):
            for value in outputs:
                value.load = _evaluator(native, inputs, value.index)
        else:
            node = Node(
                native.get_friendly_name(), _kind(native, inputs), kind, inputs, outputs, _attrs(native, inputs), native
            )
            node.kind = Regroup() if node.op is Op.RESHAPE else read(native, inputs, outputs)
            for value in outputs:
                value.producer = node
            for index, operand in enumerate(inputs):
                operand.uses.append(Use(node, index))
            nodes.append(node)
    return Graph(
        inputs=[values[node.get_instance_id(), 0] for node in model.get_parameters()],
        outputs=[_source(values, result) for result in model.get_results()],
        output_names=[_output_name(result) for result in model.get_results()],
        nodes=nodes,
    )


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
    shape = inputs[0].producer
    if shape is None or shape.op is not Op.SHAPE or shape.read(0).shape is None:
        return False
    taken = _evaluator(native, inputs, 0)()
    return bool(taken.size) and bool((taken >= 0).all())


def _elements(value: Value) -> npt.NDArray[Any]:
    """Elements of a constant, or those of a shape, open sizes as -1."""
    if value.is_constant or value.producer is None:
        elements = np.array(value.elements(), order="C")
        return elements.astype(np.float32) if elements.dtype == np.float16 else elements  # see `_evaluated`
    sizes = [-1 if size is None else size for size in value.producer.read(0).sizes]
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

    return evaluate


def _evaluated(output: ov.Output) -> ov.Type:
    """Element type in which a constant is folded, see `_reader`; narrow floats in float32, as OpenVINO's CPU does."""
    return ov.Type.f32 if output.get_element_type() in (ov.Type.bf16, ov.Type.f16) else output.get_element_type()


def _kind(native: ov.Node, inputs: tuple[Value, ...]) -> Op:
    kind = native.get_type_name()
    if kind == "Gather" and is_identity_gather(*inputs[:2]):
        return Op.RESHAPE
    if kind == "StridedSlice" and any(native.get_attributes()["shrink_axis_mask"]) and _slice_attrs(native, inputs):
        return Op.GATHER
    if kind in ("AdaptiveAvgPool", "AdaptiveMaxPool"):
        shape = static_shape(native.output(0).get_partial_shape())
        return Op.REDUCE if shape is not None and set(shape[2:]) == {1} else Op.OTHER
    return OPS.get(kind, Op.OTHER)


def _ints(value: Value | None) -> list[int] | None:
    """Elements of a constant operand; None if they are not known before the model runs."""
    if value is None or not value.is_constant:
        return None
    try:
        return [int(element) for element in np.asarray(value.elements()).reshape(-1)]
    except ModelFileError:
        return None


def _axes(value: Value | None, rank: int | None) -> tuple[int, ...] | None:
    axes = _ints(value)
    return None if axes is None or rank is None else tuple(sorted({axis % rank for axis in axes}))


def _attrs(native: ov.Node, inputs: tuple[Value, ...]) -> Mapping[str, Any]:
    kind = native.get_type_name()
    rank = inputs[0].rank if inputs else None
    raw = native.get_attributes() if kind in _WITH_ATTRIBUTES else {}
    second = inputs[1] if len(inputs) > 1 else None
    if kind.startswith("Reduce") and "keep_dims" in raw:
        return {"mode": kind[6:].lower(), "axes": _axes(second, rank), "keepdims": bool(raw["keep_dims"])}
    if kind.startswith("Adaptive"):
        mode = "mean" if "Avg" in kind else "max"
        return {"mode": mode, "axes": tuple(range(2, rank or 4)), "keepdims": True}
    if kind in ("AvgPool", "MaxPool"):
        pads = tuple(raw["pads_begin"]) + tuple(raw["pads_end"])
        return {"mode": "mean" if kind == "AvgPool" else "max", "kernel": tuple(raw["kernel"]), "pads": pads}
    if kind in ("Convolution", "GroupConvolution"):
        pads = tuple(raw["pads_begin"]) + tuple(raw["pads_end"])
        return {"strides": tuple(raw["strides"]), "pads": pads, "dilations": tuple(raw["dilations"])}
    if kind == "MatMul":
        return {"transpose_a": bool(raw["transpose_a"]), "transpose_b": bool(raw["transpose_b"])}
    if kind in ("Softmax", "LogSoftmax", "TopK"):
        axis = int(raw["axis"])
        return {"axis": axis % rank if rank else axis}
    if kind in ("ROIAlign", "ROIPooling", "PSROIPooling"):
        return {"features": (0,), "scale": float(raw["spatial_scale"])}
    if kind == "ExperimentalDetectronROIFeatureExtractor":
        return {"features": tuple(range(1, len(inputs))), "scale": None}
    if kind == "Unsqueeze":
        return {"new_axes": _axes(second, None if rank is None else rank + len(_ints(second) or ()))}
    if kind == "Transpose":
        return {"perm": _permutation(second, rank)}
    if kind == "ScaledDotProductAttention":
        scale = constant_of(inputs[4], limit=1) if len(inputs) > 4 else None
        known = len(inputs) < 5 or scale is not None
        value = None if scale is None else float(scale.reshape(-1)[0])
        return {"scale": value, "causal": bool(raw["causal"]), "is_plain": known and len(inputs) < 6}
    if kind in ("MVN", "RMS"):
        return {"axes": _axes(second, rank) if kind == "MVN" else (() if rank is None else (rank - 1,))}
    if kind == "Concat":
        axis = int(raw["axis"])
        return {"axis": axis % rank if rank else axis}
    if kind in ("Split", "VariadicSplit"):
        axes = _axes(second, rank)
        return {"axis": axes[0] if axes else None}
    if kind == "Gather":
        return _gather_attrs(inputs)
    if kind in ("Slice", "StridedSlice"):
        return _slice_attrs(native, inputs)
    return {}


def _gather_attrs(inputs: tuple[Value, ...]) -> Mapping[str, Any]:
    shape = inputs[0].shape
    axes = _axes(inputs[2], inputs[0].rank)
    if not axes or shape is None:
        return {"axis": None}
    is_single = inputs[1].shape is not None and volume(inputs[1].shape) == 1
    index = _ints(inputs[1]) if is_single else None
    if not index:
        return {"axis": axes[0]}
    return {"axis": axes[0], "start": index[0] + (shape[axes[0]] or 0) if index[0] < 0 else index[0]}


def _slice_attrs(native: ov.Node, inputs: tuple[Value, ...]) -> Mapping[str, Any]:
    shape = inputs[0].shape
    parts = [_ints(value) for value in inputs[1:]]
    if shape is None or len(parts) < 3 or any(part is None for part in parts):
        return {}
    starts, ends, steps, *rest = (part or [] for part in parts)
    if set(steps) - {1}:
        return {}
    if native.get_type_name() == "Slice":
        axes = [axis % len(shape) for axis in (rest[0] if rest else range(len(starts)))]
        return slice_attrs(axes, starts, ends, shape)
    raw = native.get_attributes()
    if any(any(raw[mask]) for mask in ("new_axis_mask", "ellipsis_mask")):
        return {}
    masks = ("begin_mask", "end_mask", "shrink_axis_mask")
    begin_mask, end_mask, shrunk = ([*raw[mask], *[0] * len(starts)] for mask in masks)
    starts = [0 if begin_mask[i] else start for i, start in enumerate(starts)]
    ends = [1 << 62 if end_mask[i] else end for i, end in enumerate(ends)]
    ends = [
        (start + 1 or 1 << 62) if shrunk[i] else end for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    attrs = slice_attrs(range(len(starts)), starts, ends, shape)
    return attrs if [i for i, gone in enumerate(shrunk) if gone] in ([], [attrs.get("axis")]) else {}


_WITH_ATTRIBUTES = frozenset(
    {f"Reduce{mode}" for mode in ("Mean", "Max", "Min", "Sum", "Prod", "L1", "L2")}
    | {"AvgPool", "MaxPool", "Convolution", "GroupConvolution", "MatMul", "Softmax", "LogSoftmax", "Concat"}
    | {"StridedSlice", "ScaledDotProductAttention", "TopK", "ROIAlign", "ROIPooling", "PSROIPooling"}
)


def _permutation(order: Value | None, rank: int | None) -> tuple[int, ...] | None:
    perm = _ints(order)
    if perm is None or rank is None:
        return None
    return tuple(perm) or tuple(reversed(range(rank)))
