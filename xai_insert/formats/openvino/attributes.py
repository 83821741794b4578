"""Normalised attributes of OpenVINO's nodes, as `Op` describes them: one reader for each type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import openvino as ov

from xai_insert.errors import ModelFileError
from xai_insert.graph.view import Shape, Value, number_of, slice_attrs, volume

Attributes: TypeAlias = Mapping[str, Any]
_LAST = 1 << 62  # end of a slice that goes on to the end


def attributes(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    """Attributes of a node of the view; empty where `Op` names none.

    Args:
        native: the node.
        inputs: its operands in the view.
    """
    reader = _READERS.get(native.get_type_name())
    return {} if reader is None else reader(native, inputs)


def _ints(value: Value | None) -> list[int] | None:
    """Elements of a constant operand; None if they are not known before the model runs."""
    if value is None or not value.is_constant:
        return None
    try:
        return [int(element) for element in np.asarray(value.elements()).reshape(-1)]
    except ModelFileError:
        return None


def _axes(value: Value | None, rank: int | None) -> tuple[int, ...] | None:
    axes = _ints(value)
    return None if axes is None or rank is None else tuple(sorted({axis % rank for axis in axes}))


def _reduced(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    keeps = bool(native.get_attributes()["keep_dims"])
    return {"mode": native.get_type_name()[6:].lower(), "axes": _axes(inputs[1], inputs[0].rank), "keepdims": keeps}


def _adaptive(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    mode = "mean" if "Avg" in native.get_type_name() else "max"
    return {"mode": mode, "axes": tuple(range(2, inputs[0].rank or 4)), "keepdims": True}


def _pool(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    raw = native.get_attributes()
    pads = tuple(raw["pads_begin"]) + tuple(raw["pads_end"])
    return {
        "mode": "mean" if native.get_type_name() == "AvgPool" else "max",
        "kernel": tuple(raw["kernel"]),
        "pads": pads,
        "rounds_up": str(raw["rounding_type"]).lower().startswith("ceil"),
    }


def _convolution(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    raw = native.get_attributes()
    pads = tuple(raw["pads_begin"]) + tuple(raw["pads_end"])
    return {"strides": tuple(raw["strides"]), "pads": pads, "dilations": tuple(raw["dilations"])}


def _product(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    raw = native.get_attributes()
    return {"transpose_a": bool(raw["transpose_a"]), "transpose_b": bool(raw["transpose_b"])}


def _along(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    axis, rank = int(native.get_attributes()["axis"]), inputs[0].rank
    return {"axis": axis % rank if rank else axis}


def _pooled_regions(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    return {"features": (0,), "scale": float(native.get_attributes()["spatial_scale"])}


def _pyramid_regions(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    return {"features": tuple(range(1, len(inputs))), "scale": None}


def _unsqueezed(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    rank, axes = inputs[0].rank, inputs[1]
    return {"new_axes": _axes(axes, None if rank is None else rank + len(_ints(axes) or ()))}


def _transpose(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    perm, rank = _ints(inputs[1]), inputs[0].rank
    return {"perm": None if perm is None or rank is None else tuple(perm) or tuple(reversed(range(rank)))}


def _attention(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    scale = number_of(inputs[4]) if len(inputs) > 4 else None
    known = len(inputs) < 5 or scale is not None
    return {"scale": scale, "causal": bool(native.get_attributes()["causal"]), "is_plain": known and len(inputs) < 6}


def _norm(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    return {"axes": _axes(inputs[1], inputs[0].rank)}


def _last_norm(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    rank = inputs[0].rank
    return {"axes": () if rank is None else (rank - 1,)}


def _split(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    axes = _axes(inputs[1], inputs[0].rank)
    return {"axis": axes[0] if axes else None}


def _gather(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    shape = inputs[0].shape
    axes = _axes(inputs[2], inputs[0].rank)
    if not axes or shape is None:
        return {"axis": None}
    is_single = inputs[1].shape is not None and volume(inputs[1].shape) == 1
    index = _ints(inputs[1]) if is_single else None
    if not index:
        return {"axis": axes[0]}
    return {"axis": axes[0], "start": index[0] + (shape[axes[0]] or 0) if index[0] < 0 else index[0]}


def slices(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    """Attributes of a Slice or StridedSlice over one axis; empty for others."""
    shape = inputs[0].shape
    parts = [_ints(value) for value in inputs[1:]]
    if shape is None or len(parts) < 3 or any(part is None for part in parts):
        return {}
    starts, ends, steps, *rest = (part or [] for part in parts)
    if set(steps) - {1}:
        return {}
    if native.get_type_name() == "Slice":
        axes = [axis % len(shape) for axis in (rest[0] if rest else range(len(starts)))]
        return slice_attrs(axes, starts, ends, shape)
    return _strided(native.get_attributes(), starts, ends, shape)


def _strided(raw: Mapping[str, Any], starts: Sequence[int], ends: Sequence[int], shape: Shape) -> Attributes:
    if any(any(raw[mask]) for mask in ("new_axis_mask", "ellipsis_mask")):
        return {}
    masks = ("begin_mask", "end_mask", "shrink_axis_mask")
    begin_mask, end_mask, shrunk = ([*raw[mask], *[0] * len(starts)] for mask in masks)
    starts = [0 if is_open else start for is_open, start in zip(begin_mask, starts, strict=False)]
    ends = [_LAST if is_open else end for is_open, end in zip(end_mask, ends, strict=False)]
    ends = [(start + 1 or _LAST) if is_one else end for is_one, start, end in zip(shrunk, starts, ends, strict=False)]
    attrs = slice_attrs(range(len(starts)), starts, ends, shape)
    return attrs if [i for i, gone in enumerate(shrunk) if gone] in ([], [attrs.get("axis")]) else {}


def _ranked(native: ov.Node, inputs: Sequence[Value]) -> Attributes:
    return {**_along(native, inputs), "least": str(native.get_attributes()["mode"]).lower() == "min"}


_READERS: Mapping[str, Callable[[ov.Node, Sequence[Value]], Attributes]] = {
    **{f"Reduce{mode}": _reduced for mode in ("Mean", "Max", "Min", "Sum", "Prod", "L1", "L2")},
    **dict.fromkeys(("AdaptiveAvgPool", "AdaptiveMaxPool"), _adaptive),
    **dict.fromkeys(("AvgPool", "MaxPool"), _pool),
    **dict.fromkeys(("Convolution", "GroupConvolution"), _convolution),
    "MatMul": _product,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Concat"), _along),
    "TopK": _ranked,
    **dict.fromkeys(("ROIAlign", "ROIPooling", "PSROIPooling"), _pooled_regions),
    "ExperimentalDetectronROIFeatureExtractor": _pyramid_regions,
    "Unsqueeze": _unsqueezed,
    "Transpose": _transpose,
    "ScaledDotProductAttention": _attention,
    "MVN": _norm,
    "RMS": _last_norm,
    **dict.fromkeys(("Split", "VariadicSplit"), _split),
    "Gather": _gather,
    **dict.fromkeys(("Slice", "StridedSlice"), slices),
}
