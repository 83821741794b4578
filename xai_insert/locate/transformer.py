"""Locating the last attention block of a classifier that reads class tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xai_insert.graph.along import stretch
from xai_insert.graph.cuts import activations, cut_values, region
from xai_insert.graph.items import only
from xai_insert.graph.pattern import Miss, Part, before, fitted
from xai_insert.graph.traits import ARRANGES
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.attention import Attention, find_attentions, near_miss
from xai_insert.locate.collapse import Collapse, GridEnd
from xai_insert.locate.inputs import open_hint
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.masked import masked_value, masked_values
from xai_insert.locate.places import Places


@dataclass(frozen=True)
class Readout:
    """How a classifier reads its tokens.

    Attributes:
        masked: for each attention the tokens that are masked, `[B, T, D]` or `[T, B, D]` (of a pool in any layout): the
            last value before its projections through which every path to query, key and value runs (the output of the
            block's first norm).
        residual: the tokens at the entry of the block, likewise; None if no single value holds them.
        attentions: the attentions of the last block, side by side.
        prefix: number of tokens before the patches (class, distillation, registers).
        rows: number of leading tokens that the head reads.
        reads_patches: whether the head reads patch tokens as well.
        is_pool: whether the attention is a pool with learned queries, for which patches are kept one by one; all of
            its rows are read.
        token_axis: of the masked tokens.
    """

    masked: tuple[Value, ...]
    residual: Value | None
    attentions: tuple[Attention, ...]
    prefix: int
    rows: int
    reads_patches: bool
    is_pool: bool = False
    token_axis: int = 1

    @property
    def tokens(self) -> int:
        return self.attentions[0].value.sizes[-2] or 0

    @property
    def entries(self) -> list[Value]:
        """What is masked, once each."""
        return list(dict.fromkeys(self.masked))

    @property
    def projected(self) -> list[Value]:
        """Key and value of each attention, one after the other."""
        return [value for item in self.attentions for value in (item.key, item.value)]

    @property
    def batch(self) -> int | None:
        return self.masked[0].sizes[self.batch_axis]

    @property
    def batch_axis(self) -> int:
        return int(self.token_axis == 0)

    @property
    def beside(self) -> tuple[int, ...]:
        """A size of 1 for each axis behind that of the tokens: those of weights of tokens."""
        return (1,) * (self.masked[0].axis_count - 1 - self.token_axis)

    @property
    def dtype(self) -> str:
        return self.masked[0].dtype


@dataclass(frozen=True)
class NoBlock:
    """Why tokens are not masked in a block.

    Attributes:
        reason: for people.
        is_mean_query: whether that is because the token that is read is the mean of the patches, whose map is masked.
    """

    reason: str
    is_mean_query: bool = False


def locate_readout(
    graph: Graph, images: Sequence[Value], logits: Value, ends: Sequence[GridEnd], places: Places, block: int = 1
) -> tuple[Readout, FeatureMap] | NoBlock:
    """Find the last block and its tokens; the reason if that fails.

    Args:
        graph: the model.
        images: its image inputs.
        logits: the class scores.
        ends: the nodes at which the token grid ends.
        places: where the model's values lie in the image.
        block: which block with attention, counted from the end, 1 the last.
    """
    nodes = region(graph, images, [end.source for end in ends])
    groups = _groups(graph, find_attentions(nodes))
    if len(groups) < block:
        return NoBlock(f"wanted block {block} from the end, {_found(groups, nodes)}")
    attentions = groups[-block]
    given = _tokens(graph, images, attentions, places)
    if isinstance(given, NoBlock):
        return given
    masked, feature, tokens = given
    read = [_rows_read(end) for end in ends if end.kind is Collapse.TOKEN]
    alone = _read_alone(ends, places) if read and tokens == feature.positions else None
    if (refusal := _unreadable(graph, images, ends, masked, tokens, alone)) is not None:
        return refusal
    earlier = [item.result for group in groups[:-block] for item in group]
    if not _all_lead_to(graph, earlier, masked):
        return NoBlock(f"{masked[0].describe()} is the last list of tokens, and stands before other attentions")
    rows = max(read, default=0)
    like = [value for value in cut_values(graph, images, logits) if _is_like(value, masked[0], places)]
    residual = _residual(_entry(graph, like, masked, earlier), _passing_by(graph, images, masked, logits))
    reads_patches = len(read) < len(ends) or rows > feature.prefix
    counted, (axis,) = _counted(attentions, places), feature.grid_axes
    return Readout(masked, residual, counted, feature.prefix, rows, reads_patches, token_axis=axis), feature


def _found(groups: Sequence[tuple[Attention, ...]], nodes: Sequence[Node]) -> str:
    """How many blocks there are, and what the softmax that looks most like another lacks, for people."""
    near = near_miss(nodes)
    return f"found {len(groups)} blocks with attention before the tokens" + (f"; {near}" if near else "")


def _all_lead_to(graph: Graph, sources: Sequence[Value], targets: Sequence[Value]) -> bool:
    """Whether every target is computed from each of the sources."""
    return all(activations(graph, [source]).issuperset(targets) for source in sources)


def _tokens(
    graph: Graph, images: Sequence[Value], attentions: Sequence[Attention], places: Places
) -> tuple[tuple[Value, ...], FeatureMap, int] | NoBlock:
    """What is masked of each attention of a block, the grid of the first, and how many tokens there are."""
    tokens = attentions[0].value.sizes[-2]
    if tokens is None:
        return NoBlock(_of_one_size(graph, images, attentions[0].value, places))
    masked = masked_values(graph, images, attentions, places)
    if not masked:
        return NoBlock(f"no value [B, {tokens}, D] feeds query, key and value of {attentions[-1].node.name!r}")
    feature = places.tokens_of(masked[0])
    if feature is None or None in feature.grid:
        what = "those of a patch embedding and a few before them"
        return NoBlock(f"{tokens} tokens are not {what}{open_hint(graph)}")
    return masked, feature, tokens


def _of_one_size(graph: Graph, images: Sequence[Value], attended: Value, places: Places) -> str:
    """Why open sides give no number of tokens, for people: of stored positions there are as many at any size."""
    for value in cut_values(graph, images, attended):
        feature = places.map_of(value, others=True)
        if feature is None or None not in feature.grid or len(feature.grid_axes) > 1:
            continue
        if (count := value.sizes[feature.grid_axes[0]]) is not None:
            fits = f"the model runs only where the image has as many patches{open_hint(graph)}"
            return f"{value.describe()} holds {count} tokens, whatever the size of the image: {fits}"
    return f"the number of tokens follows the size of the image{open_hint(graph)}"


def _unreadable(
    graph: Graph,
    images: Sequence[Value],
    ends: Sequence[GridEnd],
    masked: Sequence[Value],
    tokens: int,
    alone: str | None,
) -> NoBlock | None:
    """Why tokens that could be masked say nothing, or not all; None if they do.

    `alone` is what is read where the attention is over patches alone.
    """
    if joins_mean(graph, images, masked, tokens):
        return NoBlock("the class token is the mean of the patches", is_mean_query=True)
    if alone is not None:
        return NoBlock(alone)
    behind = activations(graph, masked)
    for end in ends:  # of another stream; of an earlier layer the class token alone is read beside the last
        is_earlier = end.kind is Collapse.TOKEN and not activations(graph, [end.source]).isdisjoint(masked)
        if end.source not in behind and not is_earlier:
            aside = end.source.describe()
            return NoBlock(f"{aside} feeds the scores beside the tokens: the map of one leaves out the other")
    return None


def _read_alone(ends: Sequence[GridEnd], places: Places) -> str:
    """What is read behind an attention over patches alone, for people."""
    for end in ends:
        feature = places.map_of(end.source, others=True)
        if end.kind is Collapse.TOKEN and feature is not None and end.source.sizes[1:2] != (feature.positions,):
            return f"tokens beside the patches of {end.source.describe()} are read, and the last attention has none"
    return "single patches are read, and no token before them"


def read_before_grid(ends: Sequence[GridEnd], places: Places) -> bool:
    """Whether nothing but tokens before those of a grid is read."""
    sources = [places.map_of(end.source, others=True) for end in ends]
    return bool(ends) and all(
        end.kind is Collapse.TOKEN and source is not None and _rows_read(end) <= source.prefix
        for end, source in zip(ends, sources, strict=True)
    )


def _residual(entry: Value | None, beside: Value | None) -> Value | None:
    """The tokens at the entry of a block; in the rounded form that passes the block by, where there is one."""
    if entry is None or (beside is not None and _rounds(entry, beside)):
        return beside
    return entry


def _counted(attentions: Sequence[Attention], places: Places) -> tuple[Attention, ...]:
    """Attentions with the number of their heads."""
    return tuple(replace(item, heads=places.beside_images(item.value)) for item in attentions)


def locate_pool(
    graph: Graph, images: Sequence[Value], logits: Value, ends: Sequence[GridEnd], places: Places
) -> tuple[Readout, FeatureMap] | None:
    """Find an attention pool whose queries are the same for every image, and the tokens that it pools."""
    fused = [end.node.output for end in ends if end.node.op is Op.ATTENTION]  # which ends the grid itself
    groups = _groups(graph, find_attentions(region(graph, images, [*(end.source for end in ends), *fused])))
    if not groups or len(groups[-1]) > 1:
        return None
    item = groups[-1][0]
    tokens, rows = item.value.sizes[-2], item.queries
    if tokens is None or rows is None or item.query in activations(graph, images):
        return None
    masked = masked_value(graph, images, item, places, of_pool=True)
    if masked is None or item.result not in cut_values(graph, images, logits):
        return None
    feature = places.map_of(masked, others=True)
    if feature is None or None in feature.grid:
        return None
    readout = Readout(
        (masked,), None, _counted([item], places), feature.prefix, rows, reads_patches=False, is_pool=True
    )
    return readout, feature


def attended_tokens(
    graph: Graph, images: Sequence[Value], logits: Value, places: Places
) -> list[tuple[tuple[Attention, ...], Value]]:
    """The attentions of each block over all tokens of the image, the first block first, and the tokens it attends.

    Those of windows, of other tokens, and of a learned query are left out.
    """
    reached, found = activations(graph, images), []
    for group in _groups(graph, find_attentions(region(graph, images, [logits]))):
        tokens = {masked_value(graph, images, item, places) for item in group if item.query in reached}
        if len(tokens) == 1 and (value := tokens.pop()) is not None:
            found.append((_counted(group, places), value))
    return found


def _is_like(value: Value, tokens: Value, places: Places) -> bool:
    return value.shape == tokens.shape and places.tokens_of(value) is not None


def _entry(
    graph: Graph, candidates: Sequence[Value], masked: Sequence[Value], earlier: Sequence[Value]
) -> Value | None:
    """The last of the values between the blocks before and the masked ones."""
    for value in reversed(candidates):
        is_behind = all(_is_before(graph, other, value) for other in earlier)
        if is_behind and all(_is_before(graph, value, other) for other in masked):
            return value
    return None


def _passing_by(graph: Graph, images: Sequence[Value], masked: Sequence[Value], logits: Value) -> Value | None:
    """The one value of tokens that reaches the logits beside the masked ones; None if there are several.

    It need not be a cut value: of the sum that a block begins with, a reader may have made one for each use.
    """
    nodes = region(graph, masked, [logits])
    inside = {*masked, *(value for node in nodes for value in node.outputs)}
    outside = activations(graph, images) - inside
    found = {value for node in nodes for value in node.inputs if value in outside and value.shape == masked[0].shape}
    return only(found)


def _rounds(before: Value, value: Value) -> bool:
    """Whether a value is another, rounded for one of its readers, as NNCF does with what a block adds to."""
    while value is not before and (rounding := value.made_by(Op.QUANTIZE)) is not None:
        value = rounding.read(0)
    return value is before


def _is_before(graph: Graph, value: Value, other: Value) -> bool:
    if value is other or value.producer is None or other.producer is None:
        return value is other
    return graph.order[value.producer] <= graph.order[other.producer]


def _groups(graph: Graph, attentions: Sequence[Attention]) -> list[tuple[Attention, ...]]:
    """Attentions in the order in which they follow one another; those side by side stand together."""
    groups: list[tuple[Attention, ...]] = []
    rest = list(attentions)
    while rest:
        last = rest[-1]
        beside = [item for item in rest if item is last or not _feeds(graph, item, last)]
        groups.insert(0, tuple(beside))
        rest = [item for item in rest if item not in beside]
    return groups


def _feeds(graph: Graph, first: Attention, second: Attention) -> bool:
    reached = activations(graph, [first.result])
    return any(value in reached for value in (second.query, second.key, second.value))


def _rows_read(end: GridEnd) -> int:
    """How many leading tokens a selection reaches into."""
    kept = stretch(end.node.kind)
    return 1 if kept is None or kept.end is None else kept.end


def _is_list(joined: Value, tokens: int) -> bool:
    return joined.rank == 3 and tokens in joined.sizes


def joins_mean(graph: Graph, images: Sequence[Value], values: Sequence[Value], tokens: int) -> bool:
    """Whether the first of so many tokens is the mean of the others, which a mask on all of them would leave whole."""
    return any(not isinstance(fitted(MEAN_QUERY, node, tokens=tokens), Miss) for node in region(graph, images, values))


MEAN_QUERY = (
    Part("join", "parts put one behind the other", lambda node, _: node if node.op is Op.CONCAT else None),
    Part("list", "list of all tokens", lambda node, on: node.output if _is_list(node.output, on["tokens"]) else None),
    Part("mean", "mean before the others", lambda node, _: before(node.read(0), ARRANGES).made_by(Op.REDUCE)),
)
"""Tokens of which the first is the mean of the others, as in the attention pool of CLIP's ResNets."""
