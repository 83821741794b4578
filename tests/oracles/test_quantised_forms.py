"""Quantised models in ONNX, by every kind of operator for it: the map lies near that of the plain export."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, quantize_dynamic
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

from model_zoo_fixtures.testbed import deployed, oracle
from model_zoo_fixtures.testbed.fused_models import (
    RAW,
    WANTED,
    Net,
    best_tokens,
    images,
    ms_attention,
    ms_multi_head,
    quantised,
    transformer,
)
from xai_insert import Options, insert


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
