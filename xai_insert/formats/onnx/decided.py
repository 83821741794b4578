"""An If whose condition the sizes of values decide, as TorchScript's exporter writes `squeeze`: the branch it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from xai_insert.formats.onnx.names import name_of
from xai_insert.formats.onnx.single import holds_graph, maker, operands, reference
from xai_insert.formats.onnx.writer import Writer, Written
from xai_insert.graph.view import Shape

_Array = npt.NDArray[Any]


def branch(w: Writer) -> Written:
    """The nodes of the branch that is always taken; None where the image or an open size decides."""
    decided = _elements(w, w.operand(0))
    if decided is None or decided.size != 1:
        return None
    body = w.node.attributes["then_branch" if decided.item() else "else_branch"].as_graph()
    if any(node.domain or len(node.outputs) != 1 or holds_graph(node) for node in body):
        return None
    made: dict[ir.Value | None, ir.Value | None] = {
        value: w.constant(value.const_value.numpy())
        for value in body.initializers.values()
        if value.const_value is not None
    }
    for node in body:
        made[node.outputs[0]] = w(node.op_type, *(made.get(value, value) for value in node.inputs), **node.attributes)
    return [w("Identity", made.get(value, value)) for value in body.outputs]


def _elements(w: Writer, value: ir.Value | None) -> _Array | None:
    """What a value is whatever the image, as far as constants and known sizes tell; else None."""
    node = None if value is None else value.producer()
    if node is None:
        return None if value is None or value.const_value is None else value.const_value.numpy()
    if node.op_type == "Shape":
        sizes = _sizes(w, node)
        return None if sizes is None or None in sizes else np.array(sizes, np.int64)
    shape = maker(node)
    sizes = None if shape is None else _sizes(w, shape)
    return _run(node, [_elements(w, item) for item in node.inputs]) if sizes is None else _of_sizes(w, node, sizes)


def _of_sizes(w: Writer, node: ir.Node, sizes: Shape) -> _Array | None:
    """What a node makes of sizes, of which some may be open."""
    if node.op_type == "Size":
        return np.array(len(sizes), np.int64)
    if node.op_type == "Gather":
        return _taken(sizes, _elements(w, node.inputs[1]))
    return _run(node, [_elements(w, item) for item in node.inputs])


def _sizes(w: Writer, node: ir.Node) -> tuple[int | None, ...] | None:
    """What a Shape gives, open sizes as None."""
    source = node.inputs[0] if node.op_type == "Shape" and not node.attributes else None
    return None if source is None else w.sizes(source)


def _taken(sizes: tuple[int | None, ...], places: _Array | None) -> _Array | None:
    if places is None or not all(-len(sizes) <= index < len(sizes) for index in places.reshape(-1).tolist()):
        return None
    taken = [sizes[index] for index in places.reshape(-1).tolist()]
    return None if None in taken else np.array(taken, np.int64).reshape(places.shape)


def _run(node: ir.Node, given: list[_Array | None]) -> _Array | None:
    if node.domain or any(item is None for item in given) or holds_graph(node):
        return None
    names = [name_of(value) for value in operands(node)]
    results = reference(node).run(None, dict(zip(names, given, strict=True)))
    return np.asarray(results[0])
