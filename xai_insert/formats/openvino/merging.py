"""Keeping OpenVINO from a merge that goes wrong: a constant into the reduction that it meets.

Its CPU device (2026.4) merges an operation with a constant for each channel into a reduction over the last axis, and
gives wrong numbers then for any batch but one. A constant that is known only while the model runs is not merged.
"""

from __future__ import annotations

import numpy as np
import openvino as ov

from xai_insert.formats.openvino.ops import OpenVINOOps
from xai_insert.formats.openvino.vocabulary import ARITHMETIC_TYPES


def zero_of(op: OpenVINOOps, value: ov.Output) -> ov.Output:
    """Zero, but known only while the model runs, from a float value at hand."""
    first = op.slice(op.reshape(value, [-1]), 0, 0, 1)
    return op.equal(first, op.add(first, op.constant(np.ones(1, np.float32))))


def keep_apart(model: ov.Model) -> None:
    """Write what constants meet reductions in `model` so that they are not merged."""
    op = OpenVINOOps(lambda name: name)
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ARITHMETIC_TYPES:
            continue
        sides = node.input_values()
        for index, value in enumerate(sides):
            other = sides[1 - index]
            is_constant = value.get_node().get_type_name() == "Constant" and value.get_element_type() == ov.Type.f32
            if is_constant and other.get_node().get_type_name().startswith("Reduce"):
                node.set_argument(index, op.add(value, zero_of(op, other)))
