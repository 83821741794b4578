"""Where the spatial grid ends: the nodes that turn a feature map into one vector per image."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, TypeAlias

from xai_insert.errors import ModelFileError, TargetNotFoundError
from xai_insert.graph.cuts import activations, region, walk
from xai_insert.graph.items import only
from xai_insert.graph.operators import Product, Reduction, Window
from xai_insert.graph.pattern import Miss, Part, fitted
from xai_insert.graph.traits import CUTS_OUT, ONE_FUNCTION
from xai_insert.graph.view import Graph, Node, Op, Value, volume
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.places import Places


class Collapse(Enum):
    """How a grid ends."""

    MEAN = "mean over the grid"
    MAX = "maximum over the grid"
    SUM = "sum over the grid"
    LINEAR = "flatten and linear layer"
    CONV = "convolution as large as the grid"
    TOKEN = "selection of tokens"
    OTHER = "other"


Found: TypeAlias = Mapping[str, Any]
_MODES = {"mean": Collapse.MEAN, "max": Collapse.MAX, "sum": Collapse.SUM}


@dataclass(frozen=True)
class GridEnd:
    """One node after which the grid is gone.

    Attributes:
        kind: how.
        node: the node that reads the grid.
        source: the value with the grid that it reads.
        result: the first vector per image: the node's output or, for a flatten, that of the linear layer behind it.
        grid_axes: axes of the grid in `source`; empty if the kind does not tell.
        lacks: of `OTHER`, what the node lacks to be of another kind, for people; empty if it is far from any.
    """

    kind: Collapse
    node: Node
    source: Value
    result: Value
    grid_axes: tuple[int, ...] = ()
    lacks: str = ""

    def __str__(self) -> str:
        lacks = f", which has no {self.lacks}" if self.lacks else ""
        return f"{self.node.type} {self.node.name!r}{lacks}"


def grid_ends(vector: Value, reached: set[Value], places: Places) -> list[GridEnd]:
    """The nodes at which the paths from the image to `vector` lose their grid, nearest to `vector`.

    Args:
        vector: one vector per image.
        reached: the values that depend on the image.
        places: where they lie in it.
    """

    def read(value: Value, *, has_grid: bool) -> list[Value]:
        node = value.producer
        operands = () if node is None or node.op is Op.SHAPE else node.operands
        if node is not None and node.op is Op.ATTENTION and places.of(node.read(1)) is not None:
            operands = operands[1:]  # the query alone; with the keys it makes shares, which have the grid
        return [item for item in operands if item in reached and (places.of(item) is not None) is has_grid]

    way = walk([vector], partial(read, has_grid=False))
    return [end for value in way for operand in read(value, has_grid=True) for end in _classify(operand, value, places)]


def _classify(source: Value, result: Value, places: Places) -> list[GridEnd]:
    """The ends of a grid where an operation reads a value with one, and gives one without."""
    node = result.producer
    if node is None:
        return []
    for operations, parts, ends in _KINDS:
        if node.op in operations:
            grid = _grid_axes(source, places) or (_first_axis(source, places) if node.op is Op.REDUCE else ())
            found = fitted(parts, node, source=source, result=result, places=places, grid=grid)
            other = GridEnd(Collapse.OTHER, node, source, result)
            return [replace(other, lacks=found.what)] if isinstance(found, Miss) else ends(other, found)
    return [GridEnd(Collapse.OTHER, node, source, result)]


def _grid_axes(source: Value, places: Places) -> tuple[int, ...]:
    """The axes of a grid that a value holds alone, no other tokens beside it; none if it does not."""
    place = places.of(source)
    if place is None or 0 in place.axes or not places.of_images(source) or (place.prefix, place.suffix) != (0, 0):
        return ()
    return place.axes


def _first_axis(source: Value, places: Places) -> tuple[int, ...]:
    """The axis of tokens that stand before the images, no others beside them; none if there are none."""
    found = places.tokens_of(source)
    is_bare = found is not None and found.batch_axis and found.shape[0] == found.positions
    return found.grid_axes if found is not None and is_bare else ()


def _reduced_axes(node: Node, source: Value) -> tuple[int, ...] | None:
    if node.op is Op.REDUCE:
        return node.record(Reduction).axes
    if node.op is Op.POOL and source.shape is not None and not node.record(Window).may_pad:
        sides, kernel = source.shape[2:], node.record(Window).kernel or ()
        if len(sides) != len(kernel):
            raise ModelFileError(f"{node.type} {node.name!r} has a window of other rank than {source.describe()}")
        # a window may be larger, with sizes rounded up
        covers = all(side is not None and size >= side for size, side in zip(kernel, sides, strict=True))
        return tuple(range(2, len(source.shape))) if covers else None
    return None


def _whole_grid(axes: tuple[int, ...], source: Value, grid: tuple[int, ...]) -> tuple[int, ...] | None:
    """Axes that hold the grid, and none but that and such as have one element."""
    units = [axis for axis, size in enumerate(source.sizes) if size == 1 and axis > 0]
    return axes if grid and set(grid) <= set(axes) <= {*grid, *units} else None


def _stored_weight(node: Node, source: Value) -> Value | None:
    """The learned weight of a convolution that reads all channels."""
    weight = node.operand(1)
    if weight is None or weight.shape is None or not weight.is_constant or weight.rank != source.rank:
        return None
    return weight if weight.shape[1] == source.sizes[1] else None


def _as_large(node: Node, source: Value, weight: Value) -> Value | None:
    window = node.record(Window)
    is_whole = weight.sizes[2:] == source.sizes[2:] and not window.may_pad
    return weight if is_whole and set(window.dilations) == {1} else None


def _linear_layers(result: Value, source: Value) -> list[Node] | None:
    """The linear layers that read a flattened map; None where something else reads it."""
    layers: list[Node] = []
    stack = [result]
    while stack:
        for use in stack.pop().uses:
            weight = use.node.operand(1)
            if use.node.op is Op.MATMUL and use.index == 0 and _reads_all(use.node, weight, source):
                layers.append(use.node)
            elif use.node.op in (Op.IDENTITY, Op.RESHAPE):
                stack += use.node.outputs
            else:
                return None
    return layers


def _reads_all(linear: Node, weight: Value | None, source: Value) -> bool:
    """Whether a linear layer has one weight for each element of an image's `source`; one that reads rows has fewer."""
    if weight is None or not weight.is_constant or weight.rank != 2:
        return False
    return volume(source.sizes[1:]) in (None, weight.sizes[1 if linear.record(Product).transpose_b else 0])


def _pools(end: GridEnd, found: Found) -> list[GridEnd]:
    made = end.node.kind
    mode = made.mode if isinstance(made, Reduction) else end.node.record(Window).pool
    kind = _MODES.get(mode or "", Collapse.OTHER)
    lacks = "mean, maximum or sum over the grid" if kind is Collapse.OTHER else ""
    return [replace(end, kind=kind, grid_axes=found["axes"], lacks=lacks)]


_POOLED = (
    Part(
        "reduced",
        "window as large as the map, or axes that are known",
        lambda node, on: _reduced_axes(node, on["source"]),
    ),
    Part("axes", "grid that it pools as a whole", lambda _, on: _whole_grid(on["reduced"], on["source"], on["grid"])),
)
_LARGE_WINDOW = (
    Part(
        "window", "grid in the axes of its window",
        lambda _, on: on["grid"] if on["grid"] == tuple(range(2, on["source"].axis_count)) else None,
    ),
    Part("weight", "stored weight over all channels", lambda node, on: _stored_weight(node, on["source"])),
    Part(
        "large", "plain window as large as the grid", lambda node, on: _as_large(node, on["source"], on["weight"])
    ),
)  # fmt: skip
_FLATTENED = (
    Part(
        "layers", "linear layers alone behind it, with a weight for each element",
        lambda _, on: _linear_layers(on["result"], on["source"]),
    ),
    Part("whole", "grid alone before it", lambda _, on: on["grid"] or None),
)  # fmt: skip
_CHOSEN = (
    Part("rows", "rows of the image alone", lambda _, on: None if on["places"].has_stored(on["source"]) else True),
)
_KINDS: Sequence[tuple[Container[Op], Sequence[Part], Callable[[GridEnd, Found], list[GridEnd]]]] = (
    ((Op.REDUCE, Op.POOL), _POOLED, _pools),
    ((Op.CONV,), _LARGE_WINDOW, lambda end, on: [replace(end, kind=Collapse.CONV, grid_axes=on["grid"])]),
    (
        (Op.RESHAPE,), _FLATTENED,
        lambda end, on: [
            replace(end, kind=Collapse.LINEAR, result=layer.output, grid_axes=on["grid"]) for layer in on["layers"]
        ],
    ),
    (CUTS_OUT, _CHOSEN, lambda end, _: [replace(end, kind=Collapse.TOKEN)]),
)  # fmt: skip
"""How a grid ends in operations: the parts of the pattern, and the ends that it gives."""


def feature_before(end: GridEnd, places: Places) -> FeatureMap:
    """The feature map that an end reads, one whose grid axes are known.

    That is its source or, where only the layout differs, the map with two grid axes before it; for a generalised mean
    (GeM), the map before the power.
    """
    value, grid_axes = _before_layout(end.source, end.grid_axes, places)
    power = value.made_by(Op.POW) if end.kind is Collapse.MEAN else None
    raised = None if power is None else fitted(GENERALISED, power)
    value = raised["map"] if isinstance(raised, dict) else value
    feature = places.map_of(value) or (places.tokens_of(value) if grid_axes == (0,) else None)
    units = {axis for axis in grid_axes if value.sizes[axis] == 1}
    if feature is None or not {*feature.grid_axes} <= {*grid_axes} <= {*feature.grid_axes, *units}:
        near = f"; {raised}" if isinstance(raised, Miss) else ""
        raise TargetNotFoundError(f"{value.describe()} is no feature map with channels and a grid of the image{near}")
    return feature


GENERALISED = (
    Part("raised", "single value that it raises", lambda node, _: _varying(node)),
    Part("map", "map", lambda _, on: _before_bound(on["raised"])),
)
"""Of a generalised mean (GeM), from its power: `mean(max(x, bound) ** p) ** (1 / p)`."""


def _before_bound(value: Value) -> Value:
    bound = value.made_by(Op.CLIP)
    return (_varying(bound) if bound is not None else None) or value


def maps_before(graph: Graph, ends: Sequence[GridEnd], places: Places) -> list[FeatureMap]:
    """The feature maps that the ends read, each before it was laid out otherwise; none if there are none for all.

    They collapse the grid, or several of them meet without one; none of these feeds another.
    """
    if all(end.grid_axes for end in ends):
        try:
            return list({item.value: item for item in (feature_before(end, places) for end in ends)}.values())
        except TargetNotFoundError:  # members or samples beside the grid, which an earlier map may be without
            return []
    found = _met(ends, places)
    behind = {value for item in found for value in activations(graph, [item.value]) - {item.value}}
    return found if len(found) > 1 and not any(item.value in behind for item in found) else []


def _met(ends: Sequence[GridEnd], places: Places) -> list[FeatureMap]:
    """The maps that meet in ends, each before it was laid out otherwise; none if one of what they read is no map."""
    read = [places.map_of(value) for value in dict.fromkeys(end.source for end in ends)]
    if None in read:
        return []
    laid = dict.fromkeys(_before_layout(item.value, item.grid_axes, places)[0] for item in read if item is not None)
    return [item for value in laid if (item := places.map_of(value)) is not None]


def _varying(node: Node) -> Value | None:
    """The one operand that is no constant; None if there are several."""
    operands = node.computed
    return only(operands)


def _before_layout(value: Value, grid_axes: tuple[int, ...], places: Places) -> tuple[Value, tuple[int, ...]]:
    """The same grid before it was laid out otherwise: as a map of two axes, where there is one; as tokens, if not.

    Of a map whose axes were only put in another order, what stood before: a branch reads it there.
    """
    value, grid_axes = _before_unit_axis(value, grid_axes, places)
    start, start_axes = value, grid_axes
    while len(grid_axes) == 1 and (node := value.producer) is not None and (source := node.operand(0)) is not None:
        feature = places.map_of(source)
        if node.op not in (Op.TRANSPOSE, Op.RESHAPE) or feature is None:
            break
        value, grid_axes = source, feature.grid_axes
        if len(grid_axes) > 1:
            return value, grid_axes
    turned = start.made_by(Op.TRANSPOSE)
    feature = None if turned is None else places.map_of(turned.read(0))
    return (feature.value, feature.grid_axes) if feature else (start, start_axes)


def _before_unit_axis(value: Value, grid_axes: tuple[int, ...], places: Places) -> tuple[Value, tuple[int, ...]]:
    """The tokens to which a reshape has given a second grid axis, of size 1, so that they are pooled as a map is."""
    node, place = value.made_by(Op.RESHAPE), places.of(value)
    if node is None or place is None or len(place.axes) == len(grid_axes):
        return value, grid_axes
    feature = places.map_of(node.read(0))
    return (feature.value, feature.grid_axes) if feature else (value, grid_axes)


def is_pointwise(graph: Graph, feature: FeatureMap, source: Value) -> bool:
    """Whether `source` has, at each position, a function of the feature map at that position alone."""
    return all(_is_pointwise_node(node, feature) for node in region(graph, [feature.value], [source]))


def _is_pointwise_node(node: Node, feature: FeatureMap) -> bool:
    if node.op in ONE_FUNCTION:
        rank = feature.value.rank
        operands = node.operands
        return all(_is_uniform(value, feature) if value.is_constant else value.rank == rank for value in operands)
    return node.op is Op.BATCH_NORM and feature.channel_axis == 1


def _is_uniform(value: Value, feature: FeatureMap) -> bool:
    """Whether a constant operand is the same at every position."""
    shape = value.shape or ()
    rank = feature.value.rank or 0
    sizes = (1,) * (rank - len(shape)) + tuple(shape)
    return len(sizes) == rank and all(sizes[axis] == 1 for axis in feature.grid_axes)


def closed_ends(graph: Graph, ends: Sequence[GridEnd], feature: FeatureMap, places: Places) -> str | None:
    """Why the masked runs have no closed form from `feature` on; None if they have one."""
    for end in ends:
        if end.kind in (Collapse.TOKEN, Collapse.OTHER):
            return f"the grid ends in {end}"
        source, axes = _before_layout(end.source, end.grid_axes, places)
        if feature.value in (source, end.source):
            continue
        if source.rank != feature.value.rank or axes != feature.grid_axes or not is_pointwise(graph, feature, source):
            return f"operations after {feature.value.name!r} mix its positions"
        if end.kind in (Collapse.LINEAR, Collapse.CONV):
            return f"operations between {feature.value.name!r} and {end.node.type} {end.node.name!r}"
    return None
