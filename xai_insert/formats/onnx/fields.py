"""Attributes and operands of ONNX nodes, as the readers of operators ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import onnx_ir as ir

from xai_insert.graph.view import Value, from_front

Operands: TypeAlias = Sequence[Value | None]


def ints(native: ir.Node, name: str) -> tuple[int, ...] | None:
    """An attribute of several integers; None if it is not set."""
    return tuple(native.attributes[name].as_ints()) if name in native.attributes else None


def integer(native: ir.Node, name: str, default: int) -> int:
    """An attribute of one integer."""
    return native.attributes[name].as_int() if name in native.attributes else default


def real(native: ir.Node, name: str, default: float) -> float:
    """An attribute of one number."""
    return native.attributes[name].as_float() if name in native.attributes else default


def text(native: ir.Node, name: str, default: str) -> str:
    """An attribute of text."""
    return native.attributes[name].as_string() if name in native.attributes else default


def opset(native: ir.Node, default: int) -> int:
    """The version of the operators that a node is written for; `default` where that is not told."""
    return default if native.graph is None else native.graph.opset_imports.get("", default)


def rank_of(inputs: Operands) -> int | None:
    """The rank of the first operand; None if it is not known."""
    return inputs[0].rank if inputs and inputs[0] is not None else None


def operand_of(inputs: Operands, index: int) -> Value | None:
    """An operand; None if it is left out."""
    return inputs[index] if index < len(inputs) else None


def given_axes(native: ir.Node, operand: Value | None, rank: int | None) -> tuple[int, ...] | None:
    """The axes that an operation names, all where it names none; None where they are not known."""
    axes = ints(native, "axes")
    if axes is None and operand is not None:
        if not operand.is_constant:
            return None
        axes = tuple(int(axis) for axis in operand.elements().reshape(-1))
    if rank is not None and not axes:
        return () if integer(native, "noop_with_empty_axes", 0) else tuple(range(rank))
    return from_front(axes, rank)
