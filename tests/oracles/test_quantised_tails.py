"""Detectors quantised whole: bins of a distribution in few bits, one quantiser for boxes in pixels and scores."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.deployed import Calibration
from model_zoo_fixtures.testbed.models import CHANNELS, Builder, as_format
from xai_insert import Options, insert

RAW = Options(output_dtype="f32")
BINS, CLASSES = 16, 5
LEVELS = {"fine": (8, 8), "coarse": (16, 4)}
SIZE = 64


def detector():
    """As YOLOv8: distances as expectations over bins, box and class convolutions for two levels, one output."""
    rng = np.random.default_rng(0)
    nodes, weights = [], {}

    def node(kind, *inputs, name=None, **attributes):
        name = name or f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, [const(i) if isinstance(i, np.ndarray) else i for i in inputs], [name]))
        nodes[-1].attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return name

    def const(elements):
        weights[f"c{len(weights)}"] = elements
        return f"c{len(weights) - 1}"

    def conv(x, width_in, width, side=1, stride=1):
        kernel = (2 * rng.standard_normal((width, width_in, side, side)) / np.sqrt(width_in * side**2)).astype("f")
        return node("Conv", x, kernel, (0.1 * rng.standard_normal(width)).astype("f"), strides=[stride] * 2)

    x = node("Relu", conv("image", 3, 16, 8, 8))
    features = {"fine": x, "coarse": node("Relu", conv(x, 16, 16, 2, 2))}
    boxes, scores, anchors = [], [], []
    for name, (stride, side) in LEVELS.items():
        boxes.append(node("Reshape", conv(features[name], 16, 4 * BINS), np.array([1, 4 * BINS, -1])))
        scores.append(node("Reshape", conv(features[name], 16, CLASSES), np.array([1, CLASSES, -1])))
        rows, columns = np.divmod(np.arange(side * side), side)
        anchors.append(np.stack([columns + 0.5, rows + 0.5, np.full(side * side, stride)]))
    rows = np.concatenate(anchors, axis=1).astype("f")
    both = node("Reshape", node("Concat", *boxes, axis=2), np.array([1, 4, BINS, -1]))
    shares = node("Softmax", node("Transpose", both, perm=[0, 2, 1, 3]), axis=1)
    counted = node("Conv", shares, np.arange(BINS, dtype="f").reshape(1, BINS, 1, 1))
    near = node("Reshape", counted, np.array([1, 4, -1]))
    first, last = (node("Slice", near, np.array([a]), np.array([a + 2]), np.array([1])) for a in (0, 2))
    low, high = node("Sub", rows[None, :2], first), node("Add", rows[None, :2], last)
    centre = node("Div", node("Add", low, high), np.array(2, "f"))
    box = node("Mul", node("Concat", centre, node("Sub", high, low), axis=1), rows[None, 2:])
    node("Concat", box, node("Sigmoid", node("Concat", *scores, axis=2)), axis=1, name="output")
    values = [("image", [1, 3, SIZE, SIZE]), ("output", [1, 4 + CLASSES, rows.shape[1]])]
    image, output = (helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in values)
    stored = [numpy_helper.from_array(elements, name) for name, elements in weights.items()]
    graph = helper.make_graph(nodes, "detector", [image], [output], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def picture(seed=0):
    return np.random.default_rng(seed).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)


def static(form, weights=QuantType.QUInt8, **more):
    def make(path):
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": weights, **more}
        quantize_static(detector(), path, Calibration(map(picture, range(1, 5))), quant_format=form, **kinds)

    return make


FORMS = {
    "QDQ": static(QuantFormat.QDQ),
    "QOperator": static(QuantFormat.QOperator),
    "4 bits": static(QuantFormat.QDQ, QuantType.QInt4, per_channel=True),
    "dynamic": lambda path: quantize_dynamic(detector(), path),
}


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("form", FORMS)
def test_the_classes_of_a_detector_that_is_quantised_whole(form, kind, tmp_path):
    if kind == "openvino" and form != "QDQ":
        pytest.skip("OpenVINO's reader has no such operators")
    path = tmp_path / "quantised.onnx"
    FORMS[form](path)
    plain, model = insert(detector(), RAW), insert(as_format(onnx.load(path), kind), RAW)
    assert model.report.method == plain.report.method == "det-class-probability-map"
    assert model.report.output_difference == 0
    wanted, found = (oracle.run(result.model, picture())["saliency_map"] for result in (plain, model))
    assert found.shape == wanted.shape == (1, CLASSES, 4, 4)
    likeness = min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(found[0], wanted[0], strict=True))
    assert likeness > (0.5 if form == "4 bits" else 0.9)


def moved_as_integers(*, quantised):
    """As PicoDet in QOperator form: scores of two levels, those of the fine one in steps that reach 0.0003 at most."""
    b, outputs = Builder(size=(32, 32), batch=1), []
    fine = b.backbone()
    coarse = b.node("MaxPool", fine, kernel_shape=[2, 2], strides=[2, 2])
    for width in (5, 4):
        rows = []
        for x, step in ((fine, 1e-6), (coarse, 1 / 255)):
            head = b.node("Conv", x, b.weight(width, CHANNELS, 1, 1, scale=0.05), b.weight(width))
            value = b.node("Sigmoid", head) if width == 5 else head
            by = [b.const(np.float32(step)), b.const(np.uint8(0))]
            is_moved = quantised and width == 5
            value = b.node("QuantizeLinear", value, *by) if is_moved else value
            value = b.node("Reshape", b.node("Transpose", value, perm=[0, 2, 3, 1]), b.const(np.array([1, -1, width])))
            rows.append(b.node("DequantizeLinear", value, *by) if is_moved else value)
        outputs.append(b.node("Concat", *rows, axis=1))
    return b.model(*outputs)


def test_no_level_is_lost_whose_scores_are_moved_as_integers():
    """The map is of the heads before they are rounded, and so that of the float model."""
    plain, rounded = (insert(moved_as_integers(quantised=quantised), RAW) for quantised in (False, True))
    assert [head["grid"] for head in rounded.report.heads] == [head["grid"] for head in plain.report.heads]
    assert len(rounded.report.heads) == 2
    image = oracle.image_for(moved_as_integers(quantised=False))
    a, b = (oracle.run(result.model, image)["saliency_map"] for result in (plain, rounded))
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())
