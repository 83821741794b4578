"""A part of a model without its quantisers, see `xai_insert.formats.onnx.unrounded`."""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino.opset13 as opset


def unround(model: ov.Model) -> None:
    """Let what reads a FakeQuantize that gives the range it takes read its operand; changes `model`."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            bounds = [node.input_value(index).get_node() for index in range(1, 5)]
            if any(bound.get_type_name() != "Constant" for bound in bounds):
                continue
            low, high, low_out, high_out = (bound.get_data(dtype=np.float32) for bound in bounds)
            if np.allclose(low, low_out) and np.allclose(high, high_out):
                source = node.input_value(0)
                node.output(0).replace(source if np.any(low) else opset.relu(source).output(0))
        elif node.get_type_name() == "FakeConvert":
            node.output(0).replace(node.input_value(0))
