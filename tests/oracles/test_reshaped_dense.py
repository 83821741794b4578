"""Maps that are read off heads of every place, in a model that is given another size: they follow, as afresh."""

import numpy as np
import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import (
    anomaly_models,
    deployed,
    detector_models,
    instance_models,
    keypoint_models,
    models,
    oracle,
)
from xai_insert import Options, insert

RAW = Options(output_dtype="f32")
WANTED = Options(output_dtype="f32", check=False)  # of the plain twin


@pytest.mark.parametrize("name", ["shapes_detector", "shapes_segmenter", "shapes_two_stage"])
def test_detectors_follow_or_are_refused(name):
    plain = deployed.plain(name, ".xml")
    inserted = insert(plain, RAW).model
    sizes = [1, 3, *(size.get_length() for size in plain.input(0).partial_shape[2:])]
    sizes[2] += 32
    try:
        plain.reshape(sizes)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            inserted.reshape(sizes)
    else:
        same_as_afresh(plain, inserted, sizes)


def same_as_afresh(plain, inserted, sizes):
    """The map of an inserted model of another size is that of inserting into the plain one of that size."""
    plain.reshape(sizes)
    inserted.reshape(sizes)
    image = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    a, b = (oracle.run(item, image)["saliency_map"] for item in (insert(plain, WANTED).model, inserted))
    assert a.shape == b.shape
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


def class_scores(b):
    """A semantic segmenter at stride 4."""
    coarse = b.node("Relu", b.node("Conv", b.backbone(), b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2]))
    scores = b.node("Conv", coarse, b.weight(5, models.CHANNELS, 1, 1), b.weight(5))
    scales = b.const(np.array([1, 1, 4, 4], np.float32))
    return b.node("Resize", scores, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")


def anomalies():
    """A student and a teacher, without a table that is for one size."""
    b = models.Builder(size=(32, 32), batch=1)
    teacher = b.backbone()
    student = b.node("Relu", b.node("Conv", teacher, b.weight(6, 6, 3, 3), pads=[1] * 4))
    apart = b.node("ReduceSum", anomaly_models.squared(b, b.node("Sub", teacher, student)), b.const(np.array([1])))
    maps = anomaly_models.resized(b, apart, 2.0)
    return b.model(b.node("ReduceMax", maps, axes=[1, 2, 3], keepdims=0), maps)


def dense(network):
    b = models.Builder(size=(32, 32), batch=1)
    return b.model(network(b))


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    ("make", "chosen"),
    [
        (lambda: dense(class_scores), {}),
        (lambda: dense(class_scores), {"saliency_size": (9, 7)}),
        (lambda: keypoint_models.build("hrnet", batch=1)[0], {}),
        (lambda: detector_models.raw_detector(batch=1)[0], {"num_classes": 4}),
        (lambda: detector_models.raw_detector()[0], {"num_classes": 4}),
        (anomalies, {}),
    ],
    ids=["class scores", "of one size", "heat maps", "detector", "of an open batch", "anomalies"],
)
def test_maps_that_are_read_follow(make, chosen, kind, tmp_path):
    """In an ONNX file of fixed size too, which OpenVINO reads and is to give another."""
    model = models.as_format(make(), kind)
    inserted = insert(model, Options(output_dtype="f32", **chosen)).model
    if kind == "onnx":
        onnx.save(inserted, tmp_path / "xai.onnx")
        onnx.save(model, tmp_path / "plain.onnx")
        inserted, model = (ov.Core().read_model(tmp_path / name) for name in ("xai.onnx", "plain.onnx"))
    height, width = (size.get_length() for size in model.input(0).partial_shape[2:])
    plain, sizes = model.clone(), [2, 3, height + 32, width + 64]
    plain.reshape(sizes)
    inserted.reshape(sizes)
    image = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    afresh = insert(plain, Options(output_dtype="f32", **chosen)).model
    a, b = (np.array(oracle.compiled(item)([image])["saliency_map"]) for item in (afresh, inserted))
    assert a.shape == b.shape
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


SEGMENTERS = {
    "boxes": lambda: instance_models.listed("boxes"),
    "boxes with scores": lambda: instance_models.listed("background-last"),
    "locations": lambda: instance_models.yolo("locations"),
    "rows": lambda: instance_models.yolo("rows"),
}


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("chosen", [{}, {"saliency_size": (9, 7)}], ids=str)
@pytest.mark.parametrize("name", SEGMENTERS)
def test_instance_masks_follow(name, chosen, kind, tmp_path):
    model, read = models.with_reader(SEGMENTERS[name](), kind, tmp_path)
    inserted, plain = read(insert(model, Options(output_dtype="f32", **chosen)).model), read(model)
    sizes = [1, 3, 50, 61]
    plain.reshape(sizes)
    inserted.reshape(sizes)
    image = np.random.default_rng(0).uniform(0, 3, sizes).astype(np.float32)
    afresh = insert(plain, Options(output_dtype="f32", **chosen)).model
    a, b = (np.array(oracle.compiled(item)([image])["saliency_map"]) for item in (afresh, inserted))
    assert a.shape[2:] == chosen.get("saliency_size", (12, 15))
    assert np.ptp(a) > 0
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())
