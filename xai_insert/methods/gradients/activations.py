"""Derivatives of functions of one operand, from their result where it tells, else from the operand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xai_insert.graph.operators import Pointwise
from xai_insert.graph.view import Op, constant_of, number_of
from xai_insert.methods.gradients.step import Gradients, Rule, Step
from xai_insert.methods.tensor import Tensor

_Slope = Callable[[Step[Any]], Any]


def _along(slope: _Slope) -> Rule:
    def rule(step: Step[Any]) -> Gradients:
        return {0: step.op.mul(step.gradient, slope(step))} if 0 in step.wanted else {}

    return rule


def _parameters(step: Step[Any]) -> tuple[float, ...]:
    kind = step.node.kind
    return kind.parameters if isinstance(kind, Pointwise) else ()


def _scaled(step: Step[Any], a: Any, factor: float, shift: float = 0.0) -> Any:
    """`a * factor + shift`."""
    op = step.op
    product = a if factor == 1.0 else op.mul(a, step.number(factor))
    return op.add(product, step.number(shift)) if shift else product


def _between(step: Step[Any], a: Any, low: float, high: float) -> Any:
    op = step.op
    return op.mul(op.greater(a, step.number(low)), op.greater(step.number(high), a))


def _mixed(step: Step[Any], mask: Any, inside: float, outside: Any) -> Any:
    """`inside` where the mask is 1, else `outside`."""
    op = step.op
    return op.add(op.mul(mask, step.number(inside)), op.mul(op.sub(step.number(1.0), mask), outside))


def _rectifier(step: Step[Any]) -> Any:
    return step.op.greater(step.result(), step.number(0.0))


def _leaky(step: Step[Any]) -> Any:
    (alpha,) = _parameters(step)
    positive = step.op.greater(step.operand(0), step.number(0.0))
    return _scaled(step, positive, 1 - alpha, alpha)


def _learned(step: Step[Any], *, by_channel: bool = False) -> Any:
    slope = constant_of(step.node.operand(1), 1 << 20)
    if slope is None or 1 in step.wanted:
        raise step.refusal("its slope is computed")
    if by_channel and slope.ndim == 1 and slope.size > 1:
        slope = slope.reshape(-1, *[1] * (len(step.node.output.sizes) - 2))
    positive = step.op.greater(step.operand(0), step.number(0.0))
    return step.op.add(step.op.mul(positive, step.constant(1 - slope)), step.constant(slope))


def _thresholded(step: Step[Any]) -> Any:
    (alpha,) = _parameters(step)
    return step.op.greater(step.operand(0), step.number(alpha))


def _shrunk(step: Step[Any]) -> Any:
    bound, x = step.number(_parameters(step)[0]), step.operand(0)
    return step.op.add(step.op.greater(x, bound), step.op.greater(step.op.mul(x, step.number(-1.0)), bound))


def _elu(step: Step[Any]) -> Any:
    (alpha,) = _parameters(step)
    result = step.result()
    return _mixed(step, step.op.greater(result, step.number(0.0)), 1.0, _scaled(step, result, 1.0, alpha))


def _selu(step: Step[Any]) -> Any:
    alpha, gamma = _parameters(step)
    result = step.result()
    below = _scaled(step, result, 1.0, alpha * gamma)
    return _mixed(step, step.op.greater(result, step.number(0.0)), gamma, below)


def _celu(step: Step[Any]) -> Any:
    (alpha,) = _parameters(step)
    result = step.result()
    return _mixed(step, step.op.greater(result, step.number(0.0)), 1.0, _scaled(step, result, 1 / alpha, 1.0))


def _sigmoid(step: Step[Any]) -> Any:
    result = step.result()
    return step.op.mul(result, step.op.sub(step.number(1.0), result))


def _tanh(step: Step[Any]) -> Any:
    result = step.result()
    return step.op.sub(step.number(1.0), step.op.mul(result, result))


def _hard_sigmoid(step: Step[Any]) -> Any:
    """By what it reads: at its upper end OpenVINO may give a little less than one."""
    alpha, beta = _parameters(step)
    low, high = sorted((-beta / alpha, (1 - beta) / alpha)) if alpha else (0.0, 0.0)
    return _scaled(step, _between(step, step.operand(0), low, high), alpha)


def _hard_swish(step: Step[Any]) -> Any:
    op, x = step.op, step.operand(0)
    inside, above = _between(step, x, -3.0, 3.0), op.greater(x, step.number(3.0))
    return op.add(op.mul(inside, _scaled(step, x, 1 / 3, 0.5)), above)


def _swish(step: Step[Any]) -> Any:
    beta = (_parameters(step) or (1.0,))[0]
    op, x = step.op, step.operand(0)
    share = op.sigmoid(_scaled(step, x, beta))
    return op.mul(share, op.add(op.mul(_scaled(step, x, beta), op.sub(step.number(1.0), share)), step.number(1.0)))


def _mish(step: Step[Any]) -> Any:
    op, x = step.op, step.operand(0)
    squashed = op.function("tanh", _softplus_of(step, x))
    rest = op.mul(op.mul(x, op.sigmoid(x)), op.sub(step.number(1.0), op.mul(squashed, squashed)))
    return op.add(squashed, rest)


def _softplus_of(step: Step[Any], x: Any) -> Any:
    """`log(1 + exp(x))`, without overflow."""
    op = step.op
    small = op.function("exp", op.mul(Tensor(op, x).magnitude().handle, step.number(-1.0)))
    return op.add(op.maximum(x, step.number(0.0)), op.function("log", op.add(small, step.number(1.0))))


def _softsign(step: Step[Any]) -> Any:
    op = step.op
    below = op.add(Tensor(op, step.operand(0)).magnitude().handle, step.number(1.0))
    return op.div(step.number(1.0), op.mul(below, below))


def _gelu(step: Step[Any]) -> Any:
    """`Phi(x) + x phi(x)`, the normal distribution and its density."""
    op, x = step.op, step.operand(0)
    share = _scaled(step, op.function("erf", _scaled(step, x, math.sqrt(0.5))), 0.5, 0.5)
    density = _scaled(step, op.function("exp", _scaled(step, op.mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return op.add(share, op.mul(x, density))


def _fast_gelu(step: Step[Any]) -> Any:
    op, x = step.op, step.operand(0)
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    square = op.mul(x, x)
    inner = op.function("tanh", op.mul(x, _scaled(step, square, root * cubic, root)))
    steep = op.mul(op.sub(step.number(1.0), op.mul(inner, inner)), _scaled(step, square, 3 * root * cubic, root))
    return op.add(_scaled(step, inner, 0.5, 0.5), _scaled(step, op.mul(x, steep), 0.5))


def _error_function(step: Step[Any]) -> Any:
    op, x = step.op, step.operand(0)
    return _scaled(step, op.function("exp", _scaled(step, op.mul(x, x), -1.0)), 2 / math.sqrt(math.pi))


def _square(step: Step[Any]) -> Any:
    return step.op.mul(step.operand(0), step.operand(0))


def _over_root(step: Step[Any], factor: float, shift: float) -> Any:
    """`1 / sqrt(factor * x^2 + shift)`."""
    return step.op.div(step.number(1.0), step.op.sqrt(_scaled(step, _square(step), factor, shift)))


def _exponentials(step: Step[Any], sign: float) -> Any:
    """`(exp(x) + sign * exp(-x)) / 2`."""
    op, rising = step.op, step.op.function("exp", step.operand(0))
    falling = op.div(step.number(sign), rising)
    return op.mul(op.add(rising, falling), step.number(0.5))


def _sign(step: Step[Any]) -> Any:
    op, x, zero = step.op, step.operand(0), step.number(0.0)
    return op.sub(op.greater(x, zero), op.greater(zero, x))


def _clip(step: Step[Any]) -> Gradients:
    """Nothing passes at the bounds and beyond them, as in PyTorch's `hardtanh` and ReLU6."""
    if step.wanted != {0}:
        raise step.refusal("its bounds are computed")
    low, high = _bounds(step)
    gradient, result = step.gradient, step.result()
    if low is not None and low > float(np.finfo(np.float32).min):
        gradient = step.op.mul(gradient, step.op.greater(result, step.number(low)))
    if high is not None and high < float(np.finfo(np.float32).max):
        gradient = step.op.mul(gradient, step.op.greater(step.number(high), result))
    return {0: gradient}


def _bounds(step: Step[Any]) -> tuple[float | None, float | None]:
    """Those that a Clip has as attributes, or as operands."""
    low, high = (*_parameters(step), None, None)[:2]
    if low is not None:
        return low, high
    return number_of(step.node.operand(1)), number_of(step.node.operand(2))


def _same(step: Step[Any]) -> Gradients:
    return {0: step.gradient}


def _cast(step: Step[Any]) -> Gradients:
    is_passed = "float" in step.node.output.dtype or step.node.read(0).made_by(Op.QUANTIZE)  # to a quantiser's integers
    return {0: step.gradient} if is_passed else {}


def _nothing(step: Step[Any]) -> Gradients:
    del step
    return {}


_FLAT = (
    "ceil floor round sign not and or xor equal notequal greater greaterorequal less lessorequal isinf isnan isfinite "
    "logicaland logicalor logicalnot logicalxor"
)
"""Functions whose derivative is zero wherever there is one."""
_SLOPES: Mapping[str, _Slope] = {
    "relu": _rectifier,
    "leakyrelu": _leaky,
    "prelu": _learned,
    "channelprelu": lambda step: _learned(step, by_channel=True),
    "thresholdedrelu": _thresholded,
    "shrink": _shrunk,
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "sigmoid": _sigmoid,
    "hardsigmoid": _hard_sigmoid,
    "hardswish": _hard_swish,
    "swish": _swish,
    "quickgelu": _swish,
    "mish": _mish,
    "gelu": _gelu,
    "fastgelu": _fast_gelu,
    "softplus": lambda step: step.op.sigmoid(step.operand(0)),
    "softsign": _softsign,
    "tanh": _tanh,
    "exp": lambda step: step.result(),
    "log": lambda step: step.op.div(step.number(1.0), step.operand(0)),
    "sqrt": lambda step: step.op.div(step.number(0.5), step.result()),
    "reciprocal": lambda step: _scaled(step, step.op.mul(step.result(), step.result()), -1.0),
    "neg": lambda step: step.number(-1.0),
    "abs": _sign,
    "erf": _error_function,
    "sin": lambda step: step.op.function("cos", step.operand(0)),
    "tan": lambda step: _scaled(step, step.op.mul(step.result(), step.result()), 1.0, 1.0),
    "asin": lambda step: _over_root(step, -1.0, 1.0),
    "acos": lambda step: step.op.mul(_over_root(step, -1.0, 1.0), step.number(-1.0)),
    "atan": lambda step: step.op.div(step.number(1.0), _scaled(step, _square(step), 1.0, 1.0)),
    "sinh": lambda step: _exponentials(step, 1.0),
    "cosh": lambda step: _exponentials(step, -1.0),
    "asinh": lambda step: _over_root(step, 1.0, 1.0),
    "acosh": lambda step: _over_root(step, 1.0, -1.0),
    "atanh": lambda step: step.op.div(step.number(1.0), _scaled(step, _square(step), -1.0, 1.0)),
    "cos": lambda step: _scaled(step, step.op.function("sin", step.operand(0)), -1.0),
}
"""What the derivative is multiplied with, by function."""
WIDENS = frozenset(_SLOPES) - {"neg"}
"""Functions of which the slope has the sizes of what they read, whatever those of the derivative by their result."""
RULES: Mapping[str, Rule] = {
    **{name: _along(slope) for name, slope in _SLOPES.items()},
    "clip": _clip,
    "cast": _cast,
    "castlike": _cast,
    "identity": _same,
    "dropout": _same,
    **dict.fromkeys(_FLAT.split(), _nothing),
}
"""By function."""
