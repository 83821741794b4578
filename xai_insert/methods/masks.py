"""Bringing the masks of instances onto one grid: pasted from their boxes, assembled from prototypes, resized."""

from __future__ import annotations

import numpy as np

from xai_insert.graph.ops import Ops, Size, V
from xai_insert.locate.instances.kinds import BoxFormat
from xai_insert.methods.shaping import counted, known_or_read
from xai_insert.methods.tensor import Tensor

_LEAST_SIDE = 1e-6  # of a box in cells, so that an empty one divides by something


def corners_in_cells(op: Ops[V], boxes: V, form: BoxFormat, cells: V) -> V:
    """Left, top, right and bottom in cells of the grid, float32 `[B, M, 4]`.

    Args:
        op: operations.
        boxes: float32 `[B, M, 4]`.
        form: how they are written.
        cells: columns, rows, columns, rows of the grid for one unit of the boxes' coordinates, float32 `[4]`.
    """
    if form.is_centre:
        # No product with a matrix, nor one with a single number below zero: these OpenVINO would round to bf16.
        centres, sides = op.slice(boxes, 2, 0, 2), op.slice(boxes, 2, 2, 4)
        halves = op.mul(op.concat([sides, sides], 2), op.constant(np.array([-0.5, -0.5, 0.5, 0.5], np.float32)))
        boxes = op.add(op.concat([centres, centres], 2), halves)
    return op.mul(boxes, cells)


def resized(op: Ops[V], masks: V, batch: Size, sides: tuple[int | None, int | None], grid: tuple[Size, Size]) -> V:
    """Masks `[B, M, h, w]` read at the centres of the grid's cells; `sides` are h and w where they are known."""
    if sides == grid:
        return masks
    # One channel each: of several, OpenVINO would first write a copy with the channels last.
    height, width = (known_or_read(op, masks, axis, side) for axis, side in zip((2, 3), sides, strict=True))
    return op.reshape(op.resize(op.reshape(masks, [-1, 1, height, width]), *grid), [batch, -1, *grid])


def pasted(op: Ops[V], masks: V, sides: tuple[int, int], corners: V, grid: tuple[Size, Size]) -> V:
    """Masks `[B, M, m, n]` of boxes, read at the centres of the grid's cells: `[B, M, h, w]`, 0 outside the boxes.

    A box holds its n columns side by side. A cell whose centre lies x columns from the box's left side is at x - 1/2
    among the columns' centres, and column j takes part in it with max(0, 1 - |x - 1/2 - j|): bilinear interpolation
    that fades to 0 half a column outside the box, which is how Mask R-CNN pastes by sampling. Rows likewise, so that
    two matrix products paste all masks.

    Args:
        op: operations.
        masks: float32.
        sides: m and n.
        corners: of the boxes in cells, float32 `[B, M, 4]`.
        grid: h and w.
    """
    down = _shares(op, corners, 1, grid[0], sides[0])
    across = _shares(op, corners, 0, grid[1], sides[1])
    return op.matmul(op.matmul(down, masks), op.transpose(across, (0, 1, 3, 2)))


def _shares(op: Ops[V], corners: V, axis: int, cells: Size, size: int) -> V:
    """What each of a mask's `size` columns (axis 0) or rows (axis 1) has in each cell, `[B, M, cells, size]`."""
    low, high = _corner(op, corners, axis), _corner(op, corners, axis + 2)
    centres = Tensor(op, op.reshape(counted(op, cells), [1, 1, -1])) + 0.5
    side = (high - low).at_least(_LEAST_SIDE)
    place = (centres - low) / side * float(size)
    apart = place.unsqueeze([3]) - 0.5 - np.arange(size).reshape(1, 1, 1, size)
    return apart.tent().handle


def cropped(op: Ops[V], masks: V, corners: V, grid: tuple[Size, Size]) -> V:
    """Masks `[B, M, h, w]`, 0 outside their boxes.

    Column c belongs to a box if left <= c < right, a row likewise: the rule of the package that trains these models.
    """
    down = op.unsqueeze(_inside(op, corners, 1, grid[0]), [3])
    across = op.unsqueeze(_inside(op, corners, 0, grid[1]), [2])
    return op.mul(op.mul(masks, down), across)


def _inside(op: Ops[V], corners: V, axis: int, cells: Size) -> V:
    numbers = Tensor(op, op.reshape(counted(op, cells), [1, 1, -1]))
    before = _corner(op, corners, axis).exceeds(numbers)
    return ((1.0 - before) * _corner(op, corners, axis + 2).exceeds(numbers)).handle


def _corner(op: Ops[V], corners: V, column: int) -> Tensor[V]:
    """One coordinate of every box, `[B, M, 1]`."""
    return Tensor(op, op.slice(corners, 2, column, column + 1))
