"""Taking outputs off an `onnx_ir.Model`, with all that feeds them alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from xai_insert.formats.backend import Removed
from xai_insert.formats.onnx.names import name_of
from xai_insert.formats.onnx.single import bodies, operands

_ROUNDING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def strip(model: ir.Model, names: Sequence[str], kinds: dict[str, ir.DataType]) -> Removed:
    """Remove the outputs called `names` from `model`, in place.

    Args:
        model: the model.
        names: outputs that it has.
        kinds: element types of its values, by name.
    """
    graph = model.graph
    gone = [value for value in graph.outputs if value.name in names]
    own = _read_by(graph, gone, [value for value in graph.outputs if value.name not in names])
    inner = [node for top in own for node in (top, *_inner_nodes(top))]
    removed = Removed(
        operations=len(own),
        floats=_floats_of(inner, kinds),
        rounding=sum(node.op_type in _ROUNDING and _is_computed(node.inputs[0]) for node in inner),
    )
    for value in gone:
        graph.outputs.remove(value)
    _remove(graph, own, inner)
    return removed


def _remove(graph: ir.Graph, own: Sequence[ir.Node], inner: Sequence[ir.Node]) -> None:
    """Take nodes off a graph, with what nothing else reads; `inner` are these and those of their subgraphs."""
    read = {value for node in inner for value in operands(node)}
    for node in inner:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
    graph.remove(list(reversed(own)), safe=True)
    for value in read:
        _drop_unread(graph, value)


def _floats_of(nodes: Iterable[ir.Node], kinds: dict[str, ir.DataType]) -> frozenset[str]:
    """The floating-point types in which nodes compute."""
    types = {kinds.get(name_of(value), value.dtype) for node in nodes for value in node.outputs}
    return frozenset(kind.numpy().name for kind in types if kind in _FLOATS and kind is not None)


def _read_by(graph: ir.Graph, gone: Iterable[ir.Value], kept: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that `gone` is computed by and `kept` is not, and what reads them and ends nowhere."""
    needed = _makers(kept)
    alone = _makers(gone) - needed
    for node in graph:
        if node not in needed and any(value.producer() in alone for value in operands(node)):
            alone.add(node)
    return [node for node in graph if node in alone]


def _drop_unread(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant or an input of the graph that nothing reads any more."""
    if value.uses() or value.is_graph_output():
        return
    if value.is_initializer():
        graph.initializers.pop(name_of(value), None)
    elif value in graph.inputs:
        graph.inputs.remove(value)


def _makers(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that values are computed by, those that their subgraphs read from outside too."""
    found: set[ir.Node] = set()
    stack = [value.producer() for value in values]
    while stack:
        node = stack.pop()
        if node is None or node in found:
            continue
        found.add(node)
        stack += [value.producer() for reader in (node, *_inner_nodes(node)) for value in operands(reader)]
        for body in bodies(node):
            stack += [value.producer() for value in body.outputs]
    return found


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    for body in bodies(node):
        yield from ir.traversal.RecursiveGraphIterator(body)


def _is_computed(value: ir.Value | None) -> bool:
    return value is not None and ir.convenience.get_const_tensor(value) is None
