"""Following axes through a graph: one rule per operator, see `xai_insert.graph.axes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xai_insert.graph import axes as ax
from xai_insert.graph import operators as kinds
from xai_insert.graph.axes import Axes, Axis
from xai_insert.graph.cutting import cut, joined, of_rows, rolled, stacked
from xai_insert.graph.finer import folded, interleaved, with_size
from xai_insert.graph.joining import centred, contracted, join_all
from xai_insert.graph.picking import picked, unfolded
from xai_insert.graph.shape import completed
from xai_insert.graph.sliding import middle_taps, slid
from xai_insert.graph.strided import is_identity_scatter
from xai_insert.graph.view import Graph, Node, Op, Shape, Value
from xai_insert.graph.wrapping import with_edges

Traced = dict[Value, Axes]
_Rule = Callable[[Node, Any, "_Operands"], Sequence[Axes]]


class _Operands:
    """The operands of a node with their axes; those that do not come from the image have none of it."""

    def __init__(self, node: Node, traced: Mapping[Value, Axes], born: Mapping[Value, int]) -> None:
        self.node = node
        self._traced = traced
        self._born = born

    def axes(self, index: int) -> Axes:
        value = self.node.operand(index)
        if value is None:
            return ()
        return self._traced.get(value) or ax.others(value.shape)

    def found(self, value: Value) -> Axes | None:
        return self._traced.get(value)

    def is_of_image(self, index: int) -> bool:
        return self.node.operand(index) in self._traced

    def traced(self) -> list[Axes]:
        """Those from the image, the earliest first: what a block adds to its operand lies where the operand does."""
        found = [value for value in self.node.operands if value in self._traced]
        return [self._traced[value] for value in sorted(found, key=lambda value: self._born[value])]

    def shape(self, index: int = 0) -> Sequence[int | None]:
        return self.node.outputs[index].shape or ()


def trace(
    graph: Graph,
    images: Mapping[Value, tuple[int, int]],
    times: Mapping[Value, int] | None = None,
    packed: Mapping[Value, int] | None = None,
) -> Traced:
    """The axes of every value that depends on an image and whose rank is known.

    Args:
        graph: the model.
        images: its image inputs, each with the axes of its rows and columns.
        times: of those that are clips, the axis of their frames.
        packed: of those whose frames stand one behind the other in the channels, how many.
    """
    times, packed = times or {}, packed or {}
    traced: Traced = {
        image: ax.of_image(image.shape or (), sides, times.get(image), packed.get(image))
        for image, sides in images.items()
    }
    born = dict.fromkeys(images, -1)
    for number, node in enumerate(graph.nodes):
        if node.op is Op.SHAPE or traced.keys().isdisjoint(node.inputs):
            continue
        rule = kinds.rule_for(_RULES, node.kind) or _lost
        found = rule(node, node.kind, _Operands(node, traced, born))
        born.update(dict.fromkeys(node.outputs, number))
        traced.update(
            (output, _fitted_to(output.shape, axes))
            for output, axes in zip(node.outputs, found, strict=False)
            if output.shape is not None
        )
    return traced


def _fitted_to(shape: Shape, axes: Axes) -> Axes:
    """Axes of known sizes; without a place if they are not as many."""
    return tuple(map(_fitted, axes, shape)) if len(axes) == len(shape) else ax.others(shape)


def _fitted(axis: Axis, size: int | None) -> Axis:
    """An axis as long as the value's; where the rule says another size, nothing is known of it."""
    found = ax.axis_size(axis)
    return axis if None in (found, size) or found == size else ax.other(size)


def _lost(node: Node, kind: Any, given: _Operands) -> Sequence[Axes]:
    return [ax.others(output.shape) for output in node.outputs]


def _pointwise(node: Node, kind: Any, given: _Operands) -> Sequence[Axes]:
    return [join_all(given.traced(), len(given.shape()))]


def _in_place(node: Node, kind: Any, given: _Operands) -> Sequence[Axes]:
    dealt = kind.axis if isinstance(kind, kinds.Shuffled) else None  # cells that are dealt out anew lie elsewhere
    first = tuple(ax.displaced(axis) if index == dealt else axis for index, axis in enumerate(given.axes(0)))
    return [first, *(ax.others(output.shape) for output in node.outputs[1:])]


def _window(node: Node, kind: kinds.Window, given: _Operands) -> Sequence[Axes]:
    source, shape = given.axes(0), given.shape()
    if len(source) != len(shape):
        return _lost(node, kind, given)
    channels = source[1] if kind.keeps_channels else ax.other(shape[1])
    middles = middle_taps(kind, node.operand(1))
    spatial = [slid(source[axis], shape[axis], kind, axis - 2, middles) for axis in range(2, len(shape))]
    result = (source[0], channels, *spatial)
    return [result] * len(node.outputs)


def _reduced(node: Node, kind: kinds.Reduction, given: _Operands) -> Sequence[Axes]:
    source, rank = given.axes(0), len(given.shape())
    if kind.axes is None:
        return _lost(node, kind, given)
    if rank == len(source):
        return [tuple(() if axis in kind.axes else kept for axis, kept in enumerate(source))]
    return [tuple(kept for axis, kept in enumerate(source) if axis not in kind.axes)]


def _product(node: Node, kind: kinds.Product, given: _Operands) -> Sequence[Axes]:
    a, b = given.axes(0), given.axes(1)
    rank = len(given.shape())
    if len(a) < 2 or len(b) < 2:
        kept = a[:-1] if len(a) > 1 else (*b[:-2], *b[-1:])
        return [kept] if len(kept) == rank else _lost(node, kind, given)
    rows = a[-1] if kind.transpose_a else a[-2]
    columns = b[-2] if kind.transpose_b else b[-1]
    return [(*join_all([a[:-2], b[:-2]], rank - 2), rows, columns)]


def _contracted(node: Node, kind: kinds.Contracted, given: _Operands) -> Sequence[Axes]:
    labels = kind.labels
    return _lost(node, kind, given) if labels is None else [contracted(labels, (given.axes(0), given.axes(1)))]


def _attention(node: Node, kind: Any, given: _Operands) -> Sequence[Axes]:
    query, value = given.axes(0), given.axes(2)
    rank = len(given.shape())
    if min(len(query), len(value)) < 2:
        return _lost(node, kind, given)
    leading = join_all([query[:-2], value[:-2]], rank - 2)
    return [(*leading, query[-2], value[-1]), *(ax.others(output.shape) for output in node.outputs[1:])]


def _regroup(node: Node, kind: kinds.Regroup, given: _Operands) -> Sequence[Axes]:
    source, shape = given.axes(0), given.shape()
    if len(shape) < len(source):
        source = tuple(() if ax.is_frame(axis) else axis for axis in source)
    added = kind.new_axes
    if added and len(shape) == len(source) + len(added):
        kept = iter(source)
        return [tuple(() if axis in added else next(kept) for axis in range(len(shape)))]
    return [interleaved(ax.regroup(source, completed(node.read(0).shape, shape)))]


def _permuted(node: Node, kind: kinds.Permutation, given: _Operands) -> Sequence[Axes]:
    source = given.axes(0)
    if kind.perm is None or sorted(kind.perm) != list(range(len(source))):
        return _lost(node, kind, given)
    return [tuple(source[axis] for axis in kind.perm)]


def _sliced(node: Node, kind: kinds.Slices, given: _Operands) -> Sequence[Axes]:
    source, shape = given.axes(0), given.shape()
    if kind.cuts is None:
        return [tuple(_same(axis, size) for axis, size in zip(source, shape, strict=False))]
    kept = list(source)
    position = {axis: index for index, axis in enumerate(a for a in range(len(source)) if a not in kind.dropped)}
    for part in kind.cuts:
        if part.axis in kind.dropped:
            kept[part.axis] = cut(kept[part.axis], part.start, 1)
            continue
        index = position[part.axis]
        count = shape[index] if index < len(shape) else None
        kept[part.axis] = cut(kept[part.axis], part.start, count, part.step)
    return [tuple(axis for index, axis in enumerate(of_rows(kept)) if index not in kind.dropped)]


def _same(axis: Axis, size: int | None) -> Axis:
    return axis if size is not None and ax.axis_size(axis) == size else ax.other(size)


def _split(node: Node, kind: kinds.Parts, given: _Operands) -> Sequence[Axes]:
    source = given.axes(0)
    if kind.axis is None or kind.axis >= len(source):
        return _lost(node, kind, given)
    start, found = 0, []
    for output in node.outputs:
        size = None if output.shape is None else output.shape[kind.axis]
        if size is None:
            return _lost(node, kind, given)
        found.append(of_rows((*source[: kind.axis], cut(source[kind.axis], start, size), *source[kind.axis + 1 :])))
        start += size
    return found


def _picked(node: Node, kind: kinds.Picked, given: _Operands) -> Sequence[Axes]:
    source, before, behind = given.axes(0), given.axes(0)[: kind.axis], given.axes(0)[kind.axis + 1 :]
    if kind.rank == 0:
        taken = picked(source[kind.axis], kind.indices) if kind.indices else ()
        around = of_rows((*before, taken, *behind))
        return [(*around[: kind.axis], *around[kind.axis + 1 :])]
    return [of_rows((*before, *_replaced(kind, given), *behind))]


def _replaced(kind: kinds.Picked, given: _Operands) -> Sequence[Axis]:
    """The axes that stand for the one of which elements are taken."""
    whole, sizes = given.axes(0)[kind.axis], given.shape()[kind.axis : kind.axis + kind.rank]
    if kind.rank == 1 and kind.indices is not None:
        size = ax.axis_size(whole) or 0
        return (picked(whole, [index + size if index < 0 else index for index in kind.indices]),)
    if kind.rank == 1 and given.is_of_image(1):
        return (_chosen(whole, sizes[0]),)
    return unfolded(whole, kind.indices, sizes) or ax.others(sizes)


def _taken(node: Node, kind: kinds.Taken | kinds.Ranked, given: _Operands) -> Sequence[Axes]:
    """Cells that the image itself chooses lie anywhere; no place is left on an axis that was sorted."""
    source, shape = given.axes(0), given.shape()
    if len(source) != len(shape):
        return _lost(node, kind, given)
    pairs = zip(source, shape, strict=True)
    made = [old if ax.axis_size(old) == size else ax.unplaced(old, size) for old, size in pairs]
    made[kind.axis] = _chosen(source[kind.axis], shape[kind.axis])
    return [tuple(made)] * len(node.outputs)


def _chosen(axis: Axis, size: int | None) -> Axis:
    """Cells that the image chooses: as many as there are may be taken for those of the grid; fewer are queries."""
    return ax.elsewhere(size) if ax.has_place(axis) and ax.axis_size(axis) == size else ax.unplaced(axis, size)


def _joined(node: Node, kind: kinds.Joined, given: _Operands) -> Sequence[Axes]:
    operands = [given.axes(index) for index, value in enumerate(node.inputs) if value is not None]
    rank = len(given.shape())
    if any(len(axes) != rank for axes in operands):
        return _lost(node, kind, given)
    around = join_all(given.traced(), rank)
    around = tuple(centred(axis, [axes[index] for axes in operands]) for index, axis in enumerate(around))
    if (tiles := stacked(operands, kind.axis)) is not None:
        made = list(around)
        made[tiles[0]], made[kind.axis] = tiles[1:]
        return [tuple(made)]
    is_of_image = [given.found(value) is not None for value in node.inputs if value is not None]
    together = joined([axes[kind.axis] for axes in operands], is_of_image, around)
    return [(*around[: kind.axis], together, *around[kind.axis + 1 :])]


def _widened(node: Node, kind: Any, given: _Operands) -> Sequence[Axes]:
    source, shape = given.axes(0), given.shape()
    before = node.read(0).shape or ()
    made = [ax.other(size) for size in shape[: max(0, len(shape) - len(source))]]
    for axis, old, size in zip(source, before, shape[len(made) :], strict=False):
        new = ax.copies(size) if old == 1 and not axis else ax.other(size)
        made.append(axis if size == old else new)
    return [tuple(made)]


def _padded(node: Node, kind: kinds.Padded, given: _Operands) -> Sequence[Axes]:
    source, shape = given.axes(0), given.shape()
    if len(source) != len(shape) or (kind.before is not None and len(kind.before) != len(source)):
        return _lost(node, kind, given)
    before = kind.before or [_begin(ax.axis_size(old), size) for old, size in zip(source, shape, strict=True)]
    sides = zip(source, shape, before, strict=True)
    return [tuple(with_edges(axis, size, begin, kind.mode) for axis, size, begin in sides)]


def _begin(before: int | None, size: int | None) -> int | None:
    """What is added before an axis by pads that are computed, to half of what is added; None if that is a lot."""
    if before is None or size is None or abs(size - before) * 16 > before:
        return None
    return (size - before) // 2


def _resized(node: Node, kind: kinds.Resized, given: _Operands) -> Sequence[Axes]:
    source, shape = given.axes(0), given.shape()
    if len(source) != len(shape):
        return _lost(node, kind, given)
    return [_resized_to(shape, source, corners=kind.corners)]


def _resized_to(shape: Sequence[int | None], source: Axes, *, corners: bool = False) -> Axes:
    return tuple(with_size(old, size, corners=corners) for old, size in zip(source, shape, strict=True))


def _blocked(node: Node, kind: kinds.Blocks, given: _Operands) -> Sequence[Axes]:
    source, shape = given.axes(0), given.shape()
    if len(source) != 4 or len(shape) != 4:
        return _lost(node, kind, given)
    ratio = float(kind.side) if kind.to_depth else 1 / kind.side
    made: list[Axis] = [source[0], ax.other(shape[1])]
    for axis in (2, 3):
        old, size = source[axis], shape[axis]
        origin = ax.rolled_line(old, kind.side if kind.to_depth else 1)
        made.append(ax.unplaced(old, size) if origin is None else ax.moved(origin, size, ratio, (ratio - 1) / 2))
    return [tuple(made)]


def _folded(node: Node, kind: kinds.Folded, given: _Operands) -> Sequence[Axes]:
    found = folded(given.axes(0), kind.sides, given.shape())
    return _lost(node, kind, given) if found is None else [found]


def _sampled(node: Node, kind: Any, given: _Operands) -> Sequence[Axes]:
    source, points = given.axes(0), given.axes(1)
    if (len(source), len(points)) != (4, 4):
        return _lost(node, kind, given)
    is_map = node.output.sizes[2:] == node.read(0).sizes[2:]  # not the points of queries
    if is_map and all(map(ax.has_place, source[2:])) and not any(map(ax.has_place, points[1:3])):  # warped
        return [(source[0], source[1], *map(ax.elsewhere, given.shape()[2:]))]
    return [(source[0], source[1], points[1], points[2])]


def _rolled(node: Node, kind: kinds.Rolled, given: _Operands) -> Sequence[Axes]:
    made = list(given.axes(0))
    if kind.axes is None or kind.shifts is None:
        return _lost(node, kind, given)
    for axis, shift in zip(kind.axes, kind.shifts, strict=False):
        old = made[axis]
        origin = ax.coarse(old[0]) if len(old) == 1 and old[0].origin.is_place else None
        if origin is not None:
            made[axis] = ax.of(rolled(origin, -shift))
        elif ax.has_place(old):
            made[axis] = ax.other(ax.axis_size(old))
    return [tuple(made)]


def _scattered(node: Node, kind: Any, given: _Operands) -> Sequence[Axes]:
    data, updates = node.operand(0), node.operand(2)
    if is_identity_scatter(data, node.operand(1), updates):
        return [given.axes(2)]
    if data is None or updates is None or None in (data.shape, updates.shape) or data.sizes[1:] != updates.sizes[1:]:
        return _lost(node, kind, given)
    rows = [axes[1:] for value in (data, updates) if (axes := given.found(value)) is not None]
    return [(given.axes(0)[0], *join_all(rows, len(data.sizes) - 1))]


def _controlled(node: Node, kind: kinds.ControlFlow, given: _Operands) -> Sequence[Axes]:
    read = [(value.shape, axes) for value in node.operands if (axes := given.found(value)) is not None]
    every = [_like_read(output.shape or (), read, resizes=kind.resizes) for output in node.outputs]
    lost = None if kind.moves else int(kind.moves_first)
    return [(*map(ax.displaced, axes[:lost]), *(() if lost is None else axes[lost:])) for axes in every]


def _like_read(shape: Shape, read: Sequence[tuple[Shape | None, Axes]], *, resizes: bool) -> Axes:
    """The axes of what is read in this shape, or else of what a resize makes of this shape."""
    alike = [axes for other, axes in read if other == shape]
    if not alike and resizes:
        alike = [_resized_to(shape, axes) for _, axes in read if len(axes) == len(shape)]
    return join_all(alike, len(shape)) if alike else ax.others(shape)


_RULES: Mapping[type, _Rule] = {
    kinds.Pointwise: _pointwise,
    kinds.InPlace: _in_place,
    kinds.Window: _window,
    kinds.Reduction: _reduced,
    kinds.Product: _product,
    kinds.Contracted: _contracted,
    kinds.FusedAttention: _attention,
    kinds.Regroup: _regroup,
    kinds.Permutation: _permuted,
    kinds.Slices: _sliced,
    kinds.Parts: _split,
    kinds.Picked: _picked,
    kinds.Taken: _taken,
    kinds.Ranked: _taken,
    kinds.Joined: _joined,
    kinds.Widened: _widened,
    kinds.Padded: _padded,
    kinds.Resized: _resized,
    kinds.Blocks: _blocked,
    kinds.Rolled: _rolled,
    kinds.Sampled: _sampled,
    kinds.Scattered: _scattered,
    kinds.Folded: _folded,
    kinds.ControlFlow: _controlled,
}
