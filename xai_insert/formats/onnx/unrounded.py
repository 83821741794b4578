"""A part of a model without its quantisers: what its layers are about, and not what eight bits leave of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from xai_insert.formats.onnx.single import maker, operand

_INTEGER = ("MatMulInteger", "ConvInteger")


def unround(graph: ir.Graph) -> None:
    """Let what reads a dequantised value read what was quantised; changes `graph`.

    A quantiser that gives nothing below zero may stand for a ReLU, and leaves one. Layers of integers behind a dynamic
    quantiser become layers of floats. Integers may be moved before they are dequantised.
    """
    zeros: set[ir.Value] = set()
    _pass_moves(graph)
    for node in list(graph):
        source = maker(node)
        if node.op_type == "DequantizeLinear" and source is not None and source.op_type == "QuantizeLinear":
            _replace(graph, node, [_before(graph, node, _without_rounding(source), source.inputs[0])])
        elif node.op_type == "DynamicQuantizeLinear":
            numbers = [ir.tensor(np.array(number, np.float32)) for number in (1, 0)]
            constants = [_before(graph, node, "Constant", value=number) for number in numbers]
            zeros.add(constants[1])
            _replace(graph, node, [_before(graph, node, "Identity", node.inputs[0]), *constants])
        elif node.op_type in _INTEGER and operand(node, 2) in zeros:
            _replace(graph, node, [_of_floats(graph, node)])


def _without_rounding(quantiser: ir.Node) -> str:
    """What a quantiser is without its rounding."""
    return "Relu" if _is_least(operand(quantiser, 2)) else "Identity"


def _of_floats(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """What a layer of integers gives as a layer of floats."""
    weight, zero = _before(graph, node, "Cast", node.inputs[1], to=ir.DataType.FLOAT), operand(node, 3)
    if zero is not None:
        weight = _before(graph, node, "Sub", weight, _before(graph, node, "Cast", zero, to=ir.DataType.FLOAT))
    kept = {name: attribute.value for name, attribute in node.attributes.items()}
    return _before(graph, node, node.op_type.removesuffix("Integer"), node.inputs[0], weight, **kept)


def _pass_moves(graph: ir.Graph) -> None:
    """Move floats where a quantiser's integers are only moved before they are dequantised."""
    for quantiser in [node for node in graph if node.op_type == "QuantizeLinear"]:
        moves, ends = _moves(graph, quantiser) or ([], [])
        if not moves:
            continue
        _replace(graph, quantiser, [_before(graph, quantiser, _without_rounding(quantiser), quantiser.inputs[0])])
        for value in (value for node in moves for value in node.outputs):
            value.type = None
        for node in ends:
            _replace(graph, node, [_before(graph, node, "Identity", node.inputs[0])])


def _moves(graph: ir.Graph, quantiser: ir.Node) -> tuple[list[ir.Node], list[ir.Node]] | None:
    """What moves the integers of a quantiser, and what dequantises them; None if something else reads them."""
    moves: list[ir.Node] = []
    ends: list[ir.Node] = []
    values = [quantiser.outputs[0]]
    while values:
        value = values.pop()
        if value in graph.outputs:
            return None
        for node, index in value.uses():
            if node.op_type == "DequantizeLinear":
                ends.append(node)
            elif node.domain or index or "Linear" in node.op_type or node.op_type in _INTEGER:
                return None
            elif node not in moves:
                moves.append(node)
                values += node.outputs
    return moves, ends


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
