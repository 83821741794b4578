"""Forms in which published models come: quantised channel by channel, weights in nodes, layouts of one processor."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.deployed import Calibration
from model_zoo_fixtures.testbed.models import CHANNELS, CLASSES, SIDE, Builder
from xai_insert import Options, errors, insert

RAW = Options(output_dtype="f32")
POOLED = models.CLOSED["global average pool"]


def picture(seed=0):
    return np.random.default_rng(seed).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)


def likeness(plain, model):
    """The least correlation of a class's maps in two forms of one model."""
    a, b = (oracle.run(item, picture())["saliency_map"] for item in (plain, model))
    assert a.shape == b.shape
    return min(np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a[0], b[0], strict=True))


@pytest.mark.parametrize("opset", [11, 12, 13])
def test_integer_layers_with_a_scale_for_each_channel(opset, tmp_path):
    """Before operator set 13 no DequantizeLinear takes several scales."""
    path = tmp_path / "quantised.onnx"
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(
        models.classifier(POOLED, opset=opset),
        path,
        Calibration(map(picture, range(1, 5))),
        quant_format=QuantFormat.QOperator,
        **kinds,
    )
    quantised = onnx.load(path)
    assert {"QLinearConv"} <= {node.op_type for node in quantised.graph.node}
    result = insert(quantised, RAW)
    assert result.report.form == "closed form"
    assert result.report.output_difference == 0
    assert likeness(insert(models.classifier(POOLED, opset=opset), RAW).model, result.model) > 0.95


def with_weights_in_nodes(model):
    """As PaddlePaddle's exporter writes them, so that onnxruntime quantises the weights anew at every run."""
    graph = model.graph
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in graph.initializer]
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.node.extend(nodes)
    return model


def hidden(b):
    """Pool, 1x1 convolution without a bias, classifier."""
    x = b.node("Relu", b.node("Conv", b.node("GlobalAveragePool", b.backbone()), b.weight(8, CHANNELS, 1, 1)))
    return b.linear(b.node("Flatten", x), 8)


def windowed(b):
    """A convolution after a part of the grid is pooled, which wants masked runs."""
    x = b.node("MaxPool", b.backbone(), kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("Relu", b.node("Conv", x, b.weight(8, CHANNELS, 3, 3)))
    return b.linear(b.node("Flatten", x), 8)


@pytest.mark.parametrize("head", [hidden, windowed, POOLED])
def test_weights_that_are_quantised_at_every_run(head, tmp_path):
    plain, path = with_weights_in_nodes(models.classifier(head)), tmp_path / "dynamic.onnx"
    onnx.save(plain, tmp_path / "plain.onnx")
    quantize_dynamic(tmp_path / "plain.onnx", path, weight_type=QuantType.QUInt8)
    quantised = onnx.load(path)
    stored = {tensor.name for tensor in quantised.graph.initializer}
    layers = [node for node in quantised.graph.node if node.op_type == "ConvInteger"]
    assert layers
    assert not any(node.input[1] in stored for node in layers)
    wanted, result = insert(plain, RAW), insert(quantised, RAW)
    assert result.report.output_difference == 0
    assert likeness(wanted.model, result.model) > 0.95


def test_a_detector_in_the_layout_of_one_processor_is_refused_by_its_name(tmp_path):
    b = Builder(batch=1, size=(32, 32))
    feature = b.node("Relu", b.node("Conv", "image", b.weight(16, 3, 4, 4), strides=[4, 4]))
    rows = [
        b.node(
            "Transpose",
            b.node("Reshape", b.node("Conv", feature, b.weight(k, 16, 1, 1)), b.const(shape)),
            perm=[0, 2, 1],
        )
        for k, shape in ((4, np.array([1, 4, -1])), (8, np.array([1, 8, -1])))
    ]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "all.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(b.model(*rows).SerializeToString(), options)
    model = onnx.load(tmp_path / "all.onnx")
    if not any(node.domain == "com.microsoft.nchwc" for node in model.graph.node):
        pytest.skip("this processor has no such layout")
    for method in ("auto", "activation-map"):
        with pytest.raises(errors.UnsupportedTaskError, match=r"^onnxruntime has written.*ORT_ENABLE_EXTENDED"):
            insert(model, Options(method=method))


def read_as_a_row():
    """Boxes and classes of queries that a recurrent layer makes of the pixels of patches, one after another."""
    b = Builder(batch=1, size=(32, 32))
    patches = b.node("SpaceToDepth", "image", blocksize=4)
    pixels = b.node("Reshape", patches, b.const(np.array([1, 48, -1])))
    steps = b.node("Transpose", pixels, perm=[2, 0, 1])
    hidden = b.node("LSTM", steps, b.weight(1, 32, 48), b.weight(1, 32, 8), outputs=2, hidden_size=8)[1]
    queries = b.node("Reshape", b.node("MatMul", hidden, b.weight(8, 80)), b.const(np.array([1, 10, 8])))
    boxes = b.node("Sigmoid", b.node("MatMul", queries, b.weight(8, 4)))
    return b.model(b.node("MatMul", queries, b.weight(8, 6)), boxes)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_pixels_before_any_layer_are_not_explained(kind):
    with pytest.raises(errors.TargetNotFoundError, match="no layer with learned weights lies between the image and it"):
        insert(models.as_format(read_as_a_row(), kind))


@pytest.mark.parametrize("form", ["float16", "quantised"])
def test_a_softmax_is_seen_behind_a_change_of_type(form):
    """Beside a regression of as many axes; the scores are those of the softmax."""
    b = Builder(batch=1, size=(32, 32))
    pooled = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
    scores = b.node("Softmax", b.linear(pooled, CHANNELS), axis=1)
    if form == "float16":
        scores = b.node("Cast", b.node("Cast", scores, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)
    else:
        scale = b.const(np.array(1 / 255, np.float32)), b.const(np.array(0, np.uint8))
        scores = b.node("DequantizeLinear", b.node("QuantizeLinear", scores, *scale), *scale)
    report = insert(b.model(b.linear(pooled, CHANNELS, 4), scores)).report
    assert report.logits["output"] == scores
    assert report.logits["classes"] == CLASSES
