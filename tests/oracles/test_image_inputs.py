"""Models of several image inputs: a map for each, the other fed as it is; by masked runs outside the tool."""

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.vector_models import assert_close, by_norm, joined, pooled, run, two
from xai_insert import Options, errors, insert, insert_file
from xai_insert.cli.insert import main
from xai_insert.verify import verify

C = models.CHANNELS
FEEDS = {
    "image": np.random.default_rng(3).standard_normal((2, 3, 12, 12)).astype(np.float32),
    "other": np.random.default_rng(4).standard_normal((2, 3, 12, 12)).astype(np.float32),
}


def flat(b, x):
    return b.node("Reshape", x, b.const(np.array([0, C * 36])))


def apart(b, first, second):
    """Siamese: a classifier of how far two images differ."""
    return b.linear(b.node("Abs", b.node("Sub", pooled(b, first), pooled(b, second))), C)


def flattened(b, first, second):
    """A linear layer of each position, and a product of both."""
    return b.linear(b.node("Mul", b.linear(flat(b, first), C * 36, 8), b.linear(flat(b, second), C * 36, 8)), 8)


def alike(b, first, second):
    """Likeness of two images, `[N, 1]`."""
    one, two = (by_norm(b, b.linear(pooled(b, x), C)) for x in (first, second))
    return b.node("ReduceSum", b.node("Mul", one, two), b.const(np.array([1])), keepdims=1)


def weighed(b, first, second):
    """A product of matrices, which has no closed form here."""
    rows = b.node("Reshape", pooled(b, first), b.const(np.array([0, 2, C // 2])))
    columns = b.node("Reshape", pooled(b, second), b.const(np.array([0, C // 2, 2])))
    return b.linear(b.node("Reshape", b.node("MatMul", rows, columns), b.const(np.array([0, 4]))), 4)


HEADS = {f.__name__: f for f in (joined, apart, flattened, alike, weighed)}


def definition(model, features, which):
    """`[B, K, h, w]` under masks on the map of one image, by the model's own head."""
    whole = onnx.shape_inference.infer_shapes(model)
    output = model.graph.output[0].name
    for name in features:
        whole.graph.output.add(name=name).type.tensor_type.elem_type = TensorProto.FLOAT
    first = ort.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(features, first.run(features, FEEDS), strict=True))
    part = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(features, [output])
    head = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    maps = []
    for place in range(36):
        mask = np.zeros(36, np.float32)
        mask[place] = 1
        masked = {**values, features[which]: values[features[which]] * mask.reshape(6, 6)}
        maps.append(head.run(None, masked)[0])
    return np.stack(maps, axis=-1).reshape(2, -1, 6, 6)


def fed(model, **more):
    return run(model, FEEDS["image"], other=FEEDS["other"], **more)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", HEADS)
def test_each_image_has_a_map(name, kind):
    plain, features = two(HEADS[name])
    model = models.as_format(plain, kind)
    result = insert(model, Options(output_dtype="f32"))
    form = "masked runs" if name == "weighed" else "closed form"
    assert (result.report.form, result.report.place) == (form, "blocks")
    (beside,) = result.report.beside
    assert (beside["output"], beside["input"], beside["form"]) == ("saliency_map_2", "other", form)
    outputs = fed(result.model)
    for which, output in enumerate(("saliency_map", "saliency_map_2")):
        assert_close(outputs[output], definition(plain, features, which))
    (before,) = fed(model).values()
    np.testing.assert_allclose(next(iter(outputs.values())), before, atol=1e-6)
    assert not verify(result.model).off


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("which", [0, 1])
def test_an_input_can_be_chosen(which, kind):
    plain, features = two(joined)
    model = models.as_format(plain, kind)
    result = insert(model, Options(output_dtype="f32", input=("image", "other")[which], range=True))
    outputs = fed(result.model)
    assert_close(outputs["saliency_map"], definition(plain, features, which))
    assert "saliency_map_2" not in outputs
    assert result.report.place == "blocks"
    with pytest.raises(errors.UnknownNameError, match="no image input is named 'depth'"):
        insert(model, Options(input="depth"))


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_both_maps_are_bytes_with_ranges_and_can_be_taken_off(suffix, tmp_path):
    source, inserted, stripped = tmp_path / "two.onnx", tmp_path / f"m.{suffix}", tmp_path / f"p.{suffix}"
    source.write_bytes(two(apart, batch=1)[0].SerializeToString())
    insert_file(source, inserted, Options(range=True, feature_vector=True))
    model = ov.Core().read_model(inserted)
    names = [port.any_name for port in model.outputs][1:]
    ours = ["saliency_map", "saliency_range", "feature_vector", "saliency_map_2", "saliency_range_2"]
    assert names == ours
    assert {str(model.output(name).element_type) for name in ("saliency_map", "saliency_map_2")} == {
        "<Type: 'uint8_t'>"
    }
    with pytest.raises(SystemExit) as stopped:
        main([str(inserted), "--strip", "-o", str(stripped)])
    assert stopped.value.code == 0
    assert len(ov.Core().read_model(stripped).outputs) == 1


def test_images_that_meet_early_have_one_map():
    b = models.Builder(channels=6)
    x = b.backbone(b.node("Concat", "image", "other", axis=1))
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 12, 12]) for name in FEEDS]
    report = insert(b.model(b.linear(pooled(b, x), C), inputs=kinds)).report
    assert (report.beside, report.form) == ([], "closed form")


def mirrored(b, x):
    last = b.const(np.array([-1]))
    return b.node("Slice", x, last, b.const(np.array([np.iinfo(np.int64).min])), b.const(np.array([3])), last)


def mixed(b, x):
    """Mirrored by a product with a stored matrix, which is not followed."""
    return b.node("MatMul", x, b.const(np.eye(12, dtype=np.float32)[::-1]))


def met(move, kind):
    """Two images of which the second is moved before it is added to the first."""
    b = models.Builder()
    x = b.backbone(b.node("Add", "image", move(b, "other")))
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 12, 12]) for name in FEEDS]
    return models.as_format(b.model(b.linear(pooled(b, x), C), inputs=kinds), kind)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("move", [mirrored, mixed])
def test_images_that_meet_out_of_place_have_no_common_map(move, kind):
    with pytest.raises(errors.MisplacedMapError, match=r"'image' and 'other'.*--input"):
        insert(met(move, kind))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_each_of_these_has_its_own_map(kind):
    """The same numbers, each in the frame of its image."""
    plain = met(mirrored, kind)
    maps = [fed(insert(plain, Options(output_dtype="f32", input=name)).model)["saliency_map"] for name in FEEDS]
    np.testing.assert_array_equal(maps[1], maps[0][..., ::-1])
