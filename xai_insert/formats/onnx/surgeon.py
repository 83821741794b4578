"""Editing an `onnx_ir.Model`: twins of nodes with other inputs, loops over masks, new outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from xai_insert.errors import CannotFreeBatchError
from xai_insert.formats.onnx.ops import OnnxOps, data_type
from xai_insert.graph.names import Names
from xai_insert.graph.view import Node, Shape, Value


class OnnxSurgeon:
    """Edits `model` in place."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._names = Names(_all_names(model))
        self.ops = OnnxOps(model.graph, self._names.unique)

    def handle(self, value: Value) -> ir.Value:
        native: ir.Value = value.native
        return native

    def copy(self, node: Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        twin = self._twin(node, inputs)
        self._model.graph.append(twin)
        return twin.outputs

    def _twin(self, node: Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
        native: ir.Node = node.native
        kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        if any(attribute.type in kinds for attribute in native.attributes.values()):
            raise CannotFreeBatchError(f"{node.type} {node.name!r} holds a subgraph")
        twin = ir.Node(
            native.domain,
            native.op_type,
            inputs,
            native.attributes.values(),
            overload=native.overload,
            num_outputs=len(native.outputs),
            version=native.version,
            name=self._names.unique(node.name),
        )
        for output, original in zip(twin.outputs, native.outputs, strict=True):
            output.name = self._names.unique(original.name or "out")
        return twin

    def map_positions(
        self, masks: npt.NDArray[np.float32], features: Sequence[Value], region: Sequence[Node], result: Value
    ) -> ir.Value:
        dtype = features[0].dtype
        kind = data_type(dtype)
        mask = ir.Value(
            name=self._names.unique("mask"), type=ir.TensorType(kind), shape=ir.Shape(list(masks.shape[1:]))
        )
        made: dict[Value, ir.Value] = {}
        nodes = []
        for feature in features:
            product = ir.node("Mul", [self.handle(feature), mask], name=self._names.unique("masked"))
            product.outputs[0].name = self._names.unique("masked/out")
            made[feature] = product.outputs[0]
            nodes.append(product)
        for node in region:
            operands = [v if v is None else made.get(v, v.native) for v in node.inputs]
            twin = self._twin(node, operands)
            made.update(zip(node.outputs, twin.outputs, strict=True))
            nodes.append(twin)
        last = made[result]
        last.type = ir.TensorType(data_type(result.dtype))
        body = ir.Graph(
            [mask], [last], nodes=nodes, name=self._names.unique("positions"), opset_imports=self._model.opset_imports
        )
        table = self.ops.cast(self.ops.constant(masks), dtype)
        scan = ir.node("Scan", [table], {"body": body, "num_scan_inputs": 1}, name=self._names.unique("scan"))
        scan.outputs[0].name = self._names.unique("scan/out")
        self._model.graph.append(scan)
        return scan.outputs[0]

    def add_output(self, value: ir.Value, name: str, dtype: str, shape: Shape) -> None:
        node = ir.node("Identity", [value], name=self._names.unique(f"{name}/result"))
        output = node.outputs[0]
        output.name, output.type = name, ir.TensorType(data_type(dtype))
        output.shape = ir.Shape([size if size is not None else f"{name}_{axis}" for axis, size in enumerate(shape)])
        self._model.graph.append(node)
        self._model.graph.outputs.append(output)


def _all_names(model: ir.Model) -> set[str]:
    """Names of nodes and values of the model and its subgraphs, which share one scope."""
    names = {value.name or "" for value in model.graph.inputs} | set(model.graph.initializers)
    for graph in (model.graph, *model.graph.subgraphs()):
        names |= {value.name or "" for value in graph.inputs} | set(graph.initializers)
        for node in graph:
            names |= {node.name or "", *(value.name or "" for value in node.outputs)}
    return names
