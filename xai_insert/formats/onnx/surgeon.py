"""Editing an `onnx_ir.Model`: twins of nodes with other inputs, loops over masks, new outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from xai_insert.errors import CannotFreeBatchError
from xai_insert.formats.onnx.names import name_of
from xai_insert.formats.onnx.ops import OnnxOps, data_type
from xai_insert.formats.onnx.shapes import Inferred
from xai_insert.formats.onnx.single import holds_graph, operands
from xai_insert.formats.onnx.view import IntegerWeight
from xai_insert.formats.onnx.widening import HALF, is_packed, widen_attribute
from xai_insert.graph.items import only
from xai_insert.graph.names import PREFIX, Names
from xai_insert.graph.rounding import folded_range
from xai_insert.graph.view import Node, Shape, Value, constant_of, fixed

_QUANTISERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


class OnnxSurgeon:
    """Edits `model` in place.

    Args:
        model: the model.
        inferred: element types of its values.
        written_out: nodes that were added to it, and go again where nothing reads them.
        fused: what gives the same as values of those nodes, and is there anyway.
    """

    def __init__(
        self,
        model: ir.Model,
        inferred: Inferred,
        written_out: Collection[ir.Node] = (),
        fused: Mapping[ir.Value, ir.Value] | None = None,
    ) -> None:
        self._fused = fused or {}
        self._model = model
        self._inferred = inferred
        self._names = Names(all_names(model))
        self._originals = set(model.graph) - set(written_out)
        self._widened: dict[Any, ir.Value] = {}
        self._products: set[ir.Value] = set()
        self.ops = OnnxOps(model.graph, self._names.unique)

    def handle(self, value: Value) -> ir.Value:
        native = self._fused.get(value.native, value.native)
        if native not in self._widened:
            make = self._own(value, native)
            if make is None:
                return cast("ir.Value", native)
            self._widened[native] = make()
        return self._widened[native]

    def _own(self, value: Value, native: Any) -> Callable[[], ir.Value] | None:
        """What makes a value that is read in place of the model's own; None where that itself is read."""
        if isinstance(native, IntegerWeight):
            return partial(self._float_weight, native)
        if value.is_constant and _is_dequantised(native.producer()):
            return partial(self._dequantised, native.producer())
        op = OnnxOps(self._model.graph, self._names.unique)
        if self.ops.version >= 21 and _is_signed(native.producer()):
            # onnxruntime repeats the quantiser behind a transpose, with the integers as signed in one place alone.
            return partial(op.same, native)
        kind = self._inferred.type_of(native) or self._inferred.type_of(value.native)  # nothing tells it of fused ones
        if kind not in HALF and kind is not ir.DataType.DOUBLE:
            return None
        is_stored = value.is_constant or kind is not ir.DataType.FLOAT16
        return lambda: op.cast(native if is_stored else op.same(native), "float32")

    def _float_weight(self, weight: IntegerWeight) -> ir.Value:
        op = OnnxOps(self._model.graph, self._names.unique)
        elements = op.cast(weight.elements, "float32")
        if weight.zero_point is None:
            return elements
        sizes = weight.zero_point_sizes(len(weight.elements.shape or ()))
        return op.sub(elements, op.reshape(op.cast(weight.zero_point, "float32"), sizes))

    def _dequantised(self, node: ir.Node) -> ir.Value:
        """What a DequantizeLinear of a stored tensor gives, in operations of our own.

        A second reader would keep onnxruntime from merging it with the layer of the model that reads it; and what it
        merges rounds the other operand too.
        """
        op = OnnxOps(self._model.graph, self._names.unique)
        if node.attributes.get_int("block_size", 0) > 0:
            return op.same(op.dequantised(node))
        elements, scale, *zero_point = operands(node)
        sizes = [1] * len(elements.shape or ())
        if scale.shape is not None and scale.shape.numpy() not in ((), (1,)):  # channel by channel
            sizes[node.attributes.get_int("axis", 1)] = -1
        is_whole = is_packed(elements)
        value = op.same(op.dequantised(node, scaled=False)) if is_whole else op.cast(elements, "float32")
        for zero in [] if is_whole else zero_point:
            value = op.sub(value, op.reshape(op.cast(zero, "float32"), sizes))
        return op.mul(value, op.reshape(op.cast(scale, "float32"), sizes))

    def stored(self, node: Node, index: int) -> ir.Value:
        return self.handle(node.read(index))

    def rounds(self, node: Node) -> bool:
        native: ir.Node = node.native
        if native.op_type in (*_QUANTISERS, "MatMulInteger", "ConvInteger"):
            return True
        return any(_is_dequantised(value.producer()) for value in operands(native))

    def copy(self, node: Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        native: ir.Node = node.native
        source = inputs[0] if inputs else None
        is_stored = native.op_type == "DequantizeLinear" and source is native.inputs[0]
        if native.op_type in _QUANTISERS and source is not None and not is_stored:
            value = self._in_range(node, source)
            if native.op_type != "DynamicQuantizeLinear":
                return [value]
            return [value, self.ops.constant(np.array(1, np.float32)), self.ops.constant(np.array(0, np.float32))]
        if native.op_type in ("MatMulInteger", "ConvInteger"):
            product = self._append(node, native.op_type.removesuffix("Integer"), inputs)
            self._products.update(product)
            return product
        if native.op_type == "Cast" and source is not None and self._is_float(node, source):
            return [source]
        return self._append(node, native.op_type, inputs)

    def _in_range(self, node: Node, source: ir.Value) -> ir.Value:
        """What a quantiser gives, but for the rounding."""
        native: ir.Node = node.native
        scale, zero = (constant_of(node.operand(index)) for index in (1, 2))
        if native.op_type != "QuantizeLinear" or scale is None:
            return source
        dtype = np.dtype(np.uint8) if zero is None else zero.dtype
        if dtype.kind not in "iu":
            return source
        point = np.zeros(1) if zero is None else zero.astype(np.float64)
        limits = np.iinfo(dtype)
        bounds = folded_range(node, (limits.min - point) * scale, (limits.max - point) * scale)
        return source if bounds is None else self.ops.clip(source, *bounds)

    def _is_float(self, node: Node, source: ir.Value) -> bool:
        """Whether a cast only changes how many bits a float has, or gives the result of an integer product."""
        is_widening = node.output.dtype == "float32" and node.read(0).dtype == "float32"
        return is_widening or source in self._products

    def _append(self, node: Node, kind: str, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        native: ir.Node = node.native
        if holds_graph(native):
            raise CannotFreeBatchError(
                f"{node.type} {node.name!r} holds a subgraph; where what it decides is fixed, simplify the model "
                "(onnxsim, onnxslim) or export it with dynamo=True; where it is none of that, as the neighbours that a "
                "classifier by votes searches, take --method activation-map"
            )
        twin = ir.Node(
            native.domain,
            kind,
            inputs,
            [widen_attribute(attribute) for attribute in native.attributes.values()],
            overload=native.overload,
            num_outputs=len(native.outputs),
            version=native.version,
            name=self._names.unique(node.name),
        )
        for output, original in zip(twin.outputs, native.outputs, strict=True):
            output.name = self._names.unique(original.name or "out")
        self.ops.append(twin)
        return twin.outputs

    def repeat(self, runs: int | ir.Value, body: Callable[[ir.Value], ir.Value], width: int) -> ir.Value:
        # A Loop, since OpenVINO's reader knows no Scan whose body reads values from outside of it.
        run, more = self._scalar("run", ir.DataType.INT64), self._scalar("more", ir.DataType.BOOL)
        imports = self._model.opset_imports
        inner = ir.Graph([run, more], [], nodes=[], name=self._names.unique("positions"), opset_imports=imports)
        outer = self.ops
        self.ops = OnnxOps(inner, self._names.unique)
        try:
            last, again = body(run), self.ops.constant(np.array(True))
        finally:
            self.ops = outer
        last.type, last.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, width])  # onnxruntime wants the rank
        going = ir.node("Identity", [again], name=self._names.unique("again"))
        going.outputs[0].name = self._names.unique("again/out")
        going.outputs[0].type, going.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
        inner.append(going)
        inner.outputs.extend([going.outputs[0], last])
        start = self.ops.constant(np.array(True))
        count = self.ops.constant(np.array(runs, np.int64)) if isinstance(runs, int) else self.ops.reshape(runs, [])
        loop = ir.node("Loop", [count, start], {"body": inner}, name=self._names.unique("positions"))
        loop.outputs[0].name = self._names.unique("positions/out")
        self.ops.append(loop)
        return loop.outputs[0]

    def within(self, value: ir.Value) -> ir.Value:
        return value

    def _scalar(self, name: str, kind: ir.DataType) -> ir.Value:
        return ir.Value(name=self._names.unique(name), type=ir.TensorType(kind), shape=ir.Shape([]))

    def pinned(self, value: ir.Value, shape: Shape, image: Value, axes: Sequence[int]) -> ir.Value:
        # onnxruntime takes no other sizes than those of the file, but OpenVINO reads the file and can be given others.
        sides = [(axis, side) for axis in axes if (side := image.sizes[axis]) is not None]
        if not sides or any(size is None for size in shape[1:]):
            return value
        op = self.ops
        target = op.constant(np.array([-1, *fixed(shape[1:])], np.int64))
        for axis, side in sides:
            ones = op.reshape(op.constant(np.ones(side, np.int64)), [op.size(image.native, axis)])
            target = op.mul(target, op.slice(ones, 0, 0, 1))
        return op.reshape(value, [target])

    def add_input(self, name: str, dtype: str, shape: Shape) -> ir.Value:
        sizes = [self._batch or f"{name}_{axis}" if size is None else size for axis, size in enumerate(shape)]
        value = ir.Value(name=name, type=ir.TensorType(data_type(dtype)), shape=ir.Shape(sizes))
        value.doc_string = f"{name}, added by xai-insert"
        self._model.graph.inputs.append(value)
        return value

    def prune(self) -> None:
        graph = self._model.graph
        kept = set(graph.outputs)
        for node in reversed(list(graph)):
            if node in self._originals or any(value in kept or value.uses() for value in node.outputs):
                continue
            graph.remove(node, safe=True)
        for name, value in list(graph.initializers.items()):  # onnxruntime warns of each that nothing reads
            if name.startswith(PREFIX) and not value.uses() and value not in kept:
                del graph.initializers[name]

    def add_output(self, value: ir.Value, name: str, dtype: str, shape: Shape) -> None:
        for inner in (value for other in self._model.graph for value in other.outputs if value.name == name):
            inner.name = self._names.unique(f"{name}/inner")  # no more than what nodes call one another by
        node = ir.node("Identity", [value], name=self._names.unique(f"{name}/result"))
        output = node.outputs[0]
        output.name, output.type = name, ir.TensorType(data_type(dtype))
        node.doc_string = output.doc_string = f"{name}, added by xai-insert"
        sizes = [size if size is not None else f"{name}_{axis}" for axis, size in enumerate(shape)]
        output.shape = ir.Shape([self._batch or sizes[0] if shape[0] is None else sizes[0], *sizes[1:]])
        self._model.graph.append(node)
        self._model.graph.outputs.append(output)

    @property
    def _batch(self) -> str | None:
        """What the model calls its open batch; None if its inputs do not agree."""
        sizes = [value.shape[0] for value in self._model.graph.inputs if value.shape and not value.is_initializer()]
        names = {size.value if isinstance(size, ir.SymbolicDim) else None for size in sizes}
        return only(names)


def _is_signed(node: ir.Node | None) -> bool:
    """Whether a node dequantises signed integers that the model computes."""
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return False
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return (
        node.inputs[0].const_value is None and zero is not None and zero.dtype in (ir.DataType.INT8, ir.DataType.INT16)
    )


def _is_dequantised(node: ir.Node | None) -> bool:
    """Whether a node dequantises a stored tensor."""
    if node is None or node.op_type != "DequantizeLinear":
        return False
    return all(value is None or value.const_value is not None for value in node.inputs)


def all_names(model: ir.Model) -> set[str]:
    """Names of nodes and values of the model and its subgraphs, which share one scope."""
    names = {name_of(value) for value in model.graph.inputs} | set(model.graph.initializers)
    for graph in (model.graph, *model.graph.subgraphs()):
        names |= {name_of(value) for value in graph.inputs} | set(graph.initializers)
        for node in graph:
            names |= {name_of(node), *(name_of(value) for value in node.outputs)}
    return names
