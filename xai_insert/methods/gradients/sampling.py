"""Derivatives of what reads at computed places: points of a map, the largest elements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xai_insert.graph.operators import Operator, Ranked, Sampled
from xai_insert.graph.view import fixed, volume
from xai_insert.methods.gradients.step import Gradients, Rule, Step
from xai_insert.methods.tensor import Tensor


def _sampled(step: Step[Any]) -> Gradients:
    """With the shares `r`, `c` of rows and columns that a point reads: `sum_p g r c`; by its place `sum g F r c'`."""
    kind, op, source = step.kind(Sampled), step.op, step.node.read(0)
    if kind.mode != "linear" or kind.padding not in ("zeros", "border"):
        raise step.refusal("only bilinear sampling has a rule, with zeros or the border outside")
    if len(source.sizes) != 4:
        raise step.refusal("it samples no map")
    channels, *sides = fixed(source.sizes[1:])
    grid = fixed(step.node.read(1).sizes[1:3])
    count = volume(grid) or 1
    lead = step.ahead
    gradient = op.reshape(step.gradient, [*lead, -1, channels, count])
    places, reached = zip(*(_places(step, kind, axis, sides[1 - axis], count) for axis in (0, 1)), strict=True)
    shares = [(item - np.arange(side)).tent() for item, side in zip(places, sides[::-1], strict=True)]
    across, down = (item.unsqueeze([1]).handle for item in shares)  # [N, 1, points, cells]
    made: dict[int, Any] = {}
    if 0 in step.wanted:
        rows = op.mul(op.unsqueeze(gradient, [step.lead + 3]), down)
        rows = op.transpose(rows, [*range(step.lead + 2), step.lead + 3, step.lead + 2])
        made[0] = op.matmul(rows, across)
    if 1 in step.wanted:
        slopes = []
        for axis, (other, size) in enumerate(((down, sides[1]), (across, sides[0]))):
            slope = _slope(step, axis, places[axis].floor(), size, other)
            slope = op.mul(slope, op.transpose(op.unsqueeze(reached[axis], [1]), [0, 1, 3, 2]))
            total = op.mul(op.unsqueeze(gradient, [step.lead + 2]), slope)
            slopes.append(op.reshape(op.reduce(total, "sum", [step.lead + 1]), [*lead, -1, *grid, 1]))
        made[1] = op.concat(slopes, step.lead + 3)
    return made


def _slope(step: Step[Any], axis: int, low: Any, size: int, other: Any) -> Any:
    """How what is read at each point grows along columns (0) or rows (1), of the cells next to it."""
    op, cells = step.op, np.arange(size, dtype=np.float32)
    steep = op.sub(op.equal((low + 1.0).handle, step.constant(cells)), op.equal(low.handle, step.constant(cells)))
    read = step.operand(0)
    if axis == 1:
        read = op.transpose(read, [0, 1, 3, 2])
    read = op.matmul_transposed(read, op.unsqueeze(steep, [1]), 4)  # [N, C, the other side, points]
    return op.reduce(op.mul(read, op.transpose(other, [0, 1, 3, 2])), "sum", [2])


def _places(step: Step[Any], kind: Sampled, axis: int, size: int, count: int) -> tuple[Tensor[Any], Any]:
    """Where points lie along an axis, in cells `[N, points, 1]`, and how far that moves with the point itself."""
    op = step.op
    point = op.reshape(op.slice(step.operand(1), 3, axis, axis + 1), [-1, count, 1])
    reach = (size - 1) / 2 if kind.corners else size / 2
    place = op.add(op.mul(point, step.number(reach)), step.number((size - 1) / 2))
    moved = op.add(op.mul(place, step.number(0.0)), step.number(reach))
    if kind.padding == "border":
        last = step.number(size - 1.0)
        inside = op.mul(op.greater(place, step.number(0.0)), op.greater(last, place))
        moved = op.mul(moved, inside)
        place = Tensor(op, place).at_least(0.0).at_most(Tensor(op, last)).handle
    return Tensor(op, place), moved


def _ranked(step: Step[Any]) -> Gradients:
    """To where the elements were."""
    kind, op, source = step.kind(Ranked), step.op, step.node.read(0)
    last = len(source.sizes) - 1
    if kind.axis != last or len(step.node.outputs) < 2:
        raise step.refusal("it ranks along another axis than the last")
    size = fixed(source.sizes[-1:])[0]
    where = op.cast(step.forward.read(step.node.outputs[1]), "float32")
    own = op.equal(op.unsqueeze(where, [last + 1]), step.constant(np.arange(size)))
    total = op.reduce(op.mul(op.unsqueeze(step.gradient, [step.lead + last + 1]), own), "sum", [step.lead + last])
    return {0: step.shaped(total, source)}


RULES: Mapping[type[Operator], Rule] = {Sampled: _sampled, Ranked: _ranked}
