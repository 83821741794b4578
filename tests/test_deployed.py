"""INT8, float16 and bfloat16 models: found, unmoved, and with the maps of the float32 model."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper

from tests import deployed, oracle
from tests.models import CHANNELS, CLASSES, Builder, as_format
from xai_insert import Options, errors, insert, insert_file

NAMES = ["shapes_cnn", "shapes_vit"]
RAW = Options(output_dtype="f32")
INT8 = deployed.SHAPES / "int8"
IMAGES = 12
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module", params=NAMES)
def reference(request):
    """Name, images, predicted classes and maps of the float32 model."""
    images = deployed.scenes(IMAGES)
    found = oracle.run(insert(deployed.plain(request.param, ".xml"), RAW).model, images)
    best = found["logits"].argmax(1)
    return request.param, images, best, found["saliency_map"][np.arange(IMAGES), best]


def correlations(maps, reference):
    _, _, best, wanted = reference
    chosen = maps[np.arange(IMAGES), best].astype(np.float64)
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(chosen, wanted, strict=True)])


def kernels(compiled, *, own):
    """Layer type, precision and kernel of the model's layers; with `own` False, of the inserted ones."""
    found = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(value.value) for key, value in node.get_rt_info().items()}
        if info["layerType"] in ("Input", "Output", "Const", "Reorder"):
            continue
        if node.get_friendly_name().startswith("xai/") != own:
            found[info["layerType"], info["runtimePrecision"], info["primitiveType"]] += 1
    return found


@dataclass
class Pair:
    """A model before and after, compiled alike."""

    before: Any
    after: Any

    def run(self, images):
        """Outputs of both for each image alone."""
        return [
            [[np.array(v) for v in compiled(image[None]).values()] for image in images]
            for compiled in (self.before, self.after)
        ]


@pytest.mark.parametrize("config", [F32, {}], ids=["float32", "default precision"])
def test_int8_ir(reference, config):
    name, images, _, _ = reference
    model = ov.Core().read_model(INT8 / f"{name}.xml")
    new = insert(model, RAW)
    assert new.report.map_difference <= 1e-5
    pair = Pair(*(ov.Core().compile_model(item, "CPU", config) for item in (model, new.model)))
    before, after = pair.run(images)
    for (plain,), (logits, _) in zip(before, after, strict=True):
        assert np.array_equal(plain, logits)
    assert not kernels(pair.before, own=True) - kernels(pair.after, own=True)
    found = correlations(np.concatenate([maps for _, maps in after]), reference)
    assert np.median(found) >= 0.99
    assert found.min() >= 0.95


def test_compressed_weights():
    images = deployed.scenes(4)
    wanted = oracle.run(insert(deployed.plain("shapes_vit", ".xml"), RAW).model, images)
    model = ov.Core().read_model(INT8 / "shapes_vit_weights.xml")
    new = insert(model, RAW)
    found, plain = oracle.run(new.model, images), oracle.run(model, images)
    assert np.array_equal(found["logits"], plain["logits"])
    for index, best in enumerate(wanted["logits"].argmax(1)):
        pair = (maps["saliency_map"][index, best].ravel() for maps in (found, wanted))
        assert np.corrcoef(*pair)[0, 1] >= 0.95


@pytest.mark.parametrize("form", ["static, per channel", "static, per tensor", "dynamic"])
def test_int8_onnx(reference, form, tmp_path):
    name, images, _, _ = reference
    if form == "dynamic":
        model = deployed.dynamically_quantised(name, tmp_path / "int8.onnx")
    else:
        model = deployed.quantised(name, tmp_path / "int8.onnx", per_channel="channel" in form)
    new = insert(model, RAW)
    assert new.report.form == "closed form"
    assert new.report.map_difference <= 1e-5
    before, after = oracle.run(model, images), oracle.run(new.model, images)
    assert np.array_equal(before["logits"], after["logits"])
    assert correlations(after["saliency_map"], reference).min() >= 0.95


@pytest.mark.parametrize("half", [deployed.halved, deployed.brain_halved])
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_half_precision(reference, half, suffix):
    if suffix == ".xml" and half is deployed.brain_halved:
        pytest.skip("OpenVINO's CPU rounds a bfloat16 IR anew with every change, so it is refused")
    name, images, _, _ = reference
    model = half(name)
    new = insert(as_format(model, "onnx" if suffix == ".onnx" else "openvino"), RAW)
    assert new.report.output_difference == 0
    assert new.report.form == "closed form"
    if half is deployed.brain_halved:
        return  # onnxruntime's CPU cannot run it; the check ran it in float32
    found = oracle.run(new.model, images)
    assert correlations(found["saliency_map"], reference).min() >= 0.99


def test_qoperator_format_is_named(tmp_path):
    model = deployed.quantised("shapes_cnn", tmp_path / "int8.onnx", per_channel=False, qdq=False)
    with pytest.raises(errors.UnsupportedTaskError, match=r"QOperator format .*QuantFormat\.QDQ"):
        insert(model)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_activation_that_was_folded_into_a_quantiser_is_kept(kind):
    b = Builder()
    pooled = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
    hidden = b.linear(pooled, CHANNELS, 8)
    step, zero = np.float32(0.004), np.uint8(0)
    scale, point = b.const(np.array(step)), b.const(np.array(zero))
    rounded = b.node("QuantizeLinear", hidden, scale, point)
    logits = b.linear(b.node("DequantizeLinear", rounded, scale, point), 8)
    model = b.model(logits)
    image = np.random.default_rng(5).standard_normal((2, 3, 12, 12), dtype=np.float32)
    new = insert(as_format(model, kind), RAW)
    maps = oracle.run(new.model, image)["saliency_map"]

    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    gemms = [[weights[name] for name in node.input[1:]] for node in model.graph.node if node.op_type == "Gemm"]
    parts = oracle.Parts(model, [n.output[0] for n in model.graph.node if n.op_type == "Relu"][-1], logits)
    cells = parts.feature(image).reshape(2, CHANNELS, -1).transpose(0, 2, 1) / 36
    inner = np.clip(cells @ gemms[0][0].T + gemms[0][1], 0, 255 * step)
    wanted = (inner @ gemms[1][0].T + gemms[1][1]).transpose(0, 2, 1).reshape(2, CLASSES, 6, 6)
    assert (inner == 0).any()
    np.testing.assert_allclose(maps, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_nodes_out_of_order_are_sorted():
    model = deployed.plain("shapes_cnn", ".onnx")
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    new = insert(model).model
    onnx.checker.check_model(new)
    image = deployed.scenes(1)
    plain = oracle.run(insert(deployed.plain("shapes_cnn", ".onnx")).model, image)
    assert np.array_equal(oracle.run(new, image)["saliency_map"], plain["saliency_map"])


def test_nothing_unread_is_left_in_an_onnx_model(tmp_path):
    new = insert(deployed.quantised("shapes_cnn", tmp_path / "int8.onnx")).model
    read = {name for node in new.graph.node for name in node.input} | {item.name for item in new.graph.output}
    assert all(read.intersection(node.output) for node in new.graph.node)
    assert all(item.name in read for item in new.graph.initializer if item.name.startswith("xai/"))


def test_what_a_quantiser_must_leave_alone_is_told():
    result = insert(deployed.plain("shapes_cnn", ".xml"))
    assert result.report.quantiser_ignored_scope == "xai/.*"
    assert result.model.get_rt_info(["xai_insert", "quantiser_ignored_scope"]).astype(str) == "xai/.*"
    plain = {node.get_friendly_name() for node in deployed.plain("shapes_cnn", ".xml").get_ordered_ops()}
    added = {node.get_friendly_name() for node in result.model.get_ordered_ops()} - plain
    assert all(name.startswith("xai/") for name in added)


def test_control_flow_and_foreign_operators_in_the_backbone_survive():
    b = Builder()
    x = b.backbone()
    x = b.node("FusedRelu", x, domain="company.vision")
    told = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", CHANNELS, 6, 6])]
    body = helper.make_graph(
        [helper.make_node("Relu", [x], ["then"])],
        "then",
        [],
        [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", [x], ["else"])],
        "else",
        [],
        [helper.make_tensor_value_info("else", TensorProto.FLOAT, None)],
    )
    x = b.node("If", b.const(np.array(True)), then_branch=body, else_branch=other)
    x = b.node("Conv", x, b.weight(CHANNELS, CHANNELS, 3, 3), pads=[1] * 4)
    logits = b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 12, 12])
    result = helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(b.nodes, "net", [image], [result], b.weights, value_info=told)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("company.vision", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    new = insert(model, Options(output_dtype="f32", check=False)).model
    kinds = [node.op_type for node in new.graph.node if not node.name.startswith("xai/")]
    assert kinds[: len(b.nodes)] == [node.op_type for node in b.nodes]
    assert new.graph.output[1].name == "saliency_map"

    def known(item):  # the same without the operator that no runtime here knows
        twin = onnx.ModelProto()
        twin.CopyFrom(item)
        for node in twin.graph.node:
            if node.domain == "company.vision":
                node.op_type, node.domain = "Relu", ""
        return twin

    feed = np.random.default_rng(2).standard_normal((2, 3, 12, 12), dtype=np.float32)
    wanted = oracle.run(insert(known(model), RAW).model, feed)
    found = oracle.run(known(new), feed)
    assert np.array_equal(found["saliency_map"], wanted["saliency_map"])
    assert np.array_equal(found[logits], wanted[logits])


def test_weights_in_files_keep_their_layout(tmp_path):
    model = deployed.plain("shapes_cnn", ".onnx")
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1000]
    for index, tensor in enumerate(large):
        path = tmp_path / f"part{index % 2}.bin"
        with path.open("ab") as file:
            file.write(b"\0" * 48)  # a gap, so that a rewritten file would differ
            offset = file.tell()
            file.write(tensor.raw_data)
        for key, value in (("location", path.name), ("offset", offset), ("length", len(tensor.raw_data))):
            tensor.external_data.add(key=key, value=str(value))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
    onnx.save(model, tmp_path / "plain.onnx")
    (tmp_path / "new").mkdir()
    report = insert_file(tmp_path / "plain.onnx", tmp_path / "new" / "model.onnx", RAW)
    assert report.output_difference == 0
    copies = {path.read_bytes() for path in (tmp_path / "new").glob("*.data")}
    assert copies == {path.read_bytes() for path in tmp_path.glob("part*.bin")}
    written = onnx.load(tmp_path / "new" / "model.onnx", load_external_data=False)
    assert sum(tensor.data_location == TensorProto.EXTERNAL for tensor in written.graph.initializer) == len(large)
    image = deployed.scenes(2)
    wanted = oracle.run(insert(deployed.plain("shapes_cnn", ".onnx"), RAW).model, image)
    found = oracle.run(onnx.load(tmp_path / "new" / "model.onnx"), image)
    np.testing.assert_allclose(found["saliency_map"], wanted["saliency_map"], rtol=0, atol=1e-5)
