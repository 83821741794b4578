"""Region maps: Recipro-CAM of one reported box, on the feature that a two-stage detector has pooled from its region.

The region head is a classifier of small images, so its closed form is that of a classifier (see
`xai_insert.methods.recipro_cam`), with the M reported boxes in place of the images. Which region a box comes from, and
for which class, is carried along the way that its score has taken through selection and suppression: exact, and no box
is compared with another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xai_insert.graph.moves import is_maximum, moved, moved_into
from xai_insert.graph.operators import Ranked
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Graph, Node, Op, Value, fixed
from xai_insert.locate.region_head import RegionHead, RegionReport
from xai_insert.methods.box_sides import box_sides
from xai_insert.methods.recipro_cam import recipro_cam
from xai_insert.methods.shaping import as_vector, known_or_read, rerun, reshape, scalar
from xai_insert.methods.tensor import Tensor, tensor
from xai_insert.methods.top_classes import ClassChoice

Line = npt.NDArray[np.float32]
"""Coordinates along one of four axes."""

_TINY = 1e-6
_ALL = 2**31 - 1


def region_maps(
    surgeon: Surgeon[V], graph: Graph, report: RegionReport, grid: tuple[int, int], cells: tuple[float, float]
) -> V:
    """The map of each reported box, `[B, M, h, w]` float32, 0 or above.

    For the reported class, the logit of the region with all but one position of its feature set to zero, less the
    smallest of these logits; laid where the region is in the image, read bilinearly (over an area where a cell is
    larger than a position), times the share of the cell that lies in both the reported box and the region. Rows that
    pad the report give zeros.

    Memory beside the model's own: the features of the M regions, and one row of the head's first layer for each of
    their positions.

    Args:
        surgeon: the model being edited.
        graph: its view.
        report: the region head and its report.
        grid: h and w.
        cells: columns and rows of the grid for one unit of the regions' coordinates.

    Raises:
        CannotFreeBatchError: the head mixes its regions.
    """
    op, head = surgeon.ops, report.head
    number = _numbers(surgeon, graph, report)
    is_real = op.greater(number, scalar(op, 0.0))
    element = op.mul(op.add(number, scalar(op, -1.0)), is_real)
    classes = float(fixed(head.logits.sizes[1:])[0])
    region = op.floor(op.div(op.add(element, scalar(op, 0.5)), scalar(op, classes)))
    label = op.cast(op.sub(element, op.mul(region, scalar(op, classes))), "int64")
    region = op.cast(region, "int64")
    maps = _mapped(surgeon, graph, head, region, label)
    low = op.reduce(maps, "min", [1, 2])
    maps = op.mul(op.sub(maps, low), op.reshape(is_real, [-1, 1, 1]))

    # Everything has four axes from here on: where OpenVINO rewrites an Unsqueeze, it loses the mark of float32.
    found, sides = report.boxes, fixed(head.feature.grid)
    rank = len(found.value.sizes)
    boxes = op.slice(surgeon.handle(found.value), rank - 1, found.column, found.column + 4)
    batch = 1 if rank == 2 else op.size(boxes, 0)
    boxes = op.reshape(boxes, [batch, -1, 4, 1])
    corners = op.reshape(op.gather(surgeon.handle(head.regions), region), [batch, -1, 4, 1])
    maps = op.reshape(maps, [batch, -1, *sides])
    regions = _in_cells(box_sides(op, corners, "xyxy", 2), cells)
    factors = [cell * factor for cell, factor in zip(cells, found.scale, strict=True)]
    wanted = _in_cells(box_sides(op, boxes, found.format, 2), factors)
    return _laid(Tensor(op, maps), regions, wanted, sides, grid).handle


def _numbers(surgeon: Surgeon[V], graph: Graph, report: RegionReport) -> V:
    """For each reported row, one more than the number of the element of `scores` that it reports, `[B * M]` float32."""
    op, scores = surgeon.ops, report.head.scores
    handle = surgeon.handle(scores)
    sizes = [known_or_read(op, handle, axis, size) for axis, size in enumerate(scores.sizes)]
    count: V | None = None
    for size in sizes:
        factor = as_vector(op, size)
        count = factor if count is None else op.mul(count, factor)
    if count is None:
        raise ValueError("scores have sizes")
    numbers = op.add(op.cast(op.numbers(count), "float32"), scalar(op, 1.0))
    carried = _carried(surgeon, graph, scores, reshape(op, numbers, sizes), report.scores)
    if report.score_column is not None:
        last = len(report.scores.sizes) - 1
        carried = op.slice(carried, last, report.score_column, report.score_column + 1)
    return op.reshape(carried, [-1])


def _carried(surgeon: Surgeon[V], graph: Graph, source: Value, payload: V, result: Value) -> V:
    """What `result` holds if its elements are taken from `payload` wherever they are elements of `source`."""
    way = set(moved_into(result))
    made = {source: payload}
    for node in graph.nodes:
        if result in made:
            break
        if node.output not in way and not any(output in way for output in node.outputs):
            continue
        if any(value in made for value in moved(node)):
            made.update(zip(node.outputs, _moved_again(surgeon, node, made), strict=False))
    return made[result]


def _moved_again(surgeon: Surgeon[V], node: Node, made: dict[Value, V]) -> list[V]:
    """The results of a node for other elements in the same places."""
    op, first = surgeon.ops, node.read(0)
    rank = len(first.sizes)
    if node.op is Op.TOPK:
        return [op.take(made[first], surgeon.handle(node.outputs[1]), node.record(Ranked).axis)]
    if is_maximum(node):
        _, places = op.top(surgeon.handle(first), op.constant(np.ones(1, np.int64)))
        best = op.take(made[first], places, rank - 1)
        kept = len(node.output.sizes) == rank
        return [best if kept else op.reshape(best, [op.size(best, axis) for axis in range(rank - 1)])]
    return list(rerun(surgeon, node, made))


def _mapped(surgeon: Surgeon[V], graph: Graph, head: RegionHead, region: V, label: V) -> V:
    """Logits of one class for each region and position, `[M, m, n]`."""
    op = surgeon.ops

    def read(value: Value) -> V:
        rows = op.gather(surgeon.handle(value), region)
        # One row more, which is dropped in the end: a report without a box is no list without an element in between.
        empty = op.constant(np.zeros([1, *fixed(value.sizes[1:])], np.float32))
        return op.concat([empty, rows], 0)

    first = op.constant(np.zeros(1, np.int64))
    choice = ClassChoice(op.reshape(op.concat([first, label], 0), [-1, 1]), 1)
    maps = recipro_cam(surgeon, graph, head.feature, head.ends, head.logits, choice, read)
    return op.slice(op.reshape(maps, [-1, *fixed(head.feature.grid)]), 0, 1, _ALL)


def _in_cells(sides: Sequence[Tensor[V]], factors: Sequence[float]) -> list[Tensor[V]]:
    return [side * factor for side, factor in zip(sides, [*factors, *factors], strict=True)]


def _laid(
    maps: Tensor[V], regions: list[Tensor[V]], boxes: list[Tensor[V]], sides: list[int], grid: tuple[int, int]
) -> Tensor[V]:
    """Maps `[B, M, m, n]` of regions where these lie on the grid: `[B, M, h, w]`, 0 outside region and box."""
    for axis in (1, 0):
        low, high = regions[axis], regions[axis + 2]
        start, end = low.at_least(boxes[axis]), high.at_most(boxes[axis + 2])
        cells = _line(grid[1 - axis], 3 - axis)
        shares = _shares(low, high, cells, sides[1 - axis], 2 + axis) * _covered(start, end, cells)
        maps = shares @ maps if axis else maps @ shares
    return maps


def _shares(low: Tensor[V], high: Tensor[V], cells: Line, count: int, axis: int) -> Tensor[V]:
    """What each of `count` positions between `low` and `high`, `[B, M, 1, 1]`, has in each cell.

    Returns:
        `[B, M, cells, count]` for axis 3, `[B, M, count, cells]` for axis 2.
    """
    step = (high - low).at_least(_TINY) * (1.0 / count)
    apart = tensor(low.op, cells) - (low + step * _line(count, axis))
    shares = (1.0 - apart.magnitude() / step.at_least(1.0)).at_least(0.0)
    return shares / shares.sum(axis).at_least(_TINY)


def _covered(low: Tensor[V], high: Tensor[V], cells: Line) -> Tensor[V]:
    """How much of each unit cell lies between `low` and `high`, `[B, M, 1, 1]`: 0..1."""
    half = np.float32(0.5)
    start, end = low.at_least(cells - half), high.at_most(tensor(high.op, cells + half))
    return (end - start).at_least(0.0)


def _line(count: int, axis: int) -> Line:
    """Centres of unit cells side by side along one of four axes."""
    sizes = [1] * 4
    sizes[axis] = count
    return (np.arange(count, dtype=np.float32) + np.float32(0.5)).reshape(sizes)
