"""What a quantiser does besides rounding.

The branch is computed in float32: it copies the model's head without its rounding, which would drown the small
differences that a map consists of. But a quantiser whose range begins at zero may stand for the activation that a
quantisation tool has folded into it; the range of such a one is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.graph.operators import Rounded
from xai_insert.graph.view import Node, Op, Value

_SAME_SIGN = frozenset({Op.RESHAPE, Op.TRANSPOSE, Op.IDENTITY, Op.CAST, Op.QUANTIZE, Op.SLICE, Op.GATHER})
_ANY_SIGN = frozenset({Op.CONV, Op.MATMUL, Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.BATCH_NORM, Op.LAYER_NORM})


@dataclass(frozen=True, slots=True)
class Quantised(Rounded):
    """A quantiser of floats.

    Attributes:
        from_zero: whether it gives nothing below zero, so that a rectifier may have been folded into it.
        factor: how much wider the range is that it gives than the one it takes; None where that is not known, or not
            one number. A quantiser whose integers another node turns back has 1.
    """

    from_zero: bool = False
    factor: float | None = 1.0


def folded_range(node: Node, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> tuple[float, float] | None:
    """The range of a quantiser where it may stand for an activation (ReLU, ReLU6); None where it only rounds.

    Args:
        node: the quantiser; its first operand is what it rounds.
        low: least value that it can give.
        high: largest one.
    """
    return (0.0, float(np.max(high))) if not np.any(low) and _may_be_negative(node) else None


def is_rectifier(node: Node) -> bool:
    """Whether floats that a node gives back went through a quantiser that may stand for an activation (ReLU)."""
    quantiser = node
    while (made := _integers(quantiser)) is not None:
        quantiser = made
    return isinstance(quantiser.kind, Quantised) and quantiser.kind.from_zero and _may_be_negative(quantiser)


def _integers(node: Node) -> Node | None:
    """What makes the integers that a node reads, if that only moves or quantises."""
    value = node.operand(0)
    return None if value is None or "float" in value.dtype else value.made_by(*_SAME_SIGN)


def _may_be_negative(quantiser: Node) -> bool:
    """Whether what is quantised is of any sign."""
    value: Value | None = quantiser.operand(0)
    while value is not None and (same := value.made_by(*_SAME_SIGN)) is not None:
        value = same.operand(0)
    return value is not None and value.made_by(*_ANY_SIGN) is not None


def is_half(dtype: str) -> bool:
    """Whether an element type is a float of fewer bits than float32."""
    return dtype in ("float16", "bfloat16")
