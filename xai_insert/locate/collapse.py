"""Where the spatial grid ends: the nodes that turn a feature map into one vector per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from xai_insert.errors import TargetNotFoundError
from xai_insert.graph.cuts import region
from xai_insert.graph.view import Graph, Node, Op, Value, volume
from xai_insert.locate.layout import FeatureMap, channel_axis, grid_of_map
from xai_insert.locate.logits import is_vector

_POINTWISE = frozenset(
    {Op.ELEMENTWISE, Op.SIGMOID, Op.CAST, Op.IDENTITY, Op.CLIP, Op.QUANTIZE} | {Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.POW}
)


class Collapse(Enum):
    """How a grid ends."""

    MEAN = "mean over the grid"
    MAX = "maximum over the grid"
    SUM = "sum over the grid"
    LINEAR = "flatten and linear layer"
    CONV = "convolution as large as the grid"
    TOKEN = "selection of tokens"
    OTHER = "other"


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
    """

    kind: Collapse
    node: Node
    source: Value
    result: Value
    grid_axes: tuple[int, ...] = ()


def grid_ends(vector: Value, reached: set[Value]) -> list[GridEnd]:
    """The nodes at which the paths from the image to `vector` lose their grid, nearest to `vector`.

    Args:
        vector: one vector per image.
        reached: the values that depend on the image.
    """
    ends: list[GridEnd] = []
    seen: set[Value] = set()
    stack = [vector]
    while stack:
        value = stack.pop()
        if value in seen or value.producer is None:
            continue
        seen.add(value)
        node = value.producer
        for operand in node.inputs:
            if operand is None or operand not in reached or node.op is Op.SHAPE:
                continue
            if is_vector(operand.shape):
                stack.append(operand)
            else:
                ends += _classify(node, operand, value)
    return ends


def _classify(node: Node, source: Value, result: Value) -> list[GridEnd]:
    axes = _reduced_axes(node, source)
    if axes is not None:
        mode = node.attrs["mode"]
        kind = _MODES.get(mode, Collapse.OTHER) if len(axes) in (1, 2) and 0 not in axes else Collapse.OTHER
        return [GridEnd(kind, node, source, result, axes)]
    if node.op is Op.CONV and _covers_grid(node, source):
        return [GridEnd(Collapse.CONV, node, source, result, tuple(range(2, source.rank or 0)))]
    if node.op is Op.RESHAPE:
        return _flattened(node, source, result)
    if node.op in (Op.GATHER, Op.SLICE, Op.SPLIT):
        return [GridEnd(Collapse.TOKEN, node, source, result)]
    return [GridEnd(Collapse.OTHER, node, source, result)]


def _reduced_axes(node: Node, source: Value) -> tuple[int, ...] | None:
    if node.op is Op.REDUCE:
        axes: tuple[int, ...] | None = node.attrs["axes"]
        return axes
    if node.op is Op.POOL and source.shape is not None and not any(node.attrs["pads"]):
        sides = zip(node.attrs["kernel"], source.shape[2:], strict=True)
        covers = all(side is not None and size >= side for size, side in sides)  # a larger one, with sizes rounded up
        return tuple(range(2, len(source.shape))) if covers else None
    return None


def _covers_grid(node: Node, source: Value) -> bool:
    weight = node.operand(1)
    if weight is None or weight.shape is None or source.shape is None or not weight.is_constant:
        return False
    grid = source.shape[2:]
    if len(weight.shape) != len(source.shape) or weight.shape[1] != source.shape[1]:
        return False  # grouped
    return weight.shape[2:] == grid and not any(node.attrs["pads"]) and set(node.attrs["dilations"]) == {1}


def _flattened(node: Node, source: Value, result: Value) -> list[GridEnd]:
    """The linear layers behind a flatten, each an end of its own."""
    axis = channel_axis(source)
    ends: list[GridEnd] = []
    stack = [result]
    while stack:
        for use in stack.pop().uses:
            weight = use.node.operand(1)
            if use.node.op is Op.MATMUL and use.index == 0 and _reads_all(use.node, weight, source):
                grid_axes = tuple(a for a in range(1, source.rank or 0) if a != axis)
                ends.append(GridEnd(Collapse.LINEAR, node, source, use.node.output, grid_axes))
            elif use.node.op in (Op.IDENTITY, Op.RESHAPE):
                stack += use.node.outputs
            else:
                return [GridEnd(Collapse.OTHER, node, source, result)]
    if axis is None or source.rank not in (3, 4):
        return [GridEnd(Collapse.OTHER, node, source, result)]
    return ends


def _reads_all(linear: Node, weight: Value | None, source: Value) -> bool:
    """Whether a linear layer has one weight for each element of an image's `source`; one that reads rows has fewer."""
    if weight is None or not weight.is_constant or weight.rank != 2:
        return False
    return volume(source.sizes[1:]) in (None, weight.sizes[1 if linear.attrs["transpose_b"] else 0])


def feature_before(end: GridEnd) -> FeatureMap:
    """The feature map that an end reads.

    That is its source or, where only the layout differs, the map with two grid axes before it; for a generalised mean
    (GeM), the map before the power.
    """
    value, grid_axes = end.source, end.grid_axes
    value, grid_axes = _before_layout(value, grid_axes)
    if end.kind is Collapse.MEAN and value.producer is not None and value.producer.op is Op.POW:
        value = _varying(value.producer) or value
        if value.producer is not None and value.producer.op is Op.CLIP:
            value = _varying(value.producer) or value
    return feature_map(value, grid_axes)


def _varying(node: Node) -> Value | None:
    """The one operand that is no constant; None if there are several."""
    operands = [value for value in node.inputs if value is not None and not value.is_constant]
    return operands[0] if len(operands) == 1 else None


def feature_map(value: Value, grid_axes: tuple[int, ...]) -> FeatureMap:
    """Describe a value whose grid axes are known; the grid of tokens is left open.

    Raises:
        TargetNotFoundError: all its axes but the first are of the grid.
    """
    channel = next((axis for axis in range(1, value.rank or 0) if axis not in grid_axes), None)
    if channel is None:
        raise TargetNotFoundError(f"{value.describe()} has no channels beside its grid, so it is no feature map")
    grid = grid_of_map(value, grid_axes) if len(grid_axes) == 2 else (None, None)
    return FeatureMap(value, channel, grid_axes, grid)


def _before_layout(value: Value, grid_axes: tuple[int, ...]) -> tuple[Value, tuple[int, ...]]:
    value, grid_axes = _before_unit_axis(value, grid_axes)
    start, start_axes = value, grid_axes
    while len(grid_axes) == 1 and (node := value.producer) is not None and (source := node.operand(0)) is not None:
        if node.op is Op.TRANSPOSE and node.attrs["perm"] is not None and source.rank == value.rank:
            value, grid_axes = source, (int(node.attrs["perm"][grid_axes[0]]),)
        elif node.op is Op.RESHAPE and (axes := _unmerged(source, value, grid_axes[0])) is not None:
            return source, axes
        else:
            break
    return start, start_axes


def _before_unit_axis(value: Value, grid_axes: tuple[int, ...]) -> tuple[Value, tuple[int, ...]]:
    """The tokens to which a reshape has given a second grid axis, of size 1, so that they are pooled as a map is."""
    node, shape = value.producer, value.shape
    source = None if node is None or node.op is not Op.RESHAPE else node.operand(0)
    if source is not None and source.shape is not None and shape is not None and len(grid_axes) == 2:
        for axis, other in (grid_axes, grid_axes[::-1]):
            if shape[axis] == 1 and source.shape == (*shape[:axis], *shape[axis + 1 :]):
                return source, (other - (other > axis),)
    return value, grid_axes


def _unmerged(source: Value, value: Value, axis: int) -> tuple[int, int] | None:
    """The two axes of `source` that a reshape merged into `axis` of `value`."""
    a, b = source.shape, value.shape
    if a is None or b is None or len(a) != len(b) + 1:
        return None
    cells = volume(a[axis : axis + 2])
    same_around = a[1:axis] == b[1:axis] and a[axis + 2 :] == b[axis + 1 :]
    return (axis, axis + 1) if same_around and cells is not None and cells == b[axis] else None


def is_pointwise(graph: Graph, feature: FeatureMap, source: Value) -> bool:
    """Whether `source` has, at each position, a function of the feature map at that position alone."""
    return all(_is_pointwise_node(node, feature) for node in region(graph, [feature.value], [source]))


def _is_pointwise_node(node: Node, feature: FeatureMap) -> bool:
    if node.op in _POINTWISE:
        rank = feature.value.rank
        operands = [value for value in node.inputs if value is not None]
        return all(_is_uniform(value, feature) if value.is_constant else value.rank == rank for value in operands)
    return node.op is Op.BATCH_NORM and feature.channel_axis == 1


def _is_uniform(value: Value, feature: FeatureMap) -> bool:
    """Whether a constant operand is the same at every position."""
    shape = value.shape or ()
    rank = feature.value.rank or 0
    sizes = (1,) * (rank - len(shape)) + tuple(shape)
    return len(sizes) == rank and all(sizes[axis] == 1 for axis in feature.grid_axes)


def closed_ends(graph: Graph, ends: Sequence[GridEnd], feature: FeatureMap) -> str | None:
    """Why the masked runs have no closed form from `feature` on; None if they have one."""
    for end in ends:
        if end.kind in (Collapse.TOKEN, Collapse.OTHER):
            return f"the grid ends in {end.node.type} {end.node.name!r}"
        source, axes = _before_layout(end.source, end.grid_axes)
        if source is feature.value:
            continue
        if source.rank != feature.value.rank or axes != feature.grid_axes or not is_pointwise(graph, feature, source):
            return f"operations after {feature.value.name!r} mix its positions"
        if end.kind in (Collapse.LINEAR, Collapse.CONV):
            return f"operations between {feature.value.name!r} and {end.node.type} {end.node.name!r}"
    return None
