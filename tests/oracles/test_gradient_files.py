"""Derivatives of models read from files, in OpenVINO and onnxruntime."""

import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as opset
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.oracle import run
from xai_insert import Options, insert, insert_file
from xai_insert.errors import XaiInsertError

WIDTH = 32


def square(b):
    """A convolution and a linear layer as wide as long, behind the layer explained."""
    x = b.node("Tanh", b.node("Conv", "image", b.weight(WIDTH, 3, 2, 2), strides=[2, 2]))
    x = b.node("Tanh", b.node("Conv", x, b.weight(WIDTH, WIDTH, 3, 3, scale=0.1), pads=[1] * 4, strides=[3, 3]))
    x = b.node("Transpose", b.node("Reshape", x, b.const(np.array([0, WIDTH, -1]))), perm=[0, 2, 1])
    x = b.node("Tanh", b.node("MatMul", x, b.weight(WIDTH, WIDTH, scale=0.1)))
    return b.linear(b.node("ReduceMean", x, axes=[1], keepdims=0), WIDTH)


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_square_weights_are_turned_in_openvino_too(suffix, tmp_path):
    """OpenVINO keeps one packed form of a stored weight for each size: that of the model's own layer."""
    plain = models.classifier(square)
    onnx.save(plain, tmp_path / "plain.onnx")
    options = Options(method="hirescam", target_layer="-2", output_dtype="f32")
    insert_file(tmp_path / "plain.onnx", tmp_path / f"new.{suffix}", options)
    image = np.random.default_rng(0).standard_normal((2, 3, models.SIDE, models.SIDE)).astype(np.float32)
    wanted = run(insert(plain, options).model, image)["saliency_map"]
    got = run(ov.Core().read_model(tmp_path / f"new.{suffix}"), image)["saliency_map"]
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_stored_keys_as_many_as_they_are_long_are_turned_in_openvino_too():
    """As linear attention is fused: a layer, a softmax and a product."""
    rng = np.random.default_rng(0)

    def weight(*shape):
        return opset.constant(rng.normal(0, 0.5, shape).astype(np.float32))

    image = opset.parameter([1, 3, 8, 8], np.float32, name="image")
    grid = opset.convolution(image, weight(WIDTH, 3, 2, 2), [2, 2], [0, 0], [0, 0], [1, 1])
    rows = opset.transpose(opset.reshape(opset.tanh(grid, name="last"), [1, WIDTH, 16], special_zero=False), [0, 2, 1])
    values = opset.tanh(opset.matmul(opset.transpose(rows, [0, 2, 1]), rows, False, False))
    keys, bias = weight(1, WIDTH, WIDTH), weight(1, WIDTH)
    attended = opset.scaled_dot_product_attention(rows, keys, values, bias, np.float32(1))
    means = opset.reduce_mean(opset.tanh(attended), np.array([1]))
    model = ov.Model([opset.matmul(means, weight(WIDTH, 5), False, False)], [image])
    assert insert(model, Options(method="hirescam", target_layer="last")).report.method == "hirescam"


def prototypes(b):
    """ProtoPNet: logarithms of the least distances, of which there are none below zero."""
    x = b.node("Conv", "image", b.weight(WIDTH, 3, 2, 2), strides=[2, 2])
    least = b.node("Flatten", b.node("Neg", b.node("GlobalMaxPool", b.node("Neg", b.node("Mul", x, x)))))
    parts = (b.node("Add", least, b.const(np.float32(added))) for added in (1, 1e-4))
    return b.linear(b.node("Log", b.node("Div", *parts)), WIDTH)


def test_scores_that_are_no_numbers_beside_the_features_are_asked_at_them():
    new = insert(models.classifier(prototypes), Options(method="hirescam"))
    assert new.report.method == "hirescam"


def test_openvino_weaves_what_a_stride_parts_in_one_operation(tmp_path):
    """Joining it axis by axis, as for onnxruntime, took a twentieth of ResNet-50 where two stages are derived."""
    plain = models.classifier(strided_twice)
    onnx.save(plain, tmp_path / "plain.onnx")
    options = Options(method="layercam", target_layer="-3", output_dtype="f32", check=False)
    inserted = [insert(model, options).model for model in (ov.Core().read_model(tmp_path / "plain.onnx"), plain)]
    assert sum(node.get_type_name() == "DepthToSpace" for node in inserted[0].get_ordered_ops()) == 2
    image = np.random.default_rng(0).standard_normal((2, 3, models.SIDE, models.SIDE)).astype(np.float32)
    got, wanted = (run(model, image)["saliency_map"] for model in inserted)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def strided_twice(b):
    """By a kernel that reaches all phases, and by one that reaches the first alone."""
    x = b.node("Relu", b.node("Conv", "image", b.weight(8, 3, 3, 3), pads=[1] * 4))
    x = b.node("Relu", b.node("Conv", x, b.weight(8, 8, 3, 3), pads=[1] * 4, strides=[2, 2]))
    x = b.node("Relu", b.node("Conv", x, b.weight(WIDTH, 8, 1, 1), strides=[2, 2]))
    return b.linear(b.node("ReduceMean", x, axes=[2, 3], keepdims=0), WIDTH)


def pooled(stride):
    """A mean that is read at computed places, as PyTorch's exporter writes a view of strides under a free batch."""

    def build(b):
        x = b.node("Tanh", b.node("Conv", "image", b.weight(WIDTH, 3, 2, 2), strides=[2, 2]))
        x = b.node("ReduceMean", x, axes=[2, 3], keepdims=1)
        if stride:
            count = b.node("Squeeze", b.node("Shape", "image", end=1))
            rows = b.node("Range", b.const(np.int64(0)), count, b.const(np.int64(1)))
            starts = b.node("Unsqueeze", b.node("Mul", rows, b.const(np.int64(stride))), b.const(np.array([1, 2, 3])))
            places = b.node("Add", starts, b.const(np.arange(WIDTH).reshape(1, WIDTH, 1, 1)))
            x = b.node("Gather", b.node("Reshape", x, b.const(np.array([-1]))), places, axis=0)
        classes = b.weight(models.CLASSES, WIDTH)
        return b.node("Gemm", b.node("Flatten", x), classes, transB=1)

    return build


def strided(stride):
    model = models.classifier(pooled(stride))
    (gather,) = [node for node in model.graph.node if node.op_type == "Gather"]
    known = [value for value in model.graph.value_info if value.name != gather.output[0]]
    del model.graph.value_info[:]
    kind, shape = onnx.TensorProto.FLOAT, ["N", WIDTH, 1, 1]
    names = [gather.output[0], next(node.output[0] for node in model.graph.node if node.op_type == "ReduceMean")]
    model.graph.value_info.extend([*known, *(onnx.helper.make_tensor_value_info(name, kind, shape) for name in names)])
    return model


def test_a_view_of_strides_is_the_value_that_it_reads():
    options = Options(method="input-x-gradient", output_dtype="f32")
    image = np.random.default_rng(1).standard_normal((2, 3, models.SIDE, models.SIDE)).astype(np.float32)
    maps = [run(insert(model, options).model, image) for model in (strided(WIDTH), models.classifier(pooled(0)))]
    found, wanted = (outputs["saliency_map"] for outputs in maps)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_rows_that_overlap_are_no_view():
    with pytest.raises(XaiInsertError, match="what it takes is computed"):
        insert(strided(WIDTH - 1), Options(method="input-x-gradient"))


def scaled(b):
    """A residual layer with a layer scale, and one with a bias, whose sums norms alone read, as in CaiT and TNT."""
    x = b.node("Tanh", b.node("Conv", "image", b.weight(WIDTH, 3, 2, 2), strides=[2, 2]))
    x = b.node("Transpose", b.node("Reshape", x, b.const(np.array([0, WIDTH, -1]))), perm=[0, 2, 1])
    y = b.node("MatMul", x, b.weight(WIDTH, WIDTH, scale=0.1))
    y = b.node("Add", b.node("Mul", y, b.weight(WIDTH)), b.weight(WIDTH))
    x = b.node("LayerNormalization", b.node("Add", x, y), b.weight(WIDTH), b.weight(WIDTH))
    x = b.node("Add", b.node("MatMul", x, b.weight(WIDTH, WIDTH, scale=0.1)), b.weight(WIDTH))
    x = b.node("LayerNormalization", x, b.weight(WIDTH), b.weight(WIDTH))
    x = b.node("Tanh", b.node("MatMul", x, b.weight(WIDTH, WIDTH, scale=0.1)))
    return b.linear(b.node("ReduceMean", x, axes=[1], keepdims=0), WIDTH)


def test_nothing_is_read_between_a_layer_and_its_scale():
    """Runtimes make one of them, and round otherwise if they cannot."""
    model = models.classifier(scaled)
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMul"]
    (tokens,) = [node for node in model.graph.node if node.op_type == "Transpose"]
    made = insert(model, Options(method="hirescam", target_layer=tokens.output[0])).model
    assert [sum(product in node.input for node in made.graph.node) for product in products[:2]] == [1, 1]


def attended(b):
    """An attention whose keys are scaled before their product, as exporters write half of the scale."""
    x = b.node("Tanh", b.node("Conv", "image", b.weight(WIDTH, 3, 2, 2), strides=[2, 2]))
    x = b.node("Transpose", b.node("Reshape", x, b.const(np.array([0, WIDTH, -1]))), perm=[0, 2, 1])
    q, k, v = (b.node("Add", b.node("MatMul", x, b.weight(WIDTH, WIDTH, scale=0.1)), b.weight(WIDTH)) for _ in "qkv")
    k = b.node("Mul", k, b.const(np.float32(WIDTH**-0.5)))
    shares = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1])), axis=-1)
    x = b.node("Add", x, b.node("MatMul", shares, v))
    return b.linear(b.node("ReduceMean", x, axes=[1], keepdims=0), WIDTH)


def test_nothing_is_read_between_a_scale_and_a_product():
    """onnxruntime makes one of them."""
    model = models.classifier(attended)
    (scale,) = [node.output[0] for node in model.graph.node if node.op_type == "Mul"]
    (tokens,) = [node.output[0] for node in model.graph.node if node.op_type == "Transpose"][:1]
    result = insert(model, Options(method="hirescam", target_layer=tokens))
    assert sum(scale in node.input for node in result.model.graph.node) == 1
    assert result.report.output_difference == 0


def narrow(b):
    """A GELU behind a layer of 24 numbers, as inside the patches of TNT."""
    x = b.node("Tanh", b.node("Conv", "image", b.weight(24, 3, 2, 2), strides=[2, 2]))
    x = b.node("Transpose", b.node("Reshape", x, b.const(np.array([0, 24, -1]))), perm=[0, 2, 1])
    y = b.node("Add", b.node("MatMul", x, b.weight(24, 96, scale=0.2)), b.weight(96))
    x = b.node("Add", x, b.node("MatMul", b.node("Gelu", y), b.weight(96, 24, scale=0.1)))
    return b.linear(b.node("ReduceMean", x, b.const(np.array([1])), keepdims=0), 24)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_narrow_layer_keeps_its_activation(kind):
    """OpenVINO merges the two, and rounds otherwise if it cannot."""
    model = models.classifier(narrow, opset=20)
    (tokens,) = [node.name for node in model.graph.node if node.op_type == "Transpose"]
    options = Options(method="hirescam", target_layer=tokens)
    result = insert(models.as_format(model, kind), options)
    assert result.report.output_difference == 0
    made = insert(model, options).model
    (scores,) = [node.output[0] for node in model.graph.node if node.op_type == "MatMul"][:1]
    (sums,) = [node.output[0] for node in made.graph.node if scores in node.input]
    assert [node.op_type for node in made.graph.node if sums in node.input] == ["Gelu"]
