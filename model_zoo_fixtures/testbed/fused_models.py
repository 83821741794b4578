"""The same weights in plain and in fused operators: transformers and a network of convolutions."""

from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from model_zoo_fixtures.testbed import oracle
from xai_insert import Options, insert

RAW = Options(output_dtype="f32")
WANTED = Options(output_dtype="f32", check=False)
"""Of the plain twin, whose map is the right one."""


D, HEADS, TOKENS = 32, 4, 17


MS = "com.microsoft"


class Net:
    """A model in which the same weights stand in plain or fused operators."""

    def __init__(self, opset=17):
        self.opset, self.nodes, self.weights, self.rng = opset, [], [], np.random.default_rng(1)

    def const(self, elements):
        self.weights.append(numpy_helper.from_array(np.asarray(elements), f"c{len(self.weights)}"))
        return self.weights[-1].name

    def draw(self, *shape, scale=1.0):
        return (scale * self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    def __call__(self, kind, *inputs, domain="", outputs=None, **attributes):
        outputs = outputs or [f"{kind}_{len(self.nodes)}"]
        node = helper.make_node(kind, inputs, outputs, f"n{len(self.nodes)}", domain=domain, **attributes)
        self.nodes.append(node)
        return outputs[0]

    def model(self, logits, classes=7):
        image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 64, 64])
        result = helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["b", classes])
        graph = helper.make_graph(self.nodes, "net", [image], [result], self.weights)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def norm(self, x):
        scale, shift = self.const(1 + self.draw(D, scale=0.1)), self.const(self.draw(D))
        return self("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)

    def heads(self, x):
        return self(
            "Transpose", self("Reshape", x, self.const(np.array([0, TOKENS, HEADS, D // HEADS]))), perm=[0, 2, 1, 3]
        )


def plain_attention(n, y, weights, biases):
    q, k, v = (n.heads(n("Add", n("MatMul", y, n.const(w)), n.const(b))) for w, b in zip(weights, biases, strict=True))
    scores = n("Mul", n("MatMul", q, n("Transpose", k, perm=[0, 1, 3, 2])), n.const(np.float32((D // HEADS) ** -0.5)))
    y = n("MatMul", n("Softmax", scores, axis=-1), v)
    return n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.const(np.array([0, TOKENS, D])))


def ms_attention(n, y, weights, biases):
    joint = n.const(np.concatenate(weights, 1)), n.const(np.concatenate(biases))
    return n("Attention", y, *joint, domain=MS, num_heads=HEADS)


def ms_multi_head(n, y, weights, biases):
    parts = [n("Add", n("MatMul", y, n.const(w)), n.const(b)) for w, b in zip(weights, biases, strict=True)]
    return n("MultiHeadAttention", *parts, domain=MS, num_heads=HEADS)


def ms_multi_head_with_bias(n, y, weights, biases):
    parts = [n("MatMul", y, n.const(w)) for w in weights]
    return n("MultiHeadAttention", *parts, n.const(np.concatenate(biases)), domain=MS, num_heads=HEADS)


def fused_products(n, y, weights, biases):
    q, k, v = (n.heads(n("Add", n("MatMul", y, n.const(w)), n.const(b))) for w, b in zip(weights, biases, strict=True))
    scores = n("FusedMatMul", q, k, domain=MS, transB=1, alpha=(D // HEADS) ** -0.5)
    y = n("MatMul", n("Softmax", scores, axis=-1), v)
    return n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.const(np.array([0, TOKENS, D])))


def onnx_attention(n, y, weights, biases):
    parts = [n.heads(n("Add", n("MatMul", y, n.const(w)), n.const(b))) for w, b in zip(weights, biases, strict=True)]
    y = n("Attention", *parts, softcap=0.0, is_causal=0, qk_matmul_output_mode=0)
    return n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.const(np.array([0, TOKENS, D])))


def onnx_attention_of_three_axes(n, y, weights, biases):
    parts = [n("Add", n("MatMul", y, n.const(w)), n.const(b)) for w, b in zip(weights, biases, strict=True)]
    return n("Attention", *parts, q_num_heads=HEADS, kv_num_heads=HEADS)


def tables():
    angles = np.outer(np.arange(TOKENS), 0.5 ** np.arange(D // HEADS // 2)).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def rotary(n, y, weights, biases):
    parts = [n.heads(n("Add", n("MatMul", y, n.const(w)), n.const(b))) for w, b in zip(weights, biases, strict=True)]
    batch = n("Slice", n("Shape", "x"), n.const(np.array([0])), n.const(np.array([1])), n.const(np.array([0])))
    sizes = n("Concat", batch, n.const(np.array([TOKENS])), axis=0)
    places = n("Expand", n.const(np.arange(TOKENS)[None]), sizes)
    parts[:2] = (n("RotaryEmbedding", part, *map(n.const, tables()), places) for part in parts[:2])
    y = n("Attention", *parts)
    return n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.const(np.array([0, TOKENS, D])))


def plain_rotary(n, y, weights, biases):
    parts = [n.heads(n("Add", n("MatMul", y, n.const(w)), n.const(b))) for w, b in zip(weights, biases, strict=True)]
    cosine, sine = (np.concatenate([table, table], 1) for table in tables())
    width = D // HEADS
    turn = np.zeros((width, width), np.float32)
    turn[np.arange(width // 2) + width // 2, np.arange(width // 2)] = -1
    turn[np.arange(width // 2), np.arange(width // 2) + width // 2] = 1
    for index in range(2):
        turned = n("Mul", n("MatMul", parts[index], n.const(turn)), n.const(sine))
        parts[index] = n("Add", n("Mul", parts[index], n.const(cosine)), turned)
    y = n("Attention", *parts)
    return n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.const(np.array([0, TOKENS, D])))


def plain_gelu(n, x):
    half = n("Add", n("Erf", n("Div", x, n.const(np.float32(2**0.5)))), n.const(np.float32(1)))
    return n("Mul", n("Mul", x, half), n.const(np.float32(0.5)))


def plain_tanh_gelu(n, x):
    cube = n("Mul", n("Pow", x, n.const(np.float32(3))), n.const(np.float32(0.044715)))
    inner = n("Mul", n("Add", x, cube), n.const(np.float32((2 / np.pi) ** 0.5)))
    share = n("Add", n("Tanh", inner), n.const(np.float32(1)))
    return n("Mul", n("Mul", x, share), n.const(np.float32(0.5)))


def plain_quick_gelu(n, x):
    return n("Mul", x, n("Sigmoid", n("Mul", x, n.const(np.float32(1.702)))))


def fused(kind, **attributes):
    return lambda n, x: n(kind, x, domain=MS, **attributes)


def transformer(attention=plain_attention, activation=plain_gelu, *, skip=False, bias_fused=None, opset=17):
    n = Net(opset)
    x = n("Conv", "x", n.const(n.draw(D, 3, 16, 16, scale=0.2)), strides=[16, 16])
    x = n("Transpose", n("Reshape", x, n.const(np.array([0, D, -1]))), perm=[0, 2, 1])
    batch = n("Slice", n("Shape", "x"), n.const(np.array([0])), n.const(np.array([1])), n.const(np.array([0])))
    sizes = n("Concat", batch, n.const(np.array([1, D])), axis=0)
    x = n("Concat", n("Expand", n.const(n.draw(1, 1, D)), sizes), x, axis=1)
    x = n("Add", x, n.const(n.draw(1, TOKENS, D)))
    for _ in range(2):
        y = n.norm(x)
        weights, biases = [n.draw(D, D, scale=2) for _ in range(3)], [n.draw(D, scale=0.5) for _ in range(3)]
        y = n("MatMul", attention(n, y, weights, biases), n.const(n.draw(D, D)))
        bias, scale, shift = n.draw(D), 1 + n.draw(D, scale=0.1), n.draw(D)
        if skip:
            norms = [n.const(array) for array in (scale, shift, bias)]
            outputs = [f"norm{len(n.nodes)}", "", "", f"sum{len(n.nodes)}"]
            y = n("SkipLayerNormalization", x, y, *norms, domain=MS, outputs=outputs, epsilon=1e-5)
            x = outputs[3]
        else:
            x = n("Add", x, n("Add", y, n.const(bias)))
            y = n("LayerNormalization", x, n.const(scale), n.const(shift), axis=-1, epsilon=1e-5)
        y, bias = n("MatMul", y, n.const(n.draw(D, 2 * D))), n.const(n.draw(2 * D))
        y = n(bias_fused, y, bias, domain=MS) if bias_fused else activation(n, n("Add", y, bias))
        x = n("Add", x, n("MatMul", y, n.const(n.draw(2 * D, D))))
    x = n("Gather", n.norm(x), n.const(np.array(0)), axis=1)
    return n.model(n("Gemm", x, n.const(n.draw(D, 7)), n.const(n.draw(7))))


TRANSFORMERS = {
    "Attention": (transformer(ms_attention), transformer()),
    "MultiHeadAttention": (transformer(ms_multi_head), transformer()),
    "MultiHeadAttention with bias": (transformer(ms_multi_head_with_bias), transformer()),
    "FusedMatMul": (transformer(fused_products), transformer()),
    "Attention of ONNX 23": (transformer(onnx_attention, opset=23), transformer()),
    "Attention of ONNX 23, three axes": (transformer(onnx_attention_of_three_axes, opset=23), transformer()),
    "RotaryEmbedding": (transformer(rotary, opset=23), transformer(plain_rotary, opset=23)),
    "SkipLayerNormalization": (transformer(skip=True), transformer()),
    "SkipLayerNormalization, operator set 14": (transformer(skip=True, opset=14), transformer()),
    "Gelu": (transformer(activation=fused("Gelu")), transformer()),
    "FastGelu": (transformer(activation=fused("FastGelu")), transformer(activation=plain_tanh_gelu)),
    "QuickGelu": (transformer(activation=fused("QuickGelu")), transformer(activation=plain_quick_gelu)),
    "BiasGelu": (transformer(bias_fused="BiasGelu"), transformer()),
    "FastGelu with bias": (transformer(bias_fused="FastGelu"), transformer(activation=plain_tanh_gelu)),
    "all": (transformer(ms_attention, skip=True, bias_fused="BiasGelu"), transformer()),
}


HIDDEN = np.arange(TOKENS) < TOKENS - 3


def expanded(n, elements):
    """A constant row for each image."""
    batch = n("Slice", n("Shape", "x"), n.const(np.array([0])), n.const(np.array([1])), n.const(np.array([0])))
    return n("Expand", n.const(elements[None]), n("Concat", batch, n.const(np.array([len(elements)])), axis=0))


def padded_plain(n, y, weights, biases):
    q, k, v = (n.heads(n("Add", n("MatMul", y, n.const(w)), n.const(b))) for w, b in zip(weights, biases, strict=True))
    scores = n("Mul", n("MatMul", q, n("Transpose", k, perm=[0, 1, 3, 2])), n.const(np.float32((D // HEADS) ** -0.5)))
    scores = n("Add", scores, n.const(np.where(HIDDEN, 0, -10000).astype(np.float32)))
    y = n("MatMul", n("Softmax", scores, axis=-1), v)
    return n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.const(np.array([0, TOKENS, D])))


def padded_attention(n, y, weights, biases):
    joint = n.const(np.concatenate(weights, 1)), n.const(np.concatenate(biases))
    return n("Attention", y, *joint, expanded(n, HIDDEN.astype(np.int32)), domain=MS, num_heads=HEADS)


def padded_multi_head(n, y, weights, biases):
    parts = [n("Add", n("MatMul", y, n.const(w)), n.const(b)) for w, b in zip(weights, biases, strict=True)]
    mask = expanded(n, HIDDEN.astype(np.int32))
    return n("MultiHeadAttention", *parts, "", mask, domain=MS, num_heads=HEADS)


def ms_rotary(*, flat, offset):
    def attention(n, y, weights, biases):
        parts = [n("Add", n("MatMul", y, n.const(w)), n.const(b)) for w, b in zip(weights, biases, strict=True)]
        parts = parts if flat else [n.heads(part) for part in parts]
        places = n.const(np.array([0])) if offset else expanded(n, np.arange(TOKENS))
        parts[:2] = (
            n("RotaryEmbedding", part, places, *map(n.const, tables()), domain=MS, num_heads=HEADS if flat else 0)
            for part in parts[:2]
        )
        parts = [n.heads(part) for part in parts] if flat else parts
        y = n("Attention", *parts)
        return n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.const(np.array([0, TOKENS, D])))

    return attention


PAIRS = {
    "Attention with a mask": (transformer(padded_attention), transformer(padded_plain)),
    "MultiHeadAttention with a mask": (transformer(padded_multi_head), transformer(padded_plain)),
    **{
        f"RotaryEmbedding, flat {flat}, offset {offset}": (
            transformer(ms_rotary(flat=flat, offset=offset), opset=23),
            transformer(plain_rotary, opset=23),
        )
        for flat in (True, False)
        for offset in (True, False)
    },
}


def rms(n, x, gamma, *, skip=None, bias=None):
    if skip is not None:
        inner = [x, skip, gamma, *([bias] if bias else [])]
        outputs = [f"norm{len(n.nodes)}", "", "", f"sum{len(n.nodes)}"]
        return n("SkipSimplifiedLayerNormalization", *inner, domain=MS, outputs=outputs, epsilon=1e-5), outputs[3]
    spread = n("ReduceMean", n("Mul", x, x), axes=[-1], keepdims=1)
    scale = n("Sqrt", n("Add", spread, n.const(np.float32(1e-5))))
    return n("Mul", n("Div", x, scale), gamma)


def rms_transformer(*, is_fused, has_bias):
    n = Net()
    x = n("Conv", "x", n.const(n.draw(D, 3, 16, 16, scale=0.2)), strides=[16, 16])
    x = n("Transpose", n("Reshape", x, n.const(np.array([0, D, -1]))), perm=[0, 2, 1])
    for _ in range(2):
        y = n("MatMul", n("Relu", n("MatMul", x, n.const(n.draw(D, D)))), n.const(n.draw(D, D)))
        gamma, bias = n.const(1 + n.draw(D, scale=0.1)), n.const(n.draw(D)) if has_bias else None
        if is_fused:
            y, x = rms(n, x, gamma, skip=y, bias=bias)
        else:
            x = n("Add", x, y)
            x = n("Add", x, bias) if bias else x
            y = rms(n, x, gamma)
        x = n("Add", x, n("MatMul", y, n.const(n.draw(D, D))))
    x = n("ReduceMean", rms(n, x, n.const(1 + n.draw(D, scale=0.1))), axes=[1], keepdims=0)
    return n.model(n("Gemm", x, n.const(n.draw(D, 7)), n.const(n.draw(7))))


def images():
    return np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)


def assert_same_map(model, plain):
    wanted, new = insert(plain, RAW), insert(model, RAW)
    assert new.report.method == wanted.report.method
    assert new.report.form == wanted.report.form
    assert new.report.output_difference == 0
    own, found = (Counter(node.op_type for node in m.graph.node) for m in (model, new.model))
    assert not own - found
    a, b = (oracle.run(result.model, images()) for result in (wanted, new))
    assert np.allclose(*(r["saliency_map"] for r in (a, b)), rtol=0, atol=1e-5 * max(abs(v).max() for v in a.values()))
    assert np.ptp(b["saliency_map"]) > 0


def convolutional(*, is_fused):
    n = Net()
    x = "x"
    for a, b in ((3, 8), (8, 16), (16, 24)):
        operands = [x, n.const(n.draw(b, a, 3, 3)), n.const(n.draw(b))]
        kept = {"strides": [2, 2], "pads": [1] * 4}
        if is_fused:
            x = n("FusedConv", *operands, domain=MS, activation="Relu", **kept)
        else:
            x = n("Relu", n("Conv", *operands, **kept))
    operands = [x, n.const(n.draw(24, 24, 3, 3, scale=0.3)), n.const(n.draw(24))]
    if is_fused:
        x = n("FusedConv", *operands, x, domain=MS, activation="LeakyRelu", activation_params=[0.1], pads=[1] * 4)
    else:
        x = n("LeakyRelu", n("Add", n("Conv", *operands, pads=[1] * 4), x), alpha=0.1)
    operands = [n("Flatten", n("GlobalAveragePool", x)), n.const(n.draw(16, 24)), n.const(n.draw(16))]
    if is_fused:
        x = n("FusedGemm", *operands, domain=MS, activation="Relu", transB=1)
    else:
        x = n("Relu", n("Gemm", *operands, transB=1))
    return n.model(n("Gemm", x, n.const(n.draw(16, 7)), n.const(n.draw(7))))


def token_layer(n, x, width, *, gemm):
    """A linear layer over 64 tokens; with `gemm`, its `transB`, one over their rows, as optimisers write it."""
    weight, bias = n.draw(16, width, scale=2), n.const(n.draw(width))
    if gemm is None:
        return n("Add", n("MatMul", x, n.const(weight)), bias)
    rows = n("Reshape", x, n.const(np.array([-1, 16])))
    stored = n.const(np.ascontiguousarray(weight.T) if gemm else weight)
    return n("Reshape", n("Gemm", rows, stored, bias, transB=gemm), n.const(np.array([-1, 64, width])))


def best_tokens(gemm):
    """A detector that lists the best of its tokens, as the encoder of RT-DETR does."""
    n = Net()
    x = n("Relu", n("Conv", "x", n.const(n.draw(16, 3, 8, 8)), strides=[8, 8]))
    x = n("Transpose", n("Reshape", x, n.const(np.array([0, 16, 64]))), perm=[0, 2, 1])
    x = n("Relu", token_layer(n, x, 16, gemm=gemm))
    scores, boxes = token_layer(n, x, 7, gemm=gemm), n("Sigmoid", token_layer(n, x, 4, gemm=gemm))
    n("TopK", n("ReduceMax", scores, axes=[2], keepdims=0), n.const(np.array([9])), outputs=["best", "places"], axis=1)
    at = n("Unsqueeze", "places", n.const(np.array([2])))
    listed = {}
    for name, value, width in (("scores", n("Sigmoid", scores), 7), ("boxes", boxes, 4)):
        batch = n("Slice", n("Shape", "x"), n.const(np.array([0])), n.const(np.array([1])))
        shape = n("Concat", batch, n.const(np.array([9, width])), axis=0)
        n("GatherElements", value, n("Expand", at, shape), axis=1, outputs=[name])
        listed[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 9, width])
    model = n.model("scores")
    del model.graph.output[:]
    model.graph.output.extend(listed.values())
    return model


def quantised(model, folder, **settings):
    class Reader(CalibrationDataReader):
        def __init__(self):
            rng = np.random.default_rng(4)
            self.feeds = iter([{"x": rng.standard_normal((1, 3, 64, 64)).astype(np.float32)} for _ in range(4)])

        def get_next(self):
            return next(self.feeds, None)

    onnx.save(model, folder / "plain.onnx")
    quantize_static(folder / "plain.onnx", folder / "int8.onnx", Reader(), **settings)
    return onnx.load(folder / "int8.onnx")
