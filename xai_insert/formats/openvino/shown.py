"""Einsums of an `ov.Model` that are products, and Ifs that hand a value on, shown as such while it is studied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import openvino as ov
import openvino.opset13 as opset
from openvino import opset16

from xai_insert.formats.openvino.bodies import handed_on
from xai_insert.graph.einsum import Permutation, as_product, exchanged, is_identity
from xai_insert.graph.names import PREFIX


class Decomposed:
    """What stands for Einsums and Ifs of `model`, which itself stays as it is but for the time of `shown`."""

    def __init__(self, model: ov.Model) -> None:
        self._model = model
        self._pairs: list[tuple[ov.Output, ov.Output]] = []
        for node in model.get_ordered_ops():
            shown = _shown(node)
            if shown is not None:
                shown.get_node().set_friendly_name(PREFIX + node.get_friendly_name())
                self._pairs.append((node.output(0), shown))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let what reads one read what stands for it instead."""
        with exchanged(self._pairs, _redirect):
            if any(old.get_node().get_type_name() == "If" for old, _ in self._pairs):  # which tells no sizes
                self._model.validate_nodes_and_infer_types()
            yield


def _redirect(old: ov.Output, new: ov.Output) -> None:
    """Readers and names change over: an output of the model is known by its names."""
    readers, names, friendly = old.get_target_inputs(), old.get_names(), old.get_node().get_friendly_name()
    old.set_names(new.get_names())
    new.set_names(names)
    old.get_node().set_friendly_name(new.get_node().get_friendly_name())
    new.get_node().set_friendly_name(friendly)
    for reader in readers:
        reader.replace_source_output(new)


def _shown(node: ov.Node) -> ov.Output | None:
    """What stands for a node; None if it is shown itself."""
    kind = node.get_type_name()
    if kind == "Einsum" and node.get_input_size() == 2:
        return _product(node)
    value = handed_on(node) if kind == "If" else None
    if value is None or value.get_node().get_type_name() == "Constant":
        return value
    return opset16.identity(value).output(0)  # of its own, to be read by those that read the If alone


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
    return _transposed(product.output(0), found.result)


def _rank(value: ov.Output) -> int | None:
    rank = value.get_partial_shape().rank
    return int(rank.get_length()) if rank.is_static else None


def _transposed(value: ov.Output, order: Permutation) -> ov.Output:
    return value if is_identity(order) else opset.transpose(value, np.array(order, np.int64)).output(0)
