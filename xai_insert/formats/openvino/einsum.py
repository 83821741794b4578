"""Einsums of an `ov.Model` that are matrix products, shown as such while the model is studied."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import openvino as ov
import openvino.opset13 as opset

from xai_insert.graph.einsum import Permutation, as_product, exchanged, is_identity
from xai_insert.graph.names import PREFIX


class Decomposed:
    """Products in place of the Einsums of `model`, which itself stays as it is but for the time of `shown`."""

    def __init__(self, model: ov.Model) -> None:
        self._pairs: list[tuple[ov.Output, ov.Output]] = []
        for node in model.get_ordered_ops():
            if node.get_type_name() == "Einsum" and node.get_input_size() == 2:
                product = _product(node)
                if product is not None:
                    self._pairs.append((node.output(0), product))

    def shown(self) -> AbstractContextManager[None]:
        """Let what reads an Einsum read the product instead."""
        return exchanged(self._pairs, _redirect)


def _redirect(old: ov.Output, new: ov.Output) -> None:
    """Readers and names change over: an output of the model is known by its names."""
    readers, names, friendly = old.get_target_inputs(), old.get_names(), old.get_node().get_friendly_name()
    old.set_names(new.get_names())
    new.set_names(names)
    old.get_node().set_friendly_name(new.get_node().get_friendly_name())
    new.get_node().set_friendly_name(friendly)
    for reader in readers:
        reader.replace_source_output(new)


def _product(node: ov.Node) -> ov.Output | None:
    ranks = [_rank(value) for value in node.input_values()]
    found = as_product(str(node.get_attributes()["equation"]), ranks)
    if found is None:
        return None
    first, second = reversed(node.input_values()) if found.swapped else node.input_values()
    left, axis = _transposed(first, found.left), np.array([len(found.left) - 1], np.int64)
    if found.is_row:
        left = opset.unsqueeze(left, axis).output(0)
    product = opset.matmul(left, _transposed(second, found.right), False, False)
    if found.is_row:
        product = opset.squeeze(product, axis)
    result = _transposed(product.output(0), found.result)
    result.get_node().set_friendly_name(PREFIX + node.get_friendly_name())
    return result


def _rank(value: ov.Output) -> int | None:
    rank = value.get_partial_shape().rank
    return int(rank.get_length()) if rank.is_static else None


def _transposed(value: ov.Output, order: Permutation) -> ov.Output:
    return value if is_identity(order) else opset.transpose(value, np.array(order, np.int64)).output(0)
