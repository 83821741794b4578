"""Finding attention: fused, or as a softmax between two products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xai_insert.graph.along import along
from xai_insert.graph.items import first_present, only
from xai_insert.graph.operators import FusedAttention, Product
from xai_insert.graph.pattern import Miss, Part, fitted, nearest
from xai_insert.graph.traits import MIXES_HEADS, SCALES_SCORES
from xai_insert.graph.view import Node, Op, Use, Value

_SEARCH_DEPTH = 16


@dataclass(frozen=True)
class Attention:
    """One attention: `softmax(query @ key) @ value`, fused or in parts.

    Attributes:
        node: the fused node, or the softmax.
        query: `[..., Tq, d]`.
        key: `[..., T, d]` if fused or if the product transposes it, else `[..., d, T]`.
        value: `[..., T, d]`.
        scores: what the softmax reads, `[..., Tq, T]`; None if fused.
        shares: what the softmax gives; None if fused.
        weights: what meets `value`: `shares`, possibly mixed across heads; None if fused.
        result: `[..., Tq, d]`.
        key_axis: the axis of `key` that holds the tokens.
        heads: of an attention of three axes, how many heads its first holds for each image; None if unknown.
    """

    node: Node
    query: Value
    key: Value
    value: Value
    scores: Value | None
    shares: Value | None
    weights: Value | None
    result: Value
    key_axis: int
    heads: int | None = None

    @property
    def is_fused(self) -> bool:
        return self.scores is None


def find_attentions(nodes: Sequence[Node]) -> list[Attention]:
    """Every attention among nodes, in their order."""
    found: list[Attention] = []
    for node in nodes:
        if isinstance(node.kind, FusedAttention) and node.kind.is_plain:
            query, key, value = (node.read(index) for index in range(3))
            if not key.is_constant:  # OpenVINO fuses linear attention so: a layer, softmax, and a product
                found.append(Attention(node, query, key, value, None, None, None, node.output, len(key.sizes) - 2))
        elif node.op is Op.SOFTMAX and not isinstance(parts := fitted(IN_PARTS, node), Miss):
            (query, key, axis), product = parts["factors"], parts["product"]
            weights, value = product.read(0), product.read(1)
            scores, shares = node.read(0), node.output
            found.append(Attention(node, query, key, value, scores, shares, weights, product.output, axis))
    return found


def near_miss(nodes: Sequence[Node]) -> Miss | None:
    """What the softmax that looks most like attention lacks; None where there is no softmax but those of attentions."""
    return nearest(IN_PARTS, [node for node in nodes if node.op is Op.SOFTMAX])


def _over_last_axis(softmax: Node) -> Node | None:
    return softmax if along(softmax.kind) == softmax.output.axis_count - 1 else None


def _product_behind(shares: Value) -> Node | None:
    """The product of the shares with the values, behind operations that mix heads or do nothing."""
    front, found = [shares], []
    for _ in range(_SEARCH_DEPTH):
        uses = [use for value in front for use in value.uses]
        found += [use.node for use in uses if _weighs_values(use)]
        following = dict.fromkeys(use.node for use in uses if use.node.op in MIXES_HEADS)
        front = [node.output for node in following if node not in found]
        if found or not front:
            break
    return only(found)


def _weighs_values(use: Use) -> bool:
    """Whether it is the first factor of a product with what is computed."""
    return use.node.op is Op.MATMUL and use.index == 0 and use.node.read(1) in use.node.computed


def _product_before(scores: Value, depth: int) -> tuple[Value, Value, int] | None:
    """Query, key and its token axis: the factors of the nearest product of two activations before the softmax."""
    node = scores.producer
    if node is None or depth == 0:
        return None
    if isinstance(node.kind, Product) and (len(node.computed) >= 2 or _has_learned_query(node)):
        key = node.read(1)
        axis = len(key.sizes) - 1 - node.kind.transpose_b
        return None if node.kind.transpose_a else (node.read(0), key, axis)
    if node.op not in SCALES_SCORES:
        return None
    found = (_product_before(operand, depth - 1) for operand in node.computed)
    return first_present(found)


def _has_learned_query(product: Node) -> bool:
    """Whether a product of scores has stored queries, a row of them or several for each head."""
    query, key = product.read(0), product.read(1)
    return query.is_constant and query.rank == key.rank and key.axis_count > 2


IN_PARTS = (
    Part("softmax", "sum over the last axis, as attention over tokens has", lambda node, _: _over_last_axis(node)),
    Part("product", "single product of its shares with values behind it", lambda node, _: _product_behind(node.output)),
    Part(
        "factors",
        "product of queries and keys before it",
        lambda node, _: _product_before(node.read(0), _SEARCH_DEPTH),
    ),
)
"""Of an attention that is not fused, from its softmax."""
