"""Derivatives of matrix products and of attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from xai_insert.graph.operators import FusedAttention, Operator, Product
from xai_insert.graph.view import Value, fixed
from xai_insert.methods.gradients.step import Gradients, Rule, Step


def _turned(step: Step[Any], a: Any, rank: int) -> Any:
    """The last two axes exchanged."""
    return step.op.transpose(a, [*range(rank - 2), rank - 1, rank - 2])


def _product(step: Step[Any]) -> Gradients:
    """With `y = a b`: `g b'` and `a' g`."""
    node, kind = step.node, step.node.kind
    a, b = node.read(0).sizes, node.read(1).sizes
    if not isinstance(kind, Product) or min(len(a), len(b)) < 2:
        raise step.refusal("an operand is a vector")
    gradient, rank = step.gradient, len(node.output.sizes) + step.lead
    if kind.factor != 1.0:
        gradient = step.op.mul(gradient, step.number(kind.factor))
    made: dict[int, Any] = {}
    if 0 in step.wanted:
        other, along = step.turned(1, gradient, is_square=b[-1] == b[-2])
        partial = step.op.matmul(along, other) if kind.transpose_b else step.op.matmul_transposed(along, other, len(b))
        made[0] = _fitted(step, _turned(step, partial, rank) if kind.transpose_a else partial, 0)
    if 1 in step.wanted:
        other = step.operand(0)
        rows = other if kind.transpose_a else _turned(step, other, len(a))
        partial = step.op.matmul(rows, gradient)
        made[1] = _fitted(step, _turned(step, partial, rank) if kind.transpose_b else partial, 1)
    if 2 in step.wanted:
        bias = step.gradient
        bias = bias if kind.bias_factor == 1.0 else step.op.mul(bias, step.number(kind.bias_factor))
        made[2] = step.fitted(bias, 2)
    return made


def _fitted(step: Step[Any], gradient: Any, index: int) -> Any:
    """Summed over the batch axes along which an operand was broadcast."""
    value, result = step.node.read(index), step.node.output.sizes[:-2]
    own = (1,) * (len(result) + 2 - len(value.sizes)) + value.sizes[:-2]
    summed = [axis for axis, (size, whole) in enumerate(zip(own, result, strict=True)) if size == 1 != whole]
    if summed:
        gradient = step.op.reduce(gradient, "sum", step.axes(summed))
    return gradient if len(result) + 2 == len(value.sizes) else step.shaped(gradient, value)


def _attention(step: Step[Any]) -> Gradients:
    """With `P = softmax(s q k' + mask)`, `y = P v` and `D = P (g v' - sum(P g v'))`: `s D k`, `s D' q`, `P' g`."""
    node, op = step.node, step.op
    if not node.attrs["is_plain"]:
        raise step.refusal("it has modes of its own")
    if not step.wanted <= {0, 1, 2}:
        raise step.refusal("its mask is computed")
    query, key, value = (step.operand(index) for index in range(3))
    sizes, gradient = node.read(0).sizes, step.gradient
    rank = len(sizes)
    if any(node.read(index).sizes[:-2] != sizes[:-2] for index in (1, 2)):
        raise step.refusal("its heads are shared")
    factor = node.attrs["scale"] or 1 / math.sqrt(fixed(sizes[-1:])[0])
    scores = op.mul(op.matmul_transposed(query, key, rank), step.number(factor))
    shares = op.softmax(_masked(step, scores))
    along = _difference(step, shares, op.matmul_transposed(gradient, value, rank))
    made = {}
    if 0 in step.wanted:
        made[0] = op.mul(op.matmul(along, key), step.number(factor))
    if 1 in step.wanted:
        made[1] = op.mul(op.matmul(_turned(step, along, rank + step.lead), query), step.number(factor))
    if 2 in step.wanted:
        made[2] = op.matmul(_turned(step, shares, rank), gradient)
    return made


def _difference(step: Step[Any], shares: Any, partial: Any) -> Any:
    """Back through a softmax over the last axis."""
    op, last = step.op, len(step.node.output.sizes) - 1 + step.lead
    weighted = op.mul(shares, partial)
    return op.sub(weighted, op.mul(shares, op.reduce(weighted, "sum", [last])))


def _masked(step: Step[Any], scores: Any) -> Any:
    mask: Value | None = step.node.operand(3)
    if step.node.attrs["causal"]:
        rows, columns = (fixed(step.node.read(index).sizes[-2:-1])[0] for index in (0, 1))
        return step.op.add(scores, step.constant(np.triu(np.full((rows, columns), -1e30), 1)))
    if mask is None or mask.sizes == ():
        return scores
    given = step.operand(3)
    if mask.dtype == "bool":
        kept = step.op.cast(given, "float32")
        given = step.op.mul(step.op.sub(kept, step.number(1.0)), step.number(1e30))
    return step.op.add(scores, given)


RULES: Mapping[type[Operator], Rule] = {Product: _product, FusedAttention: _attention}
