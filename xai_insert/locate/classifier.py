"""Locating a pooled classifier: logits, feature map, and how the head collapses its grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xai_insert.errors import TargetNotFoundError, UnknownNameError
from xai_insert.graph.cuts import activations, cut_values, region
from xai_insert.graph.view import Graph, Op, Value, volume
from xai_insert.locate.collapse import Collapse, GridEnd, closed_ends, feature_before, feature_map, grid_ends
from xai_insert.locate.inputs import image_inputs, image_size, shape_hint
from xai_insert.locate.layout import FeatureMap, channel_axis, token_grid
from xai_insert.locate.logits import Logits, find_logits, is_vector
from xai_insert.locate.transformer import MEAN_QUERY, Readout, locate_pool, locate_readout
from xai_insert.options import Options


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
    """

    logits: Logits
    target: FeatureMap
    pooled: Value
    ends: tuple[GridEnd, ...]
    obstacle: str | None
    readout: Readout | None = None

    @property
    def collapse(self) -> str:
        """How the grid ends, for people."""
        return " + ".join(dict.fromkeys(end.kind.value for end in self.ends))


def locate_classifier(graph: Graph, options: Options) -> Classifier:
    """Find logits, feature map and head of a classifier.

    Args:
        graph: the model.
        options: what the user has chosen instead of finding it.

    Raises:
        NotVisionModelError: no image input.
        UnsupportedTaskError: no output with class scores.
        AmbiguousModelError: several outputs with class scores.
        TargetNotFoundError: no feature map with a grid before the logits.
        UnknownNameError: `options.output` or `options.target_layer` is not in the model.
        ShapeUnknownError: a rank or size that the choice needs is unknown.
    """
    images = image_inputs(graph)
    logits = find_logits(graph, images, options.output)
    cuts = cut_values(graph, images, logits.value)
    reached = activations(graph, images)
    pooled = first_vector(cuts)
    ends = tuple(grid_ends(pooled, reached))
    if options.target_layer is not None:
        target = _named_target(graph, cuts, pooled, options.target_layer)
    elif options.method == "vit-recipro-cam" or any(end.kind is Collapse.TOKEN for end in ends):
        found = locate_readout(graph, images, logits.value, ends, options.block)
        if not isinstance(found, str):
            readout, target = found
            obstacle = _reading_obstacle(readout, options)
            if obstacle is not None and readout.residual is None:
                raise TargetNotFoundError(
                    f"{obstacle}, and no single value holds the tokens at the entry of that block, which the mask of "
                    "ViT Recipro-CAM covers too; choose a layer with --target-layer"
                )
            return Classifier(logits, target, pooled, ends, obstacle, readout)
        if options.method == "vit-recipro-cam" or found != MEAN_QUERY:
            raise TargetNotFoundError(f"no block for ViT Recipro-CAM: {found}; choose a layer with --target-layer")
        target = _default_target(graph, cuts, pooled, [_without_kind(end) for end in ends])
    else:
        _require_grid(graph, logits.value, pooled, ends)
        if any(end.kind in (Collapse.LINEAR, Collapse.OTHER) for end in ends):
            pool = locate_pool(graph, images, logits.value, ends)
            if pool is not None:
                readout, target = pool
                return Classifier(logits, target, pooled, ends, None, readout)
        target = _default_target(graph, cuts, pooled, ends)
    target = _with_grid(graph, target)
    return Classifier(logits, target, pooled, ends, closed_ends(graph, ends, target))


def first_vector(cuts: list[Value]) -> Value:
    """The first of the vectors that the cut values end with; earlier ones have positions in their batch axis."""
    first = cuts[-1]
    for value in reversed(cuts):
        if not is_vector(value.shape):
            break
        first = value
    return first


def _require_grid(graph: Graph, logits: Value, pooled: Value, ends: tuple[GridEnd, ...]) -> None:
    """Refuse a model whose image is so small that its pool finds one cell only."""
    if all(end.kind is not Collapse.OTHER for end in ends):
        return
    for node in region(graph, [pooled], [logits]):
        source = node.operand(0)
        if node.op in (Op.REDUCE, Op.POOL) and source is not None and source.rank == 4:
            raise TargetNotFoundError(
                f"the feature map {source.describe()} has a grid of 1x1: nothing to localise; feed a larger image "
                "(--input-shape) or choose an earlier layer with --target-layer"
            )


def _reading_obstacle(readout: Readout, options: Options) -> str | None:
    if options.block > 1:
        return f"blocks follow block {options.block} from the end"
    return "the head reads patch tokens as well" if readout.reads_patches else None


def _without_kind(end: GridEnd) -> GridEnd:
    return replace(end, kind=Collapse.OTHER, grid_axes=())


def _default_target(graph: Graph, cuts: list[Value], pooled: Value, ends: Sequence[GridEnd]) -> FeatureMap:
    if not ends:
        raise TargetNotFoundError(
            f"no feature map found before the logits {cuts[-1].describe()}: no value with a grid; {shape_hint(graph)}"
        )
    if all(end.grid_axes for end in ends):
        features = {feature.value: feature for feature in map(feature_before, ends)}
        feature = next(iter(features.values()))
        if feature.value.producer is None:
            raise TargetNotFoundError(
                f"the first layer already ends the grid of the image {feature.value.describe()}: there is no feature "
                "map to explain"
            )
        if len(features) == 1:
            return feature
    before = cuts[: cuts.index(pooled)] if pooled in cuts else cuts
    nearest = "none"
    for value in reversed(before):
        nearest = value.describe() if nearest == "none" else nearest
        described = _described(value)
        if described is not None and _has_grid(graph, described):
            return described
    raise TargetNotFoundError(
        f"no feature map found before the logits {cuts[-1].describe()}; nearest value: {nearest}, "
        f"whose layout is not told by the operations around it; {shape_hint(graph)}"
    )


def _described(value: Value) -> FeatureMap | None:
    """A value as a feature map, if the operations around it tell its layout."""
    if value.rank not in (3, 4) or is_vector(value.shape):
        return None
    channel = channel_axis(value)
    if channel is None:
        return None
    return feature_map(value, tuple(axis for axis in range(1, value.rank) if axis != channel))


def _named_target(graph: Graph, cuts: list[Value], pooled: Value, name: str) -> FeatureMap:
    found = _by_name(graph, name)
    usable = [value for value in cuts[: cuts.index(pooled)] if value.producer is not None and _described(value)]
    names = [value.producer.name for value in usable if value.producer is not None]
    hint = "" if not names else f"; the last layers that can be explained: {', '.join(map(repr, names[-4:]))}"
    if found is None:
        known = [node.name for node in graph.nodes]
        raise UnknownNameError("layer", name, known, hint)
    if found not in cuts:
        raise TargetNotFoundError(
            f"layer {name!r} {found.describe()} is not on every path from image to logits: some go round it{hint}"
        )
    feature = _described(found)
    if feature is None or found not in usable:
        raise TargetNotFoundError(f"layer {name!r} gives {found.describe()}, which is no feature map with a grid{hint}")
    return feature


def _by_name(graph: Graph, name: str) -> Value | None:
    for node in graph.nodes:
        if node.name == name or any(value.name == name for value in node.outputs):
            return next((value for value in node.outputs if value.name == name), node.output)
    return None


def _has_grid(graph: Graph, feature: FeatureMap) -> bool:
    """Whether the positions of a feature map are those of a grid and of nothing else, such as a pooled query."""
    try:
        _with_grid(graph, feature)
    except TargetNotFoundError:
        return False
    return True


def _with_grid(graph: Graph, feature: FeatureMap) -> FeatureMap:
    """Fill in height and width of a grid of tokens."""
    if len(feature.grid_axes) == 2:
        return feature
    tokens = feature.shape[feature.grid_axes[0]]
    if tokens is None:
        raise TargetNotFoundError(
            f"the tokens {feature.value.describe()} follow the size of the image, so their grid is unknown; "
            f"{shape_hint(graph)}"
        )
    images = image_inputs(graph)
    ancestors = region(graph, images, [feature.value])
    grid = token_grid(tokens, reversed([n for n in ancestors if n.op is not Op.SHAPE]), image_size(images[0]))
    if grid is None or volume(grid) != tokens:
        raise TargetNotFoundError(
            f"the {tokens} tokens of {feature.value.describe()} do not form a grid of the patch embedding; "
            "choose another layer with --target-layer"
        )
    return FeatureMap(feature.value, feature.channel_axis, feature.grid_axes, grid)
