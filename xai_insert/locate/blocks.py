"""The blocks of a transformer whose tokens are all of one kind to the end: what each of them gives on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xai_insert.graph.cuts import activations, cut_values
from xai_insert.graph.operators import Pointwise
from xai_insert.graph.view import Graph, Value
from xai_insert.locate.attention import Attention
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.places import Places
from xai_insert.locate.transformer import attended_tokens


@dataclass(frozen=True)
class Block:
    """A block with attention.

    Attributes:
        attentions: its attentions, side by side.
        tokens: what they attend, as a map.
        output: what the block gives to the next one, or to the head, of the sizes of the tokens, on every path to the
            scores.
    """

    attentions: tuple[Attention, ...]
    tokens: FeatureMap
    output: Value


def last_blocks(graph: Graph, images: Sequence[Value], logits: Value, places: Places) -> list[Block]:
    """The blocks at the end, the first first, whose outputs the head could read alike; empty if there is none."""
    groups = attended_tokens(graph, images, logits, places)
    cuts = cut_values(graph, images, logits)
    blocks: list[Block] = []
    behind: Value | None = None
    for attentions, value in reversed(groups):
        feature = places.tokens_of(value)
        output = _output(graph, cuts, attentions, value, behind)
        if feature is None or output is None or (blocks and value.shape != blocks[0].tokens.value.shape):
            break
        blocks.insert(0, Block(attentions, feature, output))
        behind = value
    return blocks


def _output(
    graph: Graph, cuts: Sequence[Value], attentions: Sequence[Attention], tokens: Value, behind: Value | None
) -> Value | None:
    """The last value of the block: before what the next one attends, or the last sum before the head."""
    after = activations(graph, [item.result for item in attentions])
    inside = [value for value in cuts if value.shape == tokens.shape and value in after]
    ends = (
        value
        for value in reversed(inside)
        if (_is_residual(value) if behind is None else behind in activations(graph, [value]))
    )
    return next(ends, None)


def _is_residual(value: Value) -> bool:
    """Whether two activations are added, as a block does with what it read, and a norm does not."""
    node = value.producer
    if node is None or not isinstance(node.kind, Pointwise) or node.kind.function != "add":
        return False
    return len(node.computed) == len(node.inputs)
