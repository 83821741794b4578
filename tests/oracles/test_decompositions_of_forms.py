"""Further fused operators in ONNX, those of quantised models and those that other operator sets read differently."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from onnxruntime.quantization import QuantFormat, quantize_dynamic
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

from model_zoo_fixtures.testbed import deployed, oracle
from model_zoo_fixtures.testbed.fused_models import (
    HEADS,
    MS,
    PAIRS,
    RAW,
    TOKENS,
    WANTED,
    Net,
    assert_same_map,
    images,
    ms_attention,
    ms_multi_head,
    quantised,
    rms_transformer,
    transformer,
)
from xai_insert import Options, insert
from xai_insert.errors import CheckFailedError, XaiInsertError


@pytest.mark.parametrize("name", PAIRS)
def test_a_fused_transformer_has_the_map_of_the_plain_export(name):
    assert_same_map(*PAIRS[name])


@pytest.mark.parametrize("has_bias", [True, False])
def test_simplified_norms_of_sums(has_bias):
    assert_same_map(*(rms_transformer(is_fused=is_fused, has_bias=has_bias) for is_fused in (True, False)))


def correlated(plain, model, least=0.95):
    wanted, new = insert(plain, WANTED), insert(model, RAW)
    assert new.report.form == wanted.report.form == "closed form"
    assert new.report.output_difference == 0
    own, found = (Counter(node.op_type for node in m.graph.node) for m in (model, new.model))
    assert not own - found
    a, b = (oracle.run(result.model, images())["saliency_map"].ravel() for result in (wanted, new))
    assert np.corrcoef(a, b)[0, 1] > least


def rounded_while_running(model, folder, level):
    """Dynamically quantised, then saved by onnxruntime."""
    onnx.save(model, folder / "plain.onnx")
    settings = {"extra_options": {"DefaultTensorType": TensorProto.FLOAT}}
    quantize_dynamic(folder / "plain.onnx", folder / "dynamic.onnx", **settings)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "saved.onnx")
    options.graph_optimization_level = level
    ort.InferenceSession(str(folder / "dynamic.onnx"), options)
    return onnx.load(folder / "saved.onnx")


def test_attention_of_integers(tmp_path):
    model = rounded_while_running(transformer(ms_attention), tmp_path, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    assert "QAttention" in {node.op_type for node in model.graph.node}
    correlated(transformer(), model)


def test_products_with_what_is_rounded_while_running(tmp_path):
    model = rounded_while_running(transformer(ms_multi_head), tmp_path, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    assert {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"} & {node.op_type for node in model.graph.node}
    correlated(transformer(), model)


@pytest.mark.parametrize("kind", [MatMulBnb4Quantizer.NF4, MatMulBnb4Quantizer.FP4])
def test_weights_of_normal_floats(kind):
    plain = transformer()
    packer = MatMulBnb4Quantizer(onnx.ModelProto.FromString(plain.SerializeToString()), kind, 32)
    packer.process()
    model = packer.model.model
    assert "MatMulBnb4" in {node.op_type for node in model.graph.node}
    correlated(plain, model, 0.95 if kind == MatMulBnb4Quantizer.NF4 else 0.9)
    assert insert(model, RAW).report.map_difference <= 1e-5


def joined(kind):
    """Convolutions whose result meets `kind`, quantised below."""
    n = Net()
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[2, 2], pads=[1] * 4))
    y = n("Conv", x, n.const(n.draw(8, 8, 3, 3)), n.const(n.draw(8)), pads=[1] * 4)
    if kind == "Mul":
        x = n("Mul", x, n("Sigmoid", y))
    elif kind == "Concat":
        x = n("Concat", x, y, axis=1)
    elif kind == "AveragePool":
        x = n("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    else:
        x = n(kind, y)
    width = 16 if kind == "Concat" else 8
    x = n("Relu", n("Conv", x, n.const(n.draw(16, width, 3, 3)), n.const(n.draw(16)), strides=[2, 2], pads=[1] * 4))
    x = n("Flatten", n("GlobalAveragePool", x))
    return n.model(n("Gemm", x, n.const(n.draw(16, 7)), n.const(n.draw(7))))


@pytest.mark.parametrize("kind", ["Mul", "Concat", "LeakyRelu", "AveragePool", "Sigmoid"])
def test_functions_of_integers(kind, tmp_path):
    plain = joined(kind)
    model = quantised(plain, tmp_path, quant_format=QuantFormat.QOperator)
    assert f"QLinear{kind}" in {node.op_type for node in model.graph.node}
    correlated(plain, model)


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


KINDS = {
    "tree": (
        "TreeEnsembleClassifier",
        {
            "nodes_treeids": [0] * 7,
            "nodes_nodeids": list(range(7)),
            "nodes_featureids": [0, 3, 5, 0, 0, 0, 0],
            "nodes_values": [0.01, 0.008, 0.012, 0.0, 0.0, 0.0, 0.0],
            "nodes_modes": ["BRANCH_LEQ"] * 3 + ["LEAF"] * 4,
            "nodes_truenodeids": [1, 3, 5, 0, 0, 0, 0],
            "nodes_falsenodeids": [2, 4, 6, 0, 0, 0, 0],
            "class_treeids": [0] * 8,
            "class_nodeids": [3, 3, 4, 4, 5, 5, 6, 6],
            "class_ids": [0, 1] * 4,
            "class_weights": [0.9, 0.1, 0.2, 0.8, 0.6, 0.4, 0.3, 0.7],
            "classlabels_int64s": [0, 1],
            "post_transform": "NONE",
        },
    ),
    "linear": (
        "LinearClassifier",
        {"coefficients": np.linspace(-1, 1, 16).tolist(), "intercepts": [0.1, -0.1], "classlabels_ints": [0, 1]},
    ),
    "support vectors": (
        "SVMClassifier",
        {
            "support_vectors": np.linspace(-0.03, 0.03, 32).tolist(),
            "coefficients": [1.0, -0.5, 0.7, -1.2],
            "rho": [0.1],
            "vectors_per_class": [2, 2],
            "kernel_type": "RBF",
            "kernel_params": [50.0, 0.0, 3.0],
            "prob_a": [-1.0],
            "prob_b": [0.1],
            "classlabels_ints": [0, 1],
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_learners_behind_features(kind):
    """The scores of the learner are explained by masked runs; its label stays as it is."""
    op, attributes = KINDS[kind]
    n = Net(15)
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[16, 16], pads=[1] * 4))
    n(op, n("Flatten", n("GlobalAveragePool", x)), domain="ai.onnx.ml", outputs=["label", "scores"], **attributes)
    model = n.model("scores", classes=2)
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["b"]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    result = insert(model, RAW)
    assert result.report.form == "masked runs"
    assert result.report.map_difference <= 1e-5
    found = oracle.run(result.model, images())
    plain = oracle.run(model, images())
    assert np.array_equal(found["label"], plain["label"])
    assert found["saliency_map"].shape == (2, 2, 4, 4)
    assert np.ptp(found["saliency_map"]) > 0


def steps(thresholds, *, is_relative=False):
    """One tree behind the mean of a map; or behind how large it is beside the maximum."""
    op, attributes = KINDS["tree"]
    n = Net(15)
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[16, 16], pads=[1] * 4))
    pooled = n("GlobalAveragePool", x)
    pooled = n("Div", pooled, n("Add", n("GlobalMaxPool", x), n.const(np.float32(1e-6)))) if is_relative else pooled
    far = {**attributes, "nodes_values": [*thresholds, 0.0, 0.0, 0.0, 0.0]}
    n(op, n("Flatten", pooled), domain="ai.onnx.ml", outputs=["label", "scores"], **far)
    model = n.model("scores", classes=2)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def test_learners_of_which_one_cell_passes_thresholds_in_loud_images():
    """Scores in steps: in noise a mean of one cell lies below every threshold, in images of 0 to 255 it does not."""
    model = steps([0.9, 0.8, 0.95])
    result = insert(model, RAW)
    assert result.report.map_difference == 0
    assert "the scores change in steps" in result.report.reason
    parts = oracle.Parts(model, result.report.target["name"], "scores")
    for loudness in (1, 64):
        image = loudness * images()
        maps = oracle.run(result.model, image)["saliency_map"]
        np.testing.assert_array_equal(maps, parts.definition(image, (2, 3)).reshape(maps.shape))
        assert (np.ptp(maps, axis=(2, 3)) > 0).all() == (loudness > 1)


def test_learners_of_which_one_cell_passes_no_threshold():
    """One cell of sixteen gives a sixteenth of its maximum in any image, and the words say so, not of a dead head."""
    model = steps([0.2, 0.25, 0.15], is_relative=True)
    with pytest.raises(CheckFailedError, match=r"scores change in steps.*--method activation-map"):
        insert(model, RAW)
    assert insert(model, Options(method="activation-map")).report.output_difference == 0


@pytest.mark.parametrize("kind", KINDS)
def test_learners_whose_scores_leave_as_maps(kind):
    """No output tells the sizes of the scores; those before the ZipMap are explained, and the maps are kept."""
    op, attributes = KINDS[kind]
    n = Net(15)
    x = n("Relu", n("Conv", "x", n.const(n.draw(8, 3, 3, 3)), n.const(n.draw(8)), strides=[16, 16], pads=[1] * 4))
    scaled = n("Scaler", n("Flatten", n("GlobalAveragePool", x)), domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    n(op, scaled, domain="ai.onnx.ml", outputs=["label", "scores"], **attributes)
    n("ZipMap", "scores", domain="ai.onnx.ml", outputs=["named"], classlabels_strings=["cat", "dog"])
    model = n.model("scores", classes=2)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    wanted = oracle.run(insert(model, WANTED).model, images())["saliency_map"]
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output[0].CopyFrom(helper.make_value_info("named", helper.make_sequence_type_proto(kind)))
    new = insert(model, RAW).model
    found = oracle.run(new, images())
    assert np.array_equal(found["saliency_map"], wanted)
    assert found["named"] == oracle.run(model, images())["named"]
    assert set(found["named"][0]) == {"cat", "dog"}


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


@pytest.mark.parametrize("gemm", [0, 1], ids=["onnxruntime", "onnxslim"])
def test_a_layer_over_rows_is_one_over_tokens(gemm):
    a, b = (insert(best_tokens(kind), Options(output_dtype="f32", num_classes=7)) for kind in (None, gemm))
    assert a.report.method == b.report.method == "det-class-probability-map"
    wanted, found = (oracle.run(result.model, images())["saliency_map"] for result in (a, b))
    assert wanted.shape == (2, 7, 8, 8)
    assert np.allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    kinds = Counter(node.op_type for node in b.model.graph.node if not node.name.startswith("xai/"))
    assert kinds["Gemm"] == 3


def test_what_a_block_adds_to_may_be_rounded_apart_from_what_its_norm_reads():
    """As NNCF quantises a transformer in ONNX; the definition masks what is added."""
    plain = transformer()
    model = onnx.ModelProto.FromString(plain.SerializeToString())
    norms = {node.input[0] for node in model.graph.node if node.op_type == "LayerNormalization"}
    weights = [("scale", np.float32(0.05)), ("zero", np.int8(0))]
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights)
    for index, node in enumerate([*model.graph.node]):
        for place in [k for k, name in enumerate(node.input) if node.op_type == "Add" and name in norms]:
            source, names = node.input[place], [f"{index}_bytes", f"{index}_rounded"]
            node.input[place] = names[1]
            at = list(model.graph.node).index(node)
            model.graph.node.insert(at, helper.make_node("QuantizeLinear", [source, "scale", "zero"], names[:1]))
            model.graph.node.insert(
                at + 1, helper.make_node("DequantizeLinear", [names[0], "scale", "zero"], names[1:])
            )
    wanted, found = insert(plain, WANTED), insert(model, RAW)
    assert found.report.form == wanted.report.form == "closed form"
    a, b = (oracle.run(result.model, images())["saliency_map"].reshape(14, -1) for result in (wanted, found))
    assert min(np.corrcoef(*pair)[0, 1] for pair in zip(a, b, strict=True)) >= 0.95


def test_scores_of_a_quantised_head_are_read_behind_its_bias_and_its_rounding(tmp_path):
    """Before it, the runtime has no integer kernel for the head; before the bias, they are no scores."""
    options = Options(output_dtype="f32", num_classes=7)
    plain = best_tokens(None)
    model = quantised(plain, tmp_path, quant_format=QuantFormat.QDQ)
    found = insert(model, options)
    before = deployed.integer_kernels(model, tmp_path)
    assert deployed.integer_kernels(found.model, tmp_path) == before
    assert found.report.output_difference == 0
    scores = next(node.input[0] for node in model.graph.node if node.op_type == "ReduceMax")
    assert found.report.heads[0]["name"] == scores
    a, b = (oracle.run(result.model, images())["saliency_map"] for result in (insert(plain, options), found))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] >= 0.95
