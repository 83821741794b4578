"""Normalised attributes of ONNX nodes, as `Op` describes them: one reader for each kind of operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir

from xai_insert.errors import ModelFileError
from xai_insert.formats.onnx.reader import given_axes, integer, ints
from xai_insert.graph.view import Op, Value, constant_of, slice_attrs

JOINT_SOFTMAX = 13
"""From this operator set on, a softmax is over one axis."""
_MODES = {"LogSumExp": "logsumexp", "SumSquare": "sumsquare", "GlobalAveragePool": "mean", "GlobalMaxPool": "max"}
Attributes: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class _Node:
    """A node and what its readers ask of it."""

    native: ir.Node
    inputs: Sequence[Value | None]
    outputs: Sequence[Value]
    version: int

    @property
    def rank(self) -> int | None:
        source = self.operand(0)
        return source.rank if source is not None else self.outputs[0].rank

    def operand(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None


def attributes(
    native: ir.Node, op: Op, inputs: Sequence[Value | None], outputs: Sequence[Value], version: int
) -> Attributes:
    """Attributes of a node of the view; empty where `Op` names none.

    Args:
        native: the node.
        op: its operation.
        inputs: its operands in the view.
        outputs: its results in the view.
        version: of the operator set.
    """
    reader = _READERS.get(op)
    return {} if reader is None else reader(_Node(native, inputs, outputs, version))


def _slice(node: _Node) -> Attributes:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return {}
    starts, ends, axes, steps = _slice_operands(node)
    if starts is None or ends is None or (steps is not None and set(steps) != {1}):
        return {}
    rank = len(source.shape)
    return slice_attrs([axis % rank for axis in axes or range(len(starts))], starts, ends, source.shape)


def _slice_operands(node: _Node) -> list[tuple[int, ...] | None]:
    """Starts, ends, axes and steps of a Slice, attributes of old and operands of late; None where not told."""
    if "starts" in node.native.attributes:
        return [*(ints(node.native, name) for name in ("starts", "ends", "axes")), None]
    operands = [constant_of(value) for value in node.inputs[1:5]]
    operands += [None] * (4 - len(operands))
    return [None if part is None else tuple(int(n) for n in part) for part in operands]


def _reduced(node: _Node) -> Attributes:
    native, kind = node.native, node.native.op_type
    if kind.startswith("Global"):
        return {"mode": _MODES.get(kind, "lp"), "axes": tuple(range(2, node.rank or 4)), "keepdims": True}
    mode = _MODES.get(kind[6:], kind[6:].lower())
    axes = given_axes(native, node.operand(1), node.rank)
    return {"mode": mode, "axes": axes, "keepdims": bool(integer(native, "keepdims", 1))}


def _pool(node: _Node) -> Attributes:
    kernel = ints(node.native, "kernel_shape") or ()
    pads = ints(node.native, "pads") or (0,) * (2 * len(kernel))
    return {
        "mode": "mean" if node.native.op_type == "AveragePool" else "max",
        "kernel": kernel,
        "pads": pads,
        "rounds_up": bool(integer(node.native, "ceil_mode", 0)),
    }


def _convolution(node: _Node) -> Attributes:
    sides = (node.rank or 4) - 2
    defaults = {"strides": (1,) * sides, "pads": (0,) * (2 * sides), "dilations": (1,) * sides}
    return {name: ints(node.native, name) or default for name, default in defaults.items()}


def _product(node: _Node) -> Attributes:
    native = node.native
    factors = [native.attributes[key].as_float() for key in ("alpha", "beta") if key in native.attributes]
    return {
        "transpose_a": bool(integer(native, "transA", 0)),
        "transpose_b": bool(integer(native, "transB", 0)),
        "is_scaled": any(factor != 1.0 for factor in factors),
    }


def _along(default: int) -> Callable[[_Node], Attributes]:
    def read(node: _Node) -> Attributes:
        axis = integer(node.native, "axis", default)
        return {"axis": axis % node.rank if node.rank else axis}

    return read


def _softmax(node: _Node) -> Attributes:
    return _along(1 if node.version < JOINT_SOFTMAX else -1)(node)


def _gather(node: _Node) -> Attributes:
    axis = _along(0)(node)["axis"]
    index, source = constant_of(node.operand(1), limit=1), node.operand(0)
    if index is None or source is None or source.shape is None:
        return {"axis": axis}
    start = int(index.reshape(-1)[0])
    return {"axis": axis, "start": start + (source.shape[axis] or 0) if start < 0 else start}


def _attention(node: _Node) -> Attributes:
    native = node.native
    plain = len(node.inputs) < 5 and node.rank == 4 and not {"q_num_heads", "softcap"} & set(native.attributes)
    scale = native.attributes["scale"].as_float() if "scale" in native.attributes else None
    return {"scale": scale, "causal": bool(integer(native, "is_causal", 0)), "is_plain": plain}


def _norm(node: _Node) -> Attributes:
    axis = integer(node.native, "axis", -1)
    return {"axes": tuple(range(axis % node.rank, node.rank)) if node.rank else None}


def _roi_align(node: _Node) -> Attributes:
    attribute = node.native.attributes.get("spatial_scale")
    return {"features": (0,), "scale": 1.0 if attribute is None else attribute.as_float()}


def _reshape(node: _Node) -> Attributes:
    if node.native.op_type != "Unsqueeze":
        return {}
    return {"new_axes": given_axes(node.native, node.operand(1), node.outputs[0].rank)}


def _transpose(node: _Node) -> Attributes:
    native, rank = node.native, node.rank
    perm = ints(native, "perm")
    if perm and rank and sorted(perm) != list(range(rank)):
        message = f"{native.op_type} {native.name!r} orders {rank} axes by {perm}; is the file whole?"
        raise ModelFileError(message)
    return {"perm": perm or (tuple(reversed(range(rank))) if rank else None)}


def _ranked(node: _Node) -> Attributes:
    return {**_along(-1)(node), "least": not integer(node.native, "largest", 1)}


_READERS: Mapping[Op, Callable[[_Node], Attributes]] = {
    Op.REDUCE: _reduced,
    Op.POOL: _pool,
    Op.CONV: _convolution,
    Op.MATMUL: _product,
    Op.SOFTMAX: _softmax,
    Op.ARGMAX: _along(0),
    Op.CONCAT: _along(0),
    Op.SPLIT: _along(0),
    Op.TOPK: _ranked,
    Op.GATHER: _gather,
    Op.ATTENTION: _attention,
    Op.SLICE: _slice,
    Op.LAYER_NORM: _norm,
    Op.ROI_ALIGN: _roi_align,
    Op.RESHAPE: _reshape,
    Op.TRANSPOSE: _transpose,
}
