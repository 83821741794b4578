"""INT8, float16 and bfloat16 models: found, unmoved, and with the maps of the float32 model."""

import mmap
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto

from model_zoo_fixtures.testbed import deployed, oracle
from model_zoo_fixtures.testbed.models import CHANNELS, CLASSES, Builder, as_format
from xai_insert import Options, insert, insert_file
from xai_insert.formats.openvino.mapped import pages_dropped

NAMES = ["shapes_cnn", "shapes_vit"]
RAW = Options(output_dtype="f32")
WANTED = Options(output_dtype="f32", check=False)  # of the plain twin
INT8 = deployed.SHAPES / "int8"
IMAGES = 12
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def reference_of(name):
    """Name, images, predicted classes and maps of the float32 model."""
    images = deployed.scenes(IMAGES)
    found = oracle.run(insert(deployed.plain(name, ".xml"), RAW).model, images)
    best = found["logits"].argmax(1)
    return name, images, best, found["saliency_map"][np.arange(IMAGES), best]


@pytest.fixture(scope="module", params=NAMES)
def reference(request):
    return reference_of(request.param)


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


def check_int8_ir(path, images, reference, config):
    model = ov.Core().read_model(path)
    new = insert(model, RAW)
    assert new.report.form == "closed form"
    assert new.report.map_difference <= 1e-5
    pair = Pair(*(ov.Core().compile_model(item, "CPU", config) for item in (model, new.model)))
    before, after = pair.run(images)
    for (plain,), (logits, _) in zip(before, after, strict=True):
        assert np.array_equal(plain, logits)
    assert not kernels(pair.before, own=True) - kernels(pair.after, own=True)
    found = correlations(np.concatenate([maps for _, maps in after]), reference)
    assert np.median(found) >= 0.99
    assert found.min() >= 0.95


@pytest.mark.parametrize("config", [F32, {}], ids=["float32", "default precision"])
def test_int8_ir(reference, config):
    name, images, _, _ = reference
    check_int8_ir(INT8 / f"{name}.xml", images, reference, config)


@pytest.mark.parametrize("config", [F32, {}], ids=["float32", "default precision"])
def test_int8_ir_from_tflite_with_channels_last(config):
    reference = reference_of("shapes_cnn")
    check_int8_ir(INT8 / "shapes_cnn_tflite.xml", reference[1].transpose(0, 2, 3, 1), reference, config)


def test_compressed_weights():
    images = deployed.scenes(4)
    wanted = oracle.run(insert(deployed.plain("shapes_vit", ".xml"), WANTED).model, images)
    model = ov.Core().read_model(INT8 / "shapes_vit_weights.xml")
    new = insert(model, RAW)
    found, plain = oracle.run(new.model, images), oracle.run(model, images)
    assert np.array_equal(found["logits"], plain["logits"])
    for index, best in enumerate(wanted["logits"].argmax(1)):
        pair = (maps["saliency_map"][index, best].ravel() for maps in (found, wanted))
        assert np.corrcoef(*pair)[0, 1] >= 0.95


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("quantise", [deployed.quantised, deployed.dynamically_quantised], ids=["static", "dynamic"])
def test_int8_onnx(reference, quantise, per_channel, tmp_path):
    name, images, _, _ = reference
    model = quantise(name, tmp_path / "int8.onnx", per_channel=per_channel)
    new = insert(model, RAW)
    assert new.report.form == "closed form"
    assert new.report.map_difference <= 1e-5
    before, after = oracle.run(model, images), oracle.run(new.model, images)
    assert np.array_equal(before["logits"], after["logits"])
    assert correlations(after["saliency_map"], reference).min() >= 0.95


@pytest.mark.parametrize("half", [deployed.halved, deployed.brain_halved])
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_half_precision(reference, half, suffix):
    name, images, _, _ = reference
    model = half(name)
    new = insert(as_format(model, "onnx" if suffix == ".onnx" else "openvino"), RAW)
    assert new.report.output_difference == 0
    assert new.report.form == "closed form"
    if suffix == ".onnx" and half is deployed.brain_halved:
        return  # onnxruntime's CPU cannot run it; the check ran it in float32
    found = oracle.run(new.model, images)
    assert correlations(found["saliency_map"], reference).min() >= 0.99


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_weights_alone_in_int8(reference, suffix, tmp_path):
    name, images, _, _ = reference
    model = as_format(deployed.weights_quantised(name), "onnx" if suffix == ".onnx" else "openvino")
    new = insert(model, RAW)
    assert new.report.form == "closed form"
    assert new.report.map_difference <= 1e-5
    before, after = oracle.run(model, images), oracle.run(new.model, images)
    assert np.array_equal(before["logits"], after["logits"])
    assert correlations(after["saliency_map"], reference).min() >= 0.99
    if suffix == ".onnx" and name == "shapes_vit":
        if deployed.runs_since(1, 25):  # earlier ones multiply in floats
            assert deployed.integer_kernels(model, tmp_path)["MatMulNBits"] > 5
        assert deployed.integer_kernels(new.model, tmp_path) == deployed.integer_kernels(model, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("quantise", [deployed.quantised, deployed.dynamically_quantised], ids=["static", "dynamic"])
def test_integer_kernels_of_onnx_stay(quantise, per_channel, tmp_path):
    for name in NAMES:
        model = quantise(name, tmp_path / f"{name}.onnx", per_channel=per_channel)
        before, after = (deployed.integer_kernels(item, tmp_path) for item in (model, insert(model, RAW).model))
        assert sum(before.values()) > 5
        assert after == before


@pytest.mark.long
@pytest.mark.parametrize("half", [deployed.halved, deployed.brain_halved])
def test_masked_runs_of_an_ir_in_half_precision(half):
    result = insert(as_format(half("shapes_vit"), "openvino"), Options(output_dtype="f32", block=2))
    assert result.report.form == "masked runs"
    assert result.report.map_difference <= 1e-5
    wanted = insert(deployed.plain("shapes_vit", ".xml"), Options(output_dtype="f32", block=2)).model
    images = deployed.scenes(2)
    wanted, found = (oracle.run(model, images)["saliency_map"] for model in (wanted, result.model))
    for a, b in zip(wanted.reshape(16, -1), found.reshape(16, -1), strict=True):
        assert np.corrcoef(a, b)[0, 1] >= 0.99


def test_qoperator_format(tmp_path):
    reference = reference_of("shapes_cnn")
    model = deployed.quantised("shapes_cnn", tmp_path / "int8.onnx", per_channel=False, qdq=False)
    new = insert(model, RAW)
    assert new.report.form == "closed form"
    assert new.report.map_difference <= 1e-5
    before, after = oracle.run(model, reference[1]), oracle.run(new.model, reference[1])
    assert np.array_equal(before["logits"], after["logits"])
    assert correlations(after["saliency_map"], reference).min() >= 0.95


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


def test_quantising_an_inserted_model_keeps_its_map(reference, tmp_path):
    name, images, _, _ = reference
    result = insert(deployed.plain(name, ".onnx"), RAW)
    scope = re.compile(result.report.quantiser_ignored_scope)
    ignored = [node.name for node in result.model.graph.node if scope.fullmatch(node.name)]
    model = deployed.quantised(result.model, tmp_path / "int8.onnx", ignored=ignored)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 5
    assert not any(node.op_type == "QuantizeLinear" and scope.match(node.input[0]) for node in model.graph.node)
    assert correlations(oracle.run(model, images)["saliency_map"], reference).min() >= 0.95


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
    wanted = oracle.run(insert(deployed.plain("shapes_cnn", ".onnx"), WANTED).model, image)
    found = oracle.run(onnx.load(tmp_path / "new" / "model.onnx"), image)
    np.testing.assert_allclose(found["saliency_map"], wanted["saliency_map"], rtol=0, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped on Linux alone")
def test_pages_of_mapped_weights_are_dropped(tmp_path):
    path, size = tmp_path / "weights.bin", 1 << 24
    path.write_bytes(np.arange(size // 4, dtype=np.int32).tobytes())

    def resident():
        blocks = Path("/proc/self/smaps").read_text().split("VmFlags")
        return int(re.search(r"Rss: +(\d+)", next(text for text in blocks if str(path) in text))[1]) * 1024

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        threads = threading.active_count()
        with pages_dropped([path]):
            assert threading.active_count() == threads  # not for a file as small as this
        # A system may take pages back by itself: what is asked is that they go, and read the same after.
        assert int(np.frombuffer(mapped, np.int32).sum(dtype=np.int64)) == (size // 4) * (size // 4 - 1) // 2
        with pages_dropped([path], least=1):
            assert threading.active_count() == threads + 1
            deadline = time.monotonic() + 60
            while resident() > 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert resident() == 0
            assert mapped[-4:] == np.int32(size // 4 - 1).tobytes()
        assert threading.active_count() == threads
