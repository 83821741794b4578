"""ODAM: the map of one reported box, by the derivative of its own score.

Zhao and Chan 2023, https://arxiv.org/abs/2304.06354: `ReLU(sum_c g_c F_c)`, with g the derivative of the box's score by
a feature map F. The layers between the map that a level's class branch begins with and its scores read a few cells
around each location. So they are run again, and backwards, for windows around the locations of the boxes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic

import numpy as np

from xai_insert.errors import UnsupportedTaskError
from xai_insert.graph.operators import Pointwise, Window
from xai_insert.graph.ops import Ops, Size, Surgeon, V, Windows
from xai_insert.graph.view import Graph, Node, Op, Use, Value, fixed
from xai_insert.locate.boxes import BoxVoters
from xai_insert.locate.detector import ClassLevel, Detector
from xai_insert.locate.towers import Tower, find_tower
from xai_insert.methods.box_sides import overlap_of
from xai_insert.methods.box_votes import (
    Rows,
    class_shares,
    decoded_boxes,
    image_of,
    images_in,
    labels_one_hot,
    of_each_image,
    reported_sides,
    rows_of,
    sides_of,
)
from xai_insert.methods.det_class_probability_map import grid_of_level
from xai_insert.methods.gradients.pullback import pullback
from xai_insert.methods.late_boxes import boxes_everywhere
from xai_insert.methods.shaping import as_number, counted, product_of, scalar, sum_of

_BREAKS_TIES = 1e-5


def odam(surgeon: Surgeon[V], graph: Graph, detector: Detector, voters: BoxVoters, *, follows: bool = False) -> V:
    """The map of each reported box on the grid of the middle level, `[B, M, h, w]` float32.

    The location of a box is the one whose decoded box overlaps it most.

    Args:
        surgeon: the model being edited.
        graph: its view.
        detector: its class scores.
        voters: its boxes.
        follows: as of `box_votes`.

    Raises:
        NoDerivativeError: a layer has no rule.
        UnsupportedTaskError: the scores are no convolution of a map.
    """
    op = surgeon.ops
    wanted = labels_one_hot(surgeon, detector, voters.reported)
    starts, places = list[Size]([0]), []
    image = image_of(surgeon, graph) if follows else None
    late = boxes_everywhere(surgeon, graph) if voters.is_late else {}
    sides = reported_sides(surgeon, voters.reported, image)
    all_rows = rows_of(surgeon, detector, voters, follows=follows)
    for item, level, rows in zip(detector.levels, voters.levels, all_rows, strict=True):
        handle = late.get(level.value, surgeon.handle(level.value))
        handle, level = of_each_image(surgeon, handle, level, voters.reported)  # noqa: PLW2901 - the same boxes
        boxes = decoded_boxes(op, handle, item, level, rows, images=images_in(voters.reported))
        fit = overlap_of(sides, sides_of(op, boxes, voters, image)).handle
        if wanted is not None:
            shares = class_shares(surgeon, item, voters.is_exclusive, rows)
            fit = op.add(fit, op.mul(op.matmul(wanted, shares), scalar(op, _BREAKS_TIES)))
        places.append(fit)
    _, best = op.top(places[0] if len(places) == 1 else op.concat(places, 2), op.constant(np.array([1])))
    best = op.cast(best, "float32")  # [B, M, 1]
    images = None if images_in(voters.reported) == 1 else _numbered(op, best)
    total: V | None = None
    middle = grid_of_level(surgeon, detector.middle, follows=follows)
    for item, rows in zip(detector.levels, all_rows, strict=True):
        first = as_number(op, sum_of(op, starts))
        made = _level(surgeon, graph, item, op.sub(best, first), wanted, images, rows)
        starts.append(rows.count)
        if item is not detector.middle:
            made = op.resize(made, *middle)
        total = made if total is None else op.add(total, made)
    assert total is not None  # a detector has at least one level
    return total


def tower_of(graph: Graph, item: ClassLevel) -> Tower:
    """The layers before the scores of a level.

    Raises:
        UnsupportedTaskError: they are no convolution of a map.
    """
    tower = find_tower(graph, item.head.value)
    if item.head.channel_axis != 1 or len(item.level.grid_axes) != 2 or not tower.nodes or item.more:
        raise UnsupportedTaskError(
            f"ODAM wants class scores that convolutions of a map give; {item.head.value.describe()} are none"
        )
    return tower


@dataclass(frozen=True)
class _Numbered(Generic[V]):
    """Numbers of the boxes in a batch, float32 `[B, M, 1]`.

    Attributes:
        image: of the image of each.
        box: of each box, counted through all images.
    """

    image: V
    box: V


def _numbered(op: Ops[V], best: V) -> _Numbered[V]:
    one = scalar(op, 1.0)
    ones = op.add(op.mul(best, scalar(op, 0.0)), one)
    image, box = (op.sub(op.cumulative(ones, axis), one) for axis in (0, 1))
    return _Numbered(image, op.add(box, op.mul(image, op.number(op.size(best, 1)))))


def _level(
    surgeon: Surgeon[V],
    graph: Graph,
    item: ClassLevel,
    best: V,
    wanted: V | None,
    images: _Numbered[V] | None,
    rows: Rows[V],
) -> V:
    """The maps `[B, M, h, w]` of one level, zero for boxes of others; `best` counts from its first place."""
    op, tower = surgeon.ops, tower_of(graph, item)
    height, width = rows.height, rows.width
    cells, columns = as_number(op, rows.cells), as_number(op, width)
    half = scalar(op, 0.5)
    inside = op.mul(op.greater(best, scalar(op, -0.5)), op.greater(as_number(op, rows.count, -0.5), best))
    best = op.mul(best, inside)
    anchor = op.floor(op.div(op.add(best, half), cells))
    place = op.sub(best, op.mul(anchor, cells))
    row = op.floor(op.div(op.add(place, half), columns))
    column = op.sub(place, op.mul(row, columns))
    side = 2 * tower.reach + 1
    image = None if images is None else images.image
    windows = _Windows(surgeon, tower, (row, column), (height, width), image)
    seed = op.reshape(_seed(surgeon, item, anchor, inside, wanted), [-1, item.head.channels, 1, 1])
    twins = windows.graph()
    source, result = windows.twins[tower.source], windows.twins[tower.result]
    (gradient,) = pullback(surgeon, twins, [source], {result: seed}, None, windows.read)
    made = op.reduce(op.mul(gradient, windows.read[source]), "sum", [1])
    made = op.reshape(op.maximum(made, scalar(op, 0.0)), [-1, side, side])
    down = op.reshape(_lines(surgeon, row, height, tower.reach), [-1, height, side])
    across = op.reshape(_lines(surgeon, column, width, tower.reach), [-1, width, side])
    made = op.matmul_transposed(op.matmul(down, made), across, 3)
    if images is None:
        return op.unsqueeze(made, [0])
    apart = op.gather(made, op.cast(images.box, "int64"))  # [B, M, 1, h, w], also where there is no box
    return op.reshape(apart, [op.size(apart, 0), op.size(apart, 1), height, width])


def _seed(surgeon: Surgeon[V], item: ClassLevel, anchor: V, inside: V, wanted: V | None) -> V:
    """1 at the channel of a box's class and anchor, `[B, M, channels]`; nothing for boxes of other levels."""
    op, order = surgeon.ops, item.channels
    own = op.equal(anchor, op.constant(np.arange(order.anchors, dtype=np.float32).reshape(1, 1, -1)))
    own = op.unsqueeze(op.mul(own, inside), [3])  # [B, M, A, 1]
    both = own if wanted is None else op.mul(own, op.unsqueeze(wanted, [2]))
    pairs = order.anchors * (1 if wanted is None else order.labels)
    flat = op.reshape(both, [op.size(inside, 0), op.size(inside, 1), pairs])
    channels = [
        order.channel(number, label)
        for number in range(order.anchors)
        for label in range(1 if wanted is None else order.labels)
    ]
    return op.matmul(flat, op.constant(np.eye(item.head.channels, dtype=np.float32)[channels]))


def _lines(surgeon: Surgeon[V], place: V, size: Size, reach: int) -> V:
    """1 where cell i of a map is cell j of the window around a place, `[B, M, size, window]`."""
    op, away = surgeon.ops, (np.arange(2 * reach + 1) - reach).astype(np.float32)
    if isinstance(size, int):
        apart = op.constant((np.arange(size, dtype=np.float32)[:, None] - away)[None, None])
    else:
        apart = op.sub(op.reshape(counted(op, size), [1, 1, -1, 1]), op.constant(away.reshape(1, 1, 1, -1)))
    return op.equal(op.unsqueeze(place, [3]), apart)


class _Windows(Generic[V]):
    """The layers of a tower on windows around one location each, `[B * M, C, side, side]`.

    A graph of twins of its nodes is made for the walk back. Cells outside of the map are zero before each convolution,
    as its padding has them.

    Args:
        surgeon: the model being edited.
        tower: the layers.
        places: row and column of the location of each box, `[B, M, 1]` each.
        sizes: height and width of the map.
        image: the number of the image of each box, likewise; None for one image.
    """

    def __init__(
        self, surgeon: Surgeon[V], tower: Tower, places: tuple[V, V], sizes: tuple[Size, Size], image: V | None
    ) -> None:
        self._surgeon, self._tower = surgeon, tower
        self._places, self._sizes, self._image = places, sizes, image
        self.twins: dict[Value, Value] = {}
        self.read: dict[Value, V] = {}

    def graph(self) -> Graph:
        """The twins."""
        source, reach = self._tower.source, self._tower.reach
        self._begin(source, reach)
        self.read[self.twins[source]] = self._gathered()
        reaches: dict[Value, int] = {source: reach}
        nodes: list[Node] = []
        for node in self._tower.nodes:
            left = min(reaches[value] for value in node.operands if value in reaches)
            kind = node.kind
            if isinstance(kind, Window) and kind.kernel is not None:
                operands, made = self._convolved(node, kind, left, nodes)
                left -= (kind.kernel[0] - 1) * kind.dilations[0] // 2
                kind = replace(kind, pads_begin=(0, 0), pads_end=(0, 0))
            else:
                operands = [None if value is None else self.twins.get(value, value) for value in node.inputs]
                made = list(self._surgeon.copy(node, [self._handle(value) for value in node.inputs]))
            for output in node.outputs:
                reaches[output] = left
                self._begin(output, left)
            twin = Node(node.name, node.op, node.type, tuple(operands), native=node.native, kind=kind)
            self._end(twin, tuple(self.twins[output] for output in node.outputs), nodes)
            self.read.update(zip(twin.outputs, made, strict=True))
        return Graph([self.twins[source]], [self.twins[self._tower.result]], ["result"], nodes)

    def _convolved(self, node: Node, kind: Window, left: int, nodes: list[Node]) -> tuple[list[Value | None], list[V]]:
        """What the twin of a convolution reads, and what it gives."""
        op = self._surgeon.ops
        whole, weight = (self.twins.get(value, value) for value in (node.read(0), node.read(1)))
        if left < self._tower.reach:
            whole = self._masked(whole, left, nodes)
        made = op.convolve(self.read[whole], self._surgeon.stored(node, 1), _straight(replace(kind, pads_begin=(0, 0))))
        if (bias := node.operand(2)) is not None:
            made = op.add(made, op.reshape(self._surgeon.handle(bias), [1, -1, 1, 1]))
        return [whole, weight], [made]

    def _handle(self, value: Value | None) -> V | None:
        """What a twin reads in place of an operand."""
        if value is None:
            return None
        return self.read[self.twins[value]] if value in self.twins else self._surgeon.handle(value)

    def _begin(self, value: Value, reach: int) -> None:
        side = 2 * reach + 1
        self.twins[value] = Value(value.name, (None, value.sizes[1], side, side), "float32", value.native)

    def _end(self, twin: Node, outputs: tuple[Value, ...], nodes: list[Node]) -> None:
        twin.outputs = outputs
        for output in outputs:
            output.producer = twin
        for index, value in enumerate(twin.inputs):
            if value is not None and not value.is_constant:
                value.uses.append(Use(twin, index))
        nodes.append(twin)

    def _masked(self, value: Value, reach: int, nodes: list[Node]) -> Value:
        """Zero where a window leaves the map."""
        op, side = self._surgeon.ops, 2 * reach + 1
        inside = [self._inside(*item, reach) for item in zip(self._places, self._sizes, strict=True)]
        rows, columns = op.reshape(inside[0], [-1, 1, side, 1]), op.reshape(inside[1], [-1, 1, 1, side])
        mask = Value("mask", (None, 1, side, side), "float32")
        self.read[mask] = op.mul(rows, columns)
        result = Value(value.name, value.shape, "float32", value.native)
        twin = Node("mask", Op.MUL, "Mul", (value, mask), kind=Pointwise("mul"))
        self._end(twin, (result,), nodes)
        self.read[result] = op.mul(self.read[value], self.read[mask])
        return result

    def _inside(self, place: V, size: Size, reach: int) -> V:
        op = self._surgeon.ops
        cells = self._around(place, reach)
        return op.mul(op.greater(cells, scalar(op, -0.5)), op.greater(as_number(op, size, -0.5), cells))

    def _around(self, place: V, reach: int) -> V:
        """The cells of a window along one axis, `[B, M, side]`."""
        return self._surgeon.ops.add(
            place, self._surgeon.ops.constant((np.arange(2 * reach + 1, dtype=np.float32) - reach).reshape(1, 1, -1))
        )

    def _gathered(self) -> V:
        """The windows of the source, zero outside of the map."""
        op, source, reach = self._surgeon.ops, self._tower.source, self._tower.reach
        channels, side = fixed(source.sizes[1:2])[0], 2 * reach + 1
        high, wide = (sum_of(op, [size, 2 * reach]) for size in self._sizes)
        edges = [0, 0, reach, reach]
        rows = op.transpose(op.pad(self._surgeon.handle(source), edges, edges), [0, 2, 3, 1])
        rows = op.reshape(rows, [-1, channels])
        first, second = (op.add(self._around(place, reach), scalar(op, float(reach))) for place in self._places)
        cells = op.add(op.mul(op.unsqueeze(first, [3]), as_number(op, wide)), op.unsqueeze(second, [2]))
        if self._image is not None:
            whole = as_number(op, product_of(op, [high, wide]))
            cells = op.add(cells, op.mul(op.unsqueeze(self._image, [3]), whole))
        index = op.cast(op.floor(op.add(cells, scalar(op, 0.5))), "int64")
        taken = op.gather(rows, op.reshape(index, [-1, side * side]))  # [B * M, side * side, C]
        return op.reshape(op.transpose(taken, [0, 2, 1]), [-1, channels, side, side])


def _straight(kind: Window) -> Windows:
    return Windows(kind.strides, kind.dilations, (0, 0), (0, 0), kind.groups)


def towers(graph: Graph, detector: Detector) -> Iterator[Tower]:
    """Those of all levels; raises what `tower_of` does."""
    return (tower_of(graph, item) for item in detector.levels)
