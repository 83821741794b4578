"""A model whose layers have lost what they learned: their weights in random order."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from xai_insert.formats.openvino.vocabulary import UNFOLDS, WEIGHTED

_ALONG = UNFOLDS | {"FakeQuantize", "Transpose"}
_TYPES = (ov.Type.f32, ov.Type.f16, ov.Type.bf16, ov.Type.i8, ov.Type.u8)


def shuffle(model: ov.Model, seed: int) -> int:
    """Put the elements of each weight of a convolution or product into random order; gives the number of weights."""
    rng = np.random.default_rng(seed)
    stored = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in WEIGHTED:
            for source in node.input_values():
                constant = _constant(source)
                if constant is not None and constant.get_element_type() in _TYPES:
                    stored[constant.get_instance_id()] = constant
    for constant in stored.values():
        kind = constant.get_element_type()
        elements = constant.data
        if kind == ov.Type.bf16:  # NumPy has no such type
            elements = (np.asarray(elements).view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        shuffled = rng.permutation(np.asarray(elements).reshape(-1)).reshape(elements.shape)
        new = opset.constant(shuffled, kind)
        new.set_friendly_name(constant.get_friendly_name())
        for reader in constant.output(0).get_target_inputs():
            reader.replace_source_output(new.output(0))
    return len(stored)


def _constant(source: ov.Output) -> ov.Node | None:
    """The stored weight behind an operand, possibly decompressed or rounded; None if it is computed."""
    node = source.get_node()
    while node.get_type_name() in _ALONG:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None
