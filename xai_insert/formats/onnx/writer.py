"""Writing a node out as nodes of the standard operator set, behind it in the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from xai_insert.formats.onnx.names import name_of
from xai_insert.formats.onnx.widening import HALF
from xai_insert.graph.names import Names
from xai_insert.graph.view import Shape

Written = Sequence[ir.Value | None] | None
"""What stands for each output of a node, None for one that nothing may read; None if it was not written out."""


class Shared:
    """Values that several nodes are written out with.

    Attributes:
        nodes: what makes them.
        values: them, by what they are made of.
        ends: the last of the nodes that a node was written out as.
    """

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.values: dict[tuple[object, ...], ir.Value] = {}
        self.ends: dict[ir.Node, ir.Node] = {}


class Writer:
    """Adds nodes and constants behind `node`.

    Attributes:
        node: what is written out.
        version: the operator set.
        kind: the floats that it computes in.
        added: the new nodes.
    """

    def __init__(
        self,
        graph: ir.Graph,
        node: ir.Node,
        names: Names,
        rank: Callable[[ir.Value], int | None],
        shared: Shared,
        sizes: Callable[[ir.Value], Shape | None],
        kind: ir.DataType,
    ) -> None:
        self.node = node
        self.kind = kind
        self.version = graph.opset_imports.get("", 17)
        self.added: list[ir.Node] = []
        self._constants: list[str] = []
        self._graph = graph
        self._names = names
        self._rank = rank
        self._shared = shared
        self._sizes = sizes

    def __call__(self, kind: str, *operands: ir.Value | None, **attributes: Any) -> ir.Value:
        made = ir.node(kind, operands, attributes, name=self._names.unique(f"{self.node.name or 'node'}/{kind}"))
        made.outputs[0].name = self._names.unique(f"{made.name}/out")
        self._graph.insert_after(self.added[-1] if self.added else self.node, made)
        self.added.append(made)
        return made.outputs[0]

    def rank(self, value: ir.Value) -> int | None:
        """Number of axes of an operand; None where nothing tells it."""
        return self._rank(value)

    def sizes(self, value: ir.Value) -> Shape | None:
        """Sizes of any value of the model; None where nothing tells them."""
        return self._sizes(value)

    def width(self, value: ir.Value | None) -> int | None:
        """The last size of a stored operand; None where nothing tells it."""
        size = value.shape[-1] if value is not None and value.shape is not None else None
        return size if isinstance(size, int) else None

    def operand(self, index: int) -> ir.Value | None:
        """An operand of the node; None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def number(self, name: str, default: float) -> float:
        """An attribute of the node that is one number."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else float(attribute.value)

    def has(self, *names: str) -> bool:
        """Whether one of these attributes is not zero."""
        return any(self.number(name, 0) != 0 for name in names)

    def constant(self, elements: npt.NDArray[Any] | Sequence[int] | float) -> ir.Value:
        """A constant; of Python numbers, int64 for a sequence and for a float what the node computes in."""
        if isinstance(elements, float):
            elements = np.array(elements, self.kind.numpy())
        elements = np.asarray(elements)
        tensor = ir.tensor(elements, name=self._names.unique("const"))
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(elements.shape)
        value = ir.Value(name=tensor.name, type=kind, shape=shape, const_value=tensor)
        self._graph.register_initializer(value)
        self._constants.append(name_of(value))
        return value

    def floats(self, a: ir.Value) -> ir.Value:
        """`a` in the floats that the node computes in."""
        return self("Cast", a, to=self.kind)

    @property
    def sums(self) -> ir.DataType:
        """The floats in which runtimes sum up what the node computes."""
        return ir.DataType.FLOAT if self.kind in HALF else self.kind

    def wide(self, a: ir.Value) -> ir.Value:
        """`a` in the floats of `sums`."""
        return a if self.sums is self.kind else self("Cast", a, to=self.sums)

    def narrow(self, a: ir.Value) -> ir.Value:
        """What was computed with `wide` as the node gives it."""
        return a if self.sums is self.kind else self.floats(a)

    def plus(self, a: ir.Value, more: ir.Value | None) -> ir.Value:
        """A sum with an operand that may be left out."""
        return a if more is None else self("Add", a, more)

    def reshape(self, a: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """`a` with other sizes; 0 copies one, -1 is inferred."""
        return self("Reshape", a, self.constant(np.array(sizes, np.int64)))

    def transpose(self, a: ir.Value, perm: Sequence[int]) -> ir.Value:
        """`a` with its axes in another order."""
        return self("Transpose", a, perm=tuple(perm))

    def unsqueeze(self, a: ir.Value, axis: int) -> ir.Value:
        """`a` with one more axis."""
        if self.version < 13:
            return self("Unsqueeze", a, axes=[axis])
        return self("Unsqueeze", a, self.constant(np.array([axis], np.int64)))

    def squeeze(self, a: ir.Value, axis: int) -> ir.Value:
        """`a` without an axis of size 1."""
        if self.version < 13:
            return self("Squeeze", a, axes=[axis])
        return self("Squeeze", a, self.constant(np.array([axis], np.int64)))

    def mean(self, a: ir.Value) -> ir.Value:
        """The mean over the last axis, which stays with size 1."""
        if self.version < 18:
            return self("ReduceMean", a, axes=[-1], keepdims=1)
        return self("ReduceMean", a, self.constant(np.array([-1], np.int64)), keepdims=1)

    def dequantised(self, operands: Sequence[ir.Value], axis: int | None = None) -> ir.Value:
        """The floats that a value with a scale (and zero point) stands for: one value for all that read it."""
        attributes = {} if axis is None else {"axis": axis}
        if any(not value.is_initializer() for value in operands[1:]):
            return self("DequantizeLinear", *operands, **attributes)
        key = (*operands, axis)
        if key not in self._shared.values:
            made = ir.node("DequantizeLinear", operands, attributes, name=self._names.unique("DequantizeLinear"))
            made.outputs[0].name = self._names.unique(f"{operands[0].name}/float")
            producer = operands[0].producer()
            if producer is None:
                self._graph.insert_before(next(iter(self._graph)), made)
            else:
                self._graph.insert_after(self._shared.ends.get(producer, producer), made)
            self._shared.nodes.append(made)
            self._shared.values[key] = made.outputs[0]
        return self._shared.values[key]

    def finish(self) -> None:
        """Keep what was added."""
        if self.added:
            self._shared.ends[self.node] = self.added[-1]

    def undo(self) -> None:
        """Take away what was added."""
        self._graph.remove(list(reversed(self.added)), safe=True)
        for name in self._constants:
            self._graph.initializers.pop(name)
        self.added.clear()
