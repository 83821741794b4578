"""Locating a pooled classifier: logits, feature map, and how the head collapses its grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from xai_insert.errors import TargetNotFoundError, UnknownNameError
from xai_insert.graph.cuts import activations, cut_values, region
from xai_insert.graph.operators import Unknown
from xai_insert.graph.view import Graph, Op, Value, volume
from xai_insert.locate.collapse import Collapse, GridEnd, closed_ends, grid_ends, maps_before
from xai_insert.locate.consensus import Consensus, find_consensus
from xai_insert.locate.inputs import frames_in_channels, image_inputs, shape_hint, time_axis
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.logits import Logits, find_logits, is_vector
from xai_insert.locate.no_map import is_feature, where_lost, why_no_map
from xai_insert.locate.places import Places, find_places
from xai_insert.locate.stages import LAST, is_sum, stage, stage_number
from xai_insert.locate.streams import last_maps, normed
from xai_insert.locate.transformer import NoBlock, Readout, joins_mean, locate_pool, locate_readout, read_before_grid
from xai_insert.options import Options


class Wanted(Enum):
    """What the method that was asked for reads."""

    ANY = auto()
    """Whatever the model has: none was asked for."""
    MAP = auto()
    """A feature map."""
    TOKENS = auto()
    """The tokens of a block."""
    DERIVATIVE = auto()
    """A feature map by which a derivative is taken; of tokens too."""
    IMAGE = auto()
    """The image itself, by which a derivative is taken."""


@dataclass(frozen=True)
class ClassifierParts:
    """What was found in a classifier.

    Attributes:
        logits: the class scores.
        target: the feature map to be explained.
        pooled: the first vector per image after the grid, `[B, C]` with further axes of size 1.
        ends: the nodes that end the grid.
        obstacle: why masked runs from `target` on have no closed form; None if they have one.
        readout: the last block and its tokens, where tokens are masked instead of a pooled grid.
        streams: further maps, of the same grid, which are masked together with the target; for derivatives of any.
        consensus: the mean over frames behind `logits`, which are then those of each frame.
    """

    logits: Logits
    target: FeatureMap
    pooled: Value
    ends: tuple[GridEnd, ...]
    obstacle: str | None
    readout: Readout | None = None
    streams: tuple[FeatureMap, ...] = ()
    consensus: Consensus | None = None

    @property
    def collapse(self) -> str:
        """How the grid ends, for people."""
        return " + ".join(dict.fromkeys(end.kind.value for end in self.ends))


def locate_classifier(
    graph: Graph, options: Options, wanted: Wanted = Wanted.ANY, logits: Logits | None = None
) -> ClassifierParts:
    """Find logits, feature map and head of a classifier.

    Args:
        graph: the model.
        options: what the user has chosen instead of finding it.
        wanted: what the method that was asked for reads.
        logits: what stands for the class scores; None to find them.

    Raises:
        NotVisionModelError: no image input.
        UnsupportedTaskError: no output with class scores.
        AmbiguousModelError: several outputs with class scores.
        TargetNotFoundError: no feature map with a grid before the logits.
        UnknownNameError: `options.output` or `options.target_layer` is not in the model.
        ShapeUnknownError: a rank or size that the choice needs is unknown.
    """
    images = image_inputs(graph)
    logits = logits or find_logits(graph, images, options.output)
    places = find_places(graph)
    consensus = find_consensus(logits.value, places)
    if consensus is None:
        return _located(graph, options, wanted, images, logits, places)
    frames = replace(logits, value=consensus.scores)
    found = _located(graph, options, wanted, images, frames, replace(places, folded=consensus.times))
    return replace(found, consensus=consensus)


@dataclass(frozen=True)
class _Head:
    """The way from the images to the class scores.

    Attributes:
        cuts: the values on every path, `logits` last.
        gone: the first of them behind the grid.
        ends: the nodes that end it.
    """

    graph: Graph
    images: list[Value]
    logits: Logits
    places: Places
    cuts: list[Value]
    gone: Value
    ends: tuple[GridEnd, ...]

    @property
    def before(self) -> list[Value]:
        """The cut values that have a grid."""
        return self.cuts[: self.cuts.index(self.gone)]

    @property
    def sources(self) -> list[Value]:
        """The last values with a grid."""
        return list(dict.fromkeys(end.source for end in self.ends))

    @property
    def reads_token(self) -> bool:
        return any(end.kind is Collapse.TOKEN for end in self.ends)

    @property
    def reads_patches(self) -> bool:
        return any(end.kind is not Collapse.TOKEN for end in self.ends)

    def map_of(self, value: Value) -> FeatureMap | None:
        """A value as a map, of tokens with others beside its grid too, or with the images behind them."""
        return self.places.any_map_of(value)

    def pool(self) -> tuple[Readout, FeatureMap] | None:
        """The attention pool that ends the grid."""
        if all(end.kind not in (Collapse.LINEAR, Collapse.OTHER) for end in self.ends):
            return None
        return locate_pool(self.graph, self.images, self.logits.value, self.ends, self.places)

    def normed(self, entry: FeatureMap) -> FeatureMap:
        """The norm behind the entry of a block; the entry where it has none, or the head reads patches as well."""
        if self.reads_patches:
            return entry
        return normed(self.graph, self.images, self.logits.value, entry, self.places)

    def found(self, target: FeatureMap, obstacle: str | None = None, readout: Readout | None = None) -> ClassifierParts:
        return ClassifierParts(self.logits, target, _pooled(self.cuts, self.gone), self.ends, obstacle, readout)

    def masked(self, target: FeatureMap, streams: tuple[FeatureMap, ...] = ()) -> ClassifierParts:
        """What is found where one mask covers a map and those beside it."""
        if not streams:
            return self.found(target, closed_ends(self.graph, self.ends, target, self.places))
        obstacle = f"{1 + len(streams)} maps of one grid feed the scores and are masked together"
        return replace(self.found(target, obstacle), streams=streams)


def _located(
    graph: Graph, options: Options, wanted: Wanted, images: list[Value], logits: Logits, places: Places
) -> ClassifierParts:
    cuts = cut_values(graph, images, logits.value)
    gone = first_without_place(cuts, places)
    ends = tuple(grid_ends(gone, activations(graph, images), places))
    head = _Head(graph, images, logits, places, cuts, gone, ends)
    whole = places.map_of(images[0]) if wanted is Wanted.IMAGE and len(images) == 1 else None
    if whole is not None:
        return head.found(whole)
    if options.target_layer is not None:
        return head.masked(_asked_for(head, options.target_layer, wanted))
    if wanted is Wanted.DERIVATIVE:
        return head.masked(*_last_maps(head))
    if wanted is Wanted.TOKENS or head.reads_token:
        return _by_tokens(head, options, wanted)
    _require_grid(head)
    pool = head.pool()
    if pool is not None:
        return head.found(pool[1], readout=pool[0])
    return head.masked(*_default_target(head))


def _asked_for(head: _Head, name: str, wanted: Wanted) -> FeatureMap:
    """The map that was chosen; for a derivative of the last block of tokens, the norm that its attention reads."""
    target = _chosen_target(head, name)
    reads_last = head.reads_token and stage_number(name) == 1
    return head.normed(target) if wanted is Wanted.DERIVATIVE and reads_last else target


def _by_tokens(head: _Head, options: Options, wanted: Wanted) -> ClassifierParts:
    """What is found of a head that reads tokens."""
    graph, images = head.graph, head.images
    read = locate_readout(graph, images, head.logits.value, head.ends, head.places, options.block or 1)
    if not isinstance(read, NoBlock):
        return head.found(read[1], _reading_obstacle(read[0], options), read[0])
    if wanted is not Wanted.TOKENS and _is_clip(images):  # attention in space and in time, apart
        return head.found(_chosen_target(head, LAST), f"no block for ViT Recipro-CAM: {read.reason}")
    attends = _attends(graph, images, head.ends)
    reads_first = not attends and read_before_grid(head.ends, head.places)  # the mean, joined to the cells
    reads_places = wanted is Wanted.ANY and not attends and not reads_first
    if wanted is Wanted.TOKENS or not (read.is_mean_query or reads_first or reads_places):
        raise TargetNotFoundError(f"no block for ViT Recipro-CAM: {read.reason}; {_way_out(head)}")
    bare = replace(head, ends=tuple(_without_kind(end) for end in head.ends))
    return head.masked(*_default_target(bare, others=reads_places))


def _way_out(head: _Head) -> str:
    """What the user can choose where tokens are not explained by themselves, for people."""
    try:
        last = _chosen_target(head, LAST)
    except TargetNotFoundError:
        return "choose a layer with --target-layer"
    return f"choose a layer with --target-layer, of which {LAST} is {last.value.describe()}"


def _is_clip(images: Sequence[Value]) -> bool:
    return any(time_axis(image) is not None or frames_in_channels(image) for image in images)


def first_without_place(cuts: list[Value], places: Places) -> Value:
    """The first of the values that the cut values end with that hold nothing of the image's rows or columns."""
    first = cuts[-1]
    for value in reversed(cuts):
        if places.is_placed(value):
            break
        first = value
    return first


def _pooled(cuts: list[Value], gone: Value) -> Value:
    """The first vector per image behind the grid."""
    behind = cuts[cuts.index(gone) :]
    return next((value for value in behind if is_vector(value.shape)), behind[-1])


def _require_grid(head: _Head) -> None:
    """Refuse a model whose image is so small that its pool finds one cell only."""
    if all(end.kind is not Collapse.OTHER for end in head.ends):
        return
    for node in region(head.graph, [head.gone], [head.logits.value]):
        source = node.operand(0)
        if node.op in (Op.REDUCE, Op.POOL) and source is not None and _is_single_cell(source):
            raise TargetNotFoundError(
                f"the feature map {source.describe()} has a grid of 1x1: nothing to localise; feed a larger image "
                f"({shape_hint(head.graph)}), or choose an earlier layer with --target-layer"
            )


def _is_single_cell(value: Value) -> bool:
    """Whether a map has one row and one column, with channels before or behind these."""
    return value.rank == 4 and 1 in (volume(value.sizes[2:]), volume(value.sizes[1:3]))


def _reading_obstacle(readout: Readout, options: Options) -> str | None:
    """Why what follows the block has no closed form; None if it has one."""
    obstacle = "the head reads patch tokens, or one behind them" if readout.reads_patches else None
    if (options.block or 1) > 1:
        obstacle = f"blocks follow block {options.block} from the end"
    if obstacle is not None and readout.residual is None:
        raise TargetNotFoundError(
            f"{obstacle}, and no single value holds the tokens at the entry of that block, which the mask of "
            "ViT Recipro-CAM covers too; choose a layer with --target-layer"
        )
    return obstacle


def _attends(graph: Graph, images: Sequence[Value], ends: Sequence[GridEnd]) -> bool:
    """Whether there is any attention before the grid ends; without one, a head reads single places of its map."""
    before = region(graph, images, [end.source for end in ends])
    return any(node.op in (Op.SOFTMAX, Op.ATTENTION) or isinstance(node.kind, Unknown) for node in before)


def _without_kind(end: GridEnd) -> GridEnd:
    return replace(end, kind=Collapse.OTHER, grid_axes=())


def _default_target(head: _Head, *, others: bool = True) -> tuple[FeatureMap, tuple[FeatureMap, ...]]:
    """The feature map to explain and those that are masked together with it; `others` are tokens beside its grid."""
    graph, ends, places = head.graph, head.ends, head.places
    if not ends:
        raise TargetNotFoundError(
            f"no feature map found before the logits {head.cuts[-1].describe()}: no value in which the rows and "
            f"columns of the image can be followed{where_lost(graph, places)}; {shape_hint(graph)}"
        )
    features = maps_before(graph, ends, places)
    if len(features) == 1 and not is_feature(graph, features[0].value):
        raise TargetNotFoundError(
            f"the first layer already ends the grid of the image {features[0].value.describe()}: there is no feature "
            "map to explain"
        )
    if features and _are_the_map(head, features):
        return features[0], tuple(features[1:])
    for value in reversed(head.before):
        described = places.map_of(value, others=others)
        if described is not None and is_feature(graph, value) and not _has_mean(head, described):
            return described, ()
    sources = [item.value for item in features] or head.sources
    raise TargetNotFoundError(why_no_map(graph, places, head.cuts[-1], sources))


def _has_mean(head: _Head, feature: FeatureMap) -> bool:
    """Whether the mean of the cells stands before them."""
    tokens = feature.shape[feature.grid_axes[0]]
    return bool(feature.prefix and tokens) and joins_mean(head.graph, head.images, [feature.value], tokens or 0)


def _are_the_map(head: _Head, features: Sequence[FeatureMap]) -> bool:
    """Whether maps that end the grid are one, or can be masked as one where none before them is of all."""
    if len(features) == 1:
        return True
    is_joint = any(head.places.map_of(value) and is_feature(head.graph, value) for value in head.before)
    return not is_joint and _share_grid(head.graph, features)


def _share_grid(graph: Graph, features: Sequence[FeatureMap]) -> bool:
    """Whether feature maps have one grid, so that one mask fits all."""
    first = features[0]
    return all(
        (item.grid, item.grid_axes) == (first.grid, first.grid_axes)
        and item.frame.agrees(first.frame)
        and is_feature(graph, item.value)
        for item in features
    )


def _chosen_target(head: _Head, name: str) -> FeatureMap:
    if (number := stage_number(name)) is None:
        return _named_target(head, name)
    features = [value for value in head.before if is_feature(head.graph, value)]
    if name == LAST and head.ends and not any(map(head.map_of, features)):
        raise TargetNotFoundError(why_no_map(head.graph, head.places, head.cuts[-1], head.sources))
    return stage(head.graph, features, head.map_of, number, reads_token=head.reads_token)


def _last_maps(head: _Head) -> tuple[FeatureMap, tuple[FeatureMap, ...]]:
    """The last map by which a derivative says something, or several that feed the scores side by side."""
    if not head.reads_token:  # pools of maps on several grids have no one grid that is right
        _require_grid(head)
        pool = head.pool()
        return _default_target(head) if pool is None else (pool[1], ())
    try:
        return _last_tokens(head), ()
    except TargetNotFoundError:

        def described(value: Value) -> FeatureMap | None:
            return head.map_of(value) if is_feature(head.graph, value) else None

        found = last_maps(head.graph, head.images, head.logits.value, described, reads_token=True)
        if not found:
            raise
        first, *rest = map(head.normed, found)
        return first, tuple(rest)


def _last_tokens(head: _Head) -> FeatureMap:
    entry = _chosen_target(head, LAST)
    if head.reads_patches and not any(is_sum(use.node) for use in entry.value.uses):
        return _chosen_target(head, "-2")  # norms alone read that of the last block: see `normed`
    return head.normed(entry)


def usable_layers(graph: Graph, options: Options) -> list[FeatureMap]:
    """What `options.target_layer` can name, from the image on; raises what `locate_classifier` does."""
    images = image_inputs(graph)
    cuts = cut_values(graph, images, find_logits(graph, images, options.output).value)
    places = find_places(graph)
    return _usable(cuts[: cuts.index(first_without_place(cuts, places))], places)


def _usable(before: Sequence[Value], places: Places) -> list[FeatureMap]:
    made = [value for value in before if value.producer is not None]
    found = (places.any_map_of(value) for value in made)
    return [feature for feature in found if feature is not None]


def _named_target(head: _Head, name: str) -> FeatureMap:
    found = head.graph.named(name)
    usable = [feature.value for feature in _usable(head.before, head.places)]
    names = [value.producer.name for value in usable if value.producer is not None]
    hint = "" if not names else f"; the last layers that can be explained: {', '.join(map(repr, names[-4:]))}"
    if found is None:
        known = [node.name for node in head.graph.nodes]
        raise UnknownNameError("layer", name, known, hint)
    if found not in head.cuts:
        raise TargetNotFoundError(
            f"layer {name!r} {found.describe()} is not on every path from image to logits: some go round it{hint}"
        )
    feature = head.map_of(found)
    if feature is None or found not in usable:
        raise TargetNotFoundError(
            f"layer {name!r} gives {found.describe()}, which is no feature map with a grid of the image{hint}"
        )
    return feature
