"""What a rule is given: one node, the derivative by its results, and the values of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias

import numpy as np
import numpy.typing as npt

from xai_insert.errors import NoDerivativeError
from xai_insert.graph.operators import Family
from xai_insert.graph.ops import Ops, Size, Surgeon, V
from xai_insert.graph.shape import with_open
from xai_insert.graph.view import Node, Value
from xai_insert.methods.gradients.forward import Forward
from xai_insert.methods.shaping import reshape, scalar

ELSEWHERE = "choose a later layer with --target-layer or another --method"


def repeated(own: Sequence[int | None], whole: Sequence[int | None]) -> list[int]:
    """The axes along which sizes of one broadcast to others."""
    return [axis for axis, (size, other) in enumerate(zip(own, whole, strict=True)) if size == 1 != other]


@dataclass(frozen=True)
class Step(Generic[V]):
    """One node on the way back.

    Attributes:
        surgeon: the model being edited.
        node: the node.
        given: derivative by each of its results; None where nothing that counts reads it.
        wanted: indices of the operands by which a derivative is wanted.
        narrow: indices of those whose derivative may keep size 1 along axes where it is the same everywhere.
        forward: values of the forward pass.
        seeds: how many derivatives run together, along an axis before all others; None for one without that axis.
    """

    surgeon: Surgeon[V]
    node: Node
    given: Sequence[V | None]
    wanted: frozenset[int]
    narrow: frozenset[int]
    forward: Forward[V]
    seeds: int | None

    @property
    def op(self) -> Ops[V]:
        return self.surgeon.ops

    @property
    def ahead(self) -> list[int]:
        """Sizes of the axes before those of the forward pass."""
        return [] if self.seeds is None else [self.seeds]

    @property
    def lead(self) -> int:
        """Axes before those of the forward pass."""
        return len(self.ahead)

    @property
    def gradient(self) -> V:
        """The derivative by the first result."""
        first = self.given[0]
        if first is None:
            raise self.refusal("its further results are read")
        return first

    def kind(self, family: type[Family]) -> Family:
        """The node's record; `family` is what the rule stands for in the registry."""
        return self.node.record(family)

    def operand(self, index: int) -> V:
        """An operand's value."""
        value = self.node.read(index)
        return self.surgeon.stored(self.node, index) if value.is_constant else self.forward.read(value)

    def turned(self, index: int, gradient: V, *, is_square: bool) -> tuple[V, V]:
        """A weight that is read the other way round, and the derivative to multiply it with.

        OpenVINO (2026.4) packs a stored weight once for each place in memory and size of the packed form. One that is
        as long as it is wide would be packed as the model's own layer has it, and the product be that with the weight
        not turned. So half of the weight is stored, when the model is compiled, and multiplied by twice the derivative.
        """
        weight = self.operand(index)
        if not is_square or not self.node.read(index).is_constant:
            return weight, gradient
        return self.op.mul(weight, self.number(0.5)), self.op.mul(gradient, self.number(2.0))

    def result(self) -> V:
        """The first result's value."""
        return self.forward.read(self.node.output)

    def axes(self, axes: Sequence[int]) -> list[int]:
        """Axes of a derivative for those of its value."""
        return [axis + self.lead for axis in axes]

    def number(self, value: float) -> V:
        """A constant of shape `[]`."""
        return scalar(self.op, value)

    def constant(self, elements: npt.NDArray[Any]) -> V:
        """A float32 constant."""
        return self.op.constant(np.asarray(elements, np.float32))

    def sizes(self, value: Value) -> list[Size]:
        """Sizes of the derivative by `value`."""
        sizes: list[Size] = list(value.sizes)
        if sizes.count(None) > 1:
            sizes = self.known(value)
        return [*self.ahead, *with_open(sizes)]

    def known(self, value: Value) -> list[Size]:
        """Sizes of an operand, those that follow the input read off it while the model runs."""
        sizes: list[Size] = list(value.sizes)
        if None in sizes:
            handle = self.surgeon.handle(value)
            sizes = [self.op.size(handle, axis) if size is None else size for axis, size in enumerate(sizes)]
        return sizes

    def measured(self, gradient: V, value: Value, lead: int = 1) -> list[Size]:
        """Sizes of a result read off the derivative by it, or a runtime could not merge it with what reads it."""
        sizes = enumerate(value.sizes, lead)
        return [self.op.size(gradient, axis) if size is None else size for axis, size in sizes]

    def shaped(self, gradient: V, value: Value) -> V:
        """`gradient` with the sizes of the derivative by `value`."""
        return reshape(self.op, gradient, self.sizes(value))

    def flat(self, gradient: V, value: Value) -> V:
        """`gradient`, of the sizes of `value`, with its seeds put into the batch; see `unflat`."""
        return gradient if self.seeds is None else self.op.reshape(gradient, [-1, *self.measured(gradient, value)[1:]])

    def unflat(self, gradient: V, value: Value) -> V:
        """What `flat` put into the batch taken out of it."""
        return gradient if self.seeds is None else self.shaped(gradient, value)

    def spread(self, gradient: V, axes: Sequence[int]) -> V:
        """`gradient`, of size 1 along `axes`, repeated to the sizes of the first operand, unless it may stay narrow."""
        source = self.node.read(0)
        if 0 in self.narrow:
            return gradient
        if all(source.sizes[axis] is not None for axis in axes):
            whole = [size or 1 if axis in axes else 1 for axis, size in enumerate(source.sizes)]
            return self.op.expand(gradient, [*[1] * self.lead, *whole])
        zeros = self.op.mul(self.surgeon.handle(source), self.number(0.0))
        return self.op.add(gradient, zeros)

    def fitted(self, gradient: V, index: int) -> V:
        """`gradient`, of the result's sizes, summed over the axes along which the operand was broadcast."""
        value, result = self.node.read(index), self.node.output.sizes
        own = (1,) * (len(result) - len(value.sizes)) + value.sizes
        summed = repeated(own, result)
        if summed:
            gradient = self.op.reduce(gradient, "sum", self.axes(summed))
        return gradient if len(own) == len(value.sizes) else self.shaped(gradient, value)

    def refusal(self, reason: str) -> NoDerivativeError:
        """The error for a form that the rule does not cover."""
        return NoDerivativeError(f"no derivative of {self.node.type} {self.node.name!r}: {reason}; {ELSEWHERE}")


Gradients: TypeAlias = Mapping[int, Any]
"""The derivative by each wanted operand, by its index; one that is left out is zero."""
Rule: TypeAlias = Callable[[Step[Any]], Gradients]
