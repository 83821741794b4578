"""A model whose layers have lost what they learned: their weights in random order."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from xai_insert.formats.onnx.vocabulary import CARRIES_WEIGHTS, WEIGHTED

_LEAST_RANK = 2  # biases, scales and zero points have less


def shuffle(model: ir.Model, seed: int) -> int:
    """Put the elements of each weight of a convolution or product into random order; gives the number of weights."""
    rng = np.random.default_rng(seed)
    stored: dict[ir.Value, ir.TensorProtocol] = {}
    for node in model.graph:
        if node.op_type in WEIGHTED:
            for operand in node.inputs:
                found = _constant(operand)
                if found is not None and found.const_value is not None and len(found.const_value.shape) >= _LEAST_RANK:
                    stored[found] = found.const_value
    for value, tensor in stored.items():
        elements = tensor.numpy()
        shuffled = rng.permutation(elements.reshape(-1)).reshape(elements.shape)
        new = ir.tensor(shuffled, tensor.dtype, name=tensor.name)
        maker = value.producer()
        value.const_value = new
        if maker is not None:
            maker.attributes["value"] = ir.AttrTensor("value", new)
    return len(stored)


def _constant(value: ir.Value | None) -> ir.Value | None:
    """The stored weight behind an operand, possibly decompressed or rounded; None if it is computed."""
    while value is not None:
        maker = value.producer()
        if maker is None or maker.op_type == "Constant":
            is_open = maker is None and value.is_graph_input()
            return None if is_open else value
        value = maker.inputs[0] if maker.op_type in CARRIES_WEIGHTS else None
    return None
