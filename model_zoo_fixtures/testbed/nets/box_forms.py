"""How a detector decodes boxes: forms of what its heads give, and of what it reports."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from model_zoo_fixtures.testbed.nets.graph import Net
from model_zoo_fixtures.testbed.nets.pyramids import Grid, Layout, Rows, listed_constant

FORMS = ("deltas", "distances", "offsets", "cell", "bins")
REPORTED = ("xyxy", "xyxy", "cxcywh", "cxcywh", "xywh", "yxyx")
BINS = 4


@dataclass(frozen=True)
class Priors:
    """Names of what boxes are relative to, all along one axis of one number.

    Attributes:
        x: centres in pixels.
        y: likewise.
        width: of the anchor.
        height: likewise.
        stride: pixels of a cell.
    """

    x: str
    y: str
    width: str
    height: str
    stride: str


def of_grid(net: Net, rows: Rows) -> Priors:
    """Priors `[1, A, 1, ...]` of one level; of the size that the input has, if that is free."""
    grid = rows.grid
    if not net.dynamic:
        arrays = _arrays(grid)
        if rows.flat:
            arrays = [array.reshape(*array.shape[:3], -1) for array in arrays]
        return Priors(*(net.const(array) for array in arrays[:4]), net.scalar(float(grid.stride)))
    shape = net.node("Shape", grid.name)
    sides = []
    for axis in (2, 3):
        end = net.node("Gather", shape, net.const(np.array(axis, np.int64)), axis=0)
        zero, one = net.const(np.array(0, np.int64)), net.const(np.array(1, np.int64))
        places = net.node("Cast", net.node("Range", zero, end, one), to=1)
        sides.append(net.node("Mul", net.node("Add", places, net.scalar(0.5)), net.scalar(float(grid.stride))))
    column = net.node("Reshape", sides[0], net.ints(1, 1, 1, -1, 1))
    row = net.node("Reshape", sides[1], net.ints(1, 1, 1, 1, -1))
    zero = net.scalar(0.0)
    x = net.node("Add", row, net.node("Mul", column, zero))
    y = net.node("Add", column, net.node("Mul", row, zero))
    x, y = (net.node("Reshape", value, net.ints(1, 1, 1, -1)) for value in (x, y))
    sizes = _arrays(grid)[2:4]
    stride = net.scalar(float(grid.stride))
    return Priors(x, y, *(net.const(size[:, :, :, :1, 0]) for size in sizes), stride)


def of_list(net: Net, grids: list[Grid], layout: Layout) -> Priors:
    """Priors of all levels, in the order of their joined rows."""
    axis = 2 if layout.order == "columns" else 1
    arrays = [[listed_constant(array, layout) for array in _arrays(grid)] for grid in grids]
    return Priors(*(net.const(np.concatenate(parts, axis)) for parts in zip(*arrays, strict=True)))


def _arrays(grid: Grid) -> list[np.ndarray]:
    """x, y, width, height, stride, each `[1, A, 1, h, w]`."""
    y, x = np.mgrid[: grid.rows, : grid.columns] + 0.5
    sizes = grid.stride * 2.0 ** np.arange(grid.anchors)[:, None, None] * np.ones_like(x)
    arrays = [np.broadcast_to(x * grid.stride, sizes.shape), np.broadcast_to(y * grid.stride, sizes.shape)]
    return [
        array[None, :, None].astype(np.float32) for array in (*arrays, sizes, 1.25 * sizes, 0 * sizes + grid.stride)
    ]


def replaced(rows: Rows, name: str) -> Rows:
    """Rows of four decoded numbers."""
    return replace(rows, name=name, width=4)


def width_of(form: str) -> int:
    """Numbers that a head gives for one box."""
    return 4 * BINS if form == "bins" else 4


def decoded(net: Net, x: str, axis: int, rank: int, priors: Priors, form: str, reported: str) -> str:
    """Boxes with their four numbers along `axis`, in pixels."""
    if form == "bins":
        x = _expected(net, x, axis, rank)
        form = "distances"
    parts = [net.node("Slice", x, net.ints(i), net.ints(i + 1), net.ints(axis)) for i in range(4)]
    if form == "distances":
        return _distances(net, parts, axis, priors, reported)
    cx, cy, w, h = parts
    if form == "deltas":
        cx = net.node("Mul", net.node("Mul", cx, net.scalar(0.1)), priors.width)
        cy = net.node("Mul", net.node("Mul", cy, net.scalar(0.1)), priors.height)
        w, h = (net.node("Exp", net.node("Mul", side, net.scalar(0.2))) for side in (w, h))
    elif form == "cell":
        half = net.scalar(0.5)
        cx, cy = (net.node("Mul", net.node("Sub", net.node("Sigmoid", v), half), priors.stride) for v in (cx, cy))
        w, h = (net.node("Pow", net.node("Mul", net.node("Sigmoid", v), net.scalar(2)), net.scalar(2)) for v in (w, h))
    else:
        cx, cy = (net.node("Mul", value, priors.stride) for value in (cx, cy))
        w, h = (net.node("Exp", side) for side in (w, h))
    cx, cy = net.node("Add", cx, priors.x), net.node("Add", cy, priors.y)
    w, h = net.node("Mul", w, priors.width), net.node("Mul", h, priors.height)
    if reported == "cxcywh":
        return net.node("Concat", cx, cy, w, h, axis=axis)
    half_w, half_h = (net.node("Mul", side, net.scalar(0.5)) for side in (w, h))
    x1, y1 = net.node("Sub", cx, half_w), net.node("Sub", cy, half_h)
    if reported == "xywh":
        return net.node("Concat", x1, y1, w, h, axis=axis)
    return _corners(net, x1, y1, net.node("Add", cx, half_w), net.node("Add", cy, half_h), axis, reported)


def _corners(net: Net, x1: str, y1: str, x2: str, y2: str, axis: int, reported: str) -> str:
    order = (y1, x1, y2, x2) if reported == "yxyx" else (x1, y1, x2, y2)
    return net.node("Concat", *order, axis=axis)


def _distances(net: Net, parts: list[str], axis: int, priors: Priors, reported: str) -> str:
    kind = net.pick(["Relu", "Softplus", "Exp"])
    left, top, right, below = (net.node("Mul", net.node(kind, part), priors.stride) for part in parts)
    x1, y1 = net.node("Sub", priors.x, left), net.node("Sub", priors.y, top)
    x2, y2 = net.node("Add", priors.x, right), net.node("Add", priors.y, below)
    if reported not in ("cxcywh", "xywh"):
        return _corners(net, x1, y1, x2, y2, axis, reported)
    w, h = net.node("Sub", x2, x1), net.node("Sub", y2, y1)
    if reported == "xywh":
        return net.node("Concat", x1, y1, w, h, axis=axis)
    cx, cy = (net.node("Mul", net.node("Add", a, b), net.scalar(0.5)) for a, b in ((x1, x2), (y1, y2)))
    return net.node("Concat", cx, cy, w, h, axis=axis)


def _expected(net: Net, x: str, axis: int, rank: int) -> str:
    """Expectations of four distributions over bins that lie side by side along `axis`."""
    behind = rank - axis - 1
    apart = net.node("Reshape", x, net.ints(*[0] * axis, 4, BINS, *[-1] * min(behind, 1)))
    shares = net.node("Softmax", apart, axis=axis + 1)
    bins = net.const(np.arange(BINS, dtype=np.float32).reshape(BINS, *[1] * min(behind, 1)))
    mean = net.reduce("ReduceSum", net.node("Mul", shares, bins), [axis + 1])
    if behind < 2:
        return mean
    like = net.node("Slice", x, net.ints(0), net.ints(4), net.ints(axis))  # rows and columns stay apart
    return net.node("Reshape", mean, net.node("Shape", like))
