"""Further fused operators in ONNX, and those that other operator sets read differently: the map of the plain export."""

from collections import Counter

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.fused_models import (
    HEADS,
    MS,
    PAIRS,
    RAW,
    TOKENS,
    WANTED,
    Net,
    assert_same_map,
    best_tokens,
    images,
    ms_attention,
    rms_transformer,
    transformer,
)
from xai_insert import Options, insert
from xai_insert.errors import XaiInsertError


@pytest.mark.parametrize("name", PAIRS)
def test_a_fused_transformer_has_the_map_of_the_plain_export(name):
    assert_same_map(*PAIRS[name])


@pytest.mark.parametrize("has_bias", [True, False])
def test_simplified_norms_of_sums(has_bias):
    assert_same_map(*(rms_transformer(is_fused=is_fused, has_bias=has_bias) for is_fused in (True, False)))


@pytest.mark.parametrize("opset", [18, 21])
def test_group_norms(opset):
    def net(*, is_fused):
        n = Net(opset)
        x = n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[4, 4], pads=[1] * 4)
        gamma, beta = (1 + n.draw(2 if opset == 18 else 8, scale=0.3) for _ in range(2))
        if is_fused:
            x = n("GroupNormalization", x, n.const(gamma), n.const(beta), num_groups=2, epsilon=1e-5)
        else:
            flat = n("Reshape", x, n.const(np.array([0, 2, -1])))
            ones, zeros = n.const(np.ones(2, np.float32)), n.const(np.zeros(2, np.float32))
            flat = n("InstanceNormalization", flat, ones, zeros, epsilon=1e-5)
            gamma, beta = (np.repeat(part, 8 // len(part)).reshape(8, 1, 1) for part in (gamma, beta))
            x = n("Mul", n("Reshape", flat, n("Shape", x)), n.const(gamma))
            x = n("Add", x, n.const(beta))
        x = n("Relu", n("Conv", n("Relu", x), n.const(n.draw(16, 8, 3, 3)), n.const(n.draw(16)), pads=[1] * 4))
        x = n("Flatten", n("GlobalAveragePool", x))
        return n.model(n("Gemm", x, n.const(n.draw(16, 7)), n.const(n.draw(7))))

    assert_same_map(net(is_fused=True), net(is_fused=False))


def test_an_operator_without_a_kernel_is_refused_by_name():
    def packed(n, y, weights, biases):
        joint = n.const(np.concatenate(weights, 1)), n.const(np.concatenate(biases))
        extra = n.const(np.arange(TOKENS, dtype=np.int32)[None]), n.const(np.array([0, TOKENS], np.int32))
        return n("PackedAttention", y, *joint, *extra, domain=MS, num_heads=HEADS)

    with pytest.raises(XaiInsertError, match="PackedAttention"):
        insert(transformer(packed), RAW)


def softmax_head(opset, grid, **axis):
    """A softmax without an axis: 1 before operator set 13, over that and all that follow, and the last from then on."""
    n = Net(opset)
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[4, 4], pads=[1] * 4))
    if grid:
        x = n("Conv", n("GlobalAveragePool", x), n.const(n.draw(7, 8, 1, 1)), n.const(n.draw(7)))
        return n.model(n("Flatten", n("Softmax", x, **axis)))
    x = n("Flatten", n("GlobalAveragePool", x))
    return n.model(n("Softmax", n("Gemm", x, n.const(n.draw(8, 7)), n.const(n.draw(7)))))


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("opset", [11, 12])
def test_a_softmax_without_an_axis(opset, grid):
    result = insert(softmax_head(opset, grid), RAW)
    assert result.report.map_difference <= 1e-5
    found = oracle.run(result.model, images())["saliency_map"]
    wanted = insert(softmax_head(13, grid, axis=1), WANTED)
    assert result.report.form == wanted.report.form == "closed form"
    assert np.allclose(found, oracle.run(wanted.model, images())["saliency_map"], rtol=0, atol=1e-5)


def test_functions_that_call_functions():
    plain = Net()
    nodes = []

    def layer(name, body, inputs, domain_of):
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        del domain_of
        return helper.make_function("own", name, inputs, ["y"], body, opsets)

    inner = layer("Inner", [helper.make_node("Relu", ["x"], ["y"])], ["x"], "")
    outer = layer(
        "Outer",
        [
            helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2], pads=[1] * 4),
            helper.make_node("Inner", ["c"], ["y"], domain="own"),
        ],
        ["x", "w"],
        "own",
    )
    weights = [plain.draw(8, 3, 3, 3), plain.draw(16, 8, 3, 3)]
    head = plain.draw(16, 7), plain.draw(7)
    del nodes

    def build(*, nested):
        n = Net()
        x = "x"
        for weight in weights:
            if nested:
                x = n("Outer", x, n.const(weight), domain="own")
            else:
                x = n("Relu", n("Conv", x, n.const(weight), strides=[2, 2], pads=[1] * 4))
        x = n("Flatten", n("GlobalAveragePool", x))
        model = n.model(n("Gemm", x, *map(n.const, head)))
        if nested:
            model.functions.extend([outer, inner])
            model.opset_import.append(helper.make_opsetid("own", 1))
        return model

    wanted, new = insert(build(nested=False), WANTED), insert(build(nested=True), RAW)
    a, b = (oracle.run(result.model, images())["saliency_map"] for result in (wanted, new))
    assert np.allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_layers_of_fused_operators_can_be_targets():
    model = transformer(ms_attention, skip=True)
    fused = [node for node in model.graph.node if node.op_type == "SkipLayerNormalization"]
    report = insert(model, Options(target_layer=fused[-1].output[3], method="activation-map")).report
    assert (report.target["name"], report.target["grid"]) == (fused[-1].output[3], (4, 4))
    with pytest.raises(XaiInsertError, match=f"layer '{fused[-1].name}' .* is not on every path"):
        insert(model, Options(target_layer=fused[-1].name, method="activation-map"))


def root_mean_square(n, y, is_plain):
    scale = n.const(1 + n.draw(8, scale=0.1))
    if not is_plain:
        return n("RMSNormalization", y, scale, axis=-1, epsilon=1e-5)
    mean = n("ReduceMean", n("Mul", y, y), n.const(np.array([-1])), keepdims=1)
    return n("Mul", n("Div", y, n("Sqrt", n("Add", mean, n.const(np.float32(1e-5))))), scale)


def swish(n, y, is_plain):
    return n("Mul", y, n("Sigmoid", y)) if is_plain else n("Swish", y)


def gelu(n, y, is_plain):
    if not is_plain:
        return n("Gelu", y)
    erf = n("Erf", n("Mul", y, n.const(np.float32(0.5**0.5))))
    return n("Mul", n("Mul", y, n.const(np.float32(0.5))), n("Add", erf, n.const(np.float32(1))))


@pytest.mark.parametrize(("function", "opset"), [(root_mean_square, 23), (gelu, 20), (swish, 24)])
def test_operators_of_newer_sets(function, opset):
    """Behind the feature map, so that the branch computes them too."""
    made = []
    for is_plain in (True, False):
        n = Net(opset)
        x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[16, 16], pads=[1] * 4))
        flat = n("Flatten", n("GlobalAveragePool", x))
        made.append(n.model(n("Gemm", function(n, flat, is_plain), n.const(n.draw(8, 7)), n.const(n.draw(7)))))
    try:
        before = [oracle.run(model, images()) for model in made]
    except ort_errors.Fail:
        pytest.skip(f"the installed onnxruntime runs no set {opset}")
    assert np.allclose(*(next(iter(item.values())) for item in before), atol=1e-5)
    results = [insert(model, RAW) for model in made]
    assert [result.report.form for result in results] == ["closed form"] * 2
    a, b = (oracle.run(result.model, images())["saliency_map"] for result in results)
    assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


def test_names_that_are_looked_up_stay():
    """ArrayFeatureExtractor, as CoreML's and Custom Vision's converters end a classifier."""
    n = Net(15)
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[16, 16], pads=[1] * 4))
    logits = n("Gemm", n("Flatten", n("GlobalAveragePool", x)), n.const(n.draw(8, 7)), n.const(n.draw(7)))
    scores = n("Softmax", logits, axis=1)
    names = n.const(np.array([f"class {k}" for k in range(7)], object))
    n("ArrayFeatureExtractor", names, n("ArgMax", scores, axis=1, keepdims=0), domain="ai.onnx.ml", outputs=["label"])
    model = n.model(scores)
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.STRING, None))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    result = insert(model, RAW)
    assert result.report.form == "closed form"
    plain, found = oracle.run(model, images()), oracle.run(result.model, images())
    assert np.array_equal(found["label"], plain["label"])
    alone = n.model(scores)
    wanted = oracle.run(insert(alone, WANTED).model, images())["saliency_map"]
    assert np.allclose(found["saliency_map"], wanted, atol=1e-6)


def test_a_sequence_among_the_outputs_stays():
    n = Net()
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[4, 4], pads=[1] * 4))
    flat = n("Flatten", n("GlobalAveragePool", x))
    logits = n("Gemm", flat, n.const(n.draw(8, 7)), n.const(n.draw(7)))
    n("SequenceConstruct", logits, flat, outputs=["parts"])
    model = n.model(logits)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_value_info("parts", kind))
    new = insert(model, RAW).model
    session = ort.InferenceSession(new.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    assert names == [logits, "parts", "saliency_map"]
    results = dict(zip(names, session.run(None, {"x": images()}), strict=True))
    assert np.array_equal(results["parts"][0], results[logits])


def image_and_texts(*, is_fused):
    """Pooled image features times the embeddings of texts, as CLIP scores them."""
    n = Net()
    x = n("Relu", n("Conv", "x", n.const(n.draw(16, 3, 3, 3)), n.const(n.draw(16)), strides=[8, 8], pads=[1] * 4))
    x = n("Flatten", n("GlobalAveragePool", x))
    words, places, segments = n.const(n.draw(20, 16)), n.const(n.draw(9, 16)), n.const(n.draw(2, 16))
    gamma, beta = n.const(1 + n.draw(16, scale=0.1)), n.const(n.draw(16))
    if is_fused:
        kinds = n("Sub", "ids", "ids")
        operands = ["ids", kinds, words, places, segments, gamma, beta]
        y = n("EmbedLayerNormalization", *operands, domain=MS, outputs=["embedded", "lengths"], epsilon=1e-5)
    else:
        y = n("Add", n("Gather", words, "ids"), n("Slice", places, n.const(np.array([0])), n.const(np.array([5]))))
        y = n("Add", y, n("Gather", segments, n("Sub", "ids", "ids")))
        y = n("LayerNormalization", y, gamma, beta, axis=-1, epsilon=1e-5)
    text = n("ReduceMean", y, axes=[1], keepdims=0)
    model = n.model(n("MatMul", x, n("Transpose", text, perm=[1, 0])), classes=3)
    model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT32, [3, 5]))
    return model


def test_embedded_texts():
    results = [insert(image_and_texts(is_fused=is_fused), RAW) for is_fused in (True, False)]
    assert results[0].report.form == results[1].report.form
    ids = np.random.default_rng(2).integers(0, 20, (3, 5)).astype(np.int32)
    maps = []
    for result in results:
        session = ort.InferenceSession(result.model.SerializeToString())
        maps.append(session.run(["saliency_map"], {"x": images(), "ids": ids})[0])
    assert maps[0].shape == (2, 3, 8, 8)
    assert np.allclose(*maps, rtol=0, atol=1e-5 * np.abs(maps[1]).max())


@pytest.mark.parametrize("gemm", [0, 1], ids=["onnxruntime", "onnxslim"])
def test_a_layer_over_rows_is_one_over_tokens(gemm):
    a, b = (insert(best_tokens(kind), Options(output_dtype="f32", num_classes=7)) for kind in (None, gemm))
    assert a.report.method == b.report.method == "det-class-probability-map"
    wanted, found = (oracle.run(result.model, images())["saliency_map"] for result in (a, b))
    assert wanted.shape == (2, 7, 8, 8)
    assert np.allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    kinds = Counter(node.op_type for node in b.model.graph.node if not node.name.startswith("xai/"))
    assert kinds["Gemm"] == 3
