"""LeGrad: how the scores that each block's own output would give grow with the block's attention.

Bousselham et al. 2024, https://arxiv.org/abs/2404.03214. With P the attention of block l (what meets the values, for
each head and query), and s_l the score of class k when the head reads the output of block l in place of that of the
last block:

    E_l[j] = mean over heads and queries i of ReLU(d s_l / d P[head, i, j])
    S_k    = sum over blocks of E_l, at the patches j

With o = P v the derivative by P is that by o times v. So the head, what follows the attention in the block, and that
product are differentiated, and never a block before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from xai_insert.graph.cuts import region
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Graph, Op, Value, fixed
from xai_insert.locate.attention import Attention
from xai_insert.locate.blocks import Block
from xai_insert.methods.gradients.forward import Forward
from xai_insert.methods.gradients.maps import seeds_of
from xai_insert.methods.gradients.pullback import pullback
from xai_insert.methods.shaping import rerun, scalar
from xai_insert.methods.top_classes import ClassChoice

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class AttentionMap(Generic[V]):
    """What was written for one attention.

    Attributes:
        block: its block.
        attention: itself.
        raw: the maps, float32 `[B, k, h, w]`.
        gradient: the derivatives by what the attention gives, with an axis of classes before them if there are several.
        values: what the attention weighs.
        scores: those that the output of its block gives.
    """

    block: Block
    attention: Attention
    raw: V
    gradient: V
    values: V
    scores: V


def legrad(
    surgeon: Surgeon[V], graph: Graph, blocks: Sequence[Block], logits: Value, choice: ClassChoice[V]
) -> list[AttentionMap[V]]:
    """The maps of each attention, whose sum is the map.

    Args:
        surgeon: the model being edited.
        graph: its view.
        blocks: those to sum over, the last of the model last.
        logits: class scores `[B, K]`, perhaps with further axes of size 1.
        choice: the classes.

    Raises:
        NoDerivativeError: an operator of the head or behind an attention has no rule.
        ShapeUnknownError: a size there follows the input.
    """
    count = None if choice.count == 1 else choice.count
    seeds = seeds_of(surgeon, logits, choice)
    last = blocks[-1].output
    made = []
    for block in blocks:
        read = _read(surgeon, graph, last, logits, block.output)
        (gradient,) = pullback(surgeon, graph, [last], seeds, count, read)
        results = [item.result for item in block.attentions]
        gradients = pullback(surgeon, graph, results, {block.output: gradient}, count)
        scores = read.get(logits, surgeon.handle(logits))
        for item, partial in zip(block.attentions, gradients, strict=True):
            values = surgeon.handle(item.value)
            raw = _relevance(surgeon, block, item, values, partial, count)
            made.append(AttentionMap(block, item, raw, partial, values, scores))
    return made


def _read(surgeon: Surgeon[V], graph: Graph, last: Value, logits: Value, output: Value) -> Mapping[Value, V]:
    """The values of the head when it reads `output` in place of `last`."""
    if output is last:  # which the norm behind it may be merged with
        return {last: Forward(surgeon, ()).read(last)}
    made: dict[Value, V] = {last: surgeon.handle(output)}
    for node in region(graph, [last], [logits]):
        if node.op is not Op.SHAPE:
            made.update(zip(node.outputs, rerun(surgeon, node, made), strict=True))
    return made


def _relevance(surgeon: Surgeon[V], block: Block, item: Attention, values: V, gradient: V, count: int | None) -> V:
    op, rank, feature = surgeon.ops, len(item.value.sizes), block.tokens
    lead = 0 if count is None else 1
    slope = op.maximum(
        op.matmul_transposed(gradient, values, rank), scalar(op, 0.0)
    )  # [..., B, heads, queries, tokens]
    tokens = fixed(item.value.sizes[-2:-1])[0]
    if rank == 3:
        slope = op.reduce(slope, "mean", [lead + 1])
        slope = op.reshape(slope, [*[count] * lead, -1, item.heads or 1, tokens])
        slope = op.reduce(slope, "mean", [lead + 1])
    else:
        slope = op.reduce(slope, "mean", [lead + 1, lead + 2])
    end = feature.prefix + (feature.positions or 0)
    if (feature.prefix, end) != (0, tokens):
        slope = op.slice(slope, lead + rank - 1, feature.prefix, end)
    sides = fixed(feature.grid)
    if count is None:
        return op.reshape(slope, [-1, 1, *sides])
    return op.transpose(op.reshape(slope, [count, -1, *sides]), (1, 0, 2, 3))


def defined(block: Block) -> Callable[[Array, Array, Array], Array]:
    """The relevance in NumPy: results, derivatives by them `[k, B, ...]`, and values to `[k, B, cells]`."""
    feature = block.tokens
    heads = block.attentions[0].heads or 1

    def relevance(result: Array, gradient: Array, values: Array) -> Array:
        del result
        slope = np.maximum(gradient @ np.swapaxes(values, -1, -2), 0).mean(axis=-2)
        slope = slope.reshape(len(gradient), -1, heads if values.ndim == 3 else values.shape[1], values.shape[-2])
        means: Array = slope.mean(axis=2)[..., feature.prefix : feature.prefix + (feature.positions or 0)]
        return means

    return relevance
