"""A part of a model without its quantisers, see `xai_insert.formats.onnx.unrounded`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as opset


def unround(model: ov.Model) -> None:
    """Let nothing round what the model computes; changes `model`.

    A FakeQuantize that takes nothing below zero may stand for a ReLU, and leaves one.
    """
    unrounded: set[int] = set()
    for node in model.get_ordered_ops():
        kind, source = node.get_type_name(), node.input_value(0) if node.get_input_size() else None
        if kind == "FakeConvert":
            node.output(0).replace(source)
        elif kind == "Convert" and source is not None and source.get_node().get_instance_id() in unrounded:
            node.output(0).replace(source)  # to integers; what casts them back is left with nothing to do
        elif kind == "FakeQuantize" and (bounds := _bounds(node)):
            made = _scaled(source, *bounds)
            unrounded.add(made.get_node().get_instance_id())
            node.output(0).replace(made)


def _bounds(node: ov.Node) -> list[npt.NDArray[np.float32]]:
    """The four bounds of a FakeQuantize; none if one of them is computed."""
    bounds = [node.input_value(index).get_node() for index in range(1, 5)]
    if any(bound.get_type_name() != "Constant" for bound in bounds):
        return []
    return [bound.get_data(dtype=np.float32) for bound in bounds]


def _scaled(
    source: ov.Output, low: np.ndarray, high: np.ndarray, low_out: np.ndarray, high_out: np.ndarray
) -> ov.Output:
    factor = (high_out - low_out) / np.where(high > low, high - low, 1)
    kept = source if np.any(low) else opset.relu(source).output(0)
    return opset.add(opset.multiply(kept, factor), low_out - low * factor).output(0)
