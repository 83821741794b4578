"""Key points: heat maps with a channel for each, or the scores of bins along the columns and the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xai_insert.errors import AmbiguousModelError
from xai_insert.graph.along import along, is_least
from xai_insert.graph.cuts import cut_values
from xai_insert.graph.items import first_present
from xai_insert.graph.operators import Product, Resized, Window
from xai_insert.graph.pattern import before, layer_of
from xai_insert.graph.traits import RANKS, SAME
from xai_insert.graph.view import Graph, Node, Op, Value, numbers
from xai_insert.locate.inputs import image_inputs, image_size
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.locate.places import Places

_CELL = 4
"""Pixels along a side of a cell of the map that is made of bins; what most heat maps have."""
_COARSEST = 8
"""Pixels from one cell of heat maps to the next, at most; heads of boxes are coarser."""
_FEWEST = 4
"""Channels from which on a single map is likely one of key points; fewer may be colours, normals or a flow."""
_MOST_SIZES = 3  # that a detector regresses in one head beside its boxes: of a solid
_FEWEST_WITH_OFFSETS = 3
_NEAR = 6
"""Layers between the last widening of the grid and the heat maps."""


@dataclass(frozen=True)
class HeatMaps:
    """A map for each key point.

    Attributes:
        feature: the maps, as the model gives or reads them.
        joints: how many.
        sign: what tells that they are of key points, for people.
        is_sure: whether it does.
        output: which of the model's outputs they are; None if that holds what was read off them.
    """

    feature: FeatureMap
    joints: int
    sign: str
    is_sure: bool
    output: int | None = None


@dataclass(frozen=True)
class Bins:
    """SimCC: for each key point a score of each bin along the columns, and of each along the rows.

    Attributes:
        columns: `[B, J, bins]`, before a softmax.
        rows: likewise.
        joints: J.
        outputs: which of the model's outputs the columns and the rows are.
        each: how many bins make one cell of the map.
        per_pixel: how many bins there are for one pixel.
    """

    columns: Value
    rows: Value
    joints: int
    outputs: tuple[int, int]
    each: int
    per_pixel: float
    sign: str = "bins along columns and rows"
    is_sure: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the map."""
        height, width = ((value.sizes[2] or 0) // self.each for value in (self.rows, self.columns))
        return height, width

    @property
    def frame(self) -> Frame:
        """Bin i stands for pixel `i / per_pixel`."""
        line = (self.each / self.per_pixel, (self.each - 1) / 2 / self.per_pixel)
        return Frame(lines=(line, line))


def find_keypoints(graph: Graph, places: Places, output: str | None) -> HeatMaps | Bins | None:
    """The maps of key points that the outputs are, or are read off; None if there are none.

    Args:
        graph: the model.
        places: where its values lie in the image.
        output: name of the output that holds the maps, or the bins along the columns.

    Raises:
        UnknownNameError: no output has that name.
        AmbiguousModelError: of a square image, bins along columns and rows cannot be told apart.
    """
    chosen = graph.chosen(output)
    return _bins(graph, places, output) or _read_off(graph, places) or _given(chosen, places)


def _bins(graph: Graph, places: Places, output: str | None) -> Bins | None:
    values = [before(value, SAME | {Op.SOFTMAX}) for value in graph.outputs]
    size = image_size(image_inputs(graph)[0])
    if size is None or not _may_be_bins(values, places):
        return None
    counts, count = [value.sizes[2] or 0 for value in values], values[0].sizes[1]
    orders = _orders(counts, size)
    if count is None or not orders:
        return None
    x, y = orders[0] if len(orders) == 1 else _order_of_square(graph, values, output)
    per_pixel = counts[x] / size[1]
    return Bins(values[x], values[y], count, (x, y), _bins_at_once(counts, per_pixel), per_pixel)


def _bins_at_once(counts: Sequence[int], per_pixel: float) -> int:
    """How many bins make one of the map: as many as divide both rows of them, a cell of the image at most."""
    most = max(round(_CELL * per_pixel), 1)
    return max(n for n in range(1, most + 1) if all(count % n == 0 for count in counts))


def _orders(counts: Sequence[int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Which of two values may hold the columns and which the rows: as many bins for each pixel, and one at least."""
    height, width = size
    return [(x, y) for x, y in ((0, 1), (1, 0)) if counts[x] * height == counts[y] * width and counts[x] >= width]


def _may_be_bins(values: Sequence[Value], places: Places) -> bool:
    """Whether two values have rows of numbers for as many key points, none of which lies in the image."""
    if len(values) != 2 or any(value.rank != 3 or places.is_placed(value) for value in values):
        return False
    return _have_one_source(values)


def _order_of_square(graph: Graph, values: Sequence[Value], output: str | None) -> tuple[int, int]:
    """Which output holds the columns and which the rows, of a square image."""
    names = list(graph.output_names)
    if output is None:
        raise AmbiguousModelError(
            f"{values[0].describe()} and {values[1].describe()} score bins for key points, and the image is "
            f"square: name the output of the columns (x) with --output, {names[0]} or {names[1]}"
        )
    x = names.index(output)
    return x, 1 - x


def _have_one_source(values: Sequence[Value]) -> bool:
    """Whether linear layers that read the same give values for as many key points each."""
    sources = {_linear_source(value) for value in values}
    return None not in sources and len(sources) == 1 and len({value.sizes[1] for value in values}) == 1


def _linear_source(value: Value) -> Value | None:
    """What the linear layer reads that gives a value; None if none does."""
    layer = layer_of(value)
    return layer.operand(0) if layer is not None and isinstance(layer.kind, Product) else None


def _read_off(graph: Graph, places: Places) -> HeatMaps | None:
    """Maps whose greatest place the model itself finds, or whose mean place, for each of as many rows of an output."""
    ranked = [node for node in graph.nodes if node.op in RANKS | {Op.SOFTMAX} and node.operand(0) is not None]
    found = (_maps_read_by(node, graph, places) for node in ranked if not is_least(node.kind))
    return first_present(found)


def _maps_read_by(node: Node, graph: Graph, places: Places) -> HeatMaps | None:
    """What a node reads places off, if an output is made of these."""
    is_mean = node.op is Op.SOFTMAX
    value = node.output if is_mean else node.read(0)
    feature = places.map_of(value)
    if feature is None or (feature.channels or 0) < 2 or not _is_over_places(node, feature):
        return None
    joints = feature.channels or 0
    if not any(_is_of(output, joints, graph, value, through=is_mean) for output in graph.outputs):
        return None
    sign = "the mean place" if is_mean else "the greatest place"
    return HeatMaps(feature, joints, f"{sign} of each is read off them", is_sure=True)


def _is_over_places(node: Node, feature: FeatureMap) -> bool:
    """Whether a softmax goes over the places of a map, or the first of them is chosen."""
    return (along(node.kind),) == feature.grid_axes and (node.op is not Op.TOPK or numbers(node.operand(1)) == (1,))


def _is_of(output: Value, joints: int, graph: Graph, maps: Value, *, through: bool) -> bool:
    """Whether an output has coordinates of each key point; `through` the maps alone, as those of a mean place have."""
    sizes = output.sizes[1:] if output.rank else ()
    is_listed = joints in sizes[:-1] and sizes[-1] in (2, 3)
    is_flat = len(sizes) == 1 and sizes[0] in (2 * joints, 3 * joints)
    if not (is_listed or is_flat):
        return False
    return not through or maps in cut_values(graph, image_inputs(graph), output)


def _given(chosen: Sequence[tuple[int, Value]], places: Places) -> HeatMaps | None:
    """Maps that are an output; with others of the same grid, those with half as many channels as there are offsets."""
    found = [(index, feature) for index, value in chosen if (feature := _map(value, places)) is not None]
    if not found or len(found) < len(chosen):
        return None
    if len(found) > 1:
        return _beside_offsets(found)
    ((index, feature),) = found
    is_whole = feature.value is dict(chosen)[index]
    return _alone(feature, places, index if is_whole else None)


def _alone(feature: FeatureMap, places: Places, output: int | None) -> HeatMaps | None:
    """Maps that nothing is compared with; of only one place behind them if they are not an output as they are."""
    joints = feature.channels
    if joints is None:
        return None
    sign = _sign(feature, image_size(places.image) if places.image is not None else None)
    is_sure = bool(sign) and joints >= _FEWEST and output is not None
    return HeatMaps(feature, joints, sign or "as asked for", is_sure, output)


def _beside_offsets(found: Sequence[tuple[int, FeatureMap]]) -> HeatMaps | None:
    """The one of several outputs on a grid beside which another has two offsets for each of its channels.

    Of an even number of them, a detector's sides of boxes and scores of classes may have the same widths; beside these
    it has an objectness for each box, or depths, sizes and angles, and no further offsets.
    """
    widths = {feature.channels for _, feature in found}
    paired = [
        (index, feature, joints)
        for index, feature in found
        if (joints := feature.channels or 0) >= _FEWEST_WITH_OFFSETS and 2 * joints in widths
    ]
    if len(paired) != 1 or len({feature.grid for _, feature in found}) > 1:
        return None
    ((index, feature, joints),) = paired
    others = [feature.channels or 0 for at, feature in found if at != index and feature.channels != 2 * joints]
    is_sure = joints % 2 == 1 or _are_offsets(others, joints)
    sign = f"beside {2 * joints} offsets on the same grid; --num-classes {joints} takes them for scores of classes"
    return HeatMaps(feature, joints, sign, is_sure, index)


def _are_offsets(widths: Sequence[int], joints: int) -> bool:
    """Whether further outputs beside maps of key points may be pairs of numbers for each, and are no detector's."""
    return bool(widths) and all(width % 2 == 0 and width > _MOST_SIZES and 2 * width != joints for width in widths)


def _map(output: Value, places: Places) -> FeatureMap | None:
    """An output as maps of numbers that nothing compares, or what stands before its last resize."""
    value = output
    if output.producer is not None and isinstance(output.producer.kind, Resized):
        value = output.producer.read(0)
    feature = places.map_of(value)
    is_plain = "float" in value.dtype and not any(node.op is Op.SOFTMAX for node in _before(value, 3))
    return feature if feature is not None and len(feature.grid_axes) == 2 and is_plain else None


def _sign(feature: FeatureMap, size: tuple[int, int] | None) -> str:
    """Why maps that nothing compares are likely of key points; empty if nothing tells."""
    stride = min((abs(stride) for stride, _ in feature.frame.lines or ()), default=1.0)
    if _CELL <= stride <= _COARSEST and any(map(_widens, _before(feature.value, _NEAR))):
        return "the grid is widened by learned layers, and stays coarser than the image"
    if 2 <= stride <= _CELL and size is not None and size[0] > size[1]:
        return "the image is upright, as one of a person is"
    return ""


def _widens(node: Node) -> bool:
    """Whether a learned layer makes more places."""
    return isinstance(node.kind, Window) and node.kind.transposed


def _before(value: Value, count: int) -> Iterator[Node]:
    """The layers that lead to a value, the last first, along their first operands."""
    for _ in range(count):
        node = value.producer
        if node is None or node.operand(0) is None:
            return
        yield node
        value = node.read(0)
