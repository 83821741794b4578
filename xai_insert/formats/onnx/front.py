"""The part of an ONNX model that makes the image of a file, as onnxruntime-extensions decodes and prepares it inside.

What is behind that part is studied, inserted into and run like any model, without the library; then it is put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from xai_insert.formats.onnx.single import operand, operands

EXTENSIONS = ("ai.onnx.contrib", "com.microsoft.extensions")
"""Domains of operators that onnxruntime runs with onnxruntime-extensions alone."""
_CONVOLUTION, _RANK = "Conv", 4


@dataclass(frozen=True)
class Front:
    """What was taken off.

    Attributes:
        nodes: the operations, in order.
        inputs: those of the whole model.
        image: what the operations give.
        entry: the input that stands for it meanwhile.
    """

    nodes: Sequence[ir.Node]
    inputs: Sequence[ir.Value]
    image: ir.Value
    entry: ir.Value

    def put_back(self, graph: ir.Graph) -> None:
        """Make `graph` begin as it did; a second time changes nothing."""
        if self.entry not in graph.inputs:
            return
        given = [value for value in graph.inputs if value is not self.entry and value not in self.inputs]
        graph.inputs[:] = [*self.inputs, *given]
        first = next(node for node in graph if self.entry in node.inputs)
        ir.convenience.replace_all_uses_with(self.entry, self.image)
        graph.insert_before(first, self.nodes)


def take_off(graph: ir.Graph) -> Front | None:
    """Take the operations off that make the image of a file; None, and nothing is taken, where none do so alone.

    The image is what the first convolution reads.
    """
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    if any(value.shape is None or value.shape.rank() >= _RANK for value in inputs):
        return None
    made = set(inputs)
    for node in graph:
        if _convolves(node) and (first := operand(node, 0)) in made and first not in inputs:
            return _taken(graph, inputs, made, node)
        if any(value in made for value in node.inputs):
            made.update(node.outputs)
    return None


def _convolves(node: ir.Node) -> bool:
    return node.op_type == _CONVOLUTION and not node.domain


def _taken(graph: ir.Graph, inputs: Sequence[ir.Value], made: set[ir.Value], convolution: ir.Node) -> Front | None:
    image, weight = convolution.inputs[:2]
    assert image is not None  # it is in `made`
    front = _feeding(image, made)
    nodes = [node for node in graph if node in front]
    read = [value for value in inputs if _is_read_in(front, value)]
    inside = {*read, *(value for node in nodes for value in node.outputs)}
    if not any(map(_prepares, nodes)) or not inside.isdisjoint(graph.outputs):
        return None
    if not _are_apart(inside - {image}, front):
        return None
    found = Front(nodes, list(graph.inputs), image, _entry(image, weight))
    ir.convenience.replace_all_uses_with(image, found.entry)
    graph.remove(nodes)
    graph.inputs[:] = [found.entry, *(value for value in graph.inputs if value not in read)]
    return found


def _prepares(node: ir.Node) -> bool:
    """Whether an operation is one of those that make images of files."""
    return node.domain in EXTENSIONS


def _feeding(image: ir.Value, made: set[ir.Value]) -> set[ir.Node]:
    """The operations that a value comes from, by values that are `made` of inputs."""
    found, waiting = set[ir.Node](), [image]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting += [value for value in operands(node) if value in made]
    return found


def _is_read_in(front: set[ir.Node], value: ir.Value) -> bool:
    return any(node in front for node, _ in value.uses())


def _are_apart(values: set[ir.Value], front: set[ir.Node]) -> bool:
    """Whether nothing but `front` reads the values."""
    return all(node in front for value in values for node, _ in value.uses())


def _entry(image: ir.Value, weight: ir.Value | None) -> ir.Value:
    """An input like the image that a convolution with this weight reads."""
    known = None if weight is None else weight.shape
    shape = image.shape or ir.Shape([None, None if known is None else known[1], None, None])
    kind = image.type or ir.TensorType((None if weight is None else weight.dtype) or ir.DataType.FLOAT)
    return ir.Value(name=image.name, type=kind, shape=shape)
