"""Whether the graphs inside of a node arrange or cut what they work on."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from xai_insert.formats.onnx.single import bodies, holds_graph, operands
from xai_insert.formats.onnx.vocabulary import OPS
from xai_insert.graph.bodies import Step, moves_values
from xai_insert.graph.view import Op

_SCANNED = ("scan_input_axes", "scan_output_axes")
_DIRECTIONS = ("scan_input_directions", "scan_output_directions")


def moves_places(native: ir.Node) -> bool:
    """Whether an If, a Loop or a Scan may put what it gives in another order than what it reads."""
    return _scans_otherwise(native) or any(map(_moves, bodies(native)))


def _scans_otherwise(native: ir.Node) -> bool:
    """Whether a Scan reads parts backwards, or puts them along another axis than it takes them from."""
    axes = {number for name in _SCANNED for number in _ints(native, name) or [0]}
    return len(axes) > 1 or any(any(_ints(native, name)) for name in _DIRECTIONS)


def _ints(native: ir.Node, name: str) -> list[int]:
    return list(native.attributes[name].as_ints()) if name in native.attributes else []


def _moves(body: ir.Graph) -> bool:
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(body) if not holds_graph(node)]
    return moves_values(map(_step, nodes), _stored(nodes)) or any(
        _scans_otherwise(node) for node in ir.traversal.RecursiveGraphIterator(body)
    )


def _step(node: ir.Node) -> Step:
    op = OPS.get(node.op_type, Op.OTHER) if node.domain in ("", "ai.onnx") else Op.OTHER
    return Op.REDUCE if node.op_type.startswith("Reduce") else op, operands(node), node.outputs


def _stored(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """What is stored, inside of a body or outside."""
    return [value for node in nodes for value in operands(node) if value.const_value is not None]
