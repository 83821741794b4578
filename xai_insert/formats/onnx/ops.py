"""`Ops` over the standard ONNX operator set, in the form that the model's opset version knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from xai_insert.graph.ops import Function, Reduction, Size, Windows

_REDUCTIONS = {"mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin", "sum": "ReduceSum"}


class OnnxOps:
    """Appends nodes to `graph`; `name` gives each node and value its unique name."""

    def __init__(self, graph: ir.Graph, name: Callable[[str], str]) -> None:
        self._graph = graph
        self._name = name
        self.version = graph.opset_imports.get("", 17)

    def _node(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self._nodes(kind, 1, *inputs, **attributes)[0]

    def _nodes(self, kind: str, outputs: int, *inputs: ir.Value | None, **attributes: Any) -> Sequence[ir.Value]:
        name = self._name(kind)
        node = ir.node(kind, inputs, attributes, num_outputs=outputs, name=name)
        for output in node.outputs:
            output.name = self._name(f"{name}/out")
        self.append(node)
        return node.outputs

    def append(self, node: ir.Node) -> None:
        """Add a node behind those that are there; viewers show its text."""
        node.doc_string = "added by xai-insert"
        self._graph.append(node)

    def same(self, a: ir.Value) -> ir.Value:
        """`a` unchanged, by an operation that onnxruntime's optimiser sees no sense in.

        Its CPU has it for float32 alone. It runs a float16 operation in float32 where all its neighbours run so, and
        rounds their results where one does not; a cast as reader would be such a one, and move the model's own outputs.
        So would transposes behind it that it pushes forward through the model's layers, and quantisers.
        """
        if self.version < 12:
            return self._node("LeakyRelu", a, alpha=1.0)
        return self._node("Einsum", a, equation="...->...")

    def dequantised(self, node: ir.Node, *, scaled: bool = True) -> ir.Value:
        """What `node`, a DequantizeLinear of stored operands, gives, from operands of our own; else with scales of 1.

        A second reader, even of what is stored, keeps onnxruntime from merging the layer of the model with its weight;
        and scalars that are equal become one.
        """
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        operands = [value if value is None else self._twin(value) for value in node.inputs]
        if not scaled and operands[1] is not None:
            operands[1] = self.constant(
                np.ones([] if operands[1].shape is None else operands[1].shape.numpy(), np.float32)
            )
        made = ir.node(node.op_type, operands, attributes, domain=node.domain, name=self._name(node.op_type))
        made.outputs[0].name = self._name(f"{made.name}/out")
        self.append(made)
        return made.outputs[0]

    def _twin(self, stored: ir.Value) -> ir.Value:
        name, tensor = self._name("const"), stored.const_value
        if isinstance(tensor, ir.TensorProtoTensor):  # to name it would rename that of the message, the user's own
            shared = tensor
            tensor = ir.LazyTensor(lambda: shared, shared.dtype, shared.shape, name=name)
        value = ir.Value(name=name, type=stored.type, shape=stored.shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def clip(self, a: ir.Value, low: float, high: float) -> ir.Value:
        """Bound from both sides."""
        return self._node("Clip", a, *(self.constant(np.array(bound, np.float32)) for bound in (low, high)))

    def constant(self, elements: npt.NDArray[Any]) -> ir.Value:
        name = self._name("const")
        tensor = ir.tensor(np.array(elements, order="C"), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(elements.shape), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._node("Add", a, b)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._node("Sub", a, b)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._node("Mul", a, b)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._node("Div", a, b)

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._node("Max", a, b)

    def sqrt(self, a: ir.Value) -> ir.Value:
        return self._node("Sqrt", a)

    def floor(self, a: ir.Value) -> ir.Value:
        return self._node("Floor", a)

    def nonzero_or(self, a: ir.Value, other: ir.Value) -> ir.Value:
        return self._node("Where", self._node("Cast", a, to=ir.DataType.BOOL), a, other)

    def matmul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._node("MatMul", a, b)

    def matmul_transposed(self, a: ir.Value, b: ir.Value, rank: int = 2) -> ir.Value:
        axes = range(rank)
        return self._node("MatMul", a, self.transpose(b, [*axes[:-2], axes[-1], axes[-2]]))

    def conv1x1(self, a: ir.Value, weight: ir.Value) -> ir.Value:
        return self._node("Conv", a, weight)

    def mixed_channels(self, a: ir.Value, b: ir.Value, sizes: Sequence[Size]) -> ir.Value:
        return self.matmul(a, self.reshape(b, [*sizes, -1]))

    def reduce(self, a: ir.Value, mode: Reduction, axes: Sequence[int]) -> ir.Value:
        if self.version >= 18 or (mode == "sum" and self.version >= 13):
            return self._node(_REDUCTIONS[mode], a, self.constant(np.array(axes, np.int64)), keepdims=1)
        return self._node(_REDUCTIONS[mode], a, axes=list(axes), keepdims=1)

    def _vector(self, size: Size) -> ir.Value:
        return self.constant(np.array([size], np.int64)) if isinstance(size, int) else size

    def reshape(self, a: ir.Value, sizes: Sequence[Size]) -> ir.Value:
        if all(isinstance(size, int) for size in sizes):
            return self._node("Reshape", a, self.constant(np.array(sizes, np.int64)))
        parts = [self._vector(size) for size in sizes]
        return self._node("Reshape", a, self._node("Concat", *parts, axis=0))

    def unsqueeze(self, a: ir.Value, axes: Sequence[int]) -> ir.Value:
        if self.version < 13:
            return self._node("Unsqueeze", a, axes=list(axes))
        return self._node("Unsqueeze", a, self.constant(np.array(axes, np.int64)))

    def transpose(self, a: ir.Value, perm: Sequence[int]) -> ir.Value:
        return self._node("Transpose", a, perm=list(perm))

    def slice(self, a: ir.Value, axis: int, start: Size, end: Size) -> ir.Value:
        given = (self._vector(n) for n in (start, end, axis))
        return self._node("Slice", a, *given)

    def concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        return self._node("Concat", *parts, axis=axis)

    def expand(self, a: ir.Value, sizes: Sequence[int]) -> ir.Value:
        return self._node("Expand", a, self.constant(np.array(sizes, np.int64)))

    def softmax(self, a: ir.Value, axis: int = -1) -> ir.Value:
        if axis == -1:
            return self._node("Softmax", a, axis=-1)
        # Over another axis onnxruntime transposes, and before opset 13 the axes that follow took part.
        powers = self._node("Exp", self.sub(a, self.reduce(a, "max", [axis])))
        return self.div(powers, self.reduce(powers, "sum", [axis]))

    def resize(self, a: ir.Value, height: Size, width: Size) -> ir.Value:
        outer = self._node("Gather", self._node("Shape", a), self.constant(np.array([0, 1], np.int64)), axis=0)
        sides = [self._vector(n) for n in (height, width)]
        sizes = self._node("Concat", outer, *sides, axis=0)
        # An empty tensor where the operator set demands one; converters to half precision take it for scales.
        unused = None if self.version >= 13 else self.constant(np.zeros(0, np.float32))
        modes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self._node("Resize", a, unused, unused, sizes, **modes)

    def largest(self, a: ir.Value, count: int) -> ir.Value:
        name = self._name("TopK")
        node = ir.node("TopK", [a, self.constant(np.array([count], np.int64))], {"axis": -1}, num_outputs=2, name=name)
        for output, part in zip(node.outputs, ("values", "indices"), strict=True):
            output.name = self._name(f"{name}/{part}")
        node.outputs[1].type = ir.TensorType(ir.DataType.INT64)
        self.append(node)
        return node.outputs[1]

    def gather(self, a: ir.Value, indices: ir.Value) -> ir.Value:
        return self._node("Gather", a, indices, axis=0)

    def equal(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._where(self._node("Equal", a, b))

    def greater(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._where(self._node("Greater", a, b))

    def _where(self, condition: ir.Value) -> ir.Value:
        """1 or 0. Not by Cast, which keeps its float32 when onnxconverter makes the values around it float16."""
        one, zero = (self.constant(np.array(number, np.float32)) for number in (1, 0))
        return self._node("Where", condition, one, zero)

    def sigmoid(self, a: ir.Value) -> ir.Value:
        return self._node("Sigmoid", a)

    def top(self, a: ir.Value, count: ir.Value) -> tuple[ir.Value, ir.Value]:
        values, indices = self._nodes("TopK", 2, a, count, axis=-1)
        indices.type = ir.TensorType(ir.DataType.INT64)
        return values, indices

    def take(self, a: ir.Value, indices: ir.Value, axis: int) -> ir.Value:
        return self._node("GatherElements", a, indices, axis=axis)

    def suppress(self, boxes: ir.Value, scores: ir.Value, most: int, overlap: float, threshold: float) -> ir.Value:
        count = self.constant(np.array([most], np.int64))
        limits = [self.constant(np.array([number], np.float32)) for number in (overlap, threshold)]
        return self._node("NonMaxSuppression", boxes, scores, count, *limits)

    def mark(self, a: ir.Value, places: ir.Value) -> ir.Value:
        return self._node("ScatterND", a, places, self._ones(self.size(places, 0)))

    def cumulative(self, a: ir.Value, axis: int) -> ir.Value:
        return self._node("CumSum", a, self.constant(np.array(axis, np.int64)))

    def isolated(self, a: ir.Value, channels: int, *, is_map: bool = False, is_given: bool = True) -> ir.Value:
        return a if is_map else self.reshape(a, [-1, channels])

    def in_planes(self, a: ir.Value, work: Callable[[ir.Value], ir.Value]) -> ir.Value:
        return work(a)

    def numbers(self, count: ir.Value) -> ir.Value:
        # Not by Range: RoiAlign came before it.
        return self.reshape(self._node("NonZero", self._ones(count)), [-1])

    def function(self, name: Function, a: ir.Value) -> ir.Value:
        return self._node(name.capitalize(), a)

    def power(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._node("Pow", a, b)

    def convolve(self, a: ir.Value, weight: ir.Value, windows: Windows) -> ir.Value:
        return self._node("Conv", a, weight, **_lying(windows))

    def spread(self, a: ir.Value, weight: ir.Value, windows: Windows, added: Sequence[int]) -> ir.Value:
        return self._node("ConvTranspose", a, weight, output_padding=list(added), **_lying(windows))

    def interleave(self, maps: Sequence[ir.Value | None], side: int) -> None:
        """None: onnxruntime's DepthToSpace (1.32) takes four times as long as an exchange of axes."""

    def pad(self, a: ir.Value, before: Sequence[int], behind: Sequence[int]) -> ir.Value:
        return self._node("Pad", a, self.constant(np.array([*before, *behind], np.int64)))

    def pick(self, a: ir.Value, indices: Sequence[int], axis: int) -> ir.Value:
        return self._node("Gather", a, self.constant(np.array(indices, np.int64)), axis=axis)

    def cast(self, a: ir.Value, dtype: str) -> ir.Value:
        made = self._node("Cast", a, to=data_type(dtype))
        made.type = ir.TensorType(data_type(dtype))
        return made

    def size(self, a: ir.Value, axis: int) -> ir.Value:
        return self._node("Gather", self._node("Shape", a), self.constant(np.array([axis], np.int64)), axis=0)

    def number(self, size: ir.Value) -> ir.Value:
        return self.reduce(self._ones(size), "sum", [0])  # not by Cast: see `_where`

    def _ones(self, count: ir.Value) -> ir.Value:
        return self._node("Expand", self.constant(np.ones(1, np.float32)), count)


def _lying(windows: Windows) -> dict[str, Any]:
    return {
        "strides": list(windows.strides),
        "dilations": list(windows.dilations),
        "pads": [*windows.pads_begin, *windows.pads_end],
        "group": windows.groups,
    }


def data_type(dtype: str) -> ir.DataType:
    """ONNX element type of a NumPy name."""
    return ir.DataType.BFLOAT16 if dtype == "bfloat16" else ir.DataType.from_numpy(np.dtype(dtype))
