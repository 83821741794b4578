"""Layers that compute and round at once, or hold packed weights, written out as layers of floats between roundings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from xai_insert.formats.onnx import fused
from xai_insert.formats.onnx.writer import Writer, Written
from xai_insert.graph.items import present


def _float(w: Writer, first: int, axis: int | None = None) -> ir.Value | None:
    """The float that an operand stands for, with scale and zero point behind it; a channel axis for those of many."""
    operands = [w.operand(first + offset) for offset in range(3)]
    if operands[0] is None or operands[1] is None:
        return None
    sizes = operands[1].shape
    if sizes is not None and (sizes.rank() == 0 or (w.version < 13 and sizes == (1,))):
        axis = None
    if axis is not None and w.version < 13:  # DequantizeLinear knows no axis yet
        return _many_scales(w, operands[0], operands[1:], axis)
    return w.dequantised(_present(operands), axis)


def _many_scales(w: Writer, elements: ir.Value, operands: Sequence[ir.Value | None], axis: int) -> ir.Value | None:
    """An integer weight that has a scale (and a zero point) of its own at each place of an axis, as float."""
    rank = w.rank(elements)
    if rank is None:
        return None
    sizes = [-1 if place == axis % rank else 1 for place in range(rank)]
    scale, zero = (None if value is None else w.reshape(value, sizes) for value in operands)
    return None if scale is None else _stored_weight(w, elements, scale, zero)


def dequantised(w: Writer) -> Written:
    """DequantizeLinear of what is no weight: the same value as other layers read."""
    x = w.operand(0)
    if x is None or x.const_value is not None or w.has("block_size"):
        return None
    operands = _present([w.operand(index) for index in range(3)])
    axis = w.node.attributes.get("axis")
    if axis is not None and operands[1].shape is not None and operands[1].shape.rank() > 0:
        return None
    return [w.dequantised(operands)]


def _present(operands: Sequence[ir.Value | None]) -> list[ir.Value]:
    return present(operands)


def _rounded(w: Writer, made: ir.Value, first: int) -> list[ir.Value | None]:
    return [w("QuantizeLinear", made, *_present([w.operand(first), w.operand(first + 1)]))]


def conv(w: Writer) -> Written:
    """QLinearConv."""
    x, weight = _float(w, 0), _float(w, 3, axis=0)
    if x is None or weight is None:
        return None
    operands = [x, weight]
    if (bias := w.operand(8)) is not None:
        operands.append(_scaled(w, bias))
    return _rounded(w, w("Conv", *operands, **_attributes(w)), 6)


def _scaled(w: Writer, bias: ir.Value) -> ir.Value:
    """An integer bias as float: its scale is that of the input times that of the weight."""
    scale = w("Mul", w.operand(1), w.operand(4))
    return w("Mul", w.floats(bias), scale)


def matmul(w: Writer) -> Written:
    """QLinearMatMul."""
    a, b = _float(w, 0), _float(w, 3, axis=-1)
    return None if a is None or b is None else _rounded(w, w("MatMul", a, b), 6)


def gemm(w: Writer) -> Written:
    """QGemm, whose result is a float if it has no scale."""
    a, b = _float(w, 0), _float(w, 3, axis=0 if w.has("transB") else 1)
    if a is None or b is None or w.number("alpha", 1) != 1:
        return None
    operands = [a, b]
    if (bias := w.operand(6)) is not None:
        operands.append(_scaled(w, bias))
    kept = {name: number for name, number in _attributes(w).items() if name in ("transA", "transB")}
    made = w("Gemm", *operands, **kept)
    return [made] if w.operand(7) is None else _rounded(w, made, 7)


def binary(kind: str) -> Callable[[Writer], Written]:
    """QLinearAdd, QLinearMul."""

    def rule(w: Writer) -> Written:
        a, b = _float(w, 0), _float(w, 3)
        return None if a is None or b is None else _rounded(w, w(kind, a, b), 6)

    return rule


def unary(kind: str) -> Callable[[Writer], Written]:
    """A QLinear function of one operand, with its attributes."""

    def rule(w: Writer) -> Written:
        x, kept = _float(w, 0), _attributes(w)
        if x is None or kept.pop("channels_last", 0):
            return None
        kept.pop("opset", None)
        return _rounded(w, w(kind, x, **kept), 3)

    return rule


def concat(w: Writer) -> Written:
    """QLinearConcat: scale and zero point of the result, then those of each part behind it."""
    parts = [_float(w, first) for first in range(2, len(w.node.inputs), 3)]
    if not parts or any(part is None for part in parts):
        return None
    return _rounded(w, w("Concat", *parts, **_attributes(w)), 0)


_SCALES = {"QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QGemm": 7, "QLinearConcat": 0}
"""Where those that round have the scale of their result, the zero point behind it; other QLinear functions at 3."""


def moved(w: Writer) -> Written:
    """Integers that are moved as such: the floats that they stand for."""
    x = w.operand(0)
    node = None if x is None else x.producer()
    first = None if node is None else _place_of_scale(node)
    if x is None or node is None or first is None:
        return None
    scale = _present(node.inputs[first : first + 2])
    if not scale or any(item.shape is None or item.shape.rank() != 0 for item in scale):
        return None
    made = w(w.node.op_type, w.dequantised([x, *scale]), *w.node.inputs[1:], **_attributes(w))
    return [w("QuantizeLinear", made, *scale)]


def _place_of_scale(node: ir.Node) -> int | None:
    """Which operand of a node is the scale of the integers that it gives, its zero point behind it."""
    if node.op_type == "QuantizeLinear":
        return 1
    return _SCALES.get(node.op_type, 3 if node.op_type.startswith("QLinear") else None)


def _attributes(w: Writer) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in w.node.attributes.items()}


def dynamic_matmul(w: Writer) -> Written:
    """DynamicQuantizeMatMul: a stored integer weight; the other factor is rounded while the model runs."""
    a, b, scale, zero, bias = (w.operand(index) for index in range(5))
    if a is None or b is None or scale is None or b.const_value is None:
        return None
    return _product(w, a, _stored_weight(w, b, scale, zero), bias)


def matmul_to_float(w: Writer) -> Written:
    """MatMulIntegerToFloat: the same with the rounding of the other factor in a layer of its own."""
    a, b, own, scale, own_zero, zero, bias = (w.operand(index) for index in range(7))
    if a is None or b is None or own is None or scale is None or b.const_value is None:
        return None
    return _product(w, w.dequantised(_present([a, own, own_zero])), _stored_weight(w, b, scale, zero), bias)


def _stored_weight(w: Writer, elements: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
    weight = w.floats(elements)
    if zero is not None:
        weight = w("Sub", weight, w.floats(zero))
    return w("Mul", weight, scale)


def _product(w: Writer, a: ir.Value, b: ir.Value, bias: ir.Value | None) -> Written:
    made = w("MatMul", a, b)
    return [w.plus(made, bias)]


def attention(w: Writer) -> Written:
    """QAttention: the projections of query, key and value in one integer weight."""
    x, weight, bias, scale, factor, mask, zero, weight_zero, past = map(w.operand, range(9))
    if x is None or weight is None or scale is None or factor is None or mask is not None or past is not None:
        return None
    source = w.dequantised(_present([x, scale, zero]))
    return fused.self_attention(w, source, _stored_weight(w, weight, factor, weight_zero), bias)


_NORMAL_FLOATS = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""What the sixteen codes of NF4 stand for; Dettmers et al., "QLoRA", 2023, https://arxiv.org/abs/2305.14314, app. E."""
_SMALL_FLOATS = [0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25]
"""Likewise of FP4, without the sign, which is the highest bit."""


def normal_floats_matmul(w: Writer) -> Written:
    """MatMulBnb4: a weight `[N, K]` in NF4 or FP4, in blocks of the flat matrix, the upper half of a byte first."""
    a, packed, largest = (w.operand(index) for index in range(3))
    block, kind = int(w.number("block_size", 0)), int(w.number("quant_type", 1))
    rows, columns = int(w.number("K", 0)), int(w.number("N", 0))
    if a is None or packed is None or largest is None or not block or (rows * columns) % block or kind not in (0, 1):
        return None
    table = _NORMAL_FLOATS if kind else [*_SMALL_FLOATS, *(-number for number in _SMALL_FLOATS)]
    codes = w("Cast", _unpacked(w, packed, 4, [-1, 2]), to=ir.DataType.INT64)
    codes = w("Gather", codes, w.constant([1, 0]), axis=1)
    numbers = w("Gather", w.floats(w.constant(np.array(table, np.float32))), w.reshape(codes, [-1, block]), axis=0)
    weight = w.reshape(w("Mul", numbers, w.reshape(largest, [-1, 1])), [columns, rows])
    return [w("MatMul", a, w.transpose(weight, (1, 0)))]


def packed_matmul(w: Writer) -> Written:
    """MatMulNBits: a weight of 4 or 8 bits in blocks of the summed axis, two to a byte."""
    a, packed, scales, zeros, groups, bias = (w.operand(index) for index in range(6))
    bits, block = int(w.number("bits", 4)), int(w.number("block_size", 0))
    rows, columns = int(w.number("K", 0)), int(w.number("N", 0))
    if a is None or packed is None or scales is None or groups is not None or bits not in (4, 8) or not block:
        return None
    count = -(-rows // block)
    numbers = _unpacked(w, packed, bits, [columns, count, block])
    shift = _zero_points(w, zeros, bits, [columns, count, 1])
    factor = w.reshape(w.floats(scales), [columns, count, 1])
    weight = w.reshape(w("Mul", w("Sub", numbers, shift), factor), [columns, count * block])
    if count * block != rows:
        weight = w("Slice", weight, w.constant([0]), w.constant([rows]), w.constant([1]))
    return _product(w, a, w.transpose(weight, (1, 0)), bias)


def _zero_points(w: Writer, zeros: ir.Value | None, bits: int, sizes: Sequence[int]) -> ir.Value:
    """What each block is shifted by, `[columns, blocks, 1]`: the middle of the range, or floats, or packed too."""
    if zeros is None:
        return w.constant(float(1 << (bits - 1)))
    if zeros.dtype is not None and zeros.dtype.is_floating_point():
        return w.reshape(w.floats(zeros), sizes)
    columns, count, _ = sizes
    whole = _unpacked(w, zeros, bits, [columns, -1])
    return w.reshape(w("Slice", whole, w.constant([0]), w.constant([count]), w.constant([1])), sizes)


def _unpacked(w: Writer, packed: ir.Value, bits: int, sizes: list[int]) -> ir.Value:
    """Bytes as floats, or the two halves of each, the lower first."""
    whole = w.floats(packed)
    if bits == 8:
        return w.reshape(whole, sizes)
    upper = w("Floor", w("Mul", whole, w.constant(1 / 16)))
    lower = w("Sub", whole, w("Mul", upper, w.constant(16.0)))
    flat = [w.reshape(part, [-1, 1]) for part in (lower, upper)]
    return w.reshape(w("Concat", *flat, axis=1), sizes)
