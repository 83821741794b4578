"""ViT Recipro-CAM: the class scores when the last block sees the patches around one position only.

Byun and Lee, "ViT-ReciproCAM: Gradient and attention-free visual explanations for vision transformer", 2023,
https://arxiv.org/abs/2310.02588. Before the attention of the last block, sample i keeps the tokens before the patches
whole and weighs patch j by the 3x3 kernel [[1, 2, 1], [2, 4, 2], [1, 2, 1]] / 16 around patch i (or keeps patch i
alone): `S[k, i] = head_k(block(W_i * tokens))`, read at the class token.

Written out, it runs the last block once per patch. But only the class token's row of the attention is read, and its
own weight is one: its query and its residual are those of the ordinary run, and keys and values are functions of one
token each. With s, v the scores and values of the ordinary run and s0, v0 those of zero tokens,

    s_ij = s0_j + W_ij (s_j - s0_j),   P_i = softmax_j(s_ij),   o_i = sum_j P_ij (v0_j + W_ij (v_j - v0_j)),

exactly, wherever keys and values are affine in the token. Where they are not (a norm on the keys), the tokens are run
through the projection once for each of the few weights that occur. The o_i go through the rest of the block as a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CannotFreeBatchError
from xai_insert.graph.axes import Axes, other
from xai_insert.graph.cuts import region
from xai_insert.graph.masks import Masks
from xai_insert.graph.operators import FusedAttention
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Graph, Value, fixed
from xai_insert.locate.attention import Attention
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.transformer import Readout
from xai_insert.methods.axes import batch_axis, token_axis
from xai_insert.methods.batching import Batched, Batcher
from xai_insert.methods.kernels import WEIGHTS, Kernel, kernel_factors
from xai_insert.methods.masked_runs import class_count, run_masks, scores_of_run
from xai_insert.methods.reference import unrounded
from xai_insert.methods.shaping import product_of, rerun, scalar, total, transposed_again
from xai_insert.methods.tensor import Tensor
from xai_insert.methods.token_weights import TokenCounts, token_counts, token_weights, weights_of_one
from xai_insert.methods.top_classes import ClassChoice, choose_maps, chosen_scores, last_layer


@dataclass(frozen=True)
class ZeroTokens:
    """Keys and values that an attention sees where the tokens are zero.

    Attributes:
        key: of the shape of the attention's key for one image, the token axis of size 1 where all tokens agree.
        value: likewise.
        is_affine: whether keys and values are affine in the token.
    """

    key: npt.NDArray[Any]
    value: npt.NDArray[Any]
    is_affine: bool


@dataclass(frozen=True)
class VitTarget:
    """What ViT Recipro-CAM works on.

    Attributes:
        readout: the block and its tokens.
        target: the masked tokens `[B, T, D]` or `[T, B, D]` with the grid of the patches.
        logits: class scores `[B, K]`.
        kernel: `gaussian` or `point`.
        behind: how many tokens stand behind the patches.
    """

    readout: Readout
    target: FeatureMap
    logits: Value
    kernel: Kernel
    behind: int


def vit_recipro_cam(
    surgeon: Surgeon[V],
    graph: Graph,
    vit: VitTarget,
    zeros: Mapping[Attention, ZeroTokens],
    choice: ClassChoice[V] | None = None,
) -> V:
    """Exact ViT Recipro-CAM for a head that reads leading tokens of the last block.

    Args:
        surgeon: the model being edited.
        graph: its view.
        vit: block, tokens and logits; the head reads no patch.
        zeros: what each attention sees of zero tokens.
        choice: the classes whose maps are wanted; None for all.

    Returns:
        float32 `[B, K, h, w]`, raw scores.

    Raises:
        CannotFreeBatchError: the rest of the model mixes tokens or images.
    """
    op = surgeon.ops
    logits, counts = vit.logits, token_counts(surgeon, vit.target, vit.behind)
    sides, patches = counts.sides, counts.patches
    rest = _masked_attentions(surgeon, graph, vit, zeros, counts)
    results = [attention.result for attention in vit.readout.attentions]
    classes = class_count(logits)
    layer = None if choice is None else last_layer(surgeon, logits, classes)
    if choice is not None and layer is not None and (before := region(graph, results, [layer.source])):
        chosen = chosen_scores(surgeon, layer, choice, rest.run(before, layer.source), (-1, patches), classes)
        return op.reshape(chosen, [-1, choice.count, *sides])
    scores = rest.run(region(graph, results, [logits]), logits)
    by_class = op.transpose(op.reshape(scores, [-1, patches, classes]), (0, 2, 1))
    maps = op.reshape(by_class, [-1, classes, *sides])
    return maps if choice is None else choose_maps(surgeon, maps, choice, (None, classes, *vit.target.grid))


def _masked_attentions(
    surgeon: Surgeon[V], graph: Graph, vit: VitTarget, zeros: Mapping[Attention, ZeroTokens], counts: TokenCounts[V]
) -> Batcher[V]:
    """What runs the rest of the model, given the result of each attention of the block for each mask."""
    readout, weights = vit.readout, token_weights(surgeon.ops, counts, vit.target, vit.kernel)
    rest = Batcher(surgeon, readout.batch, readout.rows, counts.patches)
    projected = [value for item in readout.attentions for value in (item.query, item.key, item.value)]
    entries = readout.entries
    handles: dict[Value, V] = {}
    if any(surgeon.rounds(node) for node in region(graph, entries, projected)):
        handles = dict(zip(projected, unrounded(surgeon, graph, entries, projected), strict=True))
    for attention, masked in zip(readout.attentions, readout.masked, strict=True):
        zero = zeros[attention]
        block = _MaskedAttention(surgeon, graph, readout, attention, masked, zero, vit.kernel, counts, handles)
        rest.made[attention.result] = block.run(weights)
    return rest


@dataclass(frozen=True)
class _MaskedAttention:
    """The results of one attention for all masked samples."""

    surgeon: Surgeon[Any]
    graph: Graph
    readout: Readout
    attention: Attention
    masked: Value
    zero: ZeroTokens
    kernel: Kernel
    counts: TokenCounts[Any]
    handles: Mapping[Value, Any]
    """Query, key and value of the ordinary run, where those of the model are rounded."""

    def run(self, weights: Any) -> Batched[Any]:
        """The attention's result at the read-out rows, one sample per image and patch."""
        op, item, rows = self.surgeon.ops, self.attention, self.rows
        keys, values = self._by_weight()
        scores = self._blend([self._scores(key) for key in keys], weights)
        shares = self._mixed(op.softmax(scores))
        result = self._weighted_sum(shares, values, weights)
        *leading, _, width = item.result.sizes
        heads = self._heads(leading)
        split = op.reshape(result, [-1, heads, rows, self.counts.patches, width])
        samples = op.transpose(split, (0, 3, 1, 2, 4))
        if len(leading) == 2:
            samples = op.reshape(samples, [-1, heads, rows, width])
        else:
            samples = op.reshape(samples, [-1, rows, width])
        return Batched(samples, self._dims(item.result.sizes, self._row_axis(item.result)))

    @property
    def rows(self) -> int:
        """Rows of the query that are read: one of a class attention, else those that the head reads."""
        return self.readout.rows if self._query_tokens > 1 else 1

    @property
    def _query_tokens(self) -> int:
        return fixed([self.attention.queries])[0]

    def _row_axis(self, value: Value, axis: int = -2) -> int | None:
        """The axis of which the read-out rows alone are kept; None where all are read, which may then be mixed."""
        return None if self.readout.is_pool else axis % len(value.sizes)

    def _heads(self, leading: Sequence[int | None]) -> int:
        if len(leading) == 2:
            return fixed(leading[1:])[0]
        if self.attention.heads is None:
            raise CannotFreeBatchError(f"the heads of {self.attention.node.name!r} cannot be told from its batch")
        return self.attention.heads

    def _dims(self, sizes: Sequence[int | None], tokens: int | None) -> Axes:
        if len(sizes) == 3:
            first = (*batch_axis(self.readout.batch), *other(self._heads(sizes[:1])))
        elif len(sizes) == 4:
            first = batch_axis(self.readout.batch)
        else:
            raise CannotFreeBatchError(f"the attention {self.attention.node.name!r} has {len(sizes)} axes")
        rest = [
            token_axis(fixed([size])[0]) if axis == tokens else other(fixed([size])[0])
            for axis, size in enumerate(sizes)
            if axis > 0
        ]
        return (first, *rest)

    def _read(self, value: Value) -> Any:
        """`value`, from before the transpose that makes it: a runtime may merge that with the model's own attention."""
        return self.handles[value] if value in self.handles else transposed_again(self.surgeon, value)

    def _by_weight(self) -> tuple[list[Any], list[Any]]:
        """Keys and values for the whole token, for each weight in between that is needed, and for the zero token."""
        item = self.attention
        tokens_axis = len(item.value.sizes) - 2
        if self._zeros_follow():
            zero_key, zero_value = self._projected(0.0)
        else:
            zero_key = self._zeros(self.zero.key, item.key, item.key_axis, full=True)
            zero_value = self._zeros(self.zero.value, item.value, tokens_axis, full=not self.zero.is_affine)
        keys, values = [self._read(item.key)], [self._read(item.value)]
        if not self.zero.is_affine:
            for weight in WEIGHTS[self.kernel]:
                key, value = self._projected(weight)
                keys.append(key)
                values.append(value)
        return [*keys, zero_key], [*values, zero_value]

    def _zeros_follow(self) -> bool:
        """Whether zero tokens differ between places or heads, where the number of places follows the image."""
        key, value = self.zero.key.shape, self.zero.value.shape
        return not self.counts.are_known and {key[0], key[self.attention.key_axis], value[0], value[-2]} != {1}

    def _projected(self, weight: float) -> tuple[Any, Any]:
        """Keys and values of all tokens weighed alike."""
        masked, op = self.masked, self.surgeon.ops
        made = {masked: op.mul(self.surgeon.handle(masked), scalar(op, weight))}
        for node in region(self.graph, [masked], [self.attention.key, self.attention.value]):
            made.update(zip(node.outputs, rerun(self.surgeon, node, made), strict=True))
        return made[self.attention.key], made[self.attention.value]

    def _scores(self, key: Any) -> Any:
        """What the softmax reads at the read-out rows, `[..., rows, T]`."""
        op, item = self.surgeon.ops, self.attention
        query = self._read(item.query)
        if self._query_tokens > 1:
            query = op.slice(query, item.query_axis, 0, self.rows)
        if item.is_fused:
            return self._fused_scores(query, key)
        assert item.scores is not None
        batcher = Batcher(self.surgeon, self.readout.batch, self.rows)
        batcher.made[item.query] = Batched(
            query, self._dims(item.query.sizes, self._row_axis(item.query, item.query_axis))
        )
        batcher.made[item.key] = Batched(key, self._dims(item.key.sizes, None))
        nodes = region(self.graph, [item.query, item.key], [item.scores])
        return batcher.run(nodes, item.scores, heads=True)

    def _fused_scores(self, query: Any, key: Any) -> Any:
        op, node = self.surgeon.ops, self.attention.node
        kind = node.record(FusedAttention)
        if kind.is_causal:
            raise CannotFreeBatchError(f"the attention {node.name!r} is causal")
        query = op.mul(query, scalar(op, kind.factor(fixed(self.attention.query.sizes[-1:])[0])))
        scores = op.matmul_transposed(query, key, len(self.attention.key.sizes))
        mask = node.operand(3)
        if mask is None:
            return scores
        if "float" not in mask.dtype:
            raise CannotFreeBatchError(f"the mask of the attention {node.name!r} is {mask.dtype}")
        handle = self.surgeon.handle(mask)
        if len(mask.sizes) > 1 and mask.sizes[-2] != 1:
            handle = op.slice(handle, len(mask.sizes) - 2, 0, self.rows)
        return op.add(scores, handle)

    def _blend(self, scores: list[Any], weights: Any) -> Any:
        """Scores `[..., rows * N, T]` of the masked samples, from those for each weight."""
        op, rows = self.surgeon.ops, self.rows
        patches, tokens = self.counts.patches, self.counts.tokens
        heads = self._score_heads()
        spread = scores
        if rows > 1:  # [..., rows, T] -> [..., rows, 1, T], so that the samples have an axis of their own
            spread = [op.reshape(score, [-1, heads, rows, 1, tokens]) for score in scores]
        if self.zero.is_affine:
            whole, zero = (Tensor(op, score) for score in spread)
            w = Tensor(op, weights)
            rest = 1.0 - w
            blended = (w * whole + rest * zero).handle
        else:
            blended = self._selected(spread, weights)
        if rows > 1:
            shape = [-1, heads, product_of(op, (rows, patches)), tokens]
            blended = op.reshape(blended, shape if len(self.attention.query.sizes) == 4 else [-1, *shape[2:]])
        return blended

    def _score_heads(self) -> int:
        return self._heads(self.attention.query.sizes[:-2])

    def _selectors(self, weights: Any) -> list[Any]:
        """Masks `[N, T]`, one for each weight: 1 where it applies."""
        op = self.surgeon.ops
        steps = (1.0, *WEIGHTS[self.kernel], 0.0)
        return [op.equal(weights, scalar(op, step)) for step in steps]

    def _selected(self, candidates: list[Any], weights: Any) -> Any:
        op = self.surgeon.ops
        parts = [op.mul(c, mask) for c, mask in zip(candidates, self._selectors(weights), strict=True)]
        return total(op, parts)

    def _mixed(self, shares: Any) -> Any:
        """Shares after the operations that stand between softmax and values (heads mixed, dropout)."""
        item = self.attention
        if item.shares is None or item.weights is None or item.shares is item.weights:
            return shares
        if not isinstance(self.counts.patches, int):
            raise CannotFreeBatchError(f"{item.node.name!r} mixes heads, and the number of patches follows the image")
        batcher = Batcher(self.surgeon, self.readout.batch, self.rows * self.counts.patches)
        batcher.made[item.shares] = Batched(shares, self._dims(item.shares.sizes, self._row_axis(item.shares)))
        return batcher.run(region(self.graph, [item.shares], [item.weights]), item.weights, heads=True)

    def _weighted_sum(self, shares: Any, values: list[Any], weights: Any) -> Any:
        op, rows, patches, tokens = self.surgeon.ops, self.rows, self.counts.patches, self.counts.tokens
        tiled = weights
        if rows > 1:
            every = product_of(op, (rows, patches))
            tiled = op.reshape(op.expand(op.reshape(weights, [1, patches, tokens]), [rows, 1, 1]), [every, tokens])
        if self.zero.is_affine:
            p, (whole, zero) = Tensor(op, shares), (Tensor(op, value) for value in values)
            moved = (p * Tensor(op, tiled)) @ (whole - zero)
            is_one = self.zero.value.shape[-2] == 1 and not self._zeros_follow()
            rest = p.sum(len(self.attention.query.sizes) - 1) * zero if is_one else p @ zero
            return (moved + rest).handle
        pairs = zip(values, self._selectors(tiled), strict=True)
        return total(op, (op.matmul(op.mul(shares, mask), value) for value, mask in pairs))

    def _zeros(self, zero: npt.NDArray[Any], like: Value, axis: int, *, full: bool) -> Any:
        """Keys or values of zero tokens, spread to all tokens (`full`) and to the images of the batch.

        While the model runs, rather than in the file.
        """
        op, sizes = self.surgeon.ops, list(zero.shape)
        handle = op.constant(zero.astype(np.float32))
        if full and not self.counts.are_known:
            return op.add(op.mul(self._read(like), scalar(op, 0.0)), handle)
        if full and sizes[axis] != self.readout.tokens:
            spread = [1] * zero.ndim
            sizes[axis] = spread[axis] = self.readout.tokens
            handle = op.expand(handle, spread)
        if zero.ndim != 3 or sizes[0] == 1:
            return handle
        nothing = op.mul(op.slice(self._read(like), axis, 0, 1), scalar(op, 0.0))
        beside = [1 if index == axis else size for index, size in enumerate(sizes)]
        return op.reshape(op.add(op.reshape(nothing, [-1, *beside]), handle), [-1, *sizes[1:]])


def masked_vit_runs(surgeon: Surgeon[V], graph: Graph, vit: VitTarget, at_once: int | None = None) -> V:
    """ViT Recipro-CAM by its definition: the rest of the model once per patch.

    Arguments and result are those of `vit_recipro_cam` and `run_masks`; the head may read patches. Where the grid
    follows the image, masks are run one by one.
    """
    features = masked_features(vit.readout)
    if None in vit.target.grid:
        return _one_by_one(surgeon, graph, vit, features)
    rows, columns = kernel_factors(fixed(vit.target.grid), vit.kernel, times_last=vit.target.frame.times_last)
    masks = Masks(rows, columns, (vit.readout.tokens, *vit.readout.beside), vit.readout.prefix)
    maps = run_masks(surgeon, graph, features, masks, vit.logits, at_once)
    return surgeon.ops.reshape(maps, [-1, class_count(vit.logits), *fixed(vit.target.grid)])


def _one_by_one(surgeon: Surgeon[V], graph: Graph, vit: VitTarget, features: Sequence[Value]) -> V:
    op, logits, classes = surgeon.ops, vit.logits, class_count(vit.logits)
    nodes, counts = region(graph, features, [logits]), token_counts(surgeon, vit.target, vit.behind)
    sizes = (*[1] * vit.readout.token_axis, -1, *vit.readout.beside)

    def body(run: V) -> V:
        own = token_counts(surgeon, vit.target, vit.behind)  # a loop reads values of the model, none of the branch
        mask = weights_of_one(surgeon.ops, own, vit.kernel, run)
        return scores_of_run(surgeon, features, nodes, 1, logits, surgeon.ops.reshape(mask, sizes))

    scores = surgeon.repeat(counts.patches, body, classes)
    return op.reshape(op.transpose(scores, (1, 2, 0)), [-1, classes, *counts.sides])


def masked_features(readout: Readout) -> list[Value]:
    """The values that the definition masks: the tokens before the attention and those on the residual branch."""
    residual = [] if readout.residual is None else [readout.residual]
    return list(dict.fromkeys([*readout.masked, *residual]))
