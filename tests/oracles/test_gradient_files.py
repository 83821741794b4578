"""Derivatives of models read from files, in OpenVINO and onnxruntime."""

import numpy as np
import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.oracle import run
from xai_insert import Options, insert, insert_file

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
