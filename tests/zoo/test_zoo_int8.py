"""Real architectures quantised by onnxruntime, as ONNX and as the IR that OpenVINO makes of it."""

import functools

import numpy as np
import onnx
import openvino as ov
import pytest
from onnxruntime.quantization import QuantType, quantize_static

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.deployed import Calibration
from model_zoo_fixtures.testbed.quick import some
from xai_insert import Options, insert

QUICK = ("efficientnet_b0.legacy", "vit_tiny_patch16_224.legacy")
MORE = (*QUICK, "resnet18_max.legacy", "mobilenetv3_large_100.legacy", "deit_tiny_distilled_patch16_224.legacy")
RAW = Options(output_dtype="f32")


def pytest_generate_tests(metafunc):
    if "fixture" in metafunc.fixturenames:
        wanted = MORE if metafunc.config.getoption("--zoo") else QUICK
        chosen = [fixture for fixture in fixtures(exporter="legacy") if fixture.id in wanted]
        cases, ids = some(chosen, chosen[0]), [fixture.id for fixture in chosen]
        metafunc.parametrize("fixture", cases, ids=ids, scope="module")


@functools.cache
def quantised(fixture, folder):
    """The fixture in static INT8."""
    source = materialise(fixture, folder)
    name = onnx.load(source).graph.input[0].name
    shape = [abs(size) for size in fixture.input_shape]
    images = np.random.default_rng(3).standard_normal((4, *shape), np.float32)
    quantize_static(source, folder / "int8.onnx", Calibration(images, name), activation_type=QuantType.QUInt8)
    return onnx.load(folder / "int8.onnx")


def without_rounding(model, start):
    """A copy that does not quantise what comes after the value `start`."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    after = {start}
    for node in twin.graph.node:
        if after.intersection(node.input):
            after.update(node.output)
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                node.op_type, node.input[:] = "Identity", node.input[:1]
    del twin.graph.value_info[:]
    return twin


def as_kind(model, kind):
    return model if kind == "onnx" else ov.Core().read_model(model.SerializeToString())


@pytest.mark.parametrize("kind", some(["onnx", "ir"], "onnx"))
def test_fixture(fixture, kind, tmp_path_factory):
    model = quantised(fixture, tmp_path_factory.getbasetemp() / fixture.id)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 20
    plain = as_kind(model, kind)
    result = insert(plain, RAW)
    assert result.report.form == "closed form"
    assert result.report.target["grid"] == tuple(fixture.expected["grid"])
    assert result.report.logits["classes"] == fixture.expected["classes"]
    image = np.random.default_rng(11).standard_normal([abs(size) for size in fixture.input_shape], np.float32)
    before, found = oracle.run(plain, image), oracle.run(result.model, image)
    for name, value in before.items():
        assert np.array_equal(found[name], value)

    start = insert(model, Options(check=False)).report.target["name"]
    unrounded = insert(as_kind(without_rounding(model, start), kind), RAW).model
    wanted = oracle.run(unrounded, image)["saliency_map"]
    assert np.ptp(wanted, axis=(2, 3)).min() > 0
    assert result.report.map_difference <= 1e-5
    # With fewer quantisers to merge, OpenVINO rounds the layers before the map otherwise.
    tolerance = 1e-4 if kind == "onnx" else 2e-2
    np.testing.assert_allclose(found["saliency_map"], wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
