"""Fused operators and packed weights in half precision: the map is that of the plain export in float32, rounded."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.fused_models import (
    PAIRS,
    RAW,
    TRANSFORMERS,
    WANTED,
    convolutional,
    images,
    rms_transformer,
    transformer,
)
from xai_insert import insert
from xai_insert.formats.onnx.widening import widen_bfloat16

FUSED = {
    **TRANSFORMERS,
    **PAIRS,
    "FusedConv, FusedGemm": (convolutional(is_fused=True), convolutional(is_fused=False)),
    "SkipSimplifiedLayerNormalization": tuple(
        rms_transformer(is_fused=fused, has_bias=True) for fused in (True, False)
    ),
}
ALLOWED = {TensorProto.FLOAT16: 5e-3, TensorProto.BFLOAT16: 3e-2}


def halved(model, kind):
    """The model in half precision between a cast of its input and one of its scores, without stored types."""
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    dtype, scores = helper.tensor_dtype_to_np_dtype(kind), twin.graph.output[0].name
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            raw = numpy_helper.to_array(tensor).astype(dtype).tobytes()
            tensor.CopyFrom(helper.make_tensor(tensor.name, kind, tensor.dims, raw, raw=True))
    for node in twin.graph.node:
        node.input[:] = ["x_half" if name == "x" and node.op_type != "Shape" else name for name in node.input]
        node.output[:] = ["scores_half" if name == scores else name for name in node.output]
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    twin.graph.node.insert(0, helper.make_node("Cast", ["x"], ["x_half"], "first", to=kind))
    twin.graph.node.append(helper.make_node("Cast", ["scores_half"], [scores], "last", to=TensorProto.FLOAT))
    return twin


def saliency(model, kind):
    """The map; of bfloat16, for which onnxruntime's CPU has hardly a kernel, computed in float32."""
    if kind == TensorProto.BFLOAT16:
        model = ir.to_proto(widen_bfloat16(ir.from_proto(model)))
    return oracle.run(model, images())["saliency_map"]


def assert_half(model, plain, kind):
    wanted, found = insert(plain, WANTED), insert(halved(model, kind), RAW)
    assert found.report.form == wanted.report.form == "closed form"
    assert found.report.output_difference == 0
    a, b = oracle.run(wanted.model, images())["saliency_map"], saliency(found.model, kind)
    assert np.abs(a - b).max() <= ALLOWED[kind] * np.abs(a).max()


@pytest.mark.parametrize("kind", ALLOWED, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_model_in_half_precision(name, kind):
    assert_half(*FUSED[name], kind)


def packed(kind):
    """A transformer with packed weights, and the one whose weights are what these stand for."""
    twin = onnx.ModelProto.FromString(transformer().SerializeToString())
    if kind == "MatMulBnb4":
        packer = MatMulBnb4Quantizer(twin, MatMulBnb4Quantizer.NF4, 32)
    else:
        config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=kind == "symmetric")
        packer = MatMulNBitsQuantizer(twin, algo_config=config)
    packer.process()
    return packer.model.model


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "MatMulBnb4"])
def test_packed_weights_in_half_precision(kind):
    model = packed(kind)
    assert_half(model, model, TensorProto.FLOAT16)
