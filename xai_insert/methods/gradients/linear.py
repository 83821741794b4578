"""Derivatives of matrix products and of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xai_insert.graph.operators import Contracted, FusedAttention, Operator, Product
from xai_insert.graph.view import Value, fixed, volume
from xai_insert.methods.gradients.step import Gradients, Rule, Step, repeated


def _turned(step: Step[Any], a: Any, rank: int) -> Any:
    """The last two axes exchanged."""
    return step.op.transpose(a, [*range(rank - 2), rank - 1, rank - 2])


def _product(step: Step[Any]) -> Gradients:
    """With `y = a b`: `g b'` and `a' g`."""
    node, kind = step.node, step.kind(Product)
    a, b = node.read(0).sizes, node.read(1).sizes
    if min(len(a), len(b)) < 2:
        return _vector_product(step, kind)
    gradient, rank = step.gradient, len(node.output.sizes) + step.lead
    if kind.factor != 1.0:
        gradient = step.op.mul(gradient, step.number(kind.factor))
    made: dict[int, Any] = {}
    if 0 in step.wanted:
        other, along = step.turned(1, gradient, is_square=_is_square(node.read(1)))
        partial = step.op.matmul(along, other) if kind.transpose_b else step.op.matmul_transposed(along, other, len(b))
        made[0] = _laid_as(step, partial, 0, rank, is_turned=kind.transpose_a)
    if 1 in step.wanted:
        other = step.operand(0)
        rows = other if kind.transpose_a else _turned(step, other, len(a))
        made[1] = _laid_as(step, step.op.matmul(rows, gradient), 1, rank, is_turned=kind.transpose_b)
    if 2 in step.wanted:
        bias = step.gradient
        bias = bias if kind.bias_factor == 1.0 else step.op.mul(bias, step.number(kind.bias_factor))
        made[2] = step.fitted(bias, 2)
    return made


def _vector_product(step: Step[Any], kind: Product) -> Gradients:
    """Of rows with one stored vector, a sum of each row: every element of a row gets its part."""
    a, b = (step.node.read(index).sizes for index in (0, 1))
    is_plain = not (kind.transpose_a or kind.transpose_b) and kind.factor == 1.0
    if len(b) != 1 or len(a) < 2 or step.wanted != {0} or not is_plain:
        raise step.refusal("an operand is a vector")
    return {0: step.op.mul(step.op.unsqueeze(step.gradient, step.axes([len(a) - 1])), step.operand(1))}


def _laid_as(step: Step[Any], partial: Any, index: int, rank: int, *, is_turned: bool) -> Any:
    """A derivative by a factor, laid out as the factor is."""
    return _fitted(step, _turned(step, partial, rank) if is_turned else partial, index)


def _fitted(step: Step[Any], gradient: Any, index: int) -> Any:
    """Summed over the batch axes along which an operand was broadcast."""
    value, result = step.node.read(index), step.node.output.sizes[:-2]
    own = (1,) * (len(result) + 2 - len(value.sizes)) + value.sizes[:-2]
    summed = repeated(own, result)
    if summed:
        gradient = step.op.reduce(gradient, "sum", step.axes(summed))
    return gradient if len(result) + 2 == len(value.sizes) else step.shaped(gradient, value)


def _contraction(step: Step[Any]) -> Gradients:
    """Of an Einsum: the derivative contracted with the other operand."""
    kind = step.kind(Contracted)
    if kind.labels is None:
        raise step.refusal("its equation is no product of two operands")
    *terms, result = kind.labels
    sizes = {
        label: size for index in (0, 1) for label, size in zip(terms[index], step.node.read(index).sizes, strict=True)
    }
    if any(label not in result and label not in terms[1 - index] for index in step.wanted for label in terms[index]):
        raise step.refusal("it sums one operand alone")
    return {index: _contracted(step, result, terms[1 - index], 1 - index, terms[index], sizes) for index in step.wanted}


def _contracted(step: Step[Any], result: str, other: str, index: int, own: str, sizes: Mapping[str, int | None]) -> Any:
    """Along the labels of both and the wanted operand side by side, those of both alone summed: a matrix product."""
    op, lead = step.op, step.ahead
    batch, rows, summed, columns = _parts(result, other, own)
    labels = [*batch, *rows, *columns]
    if [sizes[label] for label in labels].count(None) > 1:
        raise step.refusal("several sizes follow the input")

    def open_sizes(groups: Sequence[Sequence[str]]) -> list[int]:
        return [-1 if (size := volume([sizes[label] for label in group])) is None else size for group in groups]

    def laid(value: Any, term: str, groups: Sequence[Sequence[str]], before: Sequence[int]) -> Any:
        count = len(before)
        order = [count + term.index(label) for group in groups for label in group]
        return op.reshape(op.transpose(value, [*range(count), *order]), [*before, *open_sizes(groups)])

    apart = [[label] for label in batch]
    left = laid(step.gradient, result, [*apart, rows, summed], lead)
    made = op.matmul(left, laid(step.operand(index), other, [*apart, summed, columns], []))
    made = op.reshape(made, [*lead, *open_sizes([[label] for label in labels])])
    return op.transpose(made, [*range(step.lead), *step.axes([labels.index(label) for label in own])])


def _parts(result: str, other: str, own: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """Labels that all three have, those of result and own, those of result and other, those of other and own."""
    both = [label for label in result if label in other]
    batch, summed = [label for label in both if label in own], [label for label in both if label not in own]
    rows, columns = ([label for label in own if label in term and label not in both] for term in (result, other))
    return batch, rows, summed, columns


def _attention(step: Step[Any]) -> Gradients:
    """With `P = softmax(s q k' + mask)`, `y = P v` and `D = P (g v' - sum(P g v'))`: `s D k`, `s D' q`, `P' g`."""
    node, op = step.node, step.op
    _require_plain(step)
    query, key = (step.operand(index) for index in range(2))
    sizes, gradient = node.read(0).sizes, step.gradient
    rank = len(sizes)
    factor = step.kind(FusedAttention).factor(fixed(sizes[-1:])[0])
    scores = op.mul(op.matmul_transposed(query, key, rank), step.number(factor))
    shares = op.softmax(_masked(step, scores))
    values, back = step.turned(2, gradient, is_square=_is_square(node.read(2)))
    along = _difference(step, shares, op.matmul_transposed(back, values, rank))
    made = {}
    if 0 in step.wanted:
        keys, back = step.turned(1, along, is_square=_is_square(node.read(1)))
        made[0] = _fitted(step, op.mul(op.matmul(back, keys), step.number(factor)), 0)
    if 1 in step.wanted:
        turned = _turned(step, along, rank + step.lead)
        made[1] = _fitted(step, op.mul(op.matmul(turned, query), step.number(factor)), 1)
    if 2 in step.wanted:
        made[2] = _fitted(step, op.matmul(_turned(step, shares, rank), gradient), 2)
    if 3 in step.wanted:
        made[3] = _of_mask(step, along)
    return made


def _is_square(value: Value) -> bool:
    return value.sizes[-1] == value.sizes[-2]


def _require_plain(step: Step[Any]) -> None:
    """Refuse an attention with modes of its own, or whose heads share keys."""
    if not step.kind(FusedAttention).is_plain:
        raise step.refusal("it has modes of its own")
    whole = step.node.read(0).sizes[:-2]
    pairs = (pair for index in (1, 2) for pair in zip(step.node.read(index).sizes[:-2], whole, strict=True))
    if any(own not in (1, size) for own, size in pairs):
        raise step.refusal("some of its heads share their keys")


def _of_mask(step: Step[Any], along: Any) -> Any:
    """The derivative by the attention's scores, summed over the axes along which the mask was broadcast."""
    mask, result = step.node.read(3), step.node.output.sizes
    whole = (*result[:-1], step.node.read(1).sizes[-2])
    own = (1,) * (len(whole) - len(mask.sizes)) + mask.sizes
    summed = repeated(own, whole)
    along = step.op.reduce(along, "sum", step.axes(summed)) if summed else along
    return along if len(own) == len(mask.sizes) else step.shaped(along, mask)


def _difference(step: Step[Any], shares: Any, partial: Any) -> Any:
    """Back through a softmax over the last axis."""
    op, last = step.op, len(step.node.output.sizes) - 1 + step.lead
    weighted = op.mul(shares, partial)
    return op.sub(weighted, op.mul(shares, op.reduce(weighted, "sum", [last])))


def _masked(step: Step[Any], scores: Any) -> Any:
    mask: Value | None = step.node.operand(3)
    if step.kind(FusedAttention).is_causal:
        rows, columns = (fixed(step.node.read(index).sizes[-2:-1])[0] for index in (0, 1))
        return step.op.add(scores, step.constant(np.triu(np.full((rows, columns), -1e30), 1)))
    if mask is None or mask.sizes == ():
        return scores
    given = step.operand(3)
    if mask.dtype == "bool":
        kept = step.op.cast(given, "float32")
        given = step.op.mul(step.op.sub(kept, step.number(1.0)), step.number(1e30))
    return step.op.add(scores, given)


RULES: Mapping[type[Operator], Rule] = {Product: _product, Contracted: _contraction, FusedAttention: _attention}
