"""Derivatives of reductions, norms and softmax: their closed forms, one or two sums each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xai_insert.graph.operators import BatchNorm, LocalNorm, Norm, Operator, Reduction, Rounded, Softmax, UnitNorm
from xai_insert.graph.ops import Size
from xai_insert.graph.rounding import Quantised, is_rectifier
from xai_insert.graph.view import Op, fixed, volume
from xai_insert.methods.gradients.step import Gradients, Rule, Step


def _sum(step: Step[Any], a: Any, axes: Sequence[int]) -> Any:
    return step.op.reduce(a, "sum", axes)


def _softmax(step: Step[Any]) -> Gradients:
    kind, op = step.kind(Softmax), step.op
    gradient, result, axes = step.gradient, step.result(), step.axes(kind.axes)
    if kind.is_log:
        return {0: op.sub(gradient, op.mul(op.function("exp", result), _sum(step, gradient, axes)))}
    weighted = op.mul(gradient, result)
    return {0: op.sub(weighted, op.mul(result, _sum(step, weighted, axes)))}


def _reduction(step: Step[Any]) -> Gradients:
    kind, node, op = step.kind(Reduction), step.node, step.op
    if node.op is Op.ARGMAX:
        return {}
    if kind.axes is None:
        raise step.refusal("its axes are not known")
    has_axes = len(node.output.sizes) == len(node.read(0).sizes)
    gradient = step.gradient if has_axes else op.unsqueeze(step.gradient, step.axes(kind.axes))
    factor = _factor(step, kind.mode, kind.axes, has_axes)
    if factor is None:  # a sum or mean: the same for every element
        return {0: step.spread(_shared(step, gradient, kind.mode, kind.axes), kind.axes)}
    return {0: op.mul(gradient, factor)}


def _shared(step: Step[Any], gradient: Any, mode: str, axes: Sequence[int]) -> Any:
    """What each element of a sum or a mean has of the derivative."""
    if mode != "mean":
        return gradient
    count = volume([step.node.read(0).sizes[axis] for axis in axes])
    return step.op.mul(gradient, step.number(1 / count) if count else _one_over_count(step, axes))


def _one_over_count(step: Step[Any], axes: Sequence[int]) -> Any:
    op, handle = step.op, step.surgeon.handle(step.node.read(0))
    total = step.number(1.0)
    for axis in axes:
        total = op.mul(total, op.number(op.size(handle, axis)))
    return op.div(step.number(1.0), total)


def _factor(step: Step[Any], mode: str, axes: Sequence[int], has_axes: bool) -> Any:
    """The derivative by each element; None where it is the same for all of them."""
    op = step.op
    if mode in ("sum", "mean"):
        return None
    x = step.operand(0)
    if mode == "sumsquare":
        return op.mul(x, step.number(2.0))
    if mode == "l1":
        zero = step.number(0.0)
        return op.sub(op.greater(x, zero), op.greater(zero, x))
    result = step.result()
    if not has_axes:
        result = op.unsqueeze(result, axes)
    if mode in ("max", "min"):  # of equals the same share to each, as PyTorch's amax
        best = op.equal(x, result)
        return op.div(best, _sum(step, best, axes))
    if mode == "l2":  # zero where all of them are
        return op.div(x, op.nonzero_or(result, step.number(1.0)))
    if mode == "logsumexp":
        return op.function("exp", op.sub(x, result))
    if mode == "logsum":
        return op.function("exp", op.mul(result, step.number(-1.0)))
    if mode == "prod":
        return op.div(result, x)
    raise step.refusal(f"no rule covers the mode {mode}")


def _batch_norm(step: Step[Any]) -> Gradients:
    kind = step.kind(BatchNorm)
    if step.wanted != {0}:
        raise step.refusal("its statistics are computed")
    scale, variance = (step.node.read(index).elements().astype(np.float64) for index in (1, 4))
    factor = scale / np.sqrt(variance + kind.epsilon)
    sizes = [-1, *[1] * (len(step.node.output.sizes) - 2)]
    return {0: step.op.mul(step.gradient, step.constant(factor.reshape(sizes)))}


def _norm(step: Step[Any]) -> Gradients:
    """With `n` the normalised operand, `s` one over the deviation: `s (g - mean(g) - n mean(g n))`."""
    kind, op, source = step.kind(Norm), step.op, step.node.read(0)
    if kind.axes is None:
        raise step.refusal("its axes are not known, or its scale is that of a group")
    if not step.wanted <= {0} or any(item is not None for item in step.given[1:]):
        raise step.refusal("its scale is computed, or its statistics are read")
    x, gradient = step.operand(0), step.gradient
    if (scale := _scale(step, kind)) is not None:
        gradient = op.mul(gradient, scale)
    if kind.groups:
        sizes = _grouped(step, kind.groups)
        x = op.reshape(x, sizes)
        gradient = op.reshape(gradient, [*step.ahead, *sizes])
    made = _before_norm(step, kind, kind.axes, x, gradient)
    return {0: step.shaped(made, source) if kind.groups else made}


def _before_norm(step: Step[Any], kind: Norm, axes: Sequence[int], x: Any, gradient: Any) -> Any:
    """The derivative by what is normalised, of one by the result."""
    op, behind = step.op, step.axes(axes)
    if kind.is_centred:
        x = op.sub(x, op.reduce(x, "mean", axes))
    if not kind.is_scaled:
        return op.sub(gradient, op.reduce(gradient, "mean", behind))
    normal, along, share = _normalised(step, kind, axes, x)
    made = op.sub(gradient, op.mul(normal, op.reduce(op.mul(gradient, along), "mean", behind)))
    if kind.is_centred:
        made = op.sub(made, op.reduce(gradient, "mean", behind))
    return op.mul(made, share)


def _normalised(step: Step[Any], kind: Norm, axes: Sequence[int], x: Any) -> tuple[Any, Any, Any]:
    """The normalised operand in both of its places, and one over the deviation."""
    op = step.op
    square = op.reduce(op.mul(x, x), "mean", axes)
    if not kind.epsilon_outside:
        share = op.div(step.number(1.0), op.sqrt(op.add(square, step.number(kind.epsilon))))
        normal = op.mul(x, share)
        return normal, normal, share
    deviation = op.sqrt(square)
    share = op.div(step.number(1.0), op.add(deviation, step.number(kind.epsilon)))
    # n mean(g n) with one over the deviation without epsilon in one of its places
    return op.div(x, deviation), op.mul(x, share), share


def _scale(step: Step[Any], kind: Norm) -> Any:
    if (
        len(step.node.inputs) < 2
        or step.node.inputs[1] is None
        or step.node.type in ("MVN", "MeanVarianceNormalization")
    ):
        return None
    value = step.node.read(1)
    if not kind.by_channel:
        return step.operand(1)
    if not value.is_constant:
        raise step.refusal("its scale is computed")
    elements = value.elements()
    return step.constant(elements.reshape(-1, *[1] * (len(step.node.output.sizes) - 2)))


def _grouped(step: Step[Any], groups: int) -> list[Size]:
    batch, *rest = step.node.read(0).sizes
    channels, *grid = fixed(rest)
    return [-1 if batch is None else batch, groups, channels // groups, *grid]


def _unit(step: Step[Any]) -> Gradients:
    """With `n = x / |x|`: `(g - n sum(g n)) / |x|`."""
    kind, op = step.kind(UnitNorm), step.op
    if kind.axes is None or step.wanted != {0}:
        raise step.refusal("its axes are not known")
    x = step.operand(0)
    square = op.reduce(op.mul(x, x), "sum", kind.axes)
    epsilon = step.number(kind.epsilon)
    length = op.sqrt(op.add(square, epsilon) if kind.is_added else op.maximum(square, epsilon))
    normal = op.div(x, length)
    along = op.reduce(op.mul(step.gradient, normal), "sum", step.axes(kind.axes))
    return {0: op.div(op.sub(step.gradient, op.mul(normal, along)), length)}


def _local_norm(step: Step[Any]) -> Gradients:
    """With `d = bias + alpha / size * sum(x^2)`: `g d^-beta - 2 alpha beta / size * x * sum(g x d^(-beta - 1))`."""
    kind, op, source = step.kind(LocalNorm), step.op, step.node.read(0)
    channels, *grid = fixed(source.sizes[1:])
    places = np.arange(channels)[:, None] - np.arange(channels)
    sums = ((places <= (kind.size - 1) // 2) & (-places <= kind.size // 2)).astype(np.float64)  # [result, source]
    x = op.reshape(step.operand(0), [-1, channels, volume(grid) or 1])
    gradient = op.reshape(step.gradient, [*step.ahead, -1, channels, volume(grid) or 1])
    share = kind.alpha / kind.size
    below = op.add(op.matmul(step.constant(sums * share), op.mul(x, x)), step.number(kind.bias))
    scaled = op.power(below, step.number(-kind.beta))
    back = op.matmul(step.constant(sums.T), op.div(op.mul(op.mul(gradient, x), scaled), below))
    made = op.sub(op.mul(gradient, scaled), op.mul(op.mul(x, step.number(2 * share * kind.beta)), back))
    return {0: step.shaped(made, source)}


def _rounded(step: Step[Any]) -> Gradients:
    """Straight through: as if nothing had been rounded. A rectifier that was folded into the range is none of that."""
    kind, gradient = step.node.kind, step.gradient
    factor = kind.factor if isinstance(kind, Quantised) else 1.0
    if factor is None:
        raise step.refusal("its ranges are computed, or differ from channel to channel")
    if factor != 1.0:
        gradient = step.op.mul(gradient, step.number(factor))
    if "float" not in step.node.output.dtype or not is_rectifier(step.node):
        return {0: gradient}
    return {0: step.op.mul(gradient, step.op.greater(step.result(), step.number(0.0)))}


RULES: Mapping[type[Operator], Rule] = {
    Softmax: _softmax,
    Reduction: _reduction,
    BatchNorm: _batch_norm,
    Norm: _norm,
    UnitNorm: _unit,
    LocalNorm: _local_norm,
    Rounded: _rounded,
}
