"""What other tools make of an inserted ONNX file: the same map."""

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_zoo_fixtures.testbed import deployed
from xai_insert import Options, insert

pytestmark = pytest.mark.long

RAW = {"output_dtype": "f32"}
CASES = {
    "pooled": ("shapes_cnn", RAW),
    "best classes": ("shapes_cnn", {**RAW, "top_k": 2}),
    "tokens": ("shapes_vit", RAW),
    "masked runs": ("shapes_vit", {**RAW, "block": 2}),
    "masked runs of a grid": ("shapes_cnn", {**RAW, "target_layer": "/stages/stages.2/Relu_1"}),
    "detector": ("shapes_detector", RAW),
}
LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """An inserted model, an image and its outputs by name."""
    name, chosen = CASES[request.param]
    model = insert(onnx.load(deployed.SHAPES / f"{name}.onnx"), Options(**chosen)).model
    side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    image = np.random.default_rng(3).uniform(0, 255, (1, 3, side, side)).astype(np.float32)
    return model, image, run(model, image)


def run(model, image, level="ORT_ENABLE_ALL", saved=None):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: image}), strict=True))


def in_openvino(model, image):
    config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    results = ov.Core().compile_model(model, "CPU", config)(image)
    names = ({"boxes", "scores", "logits", "saliency_map", "saliency_classes"} & key.get_names() for key in results)
    return dict(zip((name.pop() for name in names), results.values(), strict=True))


def assert_same(found, wanted, tolerance=1e-5):
    assert set(found) == set(wanted)
    for name, right in wanted.items():
        largest = np.abs(right.astype(np.float64)).max()
        np.testing.assert_allclose(found[name], right, rtol=0, atol=tolerance * largest, err_msg=name)


@pytest.mark.parametrize("level", LEVELS)
def test_levels_of_onnxruntime(case, level, tmp_path):
    model, image, wanted = case
    assert_same(run(model, image, level, tmp_path / "saved.onnx"), wanted)
    assert_same(run(onnx.load(tmp_path / "saved.onnx"), image), wanted)


def test_openvino_reads_the_file(case, tmp_path):
    model, image, wanted = case
    onnx.save(model, tmp_path / "xai.onnx")
    assert_same(in_openvino(ov.Core().read_model(tmp_path / "xai.onnx"), image), wanted)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_openvino_writes_the_file(case, is_compressed, tmp_path):
    model, image, wanted = case
    onnx.save(model, tmp_path / "xai.onnx")
    ov.save_model(ov.convert_model(tmp_path / "xai.onnx"), tmp_path / "xai.xml", compress_to_fp16=is_compressed)
    found = in_openvino(ov.Core().read_model(tmp_path / "xai.xml"), image)
    if not is_compressed:
        assert_same(found, wanted)
    elif not np.array_equal(found.get("saliency_classes"), wanted.get("saliency_classes")):
        pytest.skip("rounded weights put other classes first")
    else:
        assert correlation(found["saliency_map"], wanted["saliency_map"]) >= 0.99


def correlation(found, wanted):
    pairs = zip(*(maps.reshape(-1, *maps.shape[-2:]).astype(np.float64) for maps in (found, wanted)), strict=True)
    return min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs)


def test_half_precision_by_onnxruntime(case):
    model, image, wanted = case
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    found = run(convert_float_to_float16(twin, keep_io_types=True), image)
    assert correlation(found["saliency_map"], wanted["saliency_map"]) >= 0.99


BY_ONNXCONVERTER = {
    "pooled": {},
    "masked runs of a grid": {"target_layer": "/stages/stages.2/Relu_1"},
    "bytes of another size": {"output_dtype": "u8", "saliency_size": (20, 20), "feature_vector": True},
}


@pytest.mark.parametrize("chosen", BY_ONNXCONVERTER)
def test_half_precision_by_onnxconverter(chosen):
    """As it is called by default. It has no right form for a Cast to float32, nor for an output that is read inside."""
    float16 = pytest.importorskip("onnxconverter_common.float16")
    model = insert(onnx.load(deployed.SHAPES / "shapes_cnn.onnx"), Options(**{**RAW, **BY_ONNXCONVERTER[chosen]})).model
    image = deployed.scenes(1)
    wanted = run(model, image)
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    found = run(float16.convert_float_to_float16(twin, keep_io_types=True), image)
    assert correlation(found["saliency_map"], wanted["saliency_map"]) >= 0.99


@pytest.mark.parametrize("chosen", [{}, {"form": "masked"}, {"target_layer": "/stages/stages.2/Relu_1"}], ids=str)
def test_nothing_is_cast_to_float(chosen):
    """What onnxconverter makes half, but for the Cast itself: sizes of an open grid, and masks."""
    model = insert(onnx.load(deployed.SHAPES / "shapes_cnn.onnx"), Options(**RAW, **chosen)).model
    graphs = [model.graph, *(field.g for node in model.graph.node for field in node.attribute if field.HasField("g"))]
    casts = [node for graph in graphs for node in graph.node if node.op_type == "Cast"]
    assert not [node.name for node in casts if node.attribute[0].i == onnx.TensorProto.FLOAT]


def test_onnxsim(case):
    onnxsim = pytest.importorskip("onnxsim")
    model, image, wanted = case
    simplified, is_same = onnxsim.simplify(model)
    assert is_same
    assert_same(run(simplified, image), wanted)


def test_onnxslim(case):
    onnxslim = pytest.importorskip("onnxslim")
    model, image, wanted = case
    slim = onnxslim.slim(onnx.ModelProto.FromString(model.SerializeToString()))
    assert_same(run(slim, image), wanted)
