"""Formulas as they stand in the paper: values of the branch with the operators of NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias

import numpy as np
import numpy.typing as npt

from xai_insert.graph.ops import Ops, V


@dataclass(frozen=True)
class Tensor(Generic[V]):
    """A value that is being emitted; `+ - * / @` emit one operation each and broadcast as NumPy does.

    Numbers and arrays become float32 constants, where they stand.

    Attributes:
        op: operations of the format.
        handle: its value there.
    """

    op: Ops[V]
    handle: V

    __array_ufunc__ = None  # an array on the left leaves the operation to this class

    def _of(self, other: Operand[V]) -> V:
        return other.handle if isinstance(other, Tensor) else self.op.constant(np.asarray(other, np.float32))

    def _new(self, handle: V) -> Tensor[V]:
        return Tensor(self.op, handle)

    def __add__(self, other: Operand[V]) -> Tensor[V]:
        return self._new(self.op.add(self.handle, self._of(other)))

    def __sub__(self, other: Operand[V]) -> Tensor[V]:
        return self._new(self.op.sub(self.handle, self._of(other)))

    def __rsub__(self, other: Operand[V]) -> Tensor[V]:
        return self._new(self.op.sub(self._of(other), self.handle))

    def __mul__(self, other: Operand[V]) -> Tensor[V]:
        return self._new(self.op.mul(self.handle, self._of(other)))

    def __truediv__(self, other: Operand[V]) -> Tensor[V]:
        return self._new(self.op.div(self.handle, self._of(other)))

    def __matmul__(self, other: Tensor[V]) -> Tensor[V]:
        return self._new(self.op.matmul(self.handle, other.handle))

    def at_least(self, other: Operand[V]) -> Tensor[V]:
        """The larger of both."""
        return self._new(self.op.maximum(self.handle, self._of(other)))

    def at_most(self, other: Tensor[V]) -> Tensor[V]:
        """The smaller of both."""
        minus = self._new(self._of(-1.0))
        return (self * minus).at_least(other * minus) * minus

    def magnitude(self) -> Tensor[V]:
        """Without the sign."""
        return self.at_least(self * -1.0)

    def tent(self) -> Tensor[V]:
        """`max(0, 1 - |x|)`: what a cell has of a point `x` cells away from its centre."""
        one = self._new(self._of(1.0))
        return (one - self.magnitude()).at_least(0.0)

    def exceeds(self, other: Operand[V]) -> Tensor[V]:
        """1 where it is greater, else 0."""
        return self._new(self.op.greater(self.handle, self._of(other)))

    def sum(self, axis: int) -> Tensor[V]:
        """Sum along an axis, which stays with size 1."""
        return self._new(self.op.reduce(self.handle, "sum", [axis]))

    def sqrt(self) -> Tensor[V]:
        """Square root."""
        return self._new(self.op.sqrt(self.handle))

    def floor(self) -> Tensor[V]:
        """Rounded down."""
        return self._new(self.op.floor(self.handle))

    def unsqueeze(self, axes: Sequence[int]) -> Tensor[V]:
        """With axes of size 1 at `axes` of the result."""
        return self._new(self.op.unsqueeze(self.handle, axes))


Operand: TypeAlias = Tensor[V] | float | npt.NDArray[Any]


def tensor(op: Ops[V], elements: npt.ArrayLike) -> Tensor[V]:
    """A float32 constant."""
    return Tensor(op, op.constant(np.asarray(elements, np.float32)))
