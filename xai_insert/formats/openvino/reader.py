"""Each OpenVINO operator's record, see `xai_insert.graph.operators`: one reader per type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import openvino as ov

from xai_insert.formats.openvino.bodies import control_flow
from xai_insert.formats.openvino.slicing import reversal, slices
from xai_insert.formats.openvino.vocabulary import OPS
from xai_insert.graph import operators as kinds
from xai_insert.graph.einsum import labels_of
from xai_insert.graph.items import present
from xai_insert.graph.operators import Operator
from xai_insert.graph.rounding import Quantised
from xai_insert.graph.view import POINTWISE, Shape, Value, constant_of, from_front, number_of, numbers

Reader: TypeAlias = Callable[[ov.Node, Sequence[Value], Sequence[Value]], Operator]


def read(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    """The record of a node; `Unknown` where nothing is known of its type.

    Args:
        native: the node.
        inputs: its operands in the view.
        outputs: its results in the view.
    """
    reader = _READERS.get(native.get_type_name())
    return kinds.Unknown() if reader is None else reader(native, inputs, outputs)


def _always(operator: Operator) -> Reader:
    return lambda native, inputs, outputs: operator


def _quantiser(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    del native, outputs
    bounds = [bound for value in inputs[1:5] if (bound := constant_of(value)) is not None]
    if len(bounds) < 4:
        return Quantised(factor=None)
    low, high, low_out, high_out = (bound.astype(np.float64) for bound in bounds)
    factors = (high_out - low_out) / np.where(high > low, high - low, 1)
    factor = float(factors.flat[0]) if np.allclose(factors, factors.flat[0], rtol=_SAME) else None
    is_same = factor is not None and abs(factor - 1) <= _SAME
    return Quantised(not low.any() and not low_out.any(), 1.0 if is_same else factor)


def _window(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw, kind = native.get_attributes(), native.get_type_name()
    spatial = (inputs[0].rank or 4) - 2
    is_pool = kind.endswith("Pool")
    weight = None if is_pool else inputs[1].shape
    groups, kernel = (1, tuple(raw["kernel"])) if is_pool else _kernel(weight, grouped=kind.startswith("Group"))
    auto = str(raw.get("auto_pad", "")).lower()
    begin = None if auto.startswith("same") else tuple(raw["pads_begin"])
    depthwise = kind.startswith("Group") and weight is not None and weight[1] == weight[2] == 1
    return kinds.Window(
        kernel,
        tuple(raw["strides"]),
        tuple(raw.get("dilations", (1,) * spatial)),
        begin,
        keeps_channels=is_pool or depthwise,
        transposed="Backprop" in kind,
        groups=groups,
        pool={"AvgPool": "mean", "MaxPool": "max", "BinaryConvolution": "other"}.get(kind),
        counts_pads=is_pool and not raw.get("exclude-pad", raw.get("exclude_pad", False)),
        is_late=auto == "same_lower",
        pads_end=() if begin is None else tuple(raw["pads_end"]),
        rounds_up=str(raw.get("rounding_type", "")).lower().startswith("ceil"),
    )


def _patches(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw = native.get_attributes()
    auto = str(raw["auto_pad"]).lower()
    pads = None if auto.startswith("same") else (0, 0)
    sizes, strides, rates = (tuple(raw[name]) for name in ("sizes", "strides", "rates"))
    return kinds.Window(sizes, strides, rates, pads, pool="other", is_late=auto == "same_lower", pads_end=pads or ())


def _kernel(weight: Shape | None, *, grouped: bool) -> tuple[int, tuple[int, ...] | None]:
    """The groups of a convolution, and the sides of its kernel."""
    if weight is None:
        return 1, None
    return (weight[0] or 1 if grouped else 1), tuple(size or 1 for size in weight[2 + grouped :])


def _reduced(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    rank = inputs[0].rank
    if native.get_type_name().startswith("Adaptive"):
        shape = outputs[0].shape
        is_whole = shape is not None and set(shape[2:]) == {1}
        is_mean = native.get_type_name() == "AdaptiveAvgPool"
        if not is_whole:
            return kinds.Resized(mode="mean" if is_mean else "")
        return kinds.Reduction(tuple(range(2, rank or 4)), "mean" if is_mean else "max")
    return kinds.Reduction(from_front(numbers(inputs[1]), rank), native.get_type_name()[6:].lower())


def _product(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw = native.get_attributes()
    return kinds.Product(bool(raw["transpose_a"]), bool(raw["transpose_b"]))


def _permutation(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    perm, rank = numbers(inputs[1]), inputs[0].rank
    return kinds.Permutation(None if perm is None or rank is None else perm or tuple(reversed(range(rank))))


def _regrouped(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    is_new = native.get_type_name() == "Unsqueeze"
    return kinds.Regroup(from_front(numbers(inputs[1]), outputs[0].rank) if is_new else None)


def _attention(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    scale = number_of(inputs[4]) if len(inputs) > 4 else None
    is_known = len(inputs) < 5 or scale is not None
    return kinds.FusedAttention(scale, bool(native.get_attributes()["causal"]), is_known and len(inputs) < 6)


def _of_regions(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    if native.get_type_name() == "ExperimentalDetectronROIFeatureExtractor":
        return kinds.OfRegions(tuple(range(1, len(inputs))))
    return kinds.OfRegions(scale=float(native.get_attributes()["spatial_scale"]))


def _parts(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    axes, rank = numbers(inputs[1]), inputs[0].rank
    return kinds.Parts(None if not axes or rank is None else axes[0] % rank)


def _picked(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    axes, rank = numbers(inputs[2]), inputs[0].rank
    if not axes or rank is None or inputs[1].rank is None:
        return kinds.Unknown()
    shared = int(native.get_attributes().get("batch_dims", 0)) % inputs[1].rank if inputs[1].rank else 0
    if shared:
        return kinds.Taken(axes[0] % rank) if inputs[1].rank == shared + 1 else kinds.Unknown()
    return kinds.Picked(axes[0] % rank, numbers(inputs[1], 1 << 20), inputs[1].rank)


def _taken(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    rank = inputs[0].rank
    return kinds.Unknown() if rank is None else kinds.Taken(int(native.get_attributes()["axis"]) % rank)


def _taken_apart(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    return kinds.Unknown() if native.get_attributes()["batch_dims"] else kinds.TakenApart()


def _contracted(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    equation, ranks = str(native.get_attributes()["equation"]), [value.rank for value in inputs]
    return kinds.Contracted(labels_of(equation, ranks) if len(ranks) == 2 else None)


def _shuffled(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw, rank = native.get_attributes(), inputs[0].rank
    return kinds.InPlace() if rank is None else kinds.Shuffled(int(raw["axis"]) % rank, int(raw["group"]))


def _joined(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    rank = outputs[0].rank
    return kinds.Unknown() if rank is None else kinds.Joined(int(native.get_attributes()["axis"]) % rank)


def _padded(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    return kinds.Padded(numbers(inputs[1]), str(native.get_attributes()["pad_mode"]).lower())


def _resized(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw = native.get_attributes()
    mode = str(raw.get("coordinate_transformation_mode", "half_pixel")).lower()
    kind = {"linear": "linear", "linear_onnx": "linear"}.get(str(raw["mode"]).lower(), str(raw["mode"]).lower())
    is_plain = not raw.get("antialias", False) and not any((*raw.get("pads_begin", ()), *raw.get("pads_end", ())))
    rounding = str(raw.get("nearest_mode", "round_prefer_floor")).lower()
    coefficient = float(raw.get("cube_coeff", -0.75))
    sizes_at = 1 if str(raw.get("shape_calculation_mode", "sizes")).lower() == "sizes" else None
    return kinds.Resized(
        "align_corners" in mode, kind if is_plain else "", mode, rounding, coefficient, False, sizes_at
    )


def _blocks(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw = native.get_attributes()
    depth_first = "depth" in str(raw["mode"]).lower()
    return kinds.Blocks(int(raw["block_size"]), native.get_type_name() == "SpaceToDepth", depth_first)


def _folded(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw = native.get_attributes()
    is_plain = set(raw["dilations"]) == {1} and not any((*raw["pads_begin"], *raw["pads_end"]))
    return kinds.folded(numbers(inputs[2]), tuple(raw["strides"])) if is_plain else kinds.Unknown()


def _rolled(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    rank, shifts, axes = inputs[0].rank, numbers(inputs[1]), numbers(inputs[2])
    if rank is None or axes is None:
        return kinds.Rolled(None, None)
    return kinds.Rolled(tuple(axis % rank for axis in axes), shifts)


def _scattered(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    is_plain = str(native.get_attributes().get("reduction", "none")).lower() == "none"
    if native.get_type_name() == "ScatterNDUpdate":
        deep = inputs[1].shape[-1] if inputs[1].shape else None
        return (kinds.Scattered if deep == 1 else kinds.ScatteredApart)(None, is_plain)
    axes, is_rows = numbers(inputs[3]), native.get_type_name() == "ScatterUpdate"
    if axes in ((0,), (-(inputs[0].rank or 0),)):
        return kinds.Scattered(None if is_rows else 0, is_plain)
    return kinds.Unknown() if is_rows or not axes else kinds.ScatteredApart(axes[0], is_plain)


def _pointwise(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    kind = native.get_type_name()
    function = _FUNCTIONS.get(kind, kind.lower())
    raw = native.get_attributes() if kind == "Gelu" or kind in _PARAMETERS else {}
    if kind == "Gelu" and "tanh" in str(raw.get("approximation_mode", "")).lower():
        function = "fastgelu"
    if kind == "HSigmoid":
        return kinds.Pointwise(function, (1 / 6, 0.5))
    if kind in ("HardSigmoid", "Selu", "Swish"):
        given = _single_numbers(inputs[1:])
        return kinds.Pointwise() if given is None else kinds.Pointwise(function, given or (1.0,))
    return kinds.Pointwise(function, tuple(float(raw[name]) for name in _PARAMETERS.get(kind, ())))


def _single_numbers(values: Sequence[Value]) -> tuple[float, ...] | None:
    """The one element of each value; None if one is not stored."""
    numbers = present(map(number_of, values))
    return tuple(numbers) if len(numbers) == len(values) else None


def _softmax(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    axis = int(native.get_attributes()["axis"]) % (inputs[0].rank or 1)
    return kinds.Softmax((axis,), is_log=native.get_type_name() == "LogSoftmax")


def _norm(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw, rank, kind = native.get_attributes(), inputs[0].rank, native.get_type_name()
    if rank is None:
        return kinds.Norm()
    if kind == "GroupNormalization":
        groups = int(raw["num_groups"])
        return kinds.Norm(tuple(range(2, rank + 1)), float(raw["epsilon"]), groups=groups, by_channel=True)
    if kind == "RMS":
        return kinds.Norm((rank - 1,), float(raw["epsilon"]), is_centred=False)
    axes = numbers(inputs[1])
    return kinds.Norm(
        from_front(axes, rank),
        float(raw["eps"]),
        is_scaled=bool(raw["normalize_variance"]),
        epsilon_outside="out" in str(raw["eps_mode"]).lower(),
    )


def _batch_norm(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    return kinds.BatchNorm(float(native.get_attributes()["epsilon"]))


def _unit_norm(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw, rank, axes = native.get_attributes(), inputs[0].rank, numbers(inputs[1])
    known = from_front(axes, rank)
    return kinds.UnitNorm(known, float(raw["eps"]), is_added=str(raw["eps_mode"]).lower() == "add")


def _local_norm(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw = native.get_attributes()
    if numbers(inputs[1]) != (1,):
        return kinds.InPlace()
    return kinds.LocalNorm(int(raw["size"]), float(raw["alpha"]), float(raw["beta"]), float(raw["bias"]))


_FUNCTIONS = {
    "Subtract": "sub",
    "Multiply": "mul",
    "Divide": "div",
    "Power": "pow",
    "Clamp": "clip",
    "Maximum": "max",
    "Minimum": "min",
    "Negative": "neg",
    "Ceiling": "ceil",
    "HSwish": "hardswish",
    "HSigmoid": "hardsigmoid",
    "Select": "where",
    "Convert": "cast",
    "ConvertLike": "castlike",
    "PRelu": "channelprelu",
    "GreaterEqual": "greaterorequal",
    "LessEqual": "lessorequal",
}
"""Where ONNX has another name."""
_SAME = 1e-6
"""End of a slice that goes on to that of the axis."""
_PARAMETERS = {"Clamp": ("min", "max"), "Elu": ("alpha",)}
_IN_PLACE = ["GRN"]
_WINDOWS = [
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "BinaryConvolution",
    "AvgPool",
    "MaxPool",
]
_REGIONS = ["ROIAlign", "ROIPooling", "PSROIPooling", "ExperimentalDetectronROIFeatureExtractor"]
_REDUCTIONS = (
    *(f"Reduce{mode}" for mode in ["Mean", "Max", "Min", "Sum", "Prod", "L1", "L2", "LogicalAnd", "LogicalOr"]),
    "AdaptiveAvgPool",
    "AdaptiveMaxPool",
)


def _sampled(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw = native.get_attributes()
    mode, padding = (str(raw[name]).lower() for name in ("mode", "padding_mode"))
    return kinds.Sampled(mode.removeprefix("bi"), padding, bool(raw["align_corners"]))


def _ranked(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    raw, rank = native.get_attributes(), inputs[0].rank
    is_least = str(raw["mode"]).lower() == "min"
    return kinds.Unknown() if rank is None else kinds.Ranked(int(raw["axis"]) % rank, is_least)


def _controlled(native: ov.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> Operator:
    return control_flow(native)


_READERS: Mapping[str, Reader] = {
    **{name: _pointwise for name, op in OPS.items() if op in POINTWISE},
    **{name: _always(kinds.InPlace()) for name in _IN_PLACE},
    "FakeConvert": _always(kinds.Rounded()),
    "FakeQuantize": _quantiser,
    **dict.fromkeys(("MVN", "RMS", "GroupNormalization"), _norm),
    "BatchNormInference": _batch_norm,
    "NormalizeL2": _unit_norm,
    "LRN": _local_norm,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    **dict.fromkeys(_WINDOWS, _window),
    **dict.fromkeys(_REDUCTIONS, _reduced),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze"), _regrouped),
    **{name: _always(kinds.Widened()) for name in ("Broadcast", "Tile")},
    **dict.fromkeys(("ScatterNDUpdate", "ScatterElementsUpdate", "ScatterUpdate"), _scattered),
    "ExtractImagePatches": _patches,
    "MatMul": _product,
    "Transpose": _permutation,
    "Slice": slices,
    "StridedSlice": slices,
    "ReverseSequence": reversal,
    "Split": _parts,
    "VariadicSplit": _parts,
    "Gather": _picked,
    "GatherElements": _taken,
    "GatherND": _taken_apart,
    "Einsum": _contracted,
    "Concat": _joined,
    "Pad": _padded,
    "Interpolate": _resized,
    "SpaceToDepth": _blocks,
    "DepthToSpace": _blocks,
    "Col2Im": _folded,
    "ScaledDotProductAttention": _attention,
    **dict.fromkeys(_REGIONS, _of_regions),
    "Roll": _rolled,
    "GridSample": _sampled,
    "TopK": _ranked,
    **dict.fromkeys(("If", "Loop", "TensorIterator"), _controlled),
    "ShuffleChannels": _shuffled,
}
