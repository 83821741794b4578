"""The derivative of an interpolation: a product with the constant matrix of each axis, transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.graph.operators import Operator, Resized
from xai_insert.graph.view import fixed
from xai_insert.methods.gradients.step import Gradients, Rule, Step


def _resized(step: Step[Any]) -> Gradients:
    kind, source, result = step.kind(Resized), step.node.read(0), step.node.output
    if kind.mode not in ("nearest", "linear", "cubic", "mean"):
        raise step.refusal("its mode has no rule")
    gradient, rank = step.gradient, len(source.sizes)
    axes = [axis for axis in range(rank) if source.sizes[axis] != result.sizes[axis]]
    for axis in axes:
        size, count = fixed([source.sizes[axis], result.sizes[axis]])
        if not _is_of_sizes(step, axis, size, count):
            raise step.refusal("its scale is not that of its sizes")
        gradient = _times(step, gradient, _matrix(kind, size, count), axis, rank)
    return {0: gradient}


def _times(step: Step[Any], gradient: Any, matrix: npt.NDArray[np.float64], axis: int, rank: int) -> Any:
    """Each line of the derivative along `axis` times the matrix."""
    op = step.op
    if axis == rank - 1:
        return op.matmul(gradient, step.constant(matrix))
    if axis == rank - 2:
        return op.matmul(step.constant(matrix.T), gradient)
    order = list(range(rank))
    order[axis], order[-1] = rank - 1, axis
    order = [*range(step.lead), *step.axes(order)]
    return op.transpose(_times(step, op.transpose(gradient, order), matrix, rank - 1, rank), order)


def _is_of_sizes(step: Step[Any], axis: int, size: int, count: int) -> bool:
    """Whether the factor of an axis is that of its sizes, where the node names factors."""
    for value in step.node.inputs[1:]:
        if value is None or not value.is_constant or "float" not in value.dtype:
            continue
        factors = value.elements().reshape(-1)
        if len(factors) == len(step.node.output.sizes) and abs(factors[axis] * size - count) > 1e-3:
            return False
    return True


def _matrix(kind: Resized, size: int, count: int) -> npt.NDArray[np.float64]:
    """`[count, size]`: of which cells each cell of the result is made."""
    if kind.mode == "mean":
        cells = np.arange(count, dtype=np.float64)
        low, end = np.floor(cells * size / count)[:, None], np.ceil((cells + 1) * size / count)[:, None]
        covered = (low <= np.arange(size)) & (np.arange(size) < end)
        shares: npt.NDArray[np.float64] = covered / covered.sum(axis=1, keepdims=True)
        return shares
    places = _places(kind, size, count)
    matrix = np.zeros((count, size))
    rows = np.arange(count)
    if kind.mode == "nearest":
        nearest = _NEAREST.get(kind.rounding, _NEAREST["round_prefer_floor"])(places)
        matrix[rows, np.clip(nearest, 0, size - 1).astype(int)] = 1.0
        return matrix
    if kind.mode == "cubic":
        return _cubic(kind, places, matrix)
    places = np.clip(places, 0, size - 1)
    low = np.floor(places).astype(int)
    share = places - low
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), share)
    return matrix


def _places(kind: Resized, size: int, count: int) -> npt.NDArray[np.float64]:
    """Where each cell of the result lies among those that are read."""
    cells = np.arange(count, dtype=np.float64)
    if kind.coordinates == "align_corners":
        return cells * (size - 1) / max(count - 1, 1)
    if kind.coordinates == "asymmetric":
        return (cells + 0.0) * size / count
    if kind.coordinates == "tf_half_pixel_for_nn":
        return (cells + 0.5) * size / count
    if kind.coordinates == "pytorch_half_pixel" and count == 1:
        return np.zeros(1)
    return (cells + 0.5) * size / count - 0.5


def _cubic(kind: Resized, places: npt.NDArray[np.float64], matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' kernel over the four cells around each place."""
    rows, last, a = np.arange(len(places)), matrix.shape[1] - 1, kind.coefficient
    low = np.floor(places).astype(int)
    for cells in (low - 1, low, low + 1, low + 2):
        t = np.abs(places - cells)
        near, far = ((a + 2) * t - (a + 3)) * t**2 + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        inside = (cells >= 0) & (cells <= last) if kind.skips_outside else 1.0
        np.add.at(matrix, (rows, np.clip(cells, 0, last)), np.where(t <= 1, near, far) * inside)
    matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix


_NEAREST: Mapping[str, Any] = {
    "round_prefer_floor": lambda places: np.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: np.floor(places + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
    "simple": np.floor,
}
RULES: Mapping[type[Operator], Rule] = {Resized: _resized}
