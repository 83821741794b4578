"""What a window that slides over an axis makes of it: convolutions, their transposes, and pools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xai_insert.graph.axes import Axis, Digit, Kind, axis_size, moved, other, rolled_line, unplaced
from xai_insert.graph.operators import Window
from xai_insert.graph.view import Value, constant_of

_FEW_WEIGHTS = 1 << 16  # of layers of each channel by itself; to read those of all would take long


def slid(axis: Axis, size: int | None, kind: Window, index: int, middles: Sequence[float] = ()) -> Axis:
    """The axis, of `size` cells, that the window's spatial axis `index` leaves of another; see `middle_taps`."""
    before, kernel = axis_size(axis), _at(kind.kernel or (), index, 0)
    stride, dilation = _at(kind.strides, index, 1), _at(kind.dilations, index, 1)
    if not kernel:
        return other(size)
    if kernel == stride == 1 and not any(kind.pads_begin or ()):
        return axis
    if size == 1 and before != 1 and not _goes_on(axis, kind, index):
        return ()
    origin = rolled_line(axis, stride)
    if origin is None:
        return axis if stride == 1 and size == before else _coarser(axis, size, stride)
    reach = (kernel - 1) * dilation
    pad = _pad_before(kind, index, (before, size), stride, reach)
    middle = middles[index] * dilation if middles else reach / 2
    if kind.transposed:
        return moved(origin, size, 1 / stride, (pad - middle) / stride)
    return moved(origin, size, stride, middle - pad)


def _at(numbers: Sequence[int], index: int, default: int) -> int:
    return numbers[index] if index < len(numbers) else default


def middle_taps(kind: Window, weight: Value | None) -> Sequence[float]:
    """Where the middle of a kernel is, along each of its sides, if its first or last rows are all zero; else nothing.

    So layers that shift are written, and those that see what lies before alone (masked and causal convolutions).
    """
    kernel = () if kind.pool else kind.kernel or ()
    taps = constant_of(weight, limit=_FEW_WEIGHTS) if max(kernel, default=0) > 1 else None
    if taps is None or taps.shape[-len(kernel) :] != kernel or not taps.any():
        return ()
    used = np.argwhere(taps.reshape(-1, *kernel))[:, 1:]
    return [(int(first) + int(last)) / 2 for first, last in zip(used.min(axis=0), used.max(axis=0), strict=True)]


def _pad_before(kind: Window, index: int, sizes: tuple[int | None, int | None], stride: int, reach: int) -> float:
    """Cells added before the first: as stored, or as the sizes before and behind tell."""
    if kind.pads_begin is not None:
        return kind.pads_begin[index]
    fine, rough = sizes[::-1] if kind.transposed else sizes
    if fine is None or rough is None:
        return (reach + 1 - stride) / 2
    return first_pad(kind, max((rough - 1) * stride + reach + 1 - fine, 0))


def first_pad(kind: Window, total: int) -> int:
    """Of so many cells that sizes tell, those before the first."""
    return total - total // 2 if kind.is_late else total // 2


def _goes_on(axis: Axis, kind: Window, index: int) -> bool:
    """Whether a convolution has left one time of a clip: with pads it is no layer as large as the grid."""
    is_time = len(axis) == 1 and axis[0].origin.kind is Kind.TIME
    return is_time and kind.pool is None and bool(kind.pads_begin and kind.pads_begin[index])


def _coarser(axis: Axis, size: int | None, stride: int) -> Axis:
    """A part of rows or columns, as in a window, of which only every so many cells are left."""
    digit = axis[0] if len(axis) == 1 and axis[0].origin.is_place else None
    if digit is None or size is None or digit.size != size * stride:
        return unplaced(axis, size)
    return (Digit(digit.origin, digit.step * stride, size),)
