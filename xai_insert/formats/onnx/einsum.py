"""An Einsum that is a matrix product, written out as one between transposes."""

from __future__ import annotations

import onnx_ir as ir

from xai_insert.formats.onnx.writer import Writer, Written
from xai_insert.graph.einsum import Permutation, as_product, is_identity

_FACTORS = 2


def einsum(w: Writer) -> Written:
    """Einsum of two operands."""
    if len(w.node.inputs) != _FACTORS:
        return None
    ranks = [None if value is None else w.rank(value) for value in w.node.inputs]
    found = as_product(w.node.attributes.get_string("equation", ""), ranks)
    if found is None:
        return None

    def transposed(value: ir.Value | None, order: Permutation) -> ir.Value | None:
        return value if is_identity(order) or value is None else w.transpose(value, order)

    first, second = reversed(w.node.inputs) if found.swapped else w.node.inputs
    left, right = transposed(first, found.left), transposed(second, found.right)
    if left is None:
        return None
    axis = len(found.left) - 1
    product = w("MatMul", w.unsqueeze(left, axis) if found.is_row else left, right)
    return [transposed(w.squeeze(product, axis) if found.is_row else product, found.result)]
