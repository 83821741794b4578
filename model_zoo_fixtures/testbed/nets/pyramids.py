"""Levels of a detector: feature maps, the heads on them, and the order in which their numbers are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model_zoo_fixtures.testbed.nets.detector_oracle import Part
from model_zoo_fixtures.testbed.nets.graph import Array, Net


@dataclass(frozen=True)
class Grid:
    """One level's feature.

    Attributes:
        name: `[B, C, h, w]`.
        channels: C.
        rows: h.
        columns: w.
        stride: pixels from a cell to the next.
        anchors: boxes of each cell.
    """

    name: str
    channels: int
    rows: int
    columns: int
    stride: int
    anchors: int = 1

    @property
    def cells(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Rows:
    """Numbers of the anchors of one level.

    Attributes:
        name: `[B, A, X, h, w]`, or `[B, A, X, h * w]` if flat.
        grid: the level.
        width: X.
        flat: whether rows and columns are one axis.
    """

    name: str
    grid: Grid
    width: int
    flat: bool

    def cut(self, net: Net, start: int, width: int) -> Rows:
        """Some of the numbers."""
        if (start, width) == (0, self.width):
            return self
        name = net.node("Slice", self.name, net.ints(start), net.ints(start + width), net.ints(2))
        return replace(self, name=name, width=width)


def pyramid(net: Net, rows: int, columns: int, count: int, channels: int, first: int) -> list[Grid]:
    """Features from the finest level to the coarsest, top-down sums or none; now and then two of one size."""
    x, stride, into, grids = "image", 1, 3, []
    twice = count > 1 and not net.dynamic and net.chance(0.06)
    if twice:
        net.tag("levels of one size")
    top = first * 2 ** (count - 1 - twice)
    while stride < top:
        step = 4 if stride == 1 and first >= 4 else 2
        weight = net.weight(channels, into, step, step, gain=1.4)
        x = net.node("Relu", net.node("Conv", x, weight, net.bias(channels), strides=[step] * 2))
        stride, into = stride * step, channels
        if stride >= first:
            grids.append(Grid(x, channels, rows // stride, columns // stride, stride))
    if twice:
        last = grids[-1]
        grids.append(replace(last, name=convolved(net, last.name, channels, channels, 3, "Relu")))
    if len(grids) > 1 and not net.dynamic and not twice and net.chance(0.4):
        net.tag("top down")
        for index in reversed(range(len(grids) - 1)):
            upper = net.node("Resize", grids[index + 1].name, "", net.const(np.array([1, 1, 2, 2], np.float32)))
            grids[index] = replace(grids[index], name=net.node("Add", grids[index].name, upper))
    return grids


def convolved(net: Net, x: str, into: int, out: int, kernel: int, then: str = "") -> str:
    """A convolution that keeps the grid, and perhaps an activation."""
    weight = net.weight(out, into, kernel, kernel, gain=1.2)
    x = net.node("Conv", x, weight, net.bias(out), pads=[kernel // 2] * 4)
    return net.node(then, x) if then else x


def tower(net: Net, grid: Grid) -> Grid:
    """A convolution or two before a head."""
    for _ in range(net.pick([0, 1, 1])):
        grid = replace(grid, name=convolved(net, grid.name, grid.channels, grid.channels, 3, "Relu"))
    return grid


@dataclass(frozen=True)
class Layout:
    """How heads are built, and how their rows are joined.

    Attributes:
        layer: `conv`; `last`, a linear layer on `[B, h, w, C]`; `tokens`, one on `[B, h * w, C]`.
        classes_first: whether the numbers, not the anchors, are the slower index of a head's channels.
        order: `cells` (rows of one cell side by side), `anchors` (cells of one anchor), `columns` (anchors slower,
            rows along the last axis).
        flat: whether rows and columns become one axis before the anchors are set apart.
    """

    layer: str
    classes_first: bool
    order: str
    flat: bool


def head(net: Net, grid: Grid, width: int, layout: Layout, before: int = 0) -> tuple[str, Rows]:
    """A head of `width` numbers for each anchor: the value as the layer gives it, and its rows.

    `before` numbers of each anchor stand before those, and are left out; of a convolution only.
    """
    channels = grid.anchors * (before + width)
    if layout.layer == "conv":
        value = convolved(net, grid.name, grid.channels, channels, net.pick([1, 1, 3]))
        rest = value
        if before:
            rest = net.node("Slice", value, net.ints(before * grid.anchors), net.ints(channels), net.ints(1))
        return value, _apart(net, rest, grid, width, layout)
    x = net.node("Transpose", grid.name, perm=[0, 2, 3, 1])
    if layout.layer == "tokens":
        x = net.node("Reshape", x, net.ints(0, -1, grid.channels))
    value = net.linear(x, grid.channels, channels)
    rank = 4 if layout.layer == "last" else 3
    back = net.node("Transpose", value, perm=[0, rank - 1, *range(1, rank - 1)])
    return value, _apart(net, back, grid, width, replace(layout, flat=rank == 3 or layout.flat))


def _apart(net: Net, value: str, grid: Grid, width: int, layout: Layout) -> Rows:
    """`[B, A * X, ...]` with anchors and numbers apart."""
    cells = [-1] if layout.flat else [grid.rows, grid.columns]
    pair = [width, grid.anchors] if layout.classes_first else [grid.anchors, width]
    name = net.node("Reshape", value, net.ints(0, *pair, *cells))
    if layout.classes_first:
        name = net.node("Transpose", name, perm=[0, 2, 1, *range(3, 3 + len(cells))])
    return Rows(name, grid, width, layout.flat)


def before_all(net: Net, value: str, grid: Grid, layout: Layout) -> Rows:
    """The first number of each anchor, where these stand before all others."""
    first = net.node("Slice", value, net.ints(0), net.ints(grid.anchors), net.ints(1))
    return _apart(net, first, grid, 1, layout)


def part(value: str, grid: Grid, width: int, start: int, classes: int, layout: Layout, before: int = 0) -> Part:
    """Where the class scores of a head lie."""

    def read(array: Array) -> Array:
        if layout.layer == "last":
            array = array.transpose(0, 3, 1, 2)
        elif layout.layer == "tokens":
            array = array.transpose(0, 2, 1)
        pair = (width, grid.anchors) if layout.classes_first else (grid.anchors, width)
        array = array[:, before * grid.anchors :]
        array = array.reshape(len(array), *pair, grid.rows, grid.columns)
        array = array.swapaxes(1, 2) if layout.classes_first else array
        return array[:, :, start : start + classes]

    return Part(value, read)


def listed(net: Net, rows: Rows, layout: Layout) -> str:
    """`[B, L, X]`, or `[B, X, L]` in the order `columns`."""
    cells = (3,) if rows.flat else (3, 4)
    perm = {"cells": (0, *cells, 1, 2), "anchors": (0, 1, *cells, 2), "columns": (0, 2, 1, *cells)}[layout.order]
    sizes = (0, rows.width, -1) if layout.order == "columns" else (0, -1, rows.width)
    return net.node("Reshape", net.node("Transpose", rows.name, perm=list(perm)), net.ints(*sizes))


def listed_constant(array: Array, layout: Layout) -> Array:
    """The same for an array `[1, A, X, h, w]`."""
    perm = {"cells": (0, 3, 4, 1, 2), "anchors": (0, 1, 3, 4, 2), "columns": (0, 2, 1, 3, 4)}[layout.order]
    width = array.shape[2]
    return array.transpose(perm).reshape((1, width, -1) if layout.order == "columns" else (1, -1, width))


def joined(net: Net, values: Sequence[str], layout: Layout) -> str:
    """Levels one after another."""
    axis = 2 if layout.order == "columns" else 1
    return values[0] if len(values) == 1 else net.node("Concat", *values, axis=axis)
