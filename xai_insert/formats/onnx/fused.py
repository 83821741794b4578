"""What runtimes fuse (attention, norms, activations, products), written out in the standard operator set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from xai_insert.formats.onnx.single import maker
from xai_insert.formats.onnx.writer import Writer, Written
from xai_insert.graph.items import present
from xai_insert.graph.view import Shape

_GELU_FACTOR = math.sqrt(2 / math.pi)


def attention(w: Writer) -> Written:
    """`com.microsoft` Attention: projections of query, key and value in one weight, then attention."""
    x, weight, bias, mask, past, added = (w.operand(index) for index in range(6))
    if x is None or weight is None or past is not None or len(w.node.inputs) > 6:
        return None
    if mask is not None:
        added = _padding(w, mask, added)
        if added is None:
            return None
    sizes = w.node.attributes.get("qkv_hidden_sizes")
    if sizes is not None and len(set(sizes.as_ints())) > 1:
        return None
    return self_attention(w, x, weight, bias, added)


def self_attention(
    w: Writer, x: ir.Value, weight: ir.Value, bias: ir.Value | None, added: ir.Value | None = None
) -> Written:
    """Attention of what one product makes of `x`: query, key and value side by side."""
    heads, kernel = int(w.number("num_heads", 0)), w.operand(1)
    if not heads or kernel is None or _others(w):
        return None
    if w.has("unidirectional", "do_rotary", "past_present_share_buffer"):
        return None
    joint = w.plus(w("MatMul", x, weight), bias)
    width = w.width(kernel)
    each = -1 if width is None else width // 3 // heads
    whole = w.transpose(w.reshape(joint, [0, 0, 3, heads, each]), (2, 0, 3, 1, 4))
    return [_attended(w, [w("Gather", whole, w.constant(np.array(index)), axis=0) for index in range(3)], added)]


def multi_head_attention(w: Writer) -> Written:
    """`com.microsoft` MultiHeadAttention: attention of projections that are there."""
    query, key, value, bias, padding, added = (w.operand(index) for index in range(6))
    heads = int(w.number("num_heads", 0))
    if query is None or key is None or value is None or not heads:
        return None  # the packed form, all three in one, has no kernel on a CPU
    if padding is not None:
        added = _padding(w, padding, added)
        if added is None:
            return None
    if len(w.node.inputs) > 6 or _others(w) or w.has("unidirectional"):
        return None
    parts = _projected(w, [query, key, value], bias)
    return None if not parts else [_attended(w, [_headed(w, part, heads) for part in parts], added)]


def _projected(w: Writer, parts: list[ir.Value], bias: ir.Value | None) -> list[ir.Value]:
    """Query, key and value with their thirds of a bias; empty where they are of other axes, or the bias is not told."""
    if any(w.rank(part) not in (3, None) for part in parts):
        return []
    if bias is None:
        return parts
    return [w("Add", part, shift) for part, shift in zip(parts, _thirds(w, bias) or [], strict=False)]


def _thirds(w: Writer, bias: ir.Value) -> list[ir.Value]:
    """The biases of query, key and value, which stand end to end; none where their width is not known."""
    width = w.width(bias)
    if width is None:
        return []
    cuts = [w.constant([number * width // 3]) for number in range(4)]
    axis = w.constant([0])
    return [w("Slice", bias, start, end, axis) for start, end in pairwise(cuts)]


def standard_attention(w: Writer) -> Written:
    """Attention of ONNX 23 in three axes, or with attributes at their defaults, as one of four axes without them."""
    query, key, value, mask = (w.operand(index) for index in range(4))
    if query is None or key is None or value is None or len(w.node.inputs) > 4 or _others(w):
        return None
    written = {"q_num_heads", "kv_num_heads", "softcap", "qk_matmul_output_mode"} & set(w.node.attributes)
    if not written or w.has("softcap", "qk_matmul_output_mode"):
        return None
    heads, others = int(w.number("q_num_heads", 0)), int(w.number("kv_num_heads", 0))
    if heads != others:
        return None
    kept = {name: w.node.attributes[name].value for name in ("scale", "is_causal") if name in w.node.attributes}
    masks = [] if mask is None else [mask]
    if not heads:
        return [w("Attention", query, key, value, *masks, **kept)]
    result = w("Attention", *(_headed(w, part, heads) for part in (query, key, value)), *masks, **kept)
    return [w.reshape(w.transpose(result, (0, 2, 1, 3)), [0, 0, -1])]


def rotary(w: Writer) -> Written:
    """RotaryEmbedding of ONNX 23, each half of the width turned against the other."""
    x, cosine, sine, places = (w.operand(index) for index in range(4))
    return _turned(w, x, cosine, sine, places, int(w.number("num_heads", 0)))


def _turned(
    w: Writer,
    x: ir.Value | None,
    cosine: ir.Value | None,
    sine: ir.Value | None,
    places: ir.Value | None,
    heads: int,
) -> Written:
    half = w.width(cosine)
    if x is None or cosine is None or sine is None or half is None:
        return None
    if w.has("interleaved", "rotary_embedding_dim") or (not heads and w.rank(x) != 4):
        return None
    if places is not None:
        cosine, sine = (w("Gather", table, places, axis=0) for table in (cosine, sine))
    cosine, sine = w.unsqueeze(cosine, 1), w.unsqueeze(sine, 1)
    made = _rotated(w, _headed(w, x, heads) if heads else x, cosine, sine, half)
    return [w.reshape(w.transpose(made, (0, 2, 1, 3)), [0, 0, -1]) if heads else made]


def _rotated(w: Writer, whole: ir.Value, cosine: ir.Value, sine: ir.Value, half: int) -> ir.Value:
    """The halves of each row of a value `[N, heads, T, 2 * half]` as the coordinates of points that are turned."""
    cuts = [w.constant([number]) for number in (0, half, 2 * half)]
    axis = w.constant([3])
    first, second = (w("Slice", whole, start, end, axis) for start, end in pairwise(cuts))
    turned = w("Sub", w("Mul", first, cosine), w("Mul", second, sine))
    other = w("Add", w("Mul", first, sine), w("Mul", second, cosine))
    return w("Concat", turned, other, axis=3)


def _padding(w: Writer, mask: ir.Value, added: ir.Value | None) -> ir.Value | None:
    """What is added to the scores for a mask `[B, T]` of the tokens that count; None for a mask of another kind."""
    if w.rank(mask) != 2:
        return None  # the lengths of texts, say
    kept = w.unsqueeze(w.unsqueeze(w.floats(mask), 1), 1)
    hidden = w("Mul", w("Sub", w.constant(1.0), kept), w.constant(w.number("mask_filter_value", -10000.0)))
    return hidden if added is None else w("Add", added, hidden)


def embedding(w: Writer) -> Written:
    """EmbedLayerNormalization: rows of tables for words, places and segments, summed and normed."""
    words, segments, table, places_table, segment_table, gamma, beta, mask, places = map(w.operand, range(9))
    if words is None or table is None or places_table is None or gamma is None or mask is not None:
        return None
    if places is None:
        length = w("Slice", w("Shape", words), w.constant([1]), w.constant([2]), w.constant([0]))
        position = w("Slice", places_table, w.constant([0]), length, w.constant([0]))
    else:
        position = w("Gather", places_table, places, axis=0)
    total = w("Add", w("Gather", table, words, axis=0), position)
    if segments is not None and segment_table is not None:
        total = w("Add", total, w("Gather", segment_table, segments, axis=0))
    return [_norm(w, total, gamma, beta, is_centred=True), None, total][: len(w.node.outputs)]


def ms_rotary(w: Writer) -> Written:
    """`com.microsoft` RotaryEmbedding: one place for all, the first, or one for each token."""
    x, places, cosine, sine = (w.operand(index) for index in range(4))
    if x is None or places is None or w.has("is_packed_batching") or w.number("scale", 1) != 1:
        return None
    each = w.rank(x)
    width, size = w.width(cosine), w.width(x)
    heads = int(w.number("num_heads", 0))
    if w.rank(places) == 1 and each is not None:
        places = _counted_from(w, places, x, 1 if each == 3 else 2)
    if each == 3 and not heads and width is not None:
        heads = 0 if size is None else size // (2 * width)
    return _turned(w, x, cosine, sine, places, heads)


def _counted_from(w: Writer, first: ir.Value, x: ir.Value, axis: int) -> ir.Value:
    """The places of all tokens along an axis of `x`, of which only the first is given."""
    length = w("Gather", w("Shape", x), w.constant(np.array(axis)), axis=0)
    counted = w("Range", w.constant(np.array(0)), length, w.constant(np.array(1)))
    return w.unsqueeze(w("Add", counted, first), 0)


def _others(w: Writer) -> bool:
    """Whether something reads an output other than the first."""
    return any(output.uses() or output.is_graph_output() for output in w.node.outputs[1:])


def _headed(w: Writer, part: ir.Value, heads: int) -> ir.Value:
    return w.transpose(w.reshape(part, [0, 0, heads, -1]), (0, 2, 1, 3))


def _attended(w: Writer, parts: Sequence[ir.Value], added: ir.Value | None) -> ir.Value:
    query, key, value = parts
    scale = w.number("scale", 0)
    turned = w.transpose(key, (0, 1, 3, 2))
    scores = w("MatMul", query, turned)
    if scale:
        scores = w("Mul", scores, w.constant(float(scale)))
    else:
        width = w("Gather", w("Shape", query), w.constant(np.array(3)), axis=0)
        scores = w("Div", scores, w("Sqrt", w.floats(width)))
    result = w("MatMul", w("Softmax", w.plus(scores, added), axis=-1), value)
    return w.reshape(w.transpose(result, (0, 2, 1, 3)), [0, 0, -1])


def skip_layer_norm(w: Writer) -> Written:
    """A sum, and the norm of it."""
    x, skip, gamma, beta, bias = (w.operand(index) for index in range(5))
    return _skip_norm(w, x, skip, bias, gamma, beta, is_centred=True)


def skip_rms_norm(w: Writer) -> Written:
    """A sum, and the root mean square norm of it."""
    x, skip, gamma, bias = (w.operand(index) for index in range(4))
    return _skip_norm(w, x, skip, bias, gamma, None, is_centred=False)


def _skip_norm(
    w: Writer,
    x: ir.Value | None,
    skip: ir.Value | None,
    bias: ir.Value | None,
    gamma: ir.Value | None,
    beta: ir.Value | None,
    *,
    is_centred: bool,
) -> Written:
    if x is None or skip is None or gamma is None:
        return None
    total = w.plus(w("Add", x, skip), bias)
    return [_norm(w, total, gamma, beta, is_centred=is_centred), None, None, total][: len(w.node.outputs)]


def _norm(w: Writer, x: ir.Value, gamma: ir.Value, beta: ir.Value | None, *, is_centred: bool) -> ir.Value:
    epsilon = w.number("epsilon", 1e-12)
    if is_centred and w.version >= 17:
        operands = [x, gamma] if beta is None else [x, gamma, beta]
        return w("LayerNormalization", *operands, axis=-1, epsilon=epsilon)
    whole = w.wide(x)
    centred = w("Sub", whole, w.mean(whole)) if is_centred else whole
    spread = w("Sqrt", w("Add", w.mean(w("Mul", centred, centred)), w.constant(np.array(epsilon, w.sums.numpy()))))
    scaled = w("Mul", w.narrow(w("Div", centred, spread)), gamma)
    return w.plus(scaled, beta)


def rms_norm(w: Writer) -> Written:
    """The simplified norm of the standard domain at a version that its own does not have."""
    x, gamma = w.operand(0), w.operand(1)
    if x is None or gamma is None or int(w.number("axis", -1)) != -1 or _others(w):
        return None
    return [_norm(w, x, gamma, None, is_centred=False)]


def _gelu(w: Writer, x: ir.Value) -> ir.Value:
    share = w("Add", w("Erf", w("Div", x, w.constant(math.sqrt(2)))), w.constant(1.0))
    return w("Mul", w("Mul", x, share), w.constant(0.5))


def gelu(w: Writer) -> Written:
    """Gelu, of a sum with a bias if there is one."""
    x, bias = w.operand(0), w.operand(1)
    return None if x is None else [_gelu(w, w.plus(x, bias))]


def fast_gelu(w: Writer) -> Written:
    """Gelu by a hyperbolic tangent."""
    x, bias = w.operand(0), w.operand(1)
    if x is None:
        return None
    x = w.plus(x, bias)
    cube = w("Mul", w("Mul", w("Mul", x, x), x), w.constant(0.044715 * _GELU_FACTOR))
    inner = w("Add", w("Mul", x, w.constant(_GELU_FACTOR)), cube)
    return [w("Mul", w("Mul", x, w("Add", w("Tanh", inner), w.constant(1.0))), w.constant(0.5))]


def quick_gelu(w: Writer) -> Written:
    """`x * sigmoid(alpha * x)`; SiLU where alpha is 1."""
    x, alpha = w.operand(0), w.number("alpha", 1.702)
    if x is None:
        return None
    return [w("Mul", x, w("Sigmoid", x if alpha == 1 else w("Mul", x, w.constant(alpha))))]


def fused_matmul(w: Writer) -> Written:
    """A product of transposed factors, times a number."""
    factors = [_factor(w, w.operand(index), side) for index, side in enumerate("AB")]
    if None in factors:
        return None
    product, alpha = w("MatMul", *factors), w.number("alpha", 1)
    return [product if alpha == 1 else w("Mul", product, w.constant(alpha))]


def _factor(w: Writer, factor: ir.Value | None, side: str) -> ir.Value | None:
    """A factor as a product reads it: the first axis put behind the batch, the last two exchanged; None if untold."""
    is_turned, moves_first = w.has(f"trans{side}"), w.has(f"transBatch{side}")
    if factor is None or not (is_turned or moves_first):
        return factor
    rank = w.rank(factor)
    if rank is None or rank < (3 if moves_first else 2):
        return None
    *before, rows, columns = (*range(1, rank - 1), 0, rank - 1) if moves_first else range(rank)
    return w.transpose(factor, [*before, columns, rows] if is_turned else [*before, rows, columns])


def _clip(w: Writer, x: ir.Value, numbers: list[float]) -> ir.Value:
    return w("Clip", x, *(w.constant(float(number)) for number in numbers))


_ACTIVATIONS: dict[str, Callable[[Writer, ir.Value, list[float]], ir.Value]] = {
    "Relu": lambda w, x, _: w("Relu", x),
    "Sigmoid": lambda w, x, _: w("Sigmoid", x),
    "Tanh": lambda w, x, _: w("Tanh", x),
    "LeakyRelu": lambda w, x, n: w("LeakyRelu", x, alpha=n[0] if n else 0.01),
    "HardSigmoid": lambda w, x, n: w("HardSigmoid", x, alpha=n[0] if n else 0.2, beta=n[1] if len(n) > 1 else 0.5),
    "Clip": _clip,
}


def fused_conv(w: Writer) -> Written:
    """A convolution, a sum if there is one, and an activation."""
    kept = {name: a.value for name, a in w.node.attributes.items() if not name.startswith("activation")}
    made = w.plus(w("Conv", *present(w.node.inputs[:3]), **kept), w.operand(3))
    numbers = w.node.attributes.get("activation_params")
    return _activated(w, made, [] if numbers is None else list(numbers.as_floats()))


def fused_gemm(w: Writer) -> Written:
    """A linear layer and an activation."""
    kept = {name: a.value for name, a in w.node.attributes.items() if not name.startswith("activation")}
    numbers = [w.number(f"activation_{name}", math.nan) for name in ("alpha", "beta", "gamma")]
    made = w("Gemm", *present(w.node.inputs), **kept)
    return _activated(w, made, [number for number in numbers if not math.isnan(number)])


def _activated(w: Writer, made: ir.Value, numbers: list[float]) -> Written:
    kind = w.node.attributes.get_string("activation", "")
    if not kind:
        return [made]
    if kind not in _ACTIVATIONS:
        return None
    return [_ACTIVATIONS[kind](w, made, numbers)]


def is_product_of_rows(node: ir.Node) -> bool:
    """Whether a Reshape gives back the axes that another has taken from the operand of a Gemm."""
    gemm = node.inputs[0].producer() if node.inputs[0] is not None else None
    rows = gemm.inputs[0].producer() if gemm is not None and gemm.inputs and gemm.inputs[0] is not None else None
    if gemm is None or rows is None or (gemm.op_type, rows.op_type) != ("Gemm", "Reshape"):
        return False
    numbers = gemm.attributes
    return not numbers.get_int("transA", 0) and numbers.get_float("alpha", 1.0) == numbers.get_float("beta", 1.0) == 1.0


def product_of_rows(w: Writer) -> Written:
    """What optimisers make of a linear layer over more than two axes: the layer with its axes."""
    gemm = maker(w.node)
    rows = None if gemm is None else maker(gemm)
    source = None if rows is None else rows.inputs[0]
    if gemm is None or source is None or gemm.inputs[1] is None:
        return None
    weight, is_turned = gemm.inputs[1], bool(gemm.attributes.get_int("transB", 0))
    widths = _widths(w.sizes(source), w.sizes(w.node.outputs[0]))
    if widths is None or weight.shape is None or list(weight.shape) != (widths[::-1] if is_turned else widths):
        return None
    made = w("MatMul", source, w.transpose(weight, [1, 0]) if is_turned else weight)
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    return [w.plus(made, bias)]


def _widths(before: Shape | None, after: Shape | None) -> list[int | None] | None:
    """How wide rows are before and after a layer; None where these are not the same rows, of known sizes."""
    if before is None or after is None or len(before) < 3:
        return None
    return [before[-1], after[-1]] if before[:-1] == after[:-1] and None not in before[1:] else None
