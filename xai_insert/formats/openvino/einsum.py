"""Einsums of an `ov.Model` that are matrix products, shown as such while the model is studied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import openvino as ov
import openvino.opset13 as opset

from xai_insert.graph.einsum import Permutation, as_product, is_identity
from xai_insert.graph.names import PREFIX


class WrittenOut:
    """Products in place of the Einsums of `model`, which itself stays as it is but for the time of `shown`."""

    def __init__(self, model: ov.Model) -> None:
        self._pairs: list[tuple[ov.Output, ov.Output]] = []
        for node in model.get_ordered_ops():
            if node.get_type_name() == "Einsum" and node.get_input_size() == 2:
                product = _product(node)
                if product is not None:
                    self._pairs.append((node.output(0), product))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let what reads an Einsum read the product instead."""
        for einsum, product in self._pairs:
            product.set_names(einsum.get_names())  # an output of the model is known by them
            product.get_node().set_friendly_name(einsum.get_node().get_friendly_name())
            _redirect(einsum, product)
        try:
            yield
        finally:
            for einsum, product in self._pairs:
                _redirect(product, einsum)
                product.set_names(set())
                product.get_node().set_friendly_name(PREFIX + einsum.get_node().get_friendly_name())


def _redirect(old: ov.Output, new: ov.Output) -> None:
    for reader in old.get_target_inputs():
        reader.replace_source_output(new)


def _product(node: ov.Node) -> ov.Output | None:
    found = as_product(str(node.get_attributes()["equation"]))
    if found is None:
        return None
    first, second = reversed(node.input_values()) if found.swapped else node.input_values()
    product = opset.matmul(_transposed(first, found.left), _transposed(second, found.right), False, False)
    return _transposed(product.output(0), found.result)


def _transposed(value: ov.Output, order: Permutation) -> ov.Output:
    return value if is_identity(order) else opset.transpose(value, np.array(order, np.int64)).output(0)
