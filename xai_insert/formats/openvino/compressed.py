"""Products whose weights are stored as integers and unfolded when they are used (`nncf.compress_weights`)."""

from __future__ import annotations

import openvino as ov

from xai_insert.formats.openvino.vocabulary import UNFOLDS

_UNFOLDING = UNFOLDS | {"Transpose"}
_STORED = (ov.Type.i8, ov.Type.u8, ov.Type.i4, ov.Type.u4)


def has_compressed_products(model: ov.Model) -> bool:
    """Whether a product reads such a weight, and a plain activation beside it.

    OpenVINO 2026.4.1 computes something else for these on CPUs in more than one stream.
    """
    for node in model.get_ops():
        operands = [source.get_node() for source in node.input_values()] if node.get_type_name() == "MatMul" else []
        is_rounded = any(operand.get_type_name() == "FakeQuantize" for operand in operands)
        if not is_rounded and any(map(_is_compressed, operands)):
            return True
    return False


def _is_compressed(node: ov.Node) -> bool:
    while node.get_type_name() in _UNFOLDING:
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and node.get_element_type() in _STORED
