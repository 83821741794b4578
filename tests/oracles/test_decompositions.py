"""Fused operators in ONNX: the map is that of the plain export with the same weights, the model's own nodes stay."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantFormat, QuantType
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from model_zoo_fixtures.testbed import fused_models, oracle
from model_zoo_fixtures.testbed.fused_models import (
    RAW,
    TOKENS,
    TRANSFORMERS,
    WANTED,
    D,
    assert_same_map,
    convolutional,
    images,
    ms_attention,
    quantised,
    transformer,
)
from xai_insert import Options, insert, insert_file
from xai_insert.errors import XaiInsertError


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_fused_transformer_has_the_map_of_the_plain_export(name):
    assert_same_map(*TRANSFORMERS[name])


def test_fused_convolutions_have_the_map_of_the_plain_export():
    assert_same_map(convolutional(is_fused=True), convolutional(is_fused=False))


def test_what_a_rule_does_not_cover_stays_and_is_refused_by_its_structure():
    model = transformer(ms_attention)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(helper.make_attribute("unidirectional", 1))
    before = model.SerializeToString()
    with pytest.raises(Exception, match="do not change with the grid"):
        insert(model, RAW)
    assert model.SerializeToString() == before


def test_nothing_of_a_decomposition_is_left_where_nothing_reads_it():
    new = insert(convolutional(is_fused=True), Options(method="activation-map"))
    names = [node.name for node in new.model.graph.node if node.name.startswith("xai/n")]
    assert not [name for name in names if name.endswith("Gemm")]
    used = {name for node in new.model.graph.node for name in node.input}
    assert {weight.name for weight in new.model.graph.initializer} <= used
    onnx.checker.check_model(new.model, skip_opset_compatibility_check=True)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_layers_that_compute_and_round_at_once(name, per_channel, tmp_path):
    plain = convolutional(is_fused=False) if name == "cnn" else transformer()
    model = quantised(plain, tmp_path, quant_format=QuantFormat.QOperator, per_channel=per_channel)
    assert "QLinearAdd" in {node.op_type for node in model.graph.node}
    wanted, new = insert(plain, WANTED), insert(model, RAW)
    assert new.report.form == "closed form"
    assert new.report.output_difference == 0
    own, found = (Counter(node.op_type for node in m.graph.node) for m in (model, new.model))
    assert all(found[kind] == count for kind, count in own.items() if kind.startswith("QLinear"))
    a, b = (oracle.run(result.model, images())["saliency_map"].ravel() for result in (wanted, new))
    assert np.corrcoef(a, b)[0, 1] > 0.95


def norm_by_sums(n, x):
    apart = n("Sub", x, n("ReduceMean", x, axes=[-1]))
    square = n("ReduceMean", n("Mul", apart, apart), axes=[-1])
    whole = n("Div", apart, n("Sqrt", n("Add", square, n.const(np.float32(1e-5)))))
    scaled = n("Mul", whole, n.const(1 + n.draw(32, scale=0.1)))
    return n("Add", scaled, n.const(n.draw(32)))


def test_integers_that_are_moved(tmp_path, monkeypatch):
    """After onnxruntime's own preparation rows, and the class token, are taken of integers."""
    monkeypatch.setattr(fused_models.Net, "norm", norm_by_sums)
    plain = transformer()
    plain.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(plain, tmp_path / "given.onnx")
    quant_pre_process(tmp_path / "given.onnx", tmp_path / "prepared.onnx", skip_symbolic_shape=True)
    model = quantised(onnx.load(tmp_path / "prepared.onnx"), tmp_path, quant_format=QuantFormat.QOperator)
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    read = {(made.get(node.input[0]), node.op_type) for node in model.graph.node if node.input}
    assert any((a or "").startswith("QLinear") and b in ("Reshape", "Gather", "Slice") for a, b in read), read
    wanted, new = insert(plain, WANTED), insert(model, RAW)
    assert new.report.form == "closed form"
    assert new.report.output_difference == 0
    image = images()[:1]
    a, b = (oracle.run(result.model, image)["saliency_map"].ravel() for result in (wanted, new))
    assert np.corrcoef(a, b)[0, 1] > 0.95


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_weights_packed_in_four_bits(is_symmetric):
    plain = transformer()
    algorithm = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=is_symmetric)
    packer = MatMulNBitsQuantizer(onnx.ModelProto.FromString(plain.SerializeToString()), algo_config=algorithm)
    packer.process()
    model = packer.model.model
    assert "MatMulNBits" in {node.op_type for node in model.graph.node}
    new = insert(model, RAW)
    assert new.report.form == "closed form"
    assert new.report.output_difference == 0
    assert new.report.map_difference <= 1e-5
    a, b = (oracle.run(result.model, images())["saliency_map"].ravel() for result in (insert(plain, WANTED), new))
    assert np.corrcoef(a, b)[0, 1] > 0.95
    kernels = (Counter(node.op_type for node in m.graph.node)["MatMulNBits"] for m in (model, new.model))
    assert len(set(kernels)) == 1


def test_the_layout_of_one_processor_is_refused_by_its_name(tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "all.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(convolutional(is_fused=False).SerializeToString(), options)
    model = onnx.load(tmp_path / "all.onnx")
    if not any(node.domain == "com.microsoft.nchwc" for node in model.graph.node):
        pytest.skip("this processor has no such layout")
    with pytest.raises(XaiInsertError, match="ORT_ENABLE_EXTENDED"):
        insert(model, RAW)


def test_what_onnxruntime_fuses_itself_is_read_through(tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "extended.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    for plain in (convolutional(is_fused=False), transformer()):
        ort.InferenceSession(plain.SerializeToString(), options)
        assert_same_map(onnx.load(tmp_path / "extended.onnx"), plain)


def computed_scale(n, y, weights, biases):
    """As the legacy exporter writes scaled_dot_product_attention: the scale comes from the width of the heads."""
    q, k, v = (n.heads(n("Add", n("MatMul", y, n.const(w)), n.const(b))) for w, b in zip(weights, biases, strict=True))
    width = n("Slice", n("Shape", q), n.const(np.array([-1])), n.const(np.array([2**63 - 1])))
    scale = n("Sqrt", n("Div", n.const(np.ones(1, np.float32)), n("Sqrt", n("Cast", width, to=TensorProto.FLOAT))))
    turned = n("Mul", n("Transpose", k, perm=[0, 1, 3, 2]), scale)
    y = n("MatMul", n("Softmax", n("MatMul", n("Mul", q, scale), turned), axis=-1), v)
    return n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.const(np.array([0, TOKENS, D])))


def test_a_scale_that_is_computed_in_a_converted_transformer(tmp_path):
    onnx.save(transformer(computed_scale), tmp_path / "plain.onnx")
    model = ov.convert_model(tmp_path / "plain.onnx")
    ov.save_model(model, tmp_path / "converted.xml", compress_to_fp16=False)
    model = ov.Core().read_model(tmp_path / "converted.xml")
    assert "ScaledDotProductAttention" in {node.get_type_name() for node in model.get_ordered_ops()}
    wanted, new = insert(transformer(), WANTED), insert(model, RAW)
    assert new.report.form == "closed form"
    assert new.report.output_difference == 0
    a, b = (oracle.run(result.model, images()) for result in (wanted, new))
    largest = abs(next(value for name, value in a.items() if name != "saliency_map")).max()
    assert np.allclose(a["saliency_map"], b["saliency_map"], rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("level", [0, 4])
def test_weights_of_four_bits_behind_a_dequantisation(level, tmp_path):
    plain = transformer(opset=21)
    settings = {"block_size": 32, "is_symmetric": True, "accuracy_level": level, "quant_format": QuantFormat.QDQ}
    twin = onnx.ModelProto.FromString(plain.SerializeToString())
    packer = MatMulNBitsQuantizer(twin, algo_config=DefaultWeightOnlyQuantConfig(**settings))
    packer.process()
    model = packer.model.model
    onnx.save(model, tmp_path / "q4.onnx")
    report = insert_file(tmp_path / "q4.onnx", tmp_path / "out.onnx", RAW)
    assert report.form == "closed form"
    assert report.output_difference == 0
    assert report.map_difference <= 1e-5
    new = onnx.load(tmp_path / "out.onnx")
    a, b = (oracle.run(item, images())["saliency_map"].ravel() for item in (insert(plain, WANTED).model, new))
    assert np.corrcoef(a, b)[0, 1] > 0.95
    fused = [merged_products(item, tmp_path) for item in (model, new)]
    assert fused[0] == fused[1] > 0


def merged_products(model, folder):
    """How many products onnxruntime merges with their packed weights."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options)
    nodes = onnx.load(folder / "optimised.onnx").graph.node
    return sum(node.op_type == "MatMulNBits" for node in nodes)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_transformer_between_quantise_and_dequantise(per_channel, tmp_path):
    plain = transformer()
    model = quantised(plain, tmp_path, quant_format=QuantFormat.QDQ, per_channel=per_channel)
    wanted, new = insert(plain, WANTED), insert(model, RAW)
    assert (new.report.form, new.report.output_difference) == ("closed form", 0)
    a, b = (oracle.run(result.model, images())["saliency_map"].ravel() for result in (wanted, new))
    assert np.corrcoef(a, b)[0, 1] > 0.95


@pytest.mark.parametrize("weights", [QuantType.QUInt16, QuantType.QInt8, QuantType.QInt4, QuantType.QUInt4])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_sixteen_bits_in_operators_of_onnxruntime(name, per_channel, weights, tmp_path):
    """Weights in 8 bits beside them, which onnxruntime merges with their layers where nothing else reads them."""
    plain = convolutional(is_fused=False) if name == "cnn" else transformer()
    kinds = {"activation_type": QuantType.QUInt16, "weight_type": weights, "per_channel": per_channel}
    settings = {"quant_format": QuantFormat.QDQ, "extra_options": {"UseQDQContribOps": True}}
    model = quantised(plain, tmp_path, **kinds, **settings)
    assert ("com.microsoft", "DequantizeLinear") in {(node.domain, node.op_type) for node in model.graph.node}
    wanted, new = insert(plain, WANTED), insert(model, RAW)
    assert (new.report.form, new.report.output_difference) == ("closed form", 0)
    a, b = (oracle.run(result.model, images())["saliency_map"].ravel() for result in (wanted, new))
    assert np.corrcoef(a, b)[0, 1] > (0.9 if weights in (QuantType.QInt4, QuantType.QUInt4) else 0.999)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("opset", [17, 21])
def test_weights_of_four_bits_with_one_scale(opset, per_channel, tmp_path):
    """Which onnxruntime dequantises, and neither casts nor reshapes."""
    plain = transformer(opset=opset)
    settings = {"quant_format": QuantFormat.QDQ, "weight_type": QuantType.QInt4, "per_channel": per_channel}
    model = quantised(plain, tmp_path, **settings)
    before = model.SerializeToString()
    new = insert(model, RAW)
    assert model.SerializeToString() == before
    assert (new.report.form, new.report.output_difference) == ("closed form", 0)
    a, b = (oracle.run(item, images())["saliency_map"].ravel() for item in (insert(plain, WANTED).model, new.model))
    assert np.corrcoef(a, b)[0, 1] > 0.9
