"""Finding attention: fused, or as a softmax between two products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xai_insert.graph.along import along
from xai_insert.graph.items import first_present, only
from xai_insert.graph.operators import FusedAttention, Permutation, Product
from xai_insert.graph.pattern import Miss, Part, fitted, nearest
from xai_insert.graph.traits import MIXES_HEADS, SCALES_SCORES
from xai_insert.graph.view import Node, Op, Use, Value

_SEARCH_DEPTH = 16
_Factor = tuple[Value, int]  # and the axis of its tokens


@dataclass(frozen=True)
class Attention:
    """One attention: `softmax(query @ key) @ value`, fused or in parts.

    Attributes:
        node: the fused node, or the softmax.
        query: `[..., Tq, d]`, or `[..., d, Tq]` as `query_axis` says.
        key: `[..., T, d]` if fused or if the product transposes it, else `[..., d, T]`.
        value: `[..., T, d]`.
        scores: what the softmax reads, `[..., Tq, T]`; None if fused.
        shares: what the softmax gives; None if fused.
        weights: what meets `value`: `shares`, possibly mixed across heads; None if fused.
        result: `[..., Tq, d]`.
        query_axis: the axis of `query` that holds its tokens.
        key_axis: likewise of `key`.
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
    query_axis: int
    key_axis: int
    heads: int | None = None

    @property
    def is_fused(self) -> bool:
        return self.scores is None

    @property
    def queries(self) -> int | None:
        """How many tokens ask."""
        return self.query.sizes[self.query_axis]


def find_attentions(nodes: Sequence[Node]) -> list[Attention]:
    """Every attention among nodes, in their order."""
    found: list[Attention] = []
    for node in nodes:
        if isinstance(node.kind, FusedAttention) and node.kind.is_plain:
            query, key, value = (node.read(index) for index in range(3))
            if not key.is_constant:  # OpenVINO fuses linear attention so: a layer, softmax, and a product
                axes = (len(query.sizes) - 2, len(key.sizes) - 2)
                found.append(Attention(node, query, key, value, None, None, None, node.output, *axes))
        elif node.op is Op.SOFTMAX and not isinstance(parts := fitted(IN_PARTS, node), Miss):
            ((query, asking), (key, asked)), product = parts["factors"], parts["product"]
            weights, value = product.read(0), product.read(1)
            scores, shares = node.read(0), node.output
            made = Attention(node, query, key, value, scores, shares, weights, product.output, asking, asked)
            found.append(made)
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


def _product_before(scores: Value, depth: int, keys: int = -1) -> tuple[_Factor, _Factor] | None:
    """Query and key: the factors of the nearest product of two activations before the softmax.

    `keys` is the axis of the scores, counted from the end, that holds the keys' tokens.
    """
    node = scores.producer
    if node is None or depth == 0:
        return None
    if isinstance(node.kind, Product) and (len(node.computed) >= 2 or _has_learned_query(node)):
        return _factors(node, node.kind, keys)
    if node.op not in SCALES_SCORES:
        return None
    before = _before_turn(node, keys)
    found = (_product_before(operand, depth - 1, before) for operand in node.computed)
    return first_present(found)


def _factors(product: Node, kind: Product, keys: int) -> tuple[_Factor, _Factor] | None:
    """Query and key of a product of which `keys` is the axis of the keys, which may be its rows: `(K Q')'`."""
    first, second = product.read(0), product.read(1)
    rows = (first, len(first.sizes) - 2 + kind.transpose_a)
    columns = (second, len(second.sizes) - 1 - kind.transpose_b)
    return {-1: (rows, columns), -2: (columns, rows)}.get(keys)


def _before_turn(node: Node, axis: int) -> int:
    """Where an axis stands before a node that may turn it; both counted from the end."""
    perm = node.kind.perm if isinstance(node.kind, Permutation) else None
    return axis if perm is None or len(perm) < -axis else perm[axis] - len(perm)


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
