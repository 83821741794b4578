"""Locating a pooled classifier: logits, feature map, and how the head collapses its grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from xai_insert.errors import TargetNotFoundError, UnknownNameError
from xai_insert.graph.cuts import activations, cut_values, region
from xai_insert.graph.operators import Product, Unknown, Window
from xai_insert.graph.view import Graph, Op, Value, volume
from xai_insert.locate.collapse import Collapse, GridEnd, closed_ends, feature_before, grid_ends
from xai_insert.locate.consensus import Consensus, find_consensus, folded_times
from xai_insert.locate.inputs import image_inputs, shape_hint, time_axis
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.logits import Logits, find_logits, is_vector
from xai_insert.locate.places import Places, find_places
from xai_insert.locate.stages import LAST, stage, stage_number
from xai_insert.locate.streams import last_maps, normed
from xai_insert.locate.transformer import MEAN_QUERY, Readout, locate_pool, locate_readout
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


@dataclass(frozen=True)
class Classifier:
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
) -> Classifier:
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


def _located(
    graph: Graph, options: Options, wanted: Wanted, images: list[Value], logits: Logits, places: Places
) -> Classifier:
    cuts = cut_values(graph, images, logits.value)
    gone = first_without_place(cuts, places)
    pooled = _pooled(cuts, gone)
    ends = tuple(grid_ends(gone, activations(graph, images), places))
    streams: tuple[FeatureMap, ...] = ()
    reads_token = any(end.kind is Collapse.TOKEN for end in ends)
    if options.target_layer is not None:
        target = _chosen_target(graph, cuts, gone, places, options.target_layer, reads_token=reads_token)
        if wanted is Wanted.DERIVATIVE and reads_token and stage_number(options.target_layer) == 1:
            target = normed(graph, images, logits.value, target, places)
    elif wanted is Wanted.DERIVATIVE:
        target, streams = _last_maps(graph, images, logits.value, cuts, gone, ends, places, reads_token=reads_token)
    elif wanted is Wanted.TOKENS or reads_token:
        found = locate_readout(graph, images, logits.value, ends, places, options.block or 1)
        if not isinstance(found, str):
            readout, target = found
            obstacle = _reading_obstacle(readout, options)
            if obstacle is not None and readout.residual is None:
                raise TargetNotFoundError(
                    f"{obstacle}, and no single value holds the tokens at the entry of that block, which the mask of "
                    "ViT Recipro-CAM covers too; choose a layer with --target-layer"
                )
            return Classifier(logits, target, pooled, ends, obstacle, readout)
        reads_places = wanted is Wanted.ANY and not _attends(graph, images, ends)
        if reads_token and wanted is not Wanted.TOKENS and _is_clip(images):  # attention in space and in time, apart
            target = _chosen_target(graph, cuts, gone, places, LAST, reads_token=True)
            return Classifier(logits, target, pooled, ends, f"no block for ViT Recipro-CAM: {found}")
        if wanted is Wanted.TOKENS or (found != MEAN_QUERY and not reads_places):
            raise TargetNotFoundError(f"no block for ViT Recipro-CAM: {found}; choose a layer with --target-layer")
        bare = [_without_kind(end) for end in ends]
        target, streams = _default_target(graph, cuts, gone, bare, places, others=reads_places)
    else:
        _require_grid(graph, logits.value, gone, ends)
        if any(end.kind in (Collapse.LINEAR, Collapse.OTHER) for end in ends):
            pool = locate_pool(graph, images, logits.value, ends, places)
            if pool is not None:
                readout, target = pool
                return Classifier(logits, target, pooled, ends, None, readout)
        target, streams = _default_target(graph, cuts, gone, ends, places)
    obstacle = closed_ends(graph, ends, target, places)
    if streams:
        obstacle = f"{1 + len(streams)} maps of one grid feed the scores and are masked together"
    return Classifier(logits, target, pooled, ends, obstacle, streams=streams)


def _is_clip(images: Sequence[Value]) -> bool:
    return any(time_axis(image) is not None for image in images)


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


def _require_grid(graph: Graph, logits: Value, gone: Value, ends: tuple[GridEnd, ...]) -> None:
    """Refuse a model whose image is so small that its pool finds one cell only."""
    if all(end.kind is not Collapse.OTHER for end in ends):
        return
    for node in region(graph, [gone], [logits]):
        source = node.operand(0)
        is_map = node.op in (Op.REDUCE, Op.POOL) and source is not None and source.rank == 4
        if is_map and source is not None and 1 in (volume(source.sizes[2:]), volume(source.sizes[1:3])):
            raise TargetNotFoundError(
                f"the feature map {source.describe()} has a grid of 1x1: nothing to localise; feed a larger image "
                "(--input-shape) or choose an earlier layer with --target-layer"
            )


def _reading_obstacle(readout: Readout, options: Options) -> str | None:
    if (options.block or 1) > 1:
        return f"blocks follow block {options.block} from the end"
    return "the head reads patch tokens as well" if readout.reads_patches else None


def _attends(graph: Graph, images: Sequence[Value], ends: Sequence[GridEnd]) -> bool:
    """Whether there is any attention before the grid ends; without one, a head reads single places of its map."""
    before = region(graph, images, [end.source for end in ends])
    return any(node.op in (Op.SOFTMAX, Op.ATTENTION) or isinstance(node.kind, Unknown) for node in before)


def _without_kind(end: GridEnd) -> GridEnd:
    return replace(end, kind=Collapse.OTHER, grid_axes=())


def _default_target(
    graph: Graph, cuts: list[Value], gone: Value, ends: Sequence[GridEnd], places: Places, *, others: bool = True
) -> tuple[FeatureMap, tuple[FeatureMap, ...]]:
    """The feature map to explain and those that are masked together with it; `others` are tokens beside its grid."""
    if not ends:
        raise TargetNotFoundError(
            f"no feature map found before the logits {cuts[-1].describe()}: no value in which the rows and columns of "
            f"the image can be followed{_where_lost(graph, places)}; {shape_hint(graph)}"
        )
    features: dict[Value, FeatureMap] = {}
    if all(end.grid_axes for end in ends):
        features = {feature.value: feature for feature in (feature_before(end, places) for end in ends)}
        first = next(iter(features.values()))
        if len(features) == 1:
            if not is_feature(graph, first.value):
                raise TargetNotFoundError(
                    f"the first layer already ends the grid of the image {first.value.describe()}: there is no feature "
                    "map to explain"
                )
            return first, ()
        share = all(
            (item.grid, item.grid_axes) == (first.grid, first.grid_axes) and item.frame.agrees(first.frame)
            for item in features.values()
        )
        is_joint = any(places.map_of(value) and is_feature(graph, value) for value in cuts[: cuts.index(gone)])
        if share and not is_joint and all(is_feature(graph, value) for value in features):
            return first, tuple(features.values())[1:]
    before = cuts[: cuts.index(gone)]
    for value in reversed(before):
        described = places.map_of(value, others=others)
        if described is not None and is_feature(graph, value):
            return described, ()
    if any(folded_times(axes) is not None for axes in places.traced.values()):
        raise TargetNotFoundError(
            "the frames of a clip stand in the batch, and more than a mean of their scores is made of them: their maps "
            "cannot be told apart"
        )
    if any(places.has_views(value) for value in places.traced):
        raise TargetNotFoundError(
            "views or parts of an image stand side by side in one batch (test-time augmentation): their maps cannot be "
            "told apart; insert into the model of one view"
        )
    sources = list(features) or list(dict.fromkeys(end.source for end in ends))
    if len(sources) > 1:
        listed = ", ".join(value.describe() for value in sources)
        raise TargetNotFoundError(
            f"{len(sources)} streams of different grids feed the scores and meet only behind their pools: {listed}; no "
            "layer before them lies on every path, so no single map explains the scores"
        )
    raise TargetNotFoundError(
        f"no feature map found before the logits {cuts[-1].describe()}; nearest value with a grid of the image: "
        f"{sources[0].describe()}, which is no batch of maps with channels; "
        f"{shape_hint(graph)}"
    )


def is_feature(graph: Graph, value: Value) -> bool:
    """Whether weights have made a value of the image, which is never a feature itself, moved or scaled as it may be."""
    return any(isinstance(node.kind, (Window, Product)) for node in region(graph, image_inputs(graph), [value]))


def _where_lost(graph: Graph, places: Places) -> str:
    """The first operation of which it is not known where it puts what it reads."""
    for node in graph.nodes:
        if isinstance(node.kind, Unknown) and any(value is not None and places.of(value) for value in node.inputs):
            return f" (they are lost at {node.type} {node.name!r})"
    return ""


def _chosen_target(
    graph: Graph, cuts: list[Value], gone: Value, places: Places, name: str, *, reads_token: bool
) -> FeatureMap:
    if (number := stage_number(name)) is None:
        return _named_target(graph, cuts, gone, places, name)
    features = [value for value in cuts[: cuts.index(gone)] if is_feature(graph, value)]
    return stage(graph, features, lambda value: places.map_of(value, others=True), number, reads_token=reads_token)


def _last_maps(
    graph: Graph,
    images: Sequence[Value],
    logits: Value,
    cuts: list[Value],
    gone: Value,
    ends: tuple[GridEnd, ...],
    places: Places,
    *,
    reads_token: bool,
) -> tuple[FeatureMap, tuple[FeatureMap, ...]]:
    """The last map by which a derivative says something, or several that feed the scores side by side."""
    if not reads_token:
        _require_grid(graph, logits, gone, ends)
    elif any(end.kind is not Collapse.TOKEN for end in ends):
        raise TargetNotFoundError(
            "the head reads patches beside its class token: a derivative at the last layer leaves out what the class "
            "token saw of them; choose an earlier one, --target-layer -2"
        )
    try:
        if reads_token:
            entry = _chosen_target(graph, cuts, gone, places, LAST, reads_token=True)
            return normed(graph, images, logits, entry, places), ()
        is_pool = any(end.kind in (Collapse.LINEAR, Collapse.OTHER) for end in ends)
        pool = locate_pool(graph, images, logits, ends, places) if is_pool else None
        return _default_target(graph, cuts, gone, ends, places) if pool is None else (pool[1], ())
    except TargetNotFoundError:
        if not reads_token:  # pools of maps on several grids have no one grid that is right
            raise
        found = last_maps(
            graph,
            images,
            logits,
            lambda value: places.map_of(value, others=True) if is_feature(graph, value) else None,
            reads_token=reads_token,
        )
        if not found:
            raise
        found = [normed(graph, images, logits, item, places) for item in found] if reads_token else found
        return found[0], tuple(found[1:])


def usable_layers(graph: Graph, options: Options) -> list[FeatureMap]:
    """What `options.target_layer` can name, from the image on; raises what `locate_classifier` does."""
    images = image_inputs(graph)
    cuts = cut_values(graph, images, find_logits(graph, images, options.output).value)
    places = find_places(graph)
    return _usable(cuts, first_without_place(cuts, places), places)


def _usable(cuts: list[Value], gone: Value, places: Places) -> list[FeatureMap]:
    made = [value for value in cuts[: cuts.index(gone)] if value.producer is not None]
    return [feature for value in made if (feature := places.map_of(value, others=True)) is not None]


def _named_target(graph: Graph, cuts: list[Value], gone: Value, places: Places, name: str) -> FeatureMap:
    found = _by_name(graph, name)
    usable = [feature.value for feature in _usable(cuts, gone, places)]
    names = [value.producer.name for value in usable if value.producer is not None]
    hint = "" if not names else f"; the last layers that can be explained: {', '.join(map(repr, names[-4:]))}"
    if found is None:
        known = [node.name for node in graph.nodes]
        raise UnknownNameError("layer", name, known, hint)
    if found not in cuts:
        raise TargetNotFoundError(
            f"layer {name!r} {found.describe()} is not on every path from image to logits: some go round it{hint}"
        )
    feature = places.map_of(found, others=True)
    if feature is None or found not in usable:
        raise TargetNotFoundError(
            f"layer {name!r} gives {found.describe()}, which is no feature map with a grid of the image{hint}"
        )
    return feature


def _by_name(graph: Graph, name: str) -> Value | None:
    for node in graph.nodes:
        if node.name == name or any(value.name == name for value in node.outputs):
            return next((value for value in node.outputs if value.name == name), node.output)
    return None
