"""A part of a model without its quantisers: what its layers are about, and not what eight bits leave of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def unround(graph: ir.Graph) -> None:
    """Let what reads a dequantised value read what was quantised; changes `graph`.

    A quantiser that gives nothing below zero may stand for a ReLU, and leaves one.
    """
    for node in list(graph):
        quantiser = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
        if quantiser is None or quantiser.op_type != "QuantizeLinear" or quantiser.inputs[0] is None:
            continue
        zero = quantiser.inputs[2] if len(quantiser.inputs) > 2 else None
        made = ir.node("Relu" if _is_least(zero) else "Identity", [quantiser.inputs[0]])
        made.outputs[0].name = f"{node.outputs[0].name}/float"
        graph.insert_before(node, made)
        ir.convenience.replace_all_uses_with(node.outputs[0], made.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _is_least(zero: ir.Value | None) -> bool:
    """Whether a zero point is the least of its integers."""
    if zero is None:
        return True  # 0 of unsigned bytes
    if zero.const_value is None:
        return False
    elements = zero.const_value.numpy()
    return elements.dtype.kind in "iu" and bool(np.all(elements == np.iinfo(elements.dtype).min))
