"""Dynamic, fixed and unusual inputs: the maps are those of the plain model on the same picture."""

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import deployed, oracle
from model_zoo_fixtures.testbed.models import CHANNELS, Builder, as_format
from xai_insert import Options, insert, insert_file
from xai_insert.cli.insert import main

pytestmark = pytest.mark.long

FORMATS = [".xml", ".onnx"]
NAMES = ["shapes_cnn", "shapes_vit"]
RAW = Options(output_dtype="f32")
WANTED = Options(output_dtype="f32", check=False)  # of the plain twin


def results(model, *feeds):
    """Outputs by name, in float32."""
    if isinstance(model, ov.Model):
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return {min(port.get_names()): np.array(value) for port, value in compiled(list(feeds)).items()}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    named = {item.name: feed for item, feed in zip(session.get_inputs(), feeds, strict=True)}
    return dict(zip([item.name for item in session.get_outputs()], session.run(None, named), strict=True))


@pytest.fixture(scope="module", params=[(name, suffix) for name in NAMES for suffix in FORMATS], ids="".join)
def expected(request):
    """Name, suffix, and raw maps of the model as it is bundled for some images, each alone."""
    name, suffix = request.param
    model = insert(deployed.plain(name, suffix), RAW).model
    images = deployed.scenes(8)
    maps = np.concatenate([oracle.run(model, image[None])["saliency_map"] for image in images])
    return name, suffix, images, maps


def assert_same(maps, expected):
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_batch_fixed_to_eight(expected):
    name, suffix, images, maps = expected
    model = deployed.resized_input(deployed.plain(name, suffix), [8, 3, deployed.SIZE, deployed.SIZE])
    result = insert(model, RAW)
    assert_same(results(result.model, images)["saliency_map"], maps)
    assert result.report.saliency_map["shape"] == (8, 8, 12, 12)


def test_dynamic_batch(expected):
    name, suffix, images, maps = expected
    model = deployed.resized_input(deployed.plain(name, suffix), ["batch", 3, deployed.SIZE, deployed.SIZE])
    new = insert(model, RAW).model
    for count in (1, 3, 8):
        assert_same(results(new, images[:count])["saliency_map"], maps[:count])


def test_bytes_with_channels_last(expected):
    name, suffix, images, maps = expected
    new = insert(deployed.channels_last(deployed.plain(name, suffix)), RAW).model
    content = images.transpose(0, 2, 3, 1).astype(np.uint8)
    assert_same(results(new, content)["saliency_map"], maps)


def test_further_input_that_is_no_image(expected):
    name, suffix, images, maps = expected
    new = insert(deployed.with_metadata_input(deployed.plain(name, suffix)), RAW).model
    offset = np.arange(16, dtype=np.float32).reshape(2, 8)
    found = results(new, images[:2], offset)
    plain = results(deployed.with_metadata_input(deployed.plain(name, suffix)), images[:2], offset)
    assert np.array_equal(found["total"], plain["total"])
    centred = found["saliency_map"] - maps[:2]
    # Whether the constant of each class counts as part of its score or not, the map is the same but for a constant.
    assert np.ptp(centred.reshape(2, 8, -1), axis=-1).max() <= 1e-4 * np.abs(maps).max()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT])
def test_mask_of_the_image_as_further_input(dtype, kind):
    b = Builder()
    mask = helper.make_tensor_value_info("mask", dtype, ["N", 12, 12])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 12, 12])
    valid = b.node("Unsqueeze", b.node("Cast", "mask", to=TensorProto.FLOAT), b.const(np.array([1])))
    x = b.backbone(b.node("Mul", "image", valid))
    logits = b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS)
    model = as_format(b.model(logits, inputs=[mask, image]), "onnx" if kind == ".onnx" else "openvino")
    rng = np.random.default_rng(0)
    images, kept = rng.standard_normal((2, 3, 12, 12), dtype=np.float32), rng.integers(0, 2, (2, 12, 12))
    new = insert(model, RAW).model
    content = kept.astype(helper.tensor_dtype_to_np_dtype(dtype))
    found, plain = results(new, content, images), results(model, content, images)
    assert np.array_equal(found[logits], plain[logits])
    alone = Builder()
    alone.linear(alone.node("Flatten", alone.node("GlobalAveragePool", alone.backbone())), CHANNELS)
    wanted = oracle.run(
        insert(alone.model(alone.nodes[-1].output[0]), WANTED).model, images * kept[:, None].astype("f")
    )
    assert_same(found["saliency_map"], wanted["saliency_map"])


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_in_the_graph(name):
    model = deployed.preprocessed(deployed.plain(name, ".xml"))
    picture = np.random.default_rng(3).integers(0, 256, (1, 120, 160, 3), np.uint8)
    before = results(model.clone(), picture)
    after = results(insert(model, RAW).model, picture)
    assert np.array_equal(after["logits"], before["logits"])
    (image,) = ov.Core().compile_model(deployed.preprocessing_alone(), "CPU")(picture).values()
    wanted = oracle.run(insert(deployed.plain(name, ".xml"), WANTED).model, np.array(image))
    assert_same(after["saliency_map"], wanted["saliency_map"])


@pytest.mark.parametrize("suffix", FORMATS)
def test_map_follows_the_size_of_the_image(suffix):
    model = deployed.resized_input(deployed.plain("shapes_cnn", suffix), ["batch", 3, "height", "width"])
    new = insert(model, RAW).model
    for height, width in ((96, 96), (128, 64)):
        images = np.random.default_rng(0).uniform(0, 255, (2, 3, height, width)).astype(np.float32)
        fixed = deployed.resized_input(deployed.plain("shapes_cnn", suffix), [2, 3, height, width])
        maps = results(insert(fixed, RAW).model, images)["saliency_map"]
        found = results(new, images)["saliency_map"]
        assert found.shape == (2, 8, height // 8, width // 8)
        assert_same(found, maps)


@pytest.mark.parametrize("kind", FORMATS)
def test_map_of_a_detector_follows_the_size_of_the_image(kind):
    def detector(*size):
        b = Builder(size=size)
        fine = b.backbone()
        coarse = b.node("MaxPool", fine, kernel_shape=[2, 2], strides=[2, 2])
        rows = []
        for classes in (4, 8):  # boxes, scores
            heads = [b.node("Conv", x, b.weight(classes, CHANNELS, 1, 1), b.weight(classes)) for x in (fine, coarse)]
            parts = [b.node("Reshape", head, b.const(np.array([0, classes, -1]))) for head in heads]
            rows.append(b.node("Concat", *parts, axis=2))
        model = b.model(b.node("Concat", rows[0], b.node("Sigmoid", rows[1]), axis=1))
        return as_format(model, "onnx" if kind == ".onnx" else "openvino")

    new = insert(detector("height", "width"), RAW)
    assert new.report.task == "detection"
    for size in ((32, 32), (64, 48)):
        images = np.random.default_rng(0).standard_normal((2, 3, *size), dtype=np.float32)
        wanted = results(insert(detector(*size), WANTED).model, images)["saliency_map"]
        found = results(new.model, images)["saliency_map"]
        assert found.shape == (2, 8, size[0] // 4, size[1] // 4)
        assert_same(found, wanted)


def test_symbolic_sizes_are_fixed_by_option(tmp_path):
    source, goal = tmp_path / "model.onnx", tmp_path / "new.onnx"
    onnx.save(deployed.resized_input(deployed.plain("shapes_vit", ".onnx"), ["n", 3, "h", "w"]), source)
    arguments = [str(source), "-o", str(goal), "--output-dtype", "f32"]
    assert CliRunner().invoke(main, arguments).exit_code == 1  # a transformer needs its number of tokens
    told = CliRunner().invoke(main, [*arguments, "--input-shape", "image:1,3,96,96"])
    assert told.exit_code == 0, told.output
    new = onnx.load(goal)
    assert [dim.dim_value for dim in new.graph.output[1].type.tensor_type.shape.dim] == [1, 8, 12, 12]
    image = deployed.scenes(1)
    plain = oracle.run(insert(deployed.plain("shapes_vit", ".onnx"), RAW).model, image)
    assert_same(results(new, image)["saliency_map"], plain["saliency_map"])


@pytest.mark.parametrize("suffix", FORMATS)
def test_sizes_of_minus_one_are_open(tmp_path, suffix):
    """Paddle's exporter writes them so."""
    b = Builder()
    model = b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), CHANNELS))
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1
    onnx.save(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 20), dtype=np.float32)
    expected = results(insert(model, RAW).model, x)["saliency_map"]
    assert expected.shape[2:] == (8, 10)
    insert_file(tmp_path / "model.onnx", tmp_path / f"new{suffix}", RAW)
    compiled = ov.Core().compile_model(tmp_path / f"new{suffix}", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(x)["saliency_map"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
