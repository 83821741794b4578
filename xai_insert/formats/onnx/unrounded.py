"""A part of a model without its quantisers: what its layers are about, and not what eight bits leave of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

_INTEGER = ("MatMulInteger", "ConvInteger")


def unround(graph: ir.Graph) -> None:
    """Let what reads a dequantised value read what was quantised; changes `graph`.

    A quantiser that gives nothing below zero may stand for a ReLU, and leaves one. Layers of integers behind a dynamic
    quantiser become layers of floats.
    """
    zeros: set[ir.Value] = set()
    for node in list(graph):
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "DequantizeLinear" and source is not None and source.op_type == "QuantizeLinear":
            zero = source.inputs[2] if len(source.inputs) > 2 else None
            _replace(graph, node, [_before(graph, node, "Relu" if _is_least(zero) else "Identity", source.inputs[0])])
        elif node.op_type == "DynamicQuantizeLinear":
            numbers = [ir.tensor(np.array(number, np.float32)) for number in (1, 0)]
            constants = [_before(graph, node, "Constant", value=number) for number in numbers]
            zeros.add(constants[1])
            _replace(graph, node, [_before(graph, node, "Identity", node.inputs[0]), *constants])
        elif node.op_type in _INTEGER and len(node.inputs) > 2 and node.inputs[2] in zeros:
            weight = _before(graph, node, "Cast", node.inputs[1], to=ir.DataType.FLOAT)
            zero = node.inputs[3] if len(node.inputs) > 3 else None
            if zero is not None:
                weight = _before(graph, node, "Sub", weight, _before(graph, node, "Cast", zero, to=ir.DataType.FLOAT))
            kept = {name: attribute.value for name, attribute in node.attributes.items()}
            made = _before(graph, node, node.op_type.removesuffix("Integer"), node.inputs[0], weight, **kept)
            _replace(graph, node, [made])


def _before(graph: ir.Graph, node: ir.Node, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
    made = ir.node(kind, inputs, attributes)
    made.outputs[0].name = f"{node.outputs[0].name}/float/{kind}/{len(graph)}"
    graph.insert_before(node, made)
    return made.outputs[0]


def _replace(graph: ir.Graph, node: ir.Node, values: Sequence[ir.Value]) -> None:
    ir.convenience.replace_all_uses_with(node.outputs, values, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _is_least(zero: ir.Value | None) -> bool:
    """Whether a zero point is the least of its integers."""
    if zero is None:
        return True  # 0 of unsigned bytes
    if zero.const_value is None:
        return False
    elements = zero.const_value.numpy()
    return elements.dtype.kind in "iu" and bool(np.all(elements == np.iinfo(elements.dtype).min))
