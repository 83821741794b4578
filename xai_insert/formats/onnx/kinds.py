"""In which floats the layers of a model compute, as far as the file tells without any inference.

No inference tells it of what runtimes fuse: ONNX does not know these operators, and onnxruntime has hardly one of them
in bfloat16.
"""

from __future__ import annotations

import onnx_ir as ir

from xai_insert.graph.items import present


def float_kinds(graph: ir.Graph) -> dict[ir.Node, ir.DataType]:
    """The kind of float of each node: what it is told to give, else that of the first float that it reads."""
    nodes: dict[ir.Node, ir.DataType] = {}
    for node in graph:
        told = _told(node)
        kind = told if told is not None else next((k for v in _floats_of(node) if (k := _kind(v, nodes))), None)
        if kind is not None and kind.is_floating_point():
            nodes[node] = kind
    return nodes


def _floats_of(node: ir.Node) -> list[ir.Value]:
    read = node.inputs[1:] if node.op_type == "DequantizeLinear" else node.inputs
    return present(read)


def _kind(value: ir.Value, nodes: dict[ir.Node, ir.DataType]) -> ir.DataType | None:
    """Of a value; None if it is no float, or nothing tells."""
    producer = value.producer()
    kind = value.dtype
    if kind is None and value.const_value is not None:
        kind = value.const_value.dtype
    if kind is None and producer is not None:
        kind = nodes.get(producer)
    return kind if kind is not None and kind.is_floating_point() else None


def _told(node: ir.Node) -> ir.DataType | None:
    """What a cast or a constant gives by its attributes."""
    for name in ("to", "dtype"):
        if name in node.attributes:
            return ir.DataType(node.attributes[name].as_int())
    if "value" in node.attributes and node.attributes["value"].type == ir.AttributeType.TENSOR:
        return node.attributes["value"].as_tensor().dtype
    return None
