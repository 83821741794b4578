"""What a quantiser does besides rounding.

The branch is computed in float32: it copies the model's head without its rounding, which would drown the small
differences that a map consists of. But a quantiser whose range begins at zero may stand for the activation that a
quantisation tool has folded into it; the range of such a one is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.graph.view import Node, Op, Value

_SAME_SIGN = frozenset({Op.RESHAPE, Op.TRANSPOSE, Op.IDENTITY, Op.CAST, Op.QUANTIZE, Op.SLICE, Op.GATHER})
_ANY_SIGN = frozenset({Op.CONV, Op.MATMUL, Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.BATCH_NORM, Op.LAYER_NORM})


def folded_range(node: Node, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> tuple[float, float] | None:
    """The range of a quantiser where it may stand for an activation (ReLU, ReLU6); None where it only rounds.

    Args:
        node: the quantiser; its first operand is what it rounds.
        low: least value that it can give.
        high: largest one.
    """
    value: Value | None = node.operand(0)
    while value is not None and (same := value.made_by(*_SAME_SIGN)) is not None:
        value = same.operand(0)
    if value is None or value.made_by(*_ANY_SIGN) is None:
        return None
    return (0.0, float(np.max(high))) if not np.any(low) else None


def is_half(dtype: str) -> bool:
    """Whether an element type is a float of fewer bits than float32."""
    return dtype in ("float16", "bfloat16")
