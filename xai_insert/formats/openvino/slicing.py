"""Which parts of a value OpenVINO's slices keep, `StridedSlice` with the masks of TensorFlow and NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import openvino as ov

from xai_insert.graph import operators as kinds
from xai_insert.graph.along import sliced, turned
from xai_insert.graph.operators import Operator
from xai_insert.graph.view import Shape, Value, numbers

_LAST = 1 << 62


def slices(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    """The record of a `Slice` or `StridedSlice`; of one that only adds axes, that of a reshape."""
    shape = inputs[0].shape
    parts = [numbers(value) for value in inputs[1:]]
    if shape is None or len(parts) < 2 or any(part is None for part in parts):
        return kinds.Slices(None)
    starts, ends, steps, *rest = ((part or ()) for part in (*parts, (), ())[: max(3, len(parts))])
    if native.get_type_name() == "Slice":
        return sliced(shape, (rest[0] if rest else ()) or range(len(starts)), starts, ends, steps)
    masks = _Masks.of(native, len(starts))
    return _with_new_axes(masks, outputs[0].rank) if masks.adds.any() else _strided(masks, shape, starts, ends, steps)


def reversal(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    """The record of a `ReverseSequence`."""
    del outputs
    return turned(inputs[0].shape, int(native.get_attributes()["seq_axis"]), inputs[1])


@dataclass(frozen=True)
class _Masks:
    """What a `StridedSlice` says of each of its items beside its bounds.

    Attributes:
        begins: whether it begins where the axis does.
        ends: whether it ends where the axis does.
        adds: whether it stands for a new axis.
        drops: whether it keeps one element, without the axis.
        spans: whether it stands for all axes that no other stands for.
    """

    begins: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.bool_]
    adds: npt.NDArray[np.bool_]
    drops: npt.NDArray[np.bool_]
    spans: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, native: ov.Node, count: int) -> _Masks:
        """Those of a node with so many items."""
        raw = native.get_attributes()
        names = ("begin_mask", "end_mask", "new_axis_mask", "shrink_axis_mask", "ellipsis_mask")
        return cls(*(_filled(raw[name], count, 0) > 0 for name in names))

    def axis(self, item: int, rank: int) -> int:
        """The axis of an item: those behind one that spans count from the last axis."""
        return item - len(self.spans) + rank if self.spans[:item].any() else item


def _with_new_axes(masks: _Masks, rank: int | None) -> Operator:
    """The record where axes are added and all else is kept whole; beside cuts, that its parts are not known."""
    kept = masks.adds | masks.spans | (masks.begins & masks.ends & ~masks.drops)
    if rank is None or not kept.all():
        return kinds.Slices(None)
    return kinds.Regroup(tuple(masks.axis(int(item), rank) for item in np.flatnonzero(masks.adds)))


def _strided(masks: _Masks, shape: Shape, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> Operator:
    count, bounded = len(starts), ~masks.spans
    forward, drops = _filled(steps, count, 1), masks.drops[bounded]
    begins = np.where(masks.begins, np.where(forward > 0, 0, -1), starts)
    stops = np.where(masks.ends, _LAST, _filled(ends, count, _LAST))
    stops = np.where(masks.drops, np.where(begins == -1, _LAST, begins + 1), stops)
    axes = [masks.axis(int(item), len(shape)) for item in np.flatnonzero(bounded)]
    dropped = tuple(axis for axis, is_dropped in zip(axes, drops, strict=True) if is_dropped)
    begins, stops, forward = (bounds[bounded] for bounds in (begins, stops, forward))
    return sliced(shape, axes, begins.tolist(), stops.tolist(), forward.tolist(), dropped)


def _filled(values: Sequence[int], count: int, default: int) -> npt.NDArray[np.int64]:
    return np.array([*values, *[default] * count][:count], np.int64)
