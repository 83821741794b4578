"""Each ONNX operator's record, see `xai_insert.graph.operators`: one reader per domain and type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from xai_insert.errors import ModelFileError
from xai_insert.formats.onnx.bodies import control_flow
from xai_insert.formats.onnx.fields import Operands, given_axes, integer, ints, operand_of, opset, rank_of, real, text
from xai_insert.formats.onnx.vocabulary import FUSED_ELEMENTWISE, OPS
from xai_insert.graph import operators as kinds
from xai_insert.graph.along import sliced, turned
from xai_insert.graph.einsum import labels_of
from xai_insert.graph.operators import Operator
from xai_insert.graph.rounding import Quantised
from xai_insert.graph.view import POINTWISE, Value, constant_of, numbers

Reader: TypeAlias = Callable[[ir.Node, Operands, Sequence[Value]], Operator]


def read(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    """The record of a node; `Unknown` where nothing is known of its type.

    Args:
        native: the node.
        inputs: its operands in the view.
        outputs: its results in the view.
    """
    domain = "" if native.domain == "ai.onnx" else native.domain
    reader = _READERS.get((domain, native.op_type))
    return kinds.Unknown() if reader is None else reader(native, inputs, outputs)


def _always(operator: Operator) -> Reader:
    return lambda native, inputs, outputs: operator


def _quantiser(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    del native
    if outputs[0].dtype not in ("uint8", "int8", "uint16", "int16"):  # to floats of eight bits, or half a byte
        return Quantised()
    zero = operand_of(inputs, 2)
    point = np.zeros(1) if zero is None else constant_of(zero)
    return Quantised(point is not None and bool(np.all(point == np.iinfo(outputs[0].dtype).min)))


def _window(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    spatial = (rank_of(inputs) or 4) - 2
    is_conv = native.op_type.startswith("Conv")
    kernel = ints(native, "kernel_shape") or (_kernel(operand_of(inputs, 1)) if is_conv else None)
    ones = (1,) * spatial
    auto = text(native, "auto_pad", "NOTSET")
    pads = ints(native, "pads") or (0,) * (2 * spatial)
    is_fitted = native.op_type == "ConvTranspose" and ints(native, "output_shape") is not None
    begin = None if is_fitted or auto.startswith("SAME") else pads[:spatial]
    group = integer(native, "group", 1)
    return kinds.Window(
        kernel,
        ints(native, "strides") or ones,
        ints(native, "dilations") or ones,
        begin,
        keeps_channels=not is_conv or _is_depthwise(group, inputs[0], outputs[0]),
        transposed=native.op_type == "ConvTranspose",
        groups=group,
        pool={"AveragePool": "mean", "MaxPool": "max", "LpPool": "other"}.get(native.op_type),
        counts_pads=bool(integer(native, "count_include_pad", 0)),
        is_late=auto != "SAME_UPPER",
        pads_end=() if begin is None else pads[spatial:],
        rounds_up=bool(integer(native, "ceil_mode", 0)),
    )


def _is_depthwise(groups: int, source: Value | None, result: Value) -> bool:
    """Whether each channel is a group, and makes one."""
    if groups == 1 or source is None or source.axis_count < 3 or not result.shape:
        return False
    return groups == source.sizes[1] == result.sizes[1]


def _kernel(weight: Value | None) -> tuple[int, ...] | None:
    """The sides of a convolution's kernel."""
    return None if weight is None or weight.shape is None else tuple(size or 1 for size in weight.shape[2:])


def _reduced(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank, mode = rank_of(inputs), native.op_type.removeprefix("Reduce").lower()
    if native.op_type.startswith("Global"):
        return kinds.Reduction(tuple(range(2, rank or 4)), _POOLED.get(mode, "lp"))
    if mode.startswith("arg"):
        return kinds.Reduction(None if rank is None else (integer(native, "axis", 0) % rank,), mode)
    return kinds.Reduction(given_axes(native, operand_of(inputs, 1), rank), mode)


def _gemm(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    factors = (real(native, key, 1.0) for key in ("alpha", "beta"))
    return kinds.Product(bool(integer(native, "transA", 0)), bool(integer(native, "transB", 0)), *factors)


def _permutation(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank, perm = rank_of(inputs), ints(native, "perm")
    if perm and rank and sorted(perm) != list(range(rank)):
        message = f"{native.op_type} {native.name!r} orders {rank} axes by {perm}; is the file whole?"
        raise ModelFileError(message)
    return kinds.Permutation(perm or (None if rank is None else tuple(reversed(range(rank)))))


def _regrouped(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    is_new = native.op_type == "Unsqueeze"
    return kinds.Regroup(given_axes(native, operand_of(inputs, 1), outputs[0].rank) if is_new else None)


def _slices(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    source, bounds = inputs[0], _bounds(native, inputs)
    if source is None or source.shape is None or bounds is None:
        return kinds.Slices(None)
    starts, ends, axes, steps = bounds
    return sliced(source.shape, axes or range(len(starts)), starts, ends, steps or ())


def _reversal(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    return turned(None if inputs[0] is None else inputs[0].shape, integer(native, "time_axis", 0), inputs[1])


_Numbers = tuple[int, ...] | None


def _bounds(native: ir.Node, inputs: Operands) -> tuple[tuple[int, ...], _Numbers, _Numbers, _Numbers] | None:
    """The starts of a Slice, its ends, axes and steps, if they are told; None where it is not known what it cuts."""
    if "starts" in native.attributes:
        starts, ends, axes, steps = *(ints(native, name) for name in ("starts", "ends", "axes")), None
    else:
        starts, ends, axes, steps = (numbers(operand_of(inputs, index)) for index in range(1, 5))
        if any(operand_of(inputs, i) is not None and part is None for i, part in ((3, axes), (4, steps))):
            return None
    return None if starts is None else (starts, ends, axes, steps)


def _parts(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank = rank_of(inputs)
    return kinds.Parts(None if rank is None else integer(native, "axis", 0) % rank)


def _picked(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank, indices = rank_of(inputs), operand_of(inputs, 1)
    if rank is None or indices is None or indices.rank is None:
        return kinds.Unknown()
    return kinds.Picked(integer(native, "axis", 0) % rank, numbers(indices, 1 << 20), indices.rank)


def _taken(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank = rank_of(inputs)
    return kinds.Unknown() if rank is None else kinds.Taken(integer(native, "axis", 0) % rank)


def _picked_rows(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    """GatherND; a move along one axis where its indices name the first alone."""
    indices = operand_of(inputs, 1)
    if integer(native, "batch_dims", 0) or indices is None or not indices.shape:
        return kinds.Unknown()
    if indices.shape[-1] != 1:
        return kinds.TakenApart()
    return kinds.Picked(0, numbers(indices, 1 << 20), len(indices.shape) - 1)


def _contracted(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    ranks = [None if value is None else value.rank for value in inputs]
    return kinds.Contracted(labels_of(text(native, "equation", ""), ranks) if len(ranks) == 2 else None)


def _joined(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank = outputs[0].rank or next((value.rank for value in inputs if value is not None and value.rank), None)
    axis = integer(native, "axis", 0)
    return kinds.Unknown() if rank is None else kinds.Joined(axis % rank)


def _padded(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank = rank_of(inputs)
    pads = ints(native, "pads") or numbers(operand_of(inputs, 1))
    axes = numbers(operand_of(inputs, 3))
    if pads is None or rank is None or (len(inputs) > 3 and inputs[3] is not None and axes is None):
        return kinds.Padded(None)
    before = [0] * rank
    for index, axis in enumerate(axes if axes is not None else range(len(pads) // 2)):
        before[axis % rank] = pads[index]
    return kinds.Padded(tuple(before), text(native, "mode", "constant"))


def _resized(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    coordinates = text(native, "coordinate_transformation_mode", "half_pixel")
    if coordinates == "tf_crop_and_resize":
        return kinds.Unknown()
    mode = text(native, "mode", "nearest")
    return kinds.Resized(
        coordinates == "align_corners",
        "" if integer(native, "antialias", 0) else mode,
        coordinates,
        text(native, "nearest_mode", "round_prefer_floor"),
        real(native, "cubic_coeff_a", -0.75),
        bool(integer(native, "exclude_outside", 0)),
        3 if operand_of(inputs, 3) is not None else None,
    )


def _upsampled(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    return kinds.Resized(False, text(native, "mode", "nearest"), "asymmetric", "floor")


def _blocks(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    depth_first = text(native, "mode", "DCR") == "CRD"
    return kinds.Blocks(integer(native, "blocksize", 1), native.op_type == "SpaceToDepth", depth_first)


def _folded(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    sides, strides = numbers(operand_of(inputs, 2)), ints(native, "strides") or (1, 1)
    is_plain = set(ints(native, "dilations") or (1,)) == {1} and not any(ints(native, "pads") or ())
    return kinds.folded(sides, strides) if is_plain else kinds.Unknown()


def _attention(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    if rank_of(inputs) != 4:
        return kinds.Unknown()
    scale = real(native, "scale", 0.0) if "scale" in native.attributes else None
    is_plain = len(inputs) < 5 and not {"q_num_heads", "softcap"} & set(native.attributes)
    return kinds.FusedAttention(scale, bool(integer(native, "is_causal", 0)), is_plain)


def _of_regions(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    return kinds.OfRegions(scale=real(native, "spatial_scale", 1.0))


def _scattered(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    indices = operand_of(inputs, 1)
    is_plain = text(native, "reduction", "none") == "none"
    if native.op_type == "ScatterND":
        deep = None if indices is None or not indices.shape else indices.shape[-1]
        return (kinds.Scattered if deep == 1 else kinds.ScatteredApart)(None, is_plain)
    axis = integer(native, "axis", 0)
    return (kinds.ScatteredApart if axis else kinds.Scattered)(axis, is_plain)


def _pointwise(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    function = native.op_type.lower()
    if function == "gelu" and text(native, "approximate", "none") == "tanh":
        function = "fastgelu"
    defaults = _PARAMETERS.get(native.op_type, {})
    return kinds.Pointwise(function, tuple(real(native, name, default) for name, default in defaults.items()))


def _softmax(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    shape, is_log = (inputs[0].shape if inputs[0] is not None else None), native.op_type == "LogSoftmax"
    is_old = opset(native, 13) < 13
    axis = integer(native, "axis", 1 if is_old else -1) % len(shape or (1,))
    if not is_old:
        return kinds.Softmax((axis,), is_log)
    further = [index for index, size in enumerate(shape or ()) if index > axis and size != 1]
    return kinds.Softmax((axis, *further) if shape else (), is_log)


def _norm(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank, kind = rank_of(inputs), native.op_type
    if rank is None:
        return kinds.Norm()
    if kind == "InstanceNormalization":
        return kinds.Norm(tuple(range(2, rank)), real(native, "epsilon", 1e-5), by_channel=True)
    if kind == "GroupNormalization":
        groups = integer(native, "num_groups", 1)
        axes = None if opset(native, 21) < 21 else tuple(range(2, rank + 1))  # one scale for each group
        return kinds.Norm(axes, real(native, "epsilon", 1e-5), groups=groups, by_channel=True)
    if kind == "MeanVarianceNormalization":
        return kinds.Norm(ints(native, "axes") or (0, 2, 3), 1e-9, epsilon_outside=True)
    axes = tuple(range(integer(native, "axis", -1) % rank, rank))
    return kinds.Norm(axes, real(native, "epsilon", 1e-5), is_centred=kind == "LayerNormalization")


def _batch_norm(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    return kinds.BatchNorm(real(native, "epsilon", 1e-5))


def _unit_norm(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank = rank_of(inputs)
    is_euclidean = integer(native, "p", 2) == 2
    return kinds.UnitNorm((integer(native, "axis", -1) % rank,) if rank and is_euclidean else None)


def _local_norm(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    factors = (real(native, name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return kinds.LocalNorm(integer(native, "size", 1), *factors)


_POOLED = {"globalaveragepool": "mean", "globalmaxpool": "max"}
_PARAMETERS: Mapping[str, Mapping[str, float]] = {
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "Selu": {"alpha": 1.6732631921768188, "gamma": 1.0507010221481323},
    "Celu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "ThresholdedRelu": {"alpha": 1.0},
    "Shrink": {"lambd": 0.5, "bias": 0.0},
    "Swish": {"alpha": 1.0},
    "QuickGelu": {"alpha": 1.702},
}
_IN_PLACE = ["Hardmax"]
_ROUNDED = ("DequantizeLinear", "DynamicQuantizeLinear")
_NORMS = (
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "MeanVarianceNormalization",
)


def _sampled(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    mode = text(native, "mode", "linear").removeprefix("bi")
    return kinds.Sampled(mode, text(native, "padding_mode", "zeros"), bool(integer(native, "align_corners", 0)))


def _ranked(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    rank = rank_of(inputs)
    is_least = not integer(native, "largest", 1)
    return kinds.Unknown() if rank is None else kinds.Ranked(integer(native, "axis", -1) % rank, is_least)


def _controlled(native: ir.Node, inputs: Operands, outputs: Sequence[Value]) -> Operator:
    return control_flow(native)


_READERS: Mapping[tuple[str, str], Reader] = {
    **{("", name): _pointwise for name, op in OPS.items() if op in POINTWISE},
    **{("", name): _always(kinds.InPlace()) for name in _IN_PLACE},
    **{("", name): _always(kinds.Rounded()) for name in _ROUNDED},
    ("com.microsoft", "DequantizeLinear"): _always(kinds.Rounded()),
    **{(domain, "QuantizeLinear"): _quantiser for domain in ("", "com.microsoft")},
    **{("com.microsoft", name): _pointwise for name in FUSED_ELEMENTWISE},
    **{("", name): _norm for name in _NORMS},
    ("", "BatchNormalization"): _batch_norm,
    ("", "LpNormalization"): _unit_norm,
    ("", "LRN"): _local_norm,
    ("", "Softmax"): _softmax,
    ("", "LogSoftmax"): _softmax,
    **{("", name): _window for name in ("Conv", "ConvTranspose", "ConvInteger", "AveragePool", "MaxPool", "LpPool")},
    **{
        ("", f"Reduce{mode}"): _reduced
        for mode in ["Mean", "Max", "Min", "Sum", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"]
    },
    **{("", name): _reduced for name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "ArgMax", "ArgMin")},
    **{("", name): _regrouped for name in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")},
    **{("", name): _always(kinds.Widened()) for name in ("Expand", "Tile")},
    **{("", name): _always(kinds.Product()) for name in ("MatMul", "MatMulInteger")},
    **{("", name): _scattered for name in ("ScatterND", "ScatterElements", "Scatter")},
    **{("", name): _controlled for name in ("If", "Loop", "Scan")},
    ("", "Gemm"): _gemm,
    ("", "Transpose"): _permutation,
    ("", "Slice"): _slices,
    ("", "ReverseSequence"): _reversal,
    ("", "Split"): _parts,
    ("", "Gather"): _picked,
    ("", "GatherND"): _picked_rows,
    ("", "GatherElements"): _taken,
    ("", "Concat"): _joined,
    ("", "Einsum"): _contracted,
    ("", "Pad"): _padded,
    ("", "Resize"): _resized,
    ("", "Upsample"): _upsampled,
    ("", "SpaceToDepth"): _blocks,
    ("", "DepthToSpace"): _blocks,
    ("", "Col2Im"): _folded,
    ("", "Attention"): _attention,
    **{("", name): _of_regions for name in ("RoiAlign", "MaxRoiPool")},
    ("", "GridSample"): _sampled,
    ("", "TopK"): _ranked,
}
