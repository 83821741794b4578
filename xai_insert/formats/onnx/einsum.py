"""Einsums of an ONNX model that are matrix products, shown as such while the model is studied."""

from __future__ import annotations

from contextlib import AbstractContextManager

import onnx_ir as ir

from xai_insert.formats.onnx.surgeon import all_names
from xai_insert.graph.einsum import Permutation, as_product, exchanged, is_identity
from xai_insert.graph.names import Names


class WrittenOut:
    """Products beside the Einsums of `model`, which nothing reads but for the time of `shown`.

    Attributes:
        nodes: what was added to the graph.
    """

    def __init__(self, model: ir.Model) -> None:
        self.nodes: list[ir.Node] = []
        self._pairs: list[tuple[ir.Value, ir.Value]] = []
        self._names: Names | None = None
        for node in list(model.graph):
            if node.op_type == "Einsum" and len(node.inputs) == 2:
                self._names = self._names or Names(all_names(model))
                self._write_out(model.graph, node, self._names)

    def shown(self) -> AbstractContextManager[None]:
        """Let what reads an Einsum read the product instead."""
        return exchanged(self._pairs, _redirect)

    def _write_out(self, graph: ir.Graph, node: ir.Node, names: Names) -> None:
        found = as_product(node.attributes.get_string("equation", ""))
        if found is None:
            return

        def add(kind: str, *operands: ir.Value | None, **attributes: Permutation) -> ir.Value:
            added = ir.node(kind, operands, attributes, name=names.unique(f"{node.name}/{kind}"))
            added.outputs[0].name = names.unique(f"{added.name}/out")
            graph.insert_before(node, added)
            self.nodes.append(added)
            return added.outputs[0]

        def transposed(value: ir.Value | None, order: Permutation) -> ir.Value | None:
            return value if is_identity(order) else add("Transpose", value, perm=order)

        first, second = reversed(node.inputs) if found.swapped else node.inputs
        product = add("MatMul", transposed(first, found.left), transposed(second, found.right))
        result = transposed(product, found.result) or product
        result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
        self._pairs.append((node.outputs[0], result))


def _redirect(old: ir.Value, new: ir.Value) -> None:
    if old.is_graph_output():  # whose name it is known by
        old.name, new.name = new.name, old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
