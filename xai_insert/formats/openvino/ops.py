"""`Ops` over OpenVINO's standard operation set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as opset
from openvino import opset1

from xai_insert.formats.openvino.vocabulary import LIGHT
from xai_insert.graph.names import PREFIX
from xai_insert.graph.ops import Function, Reduction, Size, Windows

_FEW = 4
_REDUCTIONS: dict[str, Callable[..., ov.Node]] = {
    "mean": opset.reduce_mean,
    "max": opset.reduce_max,
    "min": opset.reduce_min,
    "sum": opset.reduce_sum,
}


class OpenVINOOps:
    """Writes nodes; `name` gives each its unique friendly name."""

    def __init__(self, name: Callable[[str], str]) -> None:
        self._name = name
        self._reshapes: set[int] = set()
        self._sliced: set[tuple[int, int, int]] = set()

    def _named(self, node: ov.Node) -> ov.Output:
        node.set_friendly_name(self._name(node.get_type_name()))
        return node.output(0)

    def constant(self, elements: npt.NDArray[Any]) -> ov.Output:
        return self._named(opset.constant(np.array(elements, order="C")))

    def add(self, a: ov.Output, b: ov.Output) -> ov.Output:
        return self._named(opset.add(a, b))

    def sub(self, a: ov.Output, b: ov.Output) -> ov.Output:
        # OpenVINO rewrites a subtraction as this, and its own rewriting loses the precision mark.
        return self.add(a, self.mul(b, self.constant(np.array(-1, a.get_element_type().to_dtype()))))

    def mul(self, a: ov.Output, b: ov.Output) -> ov.Output:
        return self._named(opset.multiply(a, b))

    def div(self, a: ov.Output, b: ov.Output) -> ov.Output:
        return self._named(opset.divide(a, b))

    def maximum(self, a: ov.Output, b: ov.Output) -> ov.Output:
        return self._named(opset.maximum(a, b))

    def sqrt(self, a: ov.Output) -> ov.Output:
        return self._named(opset.sqrt(a))

    def floor(self, a: ov.Output) -> ov.Output:
        return self._named(opset.floor(a))

    def nonzero_or(self, a: ov.Output, other: ov.Output) -> ov.Output:
        zero = self.constant(np.zeros((), a.get_element_type().to_dtype()))
        return self._named(opset.select(self._named(opset.greater(a, zero)), a, other))

    def matmul(self, a: ov.Output, b: ov.Output) -> ov.Output:
        return self._named(opset.matmul(a, b, False, False))

    def matmul_transposed(self, a: ov.Output, b: ov.Output, rank: int = 2) -> ov.Output:
        del rank
        return self._named(opset.matmul(a, b, False, True))

    def conv1x1(self, a: ov.Output, weight: ov.Output) -> ov.Output:
        return self._named(opset.convolution(a, weight, [1, 1], [0, 0], [0, 0], [1, 1]))

    def mixed_channels(self, a: ov.Output, b: ov.Output, sizes: Sequence[Size]) -> ov.Output:
        # The CPU plugin keeps channels last in memory: flattening them as they lie spares a slow reordering.
        images, channels = sizes
        last = self.reshape(self.transpose(b, (0, 2, 3, 1)), [images, -1, channels])
        return self.matmul_transposed(a, last, 3)

    def reduce(self, a: ov.Output, mode: Reduction, axes: Sequence[int]) -> ov.Output:
        return self._named(_REDUCTIONS[mode](a, self.constant(np.array(axes, np.int64)), keep_dims=True))

    def _vector(self, size: Size) -> ov.Output:
        return self.constant(np.array([size], np.int64)) if isinstance(size, int) else size

    def reshape(self, a: ov.Output, sizes: Sequence[Size]) -> ov.Output:
        while a.get_node().get_instance_id() in self._reshapes:
            a = a.get_node().input_value(0)  # OpenVINO merges reshapes, and its own merging loses the precision mark
        reshaped = self._reshape(a, sizes)
        self._reshapes.add(reshaped.get_node().get_instance_id())
        return reshaped

    def _reshape(self, a: ov.Output, sizes: Sequence[Size]) -> ov.Output:
        if all(isinstance(size, int) for size in sizes):
            target = self.constant(np.array(sizes, np.int64))
        else:
            parts = [self._vector(s) for s in sizes]
            target = self._named(opset.concat(parts, 0))
        return self.shaped(a, target)

    def shaped(self, a: ov.Output, target: ov.Output) -> ov.Output:
        """The same elements in the shape that `target`, int64, holds; -1 for one size that is inferred."""
        return self._named(opset.reshape(a, target, special_zero=False))

    def unsqueeze(self, a: ov.Output, axes: Sequence[int]) -> ov.Output:
        return self._named(opset.unsqueeze(a, self.constant(np.array(axes, np.int64))))

    def transpose(self, a: ov.Output, perm: Sequence[int]) -> ov.Output:
        moved = [(axis, a.get_partial_shape()[axis]) for axis in perm]
        sizes = [-1 if size.is_dynamic else size.get_length() for _, size in moved]
        order = [axis for (axis, _), size in zip(moved, sizes, strict=True) if size != 1]
        if order == sorted(order) and sizes.count(-1) <= 1:  # the elements keep their order
            return self.reshape(a, sizes)
        return self._named(opset.transpose(a, self.constant(np.array(perm, np.int64))))

    def slice(self, a: ov.Output, axis: int, start: Size, end: Size) -> ov.Output:
        key = (a.get_node().get_instance_id(), a.get_index(), axis)
        if key in self._sliced and isinstance(end, int) and isinstance(start, int) and end - start <= _FEW:
            # OpenVINO merges slices of one value into a split, which loses the precision mark.
            places = self.constant(np.arange(start, end, dtype=np.int64))
            return self._named(opset.gather(a, places, self.constant(np.array(axis, np.int64))))
        self._sliced.add(key)
        numbers = (start, end, 1, axis)
        begin, stop, step, along = (self._vector(number) for number in numbers)
        return self._named(opset.slice(a, begin, stop, step, along))

    def concat(self, parts: Sequence[ov.Output], axis: int) -> ov.Output:
        return self._named(opset.concat(list(parts), axis))

    def expand(self, a: ov.Output, sizes: Sequence[int]) -> ov.Output:
        return self._named(opset.broadcast(a, self.constant(np.array(sizes, np.int64)), broadcast_spec="BIDIRECTIONAL"))

    def softmax(self, a: ov.Output, axis: int = -1) -> ov.Output:
        # The first version: the later one is converted to it and loses its precision mark on the way.
        return self._named(opset1.softmax(a, axis % a.get_partial_shape().rank.get_length()))

    def resize(self, a: ov.Output, height: Size, width: Size) -> ov.Output:
        sides = [self._vector(n) for n in (height, width)]
        sizes = self._named(opset.concat(sides, 0))
        return self._named(
            opset.interpolate(
                a,
                sizes,
                mode="linear_onnx",
                shape_calculation_mode="sizes",
                coordinate_transformation_mode="half_pixel",
                axes=self.constant(np.array([2, 3], np.int64)),
            )
        )

    def largest(self, a: ov.Output, count: int) -> ov.Output:
        last = a.get_partial_shape().rank.get_length() - 1
        found = opset.topk(a, self.constant(np.array(count, np.int64)), last, "max", "value", "i64")
        return self._named(found).get_node().output(1)

    def gather(self, a: ov.Output, indices: ov.Output) -> ov.Output:
        return self._named(opset.gather(a, indices, self.constant(np.array(0, np.int64))))

    def equal(self, a: ov.Output, b: ov.Output) -> ov.Output:
        return self.cast(self._named(opset.equal(a, b)), "float32")

    def greater(self, a: ov.Output, b: ov.Output) -> ov.Output:
        return self.cast(self._named(opset.greater(a, b)), "float32")

    def sigmoid(self, a: ov.Output) -> ov.Output:
        return self._named(opset.sigmoid(a))

    def top(self, a: ov.Output, count: ov.Output) -> tuple[ov.Output, ov.Output]:
        node = opset.topk(a, self.reshape(count, []), -1, "max", "value", index_element_type="i64")
        values = self._named(node)
        return values, node.output(1)

    def take(self, a: ov.Output, indices: ov.Output, axis: int) -> ov.Output:
        return self._named(opset.gather_elements(a, indices, axis))

    def suppress(self, boxes: ov.Output, scores: ov.Output, most: int, overlap: float, threshold: float) -> ov.Output:
        limits = [self.constant(np.array(most, np.int64))]
        limits += [self.constant(np.array(number, np.float32)) for number in (overlap, threshold)]
        node = opset.non_max_suppression(boxes, scores, *limits, output_type="i64", sort_result_descending=False)
        return self._named(node)

    def mark(self, a: ov.Output, places: ov.Output) -> ov.Output:
        one = self.constant(np.ones(1, np.float32))
        ones = self._named(opset.broadcast(one, self.size(places, 0)))
        return self._named(opset.scatter_nd_update(a, places, ones))

    def cumulative(self, a: ov.Output, axis: int) -> ov.Output:
        return self._named(opset.cum_sum(a, self.constant(np.array(axis, np.int64))))

    def isolated(self, a: ov.Output, channels: int, *, is_map: bool = False, is_given: bool = True) -> ov.Output:
        # The CPU plugin computes the tail of a graph in float32, back to the first linear layer: here is one. A value
        # of the model's own tail keeps its precision, whatever else reads it.
        if not is_given and _is_in_tail(a):
            return a
        ones = self.constant(np.ones((channels, 1, 1, 1, 1), a.get_element_type().to_dtype()))
        grid = a if is_map else self.reshape(a, [-1, channels, 1, 1])
        same = self._named(opset.group_convolution(grid, ones, [1, 1], [0, 0], [0, 0], [1, 1]))
        return same if is_map else self.reshape(same, [-1, channels])

    def in_planes(self, a: ov.Output, work: Callable[[ov.Output], ov.Output]) -> ov.Output:
        # A convolution gives the channels of each place together. The plugin would lay out bytes for the output one
        # by one, and float32 in blocks: one row of all places makes it do so before the work.
        sizes = a.get_partial_shape()
        if sizes.rank.is_dynamic or len(sizes) != 4 or sizes[1] == 1:
            return work(a)
        rows = self._named(opset.reshape(a, self.constant(np.array([0, 0, 1, -1], np.int64)), special_zero=True))
        return self.shaped(work(rows), self._named(opset.shape_of(a)))

    def clip(self, a: ov.Output, low: float, high: float) -> ov.Output:
        """Bound from both sides."""
        return self._named(opset.clamp(a, low, high))

    def numbers(self, count: ov.Output) -> ov.Output:
        start, step = (self.constant(np.array(number, np.int64)) for number in (0, 1))
        return self._named(opset.range(start, self.reshape(count, []), step, "i64"))

    def function(self, name: Function, a: ov.Output) -> ov.Output:
        return self._named(getattr(opset, name)(a))

    def power(self, a: ov.Output, b: ov.Output) -> ov.Output:
        return self._named(opset.power(a, b))

    def convolve(self, a: ov.Output, weight: ov.Output, windows: Windows) -> ov.Output:
        lies = (windows.strides, windows.pads_begin, windows.pads_end, windows.dilations)
        if windows.groups == 1:
            return self._named(opset.convolution(a, weight, *map(list, lies)))
        return self._named(opset.group_convolution(a, self._grouped(a, weight, windows.groups), *map(list, lies)))

    def spread(self, a: ov.Output, weight: ov.Output, windows: Windows, added: Sequence[int]) -> ov.Output:
        lies = [list(part) for part in (windows.strides, windows.pads_begin, windows.pads_end, windows.dilations)]
        if windows.groups == 1:
            node = opset.convolution_backprop_data(a, weight, lies[0], None, *lies[1:], output_padding=list(added))
            return self._named(node)
        weight = self._grouped(a, weight, windows.groups)
        node = opset.group_convolution_backprop_data(a, weight, lies[0], None, *lies[1:], output_padding=list(added))
        return self._named(node)

    def _grouped(self, a: ov.Output, weight: ov.Output, groups: int) -> ov.Output:
        """Weights with an axis of groups first."""
        shape = list(weight.get_shape())
        if len(shape) > a.get_partial_shape().rank.get_length():
            return weight
        return self._reshape(weight, [groups, shape[0] // groups, *shape[1:]])

    def interleave(self, maps: Sequence[ov.Output | None], side: int) -> ov.Output:
        known = [item for item in maps if item is not None]
        nothing = known[0] if len(known) == len(maps) else self.mul(known[0], self.constant(np.zeros((), np.float32)))
        joined = self.concat([nothing if item is None else item for item in maps], 1)
        return self._named(opset.depth_to_space(joined, "blocks_first", side))

    def pad(self, a: ov.Output, before: Sequence[int], behind: Sequence[int]) -> ov.Output:
        sides = (self.constant(np.array(side, np.int64)) for side in (before, behind))
        return self._named(opset.pad(a, *sides, "constant", self.constant(np.zeros((), np.float32))))

    def pick(self, a: ov.Output, indices: Sequence[int], axis: int) -> ov.Output:
        where, along = self.constant(np.array(indices, np.int64)), self.constant(np.array(axis, np.int64))
        return self._named(opset.gather(a, where, along))

    def cast(self, a: ov.Output, dtype: str) -> ov.Output:
        return self._named(opset.convert(a, ov.Type(np.dtype(dtype))))

    def size(self, a: ov.Output, axis: int) -> ov.Output:
        shape = self._named(opset.shape_of(a))
        index, zero = self.constant(np.array([axis], np.int64)), self.constant(np.array(0, np.int64))
        return self._named(opset.gather(shape, index, zero))

    def number(self, size: ov.Output) -> ov.Output:
        return self.cast(size, "float32")


def _is_in_tail(a: ov.Output) -> bool:
    """Whether a value is an output of the model, or nothing but light work from one."""
    nodes = [target.get_node() for target in a.get_target_inputs()]
    own = [node for node in nodes if not node.get_friendly_name().startswith(PREFIX)]
    if any(node.get_type_name() == "Result" for node in own):
        return True
    return any(_is_in_tail(port) for node in own if node.get_type_name() in LIGHT for port in node.outputs())
