"""One node by itself: whether it holds graphs of its own, and running it in onnx's reference."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


def holds_graph(node: ir.Node) -> bool:
    """Whether it holds a graph, as If, Loop and Scan do."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def reference(node: ir.Node) -> Any:
    """The reference evaluator of onnx for the node alone, whose inputs and outputs have their names."""
    import onnx.reference  # noqa: PLC0415 - slow to import and seldom needed

    return onnx.reference.ReferenceEvaluator(ir.to_proto(node))
