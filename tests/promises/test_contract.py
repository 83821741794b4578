"""What every inserted model promises: untouched model and outputs, one named map, scaling, metadata, determinism."""

import subprocess
import sys

import numpy as np
import onnx
import onnx_ir
import openvino as ov
import openvino.opset13 as opset
import pytest

from model_zoo_fixtures.testbed import models, oracle
from xai_insert import Options, errors, insert, insert_file

METHODS = ("recipro-cam", "activation-map")


def image(batch=2):
    return np.random.default_rng(5).standard_normal((batch, 3, models.SIDE, models.SIDE)).astype(np.float32)


@pytest.fixture(params=models.FORMATS)
def kind(request):
    return request.param


def make(kind, network="hidden convolution", **settings):
    return models.as_format(models.classifier(models.CLOSED[network], **settings), kind)


def snapshot(model):
    """Everything there is to see of a model, as bytes."""
    if isinstance(model, onnx.ModelProto):
        return model.SerializeToString()
    nodes = [
        (node.get_friendly_name(), node.get_type_name(), str(node.get_attributes()), str(node.output(0).get_names()))
        for node in model.get_ordered_ops()
        if node.get_output_size()
    ]
    return repr((nodes, str(model.get_rt_info())))


@pytest.mark.parametrize("method", METHODS)
def test_the_model_given_is_unchanged(kind, method):
    model = make(kind)
    before = snapshot(model)
    insert(model, Options(method=method, feature_vector=True))
    assert snapshot(model) == before


def test_onnx_ir_models_stay_unchanged():
    model = onnx_ir.from_proto(make("onnx"))
    before = onnx_ir.to_proto(model).SerializeToString()
    result = insert(model)
    assert isinstance(result.model, onnx_ir.Model)
    assert onnx_ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_identical_and_come_first(kind, method):
    model = make(kind)
    x = image()
    plain = oracle.run(model, x)
    inserted = oracle.run(insert(model, Options(method=method)).model, x)
    assert list(inserted) == [*plain, "saliency_map"]
    for name, expected in plain.items():
        np.testing.assert_array_equal(inserted[name], expected)


def test_result_is_of_the_same_kind(kind):
    model = make(kind)
    assert type(insert(model).model) is type(model)


def test_bytes_are_the_scaled_raw_map(kind):
    model, x = make(kind), image()
    raw = oracle.run(insert(model, Options(output_dtype="f32")).model, x)["saliency_map"]
    got = oracle.run(insert(model).model, x)["saliency_map"]
    assert got.dtype == np.uint8
    assert (got.min((2, 3)) == 0).all()
    assert (got.max((2, 3)) == 255).all()
    assert np.abs(got.astype(int) - oracle.scaled(raw)).max() <= 1
    assert (got == oracle.scaled(raw)).mean() > 0.999


def test_each_image_is_scaled_alone(kind):
    model, x = insert(make(kind)).model, image(3) * np.array([1, 100, 0.01], np.float32).reshape(3, 1, 1, 1)
    whole = oracle.run(model, x)["saliency_map"]
    for index in range(3):
        np.testing.assert_array_equal(whole[index], oracle.run(model, x[index : index + 1])["saliency_map"][0])


def test_a_constant_map_gives_zeros(kind):
    def network(b):
        x = b.node("Conv", "image", b.const(np.zeros((4, 3, 2, 2), np.float32)), strides=[2, 2])
        return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 4)

    model = insert(models.as_format(models.classifier(network), kind), Options(check=False)).model  # refused else
    assert not oracle.run(model, image())["saliency_map"].any()


@pytest.mark.parametrize("network", ["global average pool", "channels last", "tokens"])
def test_activation_map_is_the_channel_mean(kind, network):
    model, x = make(kind, network), image()
    result = insert(model, Options(method="activation-map", output_dtype="f32"))
    got = oracle.run(result.model, x)["saliency_map"]
    parts = oracle.Parts(model, result.report.target["name"], result.report.logits["name"])
    feature = parts.feature(x)
    channel = 1 if network == "global average pool" else -1
    np.testing.assert_allclose(got, feature.mean(channel).reshape(2, 6, 6), atol=1e-6 * np.abs(feature).max())


def test_feature_vector_is_the_pooled_feature(kind):
    model, x = make(kind, "global average pool"), image()
    result = insert(model, Options(feature_vector=True))
    outputs = oracle.run(result.model, x)
    parts = oracle.Parts(model, result.report.target["name"], result.report.logits["name"])
    assert list(outputs)[-2:] == ["saliency_map", "feature_vector"]
    np.testing.assert_allclose(outputs["feature_vector"], parts.feature(x).mean((2, 3)), rtol=1e-5)


def test_metadata_says_what_was_inserted(kind, tmp_path):
    source = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    model = make(kind)
    if kind == "onnx":
        model.metadata_props.add(key="author", value="us")
        onnx.save(model, source)
    else:
        model.set_rt_info("us", ["model_info", "author"])
        ov.save_model(model, source, compress_to_fp16=False)
    goal = tmp_path / f"new{source.suffix}"
    insert_file(source, goal)
    if kind == "onnx":
        entries = {prop.key: prop.value for prop in onnx.load(goal).metadata_props}
        assert entries["author"] == "us"
        assert entries["xai_insert.method"] == "recipro-cam"
    else:
        written = ov.Core().read_model(goal)
        assert written.get_rt_info(["model_info", "author"]).astype(str) == "us"
        assert written.get_rt_info(["xai_insert", "method"]).astype(str) == "recipro-cam"


def test_inserting_twice_is_refused(kind):
    with pytest.raises(errors.AlreadyInsertedError, match="already has a saliency map"):
        insert(insert(make(kind)).model)


def test_a_name_that_is_to_be_added_may_be_an_inner_one_and_no_output(kind):
    b = models.Builder()
    feature = b.backbone()
    b.nodes[-1].output[0] = feature = "saliency_map"
    pooled = b.node("Flatten", b.node("GlobalAveragePool", feature))
    b.nodes.append(onnx.helper.make_node("Identity", [pooled], ["feature_vector"], name="vector"))
    model = models.as_format(b.model(b.linear(pooled, models.CHANNELS), "feature_vector"), kind)
    result = insert(model)
    assert oracle.run(result.model, image())["saliency_map"].shape == (2, models.CLASSES, 6, 6)
    with pytest.raises(errors.AlreadyInsertedError, match="already is an output 'feature_vector'"):
        insert(model, Options(feature_vector=True))


def test_output_files_are_the_same_on_every_run(kind, tmp_path):
    source = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    if kind == "onnx":
        onnx.save(make(kind), source)
    else:
        ov.save_model(make(kind), source, compress_to_fp16=False)
    contents = []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        script = f"import pathlib, xai_insert as x; p = pathlib.Path({str(tmp_path)!r}); "
        script += f"x.insert_file(p / {source.name!r}, p / {folder!r} / {source.name!r})"
        subprocess.run([sys.executable, "-c", script], check=True)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert contents[0] == contents[1]


def test_no_weight_is_stored_twice(kind, tmp_path):
    """The head's weights serve the map as well: the file grows by names and a few small constants only."""

    def network(b):
        return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), models.CHANNELS, classes=50_000)

    source = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    model = models.as_format(models.classifier(network), kind)
    if kind == "onnx":
        onnx.save(model, source)
    else:
        ov.save_model(model, source, compress_to_fp16=False)
    report = insert_file(source, tmp_path / f"new{source.suffix}")
    assert report.bytes_after - report.bytes_before < 64 * 1024


def test_external_data_stays_external(tmp_path):
    source, goal = tmp_path / "m.onnx", tmp_path / "new.onnx"
    onnx.save(make("onnx"), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    insert_file(source, goal)
    assert (tmp_path / "new.onnx.data").is_file()
    x = image()
    import onnxruntime as ort

    before, after = (ort.InferenceSession(path).run(None, {"image": x})[0] for path in (source, goal))
    np.testing.assert_array_equal(before, after)


def test_half_precision_onnx():
    model = make("onnx", dtype=np.float16)
    x = image().astype(np.float16)
    raw = oracle.run(insert(model, Options(output_dtype="f32")).model, x)
    for name, expected in oracle.run(model, x).items():
        np.testing.assert_array_equal(raw[name], expected)
    single = oracle.run(insert(make("onnx"), Options(output_dtype="f32")).model, image())["saliency_map"]
    assert raw["saliency_map"].dtype == np.float32
    np.testing.assert_allclose(raw["saliency_map"], single, atol=5e-3 * np.abs(single).max())


def test_compressed_weights_stay_compressed(tmp_path):
    ov.save_model(make("openvino"), tmp_path / "m.xml", compress_to_fp16=True)
    insert_file(tmp_path / "m.xml", tmp_path / "new.xml")
    weights = [
        op for op in ov.Core().read_model(tmp_path / "new.xml").get_ordered_ops()
        if op.get_type_name() == "Constant" and op.get_element_type() == ov.Type.f16
    ]  # fmt: skip
    assert weights
    assert (tmp_path / "new.bin").stat().st_size < (tmp_path / "m.bin").stat().st_size + 2000


def test_softmax_and_top_k_behind_the_logits_are_peeled(kind):
    def network(b):
        scores = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), models.CHANNELS)
        return b.node("TopK", b.node("Softmax", scores, axis=1), b.const(np.array([3])), outputs=2)[1]

    report = insert(models.as_format(models.classifier(network), kind)).report
    assert report.logits["shape"] == (None, 5)


def test_a_pooled_feature_beside_the_logits_is_no_second_candidate(kind):
    b = models.Builder()
    x = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
    report = insert(models.as_format(b.model(x, b.linear(x, models.CHANNELS)), kind)).report
    assert report.logits["classes"] == models.CLASSES


def test_sizes_may_be_integers_of_32_bits():
    """As PyTorch's front end reads a list of sizes that is taken apart."""
    model = models.as_format(models.classifier(models.CLOSED["global average pool"], batch=1), "openvino")
    (flat,) = (node for node in model.get_ordered_ops() if node.get_type_name() == "Reshape")
    sizes = opset.shape_of(flat.input_value(0), "i32")
    batch = opset.gather(sizes, np.array([0], np.int64), np.array(0, np.int64))
    flat.set_argument(1, opset.concat([batch, np.array([-1], np.int32)], 0).output(0))
    model.validate_nodes_and_infer_types()
    (first, *_) = (node for node in model.get_ordered_ops() if node.get_type_name() == "Relu")
    report = insert(model, Options(target_layer=first.get_friendly_name())).report
    assert report.form == "masked runs"
    assert report.map_difference < 1e-6


def test_fixed_sizes_are_written(kind):
    model = make(kind, size=("H", "W"))
    result = insert(model, Options(input_shapes={"image": (None, 3, 12, 12)}))
    assert result.report.saliency_map["shape"] == (None, 5, 6, 6)
    assert oracle.run(result.model, image(4))["saliency_map"].shape == (4, 5, 6, 6)


@pytest.mark.parametrize(("kind", "foreign"), [("openvino", "onnx"), ("onnx", "openvino")])
def test_a_format_does_not_import_the_other(kind, foreign, tmp_path):
    source = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    if kind == "onnx":
        onnx.save(make(kind), source)
    else:
        ov.save_model(make(kind), source, compress_to_fp16=False)
    goal = tmp_path / f"new{source.suffix}"
    script = (
        "import sys, pathlib, xai_insert as x; "
        f"x.insert_file(pathlib.Path({str(source)!r}), pathlib.Path({str(goal)!r})); "
        f"loaded = {{m.split('.')[0] for m in sys.modules}}; assert {foreign!r} not in loaded, 'imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
