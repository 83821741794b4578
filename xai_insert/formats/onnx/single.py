"""One node by itself: whether it holds graphs of its own, and running it in onnx's reference."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from xai_insert.graph.items import present


def holds_graph(node: ir.Node) -> bool:
    """Whether it holds a graph, as If, Loop and Scan do."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that it holds."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def operands(node: ir.Node) -> list[ir.Value]:
    """What it reads, without what is left out."""
    return present(node.inputs)


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """The operand at `index`; None if it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def maker(node: ir.Node) -> ir.Node | None:
    """What makes its first operand."""
    first = operand(node, 0)
    return None if first is None else first.producer()


def reference(node: ir.Node) -> Any:
    """The reference evaluator of onnx for the node alone, whose inputs and outputs have their names."""
    import onnx.reference  # noqa: PLC0415 - slow to import and seldom needed

    return onnx.reference.ReferenceEvaluator(ir.to_proto(node))
