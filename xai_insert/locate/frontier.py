"""Head frontier: the last learned layers before a model's detections.

Walking back from the outputs along data, not along indices or shapes, the first convolution or linear layer with
constant weights on every path is a head: of classes, boxes, gates or mask coefficients. What follows the heads only
decodes and selects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from xai_insert.graph.along import convolves
from xai_insert.graph.cuts import activations, walk
from xai_insert.graph.items import present
from xai_insert.graph.operators import Contracted, Product, Resized, Window
from xai_insert.graph.traits import ARRANGES, FIRST_IS_DATA, PRODUCTS, WITHOUT_DATA
from xai_insert.graph.view import Graph, Node, Op, Use, Value, constant_of, number_of, volume
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.levels import Level, token_levels
from xai_insert.locate.places import Places, find_places

# A decoder multiplies boxes by small fixed matrices; no linear head reads so few features.
_FEWEST_FEATURES = 5
_FEWEST_OF_CONVOLUTION = 2
_ROWS, _TOKENS = 2, 3  # axes
_MOST_ELEMENTS = 1 << 12  # of a weight that reads few features
_FEW_LEVELS = 8  # that four bits with a sign have of what is not below zero


@dataclass(frozen=True)
class Head:
    """A last learned layer and the grid of its results.

    Attributes:
        value: its result with the bias: `[N, C, h, w]` of a convolution; `[N, L, C]` or `[N, h, w, C]` of a linear
            layer.
        source: the feature that the layer reads.
        channel_axis: axis of the channels.
        levels: the grids; one for a convolution, one or more joined along `L` for tokens.
    """

    value: Value
    source: Value
    channel_axis: int
    levels: tuple[Level, ...]

    @property
    def channels(self) -> int:
        size = self.value.sizes[self.channel_axis]
        return size or 0


def find_heads(graph: Graph, images: Sequence[Value], output: str | None = None) -> list[Head]:
    """Every head with a grid, in topological order: learned layers, and products with embeddings.

    Of the outputs of that name alone, where there is one.
    """
    found = [head for head in _heads(graph, images).values() if head is not None]
    heads = sorted(found, key=lambda head: graph.order[head.value.producer] if head.value.producer else 0)
    return heads if output is None else _leading_to(graph, heads, {value for _, value in graph.chosen(output)})


def _leading_to(graph: Graph, heads: Sequence[Head], outputs: set[Value]) -> list[Head]:
    """The heads from which one of some outputs is computed."""
    return [head for head in heads if outputs & activations(graph, [head.value])]


def without_grid(graph: Graph, images: Sequence[Value]) -> list[Value]:
    """Results of last layers that hold something of the image's rows or columns, but no grid that can be traced."""
    places = find_places(graph)
    return [
        layer.output for layer, head in _heads(graph, images).items() if head is None and places.is_placed(layer.output)
    ]


def _heads(graph: Graph, images: Sequence[Value]) -> dict[Node, Head | None]:
    dependent = activations(graph, images)
    places = find_places(graph)
    heads = {layer: _head(places, layer, dependent) for layer in _frontier(graph, dependent)}
    if any(heads.values()):  # a line of tokens alone is text; beside grids it is one of them, of one row or one column
        heads = {layer: head or _strip(places, layer, dependent) for layer, head in heads.items()}
    return heads


def _frontier(graph: Graph, dependent: set[Value]) -> list[Node]:
    starts = list(graph.outputs)
    for node in graph.nodes:
        if node.op is Op.TOPK:
            starts.append(node.read(0))  # the indices of the best are used where their scores are not
        elif node.op is Op.NMS:
            starts += node.operands[:2]

    def layer(value: Value) -> Node | None:
        node = value.producer
        return node if node is not None and (is_learned(node) or _embedded(node, dependent) is not None) else None

    def before(value: Value) -> list[Value]:
        return [] if layer(value) else [operand for operand in _data_operands(value) if operand in dependent]

    way = walk([value for value in starts if value in dependent], before)
    return list(dict.fromkeys(found for value in way if (found := layer(value)) is not None))


def is_learned(node: Node) -> bool:
    """Whether a node is a convolution or linear layer with weights that were learned."""
    weight = node.operand(1)
    if not (node.op in PRODUCTS or convolves(node.kind)) or weight is None or not weight.is_constant:
        return False
    if weight.shape is None or (node.op is Op.MATMUL and weight.rank != 2):
        return False
    features = _features(node, [size or 0 for size in weight.shape])
    if features < _FEWEST_FEATURES and not (convolves(node.kind) and _is_mixed(weight)):
        return False
    return features >= _FEWEST_OF_CONVOLUTION and not _counts(weight)


def _is_mixed(weight: Value) -> bool:
    """Whether most elements of a weight are of a size of their own: fixed matrices pick, add and halve."""
    elements = constant_of(weight, limit=_MOST_ELEMENTS)
    if elements is None:
        return False
    return 2 * np.unique(np.abs(elements.astype(np.float64))).size > elements.size


def channel_axis(layer: Node) -> int:
    """The axis of the channels in what a layer gives, a convolution or a linear one."""
    return 1 if convolves(layer.kind) else -1


def _features(node: Node, weight: Sequence[int]) -> int:
    """How many numbers a layer adds up for one of its result; those of all groups, if these mix channels at all."""
    if not convolves(node.kind):
        return weight[1 if node.record(Product).transpose_b else 0]
    window, channels = node.record(Window), node.read(0).sizes[1] or 0
    if window.transposed:
        return channels // window.groups
    features = volume(weight[len(weight) - (node.output.rank or 4) + 1 :]) or 0
    return features * window.groups if channels > window.groups else features


def _embedded(node: Node, dependent: set[Value]) -> tuple[Value, int] | None:
    """The features of the image that a node multiplies by embeddings, stored or given, and the axis of the products.

    Each position has its product with each embedding: `[N, L, K]` or, where the embeddings stand left, `[N, K, L]`; of
    an Einsum `[N, K, h, w]` and alike. None if it does no such thing.
    """
    if not isinstance(node.kind, (Product, Contracted)):
        return None
    one, other = node.read(0), node.read(1)
    if (one in dependent) == (other in dependent):
        return None
    features, embeddings = (one, other) if one in dependent else (other, one)
    found = _summed(node.kind, features is other) if isinstance(node.kind, Contracted) else None
    if isinstance(node.kind, Product) and node.output.rank == _TOKENS:
        is_last = node.kind.transpose_b if embeddings is other else not node.kind.transpose_a
        found = (-1 if is_last else -2, 2 if embeddings is other else 1)
    return (features, found[1]) if found and _are_embeddings(embeddings, found[0]) else None


def _summed(kind: Contracted, is_second: bool) -> tuple[int, int] | None:
    """The axis along which an Einsum sums embeddings, and that of its result with a product for each of them.

    `is_second` says whether the features are its second operand. None if it multiplies them otherwise.
    """
    if kind.labels is None:
        return None
    *terms, result = kind.labels
    features, embeddings = terms[::-1] if is_second else terms
    own = [label for label in embeddings if label in result and label not in features]
    summed = [label for label in embeddings if label in features and label not in result]
    if len(own) != 1 or len(summed) != 1 or {*features} - {*summed} | {*own} != {*result}:
        return None
    axis = embeddings.index(summed[0]) - len(embeddings)
    return (axis, result.index(own[0])) if {*embeddings[-2:]} == {*own, *summed} else None


def _are_embeddings(value: Value, axis: int) -> bool:
    """Whether a value is one list of vectors along `axis`, and no table of places."""
    if value.axis_count < 2 or any(size != 1 for size in value.sizes[:-2]):
        return False
    return (value.sizes[axis] or 0) >= _FEWEST_FEATURES and not _counts(value)


def _counts(weight: Value) -> bool:
    """Whether weights are 0, 1, 2, ...: the expectation over the bins of a distribution, not learned."""
    elements = constant_of(weight, limit=256)
    if elements is None or elements.size < 2 or elements.reshape(-1)[-1] <= 0:
        return False
    given, numbers = elements.reshape(-1).astype(np.float64), np.arange(elements.size)
    last = elements.size - 1  # what stands for them is a multiple, of seven bits at least or an FP8 of three
    counted = given * last / given[-1]
    if np.all(np.abs(counted - numbers) <= last / 125 + numbers / 16):
        return True
    step = _step_of_four_bits(given)
    unit = float(given @ numbers) / float(numbers @ numbers)
    return bool(step and np.all(np.abs(given - unit * numbers) <= 0.6 * step))


def _step_of_four_bits(given: npt.NDArray[np.float64]) -> float:
    """From one number to the next of those that four bits hold, where they have made some equal; 0 of others."""
    levels = np.unique(given)
    steps = np.diff(levels)
    is_even = _FEW_LEVELS <= levels.size < given.size and steps.max() <= 1.01 * steps.min()
    return float(steps.max()) if is_even else 0.0


_DATA = {
    **dict.fromkeys(WITHOUT_DATA, slice(0, 0)),
    **dict.fromkeys(FIRST_IS_DATA, slice(0, 1)),
    Op.NMS: slice(0, 2),
    Op.SELECT: slice(1, None),
    Op.SCATTER: slice(0, None, 2),
}
"""Which operands an operation works on, where the others say how."""
_FIRST_OUTPUT_IS_DATA = (Op.TOPK, Op.QUANTIZE)
"""What else they give are places, or the scale and zero point of a dynamic quantisation."""


def _data_operands(value: Value) -> list[Value]:
    node = value.producer
    if node is None or (node.op in _FIRST_OUTPUT_IS_DATA and value.index > 0):
        return []
    operands = node.inputs[_DATA.get(node.op, slice(None))]
    return present(operands)


def _head(places: Places, layer: Node, dependent: set[Value]) -> Head | None:
    value = _enlarged(_as_rows_of_images(_with_bias(layer, dependent)))
    shape = value.shape
    if shape is None or 0 in shape or len(shape) not in (3, 4):
        return None
    features, channel = _reading(layer, dependent)
    if value.rank != layer.output.rank:
        channel = len(shape) - 1
    if shape[channel] is None:
        return None
    levels: tuple[Level, ...] = ()
    if len(shape) == 4:
        levels = _level(places, value, tuple(axis for axis in (1, 2, 3) if axis != channel))
    elif not convolves(layer.kind) or layer.read(1).sizes[-1] == 1:
        levels = token_levels(places, value, 3 - channel)
    return Head(value, features, channel, levels) if levels else None


def _strip(places: Places, layer: Node, dependent: set[Value]) -> Head | None:
    """A head of tokens in one row or one column."""
    value = _with_bias(layer, dependent)
    features, channel = _reading(layer, dependent)
    if layer.op is not Op.MATMUL or value.rank != 3 or value.sizes[channel] is None:
        return None
    grid = places.strip_of(layer.output, 3 - channel)
    return None if grid is None else Head(value, features, channel, (Level(0, *grid, (3 - channel,)),))


def _reading(layer: Node, dependent: set[Value]) -> tuple[Value, int]:
    """What a layer reads, and the axis of its channels."""
    if convolves(layer.kind):
        return layer.read(0), 1
    found = None if is_learned(layer) else _embedded(layer, dependent)
    return found or (layer.read(0), len(layer.output.sizes) - 1)


def _level(places: Places, value: Value, axes: tuple[int, ...]) -> tuple[Level, ...]:
    """The grid in two axes of a value; none where they are not those of the image."""
    height, width = (value.sizes[axis] for axis in axes)
    place = places.of(value)
    if place is not None and place.axes == axes:
        return (Level(0, height, width, axes, places.frame_of(place)),)
    strips = [places.strip_of(value, axis) for axis in axes if value.sizes[axis] != 1]
    return (Level(0, height, width, axes),) if all(strip == (height, width) for strip in strips) else ()


def _scaled(layer: Node) -> Value:
    """The result of a layer of integers as numbers: cast, and multiplied by a scale, of each channel or of all."""
    value = layer.output
    channels = (1, value.sizes[channel_axis(layer)]) if value.rank else ()
    while "float" not in value.dtype or value.made_by(Op.CAST):
        use = value.only_use
        if use is None:
            break
        node = use.node
        if node.op is Op.CAST:
            value = node.output
            continue
        other = node.operand(1 - use.index)
        if node.op is Op.MUL and other is not None and other.rank is not None and volume(other.sizes) in channels:
            value = node.output
        break
    return value


def _rounded(value: Value) -> Value:
    """What the model goes on with where it rounds a result to integers, that a kernel which rounds may be used."""
    end = value
    while (use := end.only_use) is not None:
        node = use.node
        if node.op is not Op.QUANTIZE or use.index:
            break
        end = node.output
        if "float" in end.dtype:
            return end if node.read(0) is not value else value  # FakeQuantize is a part of the layer before it
    return value


def _with_bias(layer: Node, dependent: set[Value]) -> Value:
    value = _with_alpha(_rounded(layer.output if "int" not in layer.output.dtype else _scaled(layer)))
    use = value.only_use
    if use is None or use.node.op is not Op.ADD:
        return value
    add = use.node
    other = add.inputs[1 - use.index]
    if other is None or other in dependent or other.rank is None:
        return value
    channel = value.sizes[channel_axis(layer)]
    return _rounded(add.output) if not other.is_constant or volume(other.sizes) in (channel, 1) else value


def _with_alpha(rows: Value) -> Value:
    """The rows of a Gemm multiplied by its alpha, which OpenVINO writes out, be it 1."""
    use = rows.only_use if rows.rank == _ROWS else None
    if use is None or use.node.op is not Op.MUL or number_of(use.node.operand(1 - use.index)) is None:
        return rows
    return use.node.output


def _as_rows_of_images(value: Value) -> Value:
    """What makes `[N, L, C]` or `[N, h, w, C]` of a linear layer's rows of all images, `[N L, C]`."""
    use = value.only_use if value.rank == _ROWS else None
    if use is None or use.node.op is not Op.RESHAPE or use.node.output.sizes[-1:] != value.sizes[-1:]:
        return value
    return use.node.output


def _enlarged(value: Value) -> Value:
    """What lists a coarse place's score for each finer place of the boxes; maps of segments are no list."""
    use = value.only_use
    if use is None or not isinstance(use.node.kind, Resized) or use.node.kind.mode != "nearest":
        return value
    reader = use.node.output.only_use
    return use.node.output if reader is not None and reader.node.op in ARRANGES else value


def finished(graph: Graph, head: Head) -> Head:
    """A head whose value has what is computed for each location or stored: a shift, a scale, a sum with other heads."""
    dependent = activations(graph, image_inputs(graph))
    end = head.value
    while (use := end.only_use) is not None and _finishes(head, use, dependent):
        end = use.node.output
    return replace(head, value=end)


def _finishes(head: Head, use: Use, dependent: set[Value]) -> bool:
    """Whether scores are shifted or scaled by one number, by one for each channel, or by other scores."""
    node, other = use.node, use.node.operand(1 - use.index) if use.index < 2 else None
    if other is None or node.output.sizes != head.value.sizes:
        return False
    if node.op not in (Op.ADD, Op.MUL) and not (node.op in (Op.SUB, Op.DIV) and use.index == 0):
        return False
    if other in dependent:
        return node.op is not Op.DIV
    beside = len(head.value.sizes) - len(other.sizes)
    return all(size == 1 or axis + beside == head.channel_axis for axis, size in enumerate(other.sizes))
