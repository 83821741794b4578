"""Which tokens are masked: the last ones before the projections to query, key and value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xai_insert.graph.axes import has_place
from xai_insert.graph.cuts import activations, cut_values, region, walk
from xai_insert.graph.items import first_present, present
from xai_insert.graph.operators import Contracted, Product
from xai_insert.graph.traits import CUTS_OUT
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.attention import Attention
from xai_insert.locate.places import Places


def masked_values(
    graph: Graph, images: Sequence[Value], attentions: Sequence[Attention], places: Places
) -> tuple[Value, ...]:
    """The masked tokens of each of the attentions of a block; none if one has none, or they differ in size."""
    values = [masked_value(graph, images, item, places) for item in attentions]
    masked = tuple(present(values))
    return masked if len(masked) == len(values) and len({value.shape for value in masked}) == 1 else ()


def masked_value(
    graph: Graph, images: Sequence[Value], item: Attention, places: Places, *, of_pool: bool = False
) -> Value | None:
    """The last tokens common to query, key and value that a linear layer has yet to project.

    A pool may read them in any layout, and without projecting them.
    """
    fitting = _common_tokens(graph, images, item, places, in_any_layout=of_pool)
    last = next(reversed(fitting), None)
    # Of the result of one linear layer, keys and values are cut out.
    if last is None or (of_pool and not any(node.op in CUTS_OUT for node in region(graph, [last], [item.key]))):
        return last
    found = _Projections(graph, activations(graph, images), places).before(item, fitting)
    if of_pool:
        return found or last
    return None if found is None else _before_turn(found, fitting)


def _before_turn(value: Value, fitting: Sequence[Value]) -> Value:
    """What an attention turns for itself is taken before: the images lead there."""
    turned = value.made_by(Op.TRANSPOSE, Op.RESHAPE)
    return value if turned is None or turned.read(0) not in fitting else turned.read(0)


def _common_tokens(
    graph: Graph, images: Sequence[Value], item: Attention, places: Places, *, in_any_layout: bool
) -> list[Value]:
    """Tokens that query, key and value all come from, the first first."""
    chains = [cut_values(graph, images, value) for value in (item.query, item.key, item.value)]
    first, *others = [chain for chain in chains if chain]  # a learned query depends on no image
    common = [value for value in first if all(value in chain for chain in others)]
    count = item.value.sizes[-2]
    return [value for value in common if _are_tokens(value, places, count, in_any_layout=in_any_layout)]


def _are_tokens(value: Value, places: Places, count: int | None, *, in_any_layout: bool) -> bool:
    """Whether a value is `[B, T, D]` or `[T, B, D]` with the grid of the image in T, or has it in another layout."""
    feature = places.map_of(value, others=True) if in_any_layout else places.tokens_of(value)
    if feature is None:
        return False
    if not in_any_layout:
        return value.sizes[feature.grid_axes[0]] == count
    return (feature.positions if len(feature.grid_axes) == 2 else value.sizes[feature.grid_axes[0]]) == count


@dataclass(frozen=True)
class _Projections:
    """The linear layers over channels of a graph; `reached` are the values that depend on the image."""

    graph: Graph
    reached: set[Value]
    places: Places

    def before(self, item: Attention, fitting: Sequence[Value]) -> Value | None:
        """The last of the fitting values that is not itself what the projections give; None if there are none.

        Query, key and value may come from one linear layer: its result is common to them as well, but it is no token.
        Some of the three may be the tokens as they are: then these are common to all, and go past any layer before.
        """
        *earlier, last = fitting
        projected = self._projected(last, (item.query, item.key, item.value))
        if all(projected):
            return last
        nearest = first_present(value for value in reversed(earlier) if self._lie_between(value, last))
        if nearest is None or self._are_passed_by(nearest, last):
            return last if nearest or any(projected) else None
        return nearest

    def _projected(self, value: Value, ends: Sequence[Value]) -> list[bool]:
        """Whether they lie between a value and each of what depends on the image."""
        return [self._lie_between(value, end) for end in ends if end in self.reached]

    def _lie_between(self, value: Value, end: Value) -> bool:
        return any(map(self._is_one, region(self.graph, [value], [end])))

    def _are_passed_by(self, value: Value, end: Value) -> bool:
        """Whether a path leads round them, as a residual branch does."""
        return value in walk([end], lambda item: () if item is value else self._unprojected(item))

    def _unprojected(self, value: Value) -> list[Value]:
        """What a value is made of, but by a projection."""
        node = value.producer
        if node is None or self._is_one(node):
            return []
        return [operand for operand in node.operands if operand in self.reached]

    def _is_one(self, node: Node) -> bool:
        """Whether a node is one: products with stored weights, or a convolution that is not depthwise."""
        if node.op is Op.CONV:
            return node.operand(1) is not None and (node.read(1).sizes[1] or 0) > 1
        if not isinstance(node.kind, (Product, Contracted)):
            return False
        fed = [index for index in (0, 1) if node.operand(index) in self.reached]
        return len(fed) == 1 and self._mixes_channels(node, fed[0])

    def _mixes_channels(self, node: Node, index: int) -> bool:
        """Whether it sums over axes of an operand, none of which holds the tokens."""
        summed, traced = _summed(node, index), self.places.traced.get(node.read(index), ())
        return bool(summed) and not any(has_place(traced[axis]) for axis in summed if traced)


def _summed(node: Node, index: int) -> list[int]:
    """The axes of an operand along which a product of matrices, or an Einsum, sums."""
    if isinstance(node.kind, Product):
        turns = (node.kind.transpose_a, not node.kind.transpose_b)
        rank = node.read(index).axis_count
        return [max(rank - 1 - turns[index], 0)]
    labels = node.record(Contracted).labels or ("", "", "")
    return [axis for axis, label in enumerate(labels[index]) if label in labels[1 - index] and label not in labels[2]]
