"""What the graphs inside of a node do to the places of what they work on."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from xai_insert.formats.onnx.single import bodies, holds_graph, operands
from xai_insert.formats.onnx.vocabulary import OPS
from xai_insert.graph.bodies import BodyNode, flow_of, together
from xai_insert.graph.operators import ControlFlow
from xai_insert.graph.view import Op

_SCANNED = ("scan_input_axes", "scan_output_axes")
_DIRECTIONS = ("scan_input_directions", "scan_output_directions")


def control_flow(native: ir.Node) -> ControlFlow:
    """What an If, a Loop or a Scan may do to the places of what it reads."""
    if _scans_otherwise(native):
        return ControlFlow(moves=True)
    return together(_flow(body, is_whole=native.op_type != "Scan") for body in bodies(native))


def _scans_otherwise(native: ir.Node) -> bool:
    """Whether a Scan reads parts backwards, or puts them along another axis than it takes them from."""
    axes = {number for name in _SCANNED for number in _ints(native, name) or [0]}
    return len(axes) > 1 or any(any(_ints(native, name)) for name in _DIRECTIONS)


def _ints(native: ir.Node, name: str) -> list[int]:
    return list(native.attributes[name].as_ints()) if name in native.attributes else []


def _flow(body: ir.Graph, *, is_whole: bool) -> ControlFlow:
    """What a body does; `is_whole` says that what it is given are no parts."""
    every = list(ir.traversal.RecursiveGraphIterator(body))
    if any(map(_scans_otherwise, every)):
        return ControlFlow(moves=True)
    is_whole = is_whole and all(node.op_type != "Scan" for node in every)
    nodes = [node for node in every if not holds_graph(node)]
    return flow_of((_step(node, is_whole=is_whole) for node in nodes), _stored(nodes))


def _step(node: ir.Node, *, is_whole: bool) -> BodyNode:
    op = OPS.get(node.op_type, Op.OTHER) if node.domain in ("", "ai.onnx") else Op.OTHER
    op = Op.REDUCE if node.op_type.startswith("Reduce") else op
    read = operands(node)
    is_of_first = is_whole and op is Op.GATHER and _takes_of_first(node, read[0])
    return BodyNode(op, read, node.outputs, is_of_first)


def _takes_of_first(node: ir.Node, data: ir.Value) -> bool:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return axis == 0 and _is_given(data, node)


def _is_given(value: ir.Value, node: ir.Node) -> bool:
    """Whether a body is given a value, or takes it from outside."""
    producer = value.producer()
    return producer is None or producer.graph is not node.graph


def _stored(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """What is stored, inside of a body or outside."""
    return [value for node in nodes for value in operands(node) if value.const_value is not None]
