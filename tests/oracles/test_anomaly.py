"""Anomaly detectors: their own map, by their own threshold, whatever else they give; score-only ones by Recipro-CAM."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.anomaly_models import (
    NETWORKS,
    SIDE,
    build,
    distance,
    feature,
    greatest,
    number,
    of_greatest,
    of_linear,
    of_nearest,
    of_pooled,
    resized,
    squared,
)  # fmt: skip
from xai_insert import Options, errors, insert


def image(batch=2):
    return np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE)).astype(np.float32)


def raw_maps(model, name, images):
    """The model's own map `[B, 1, h, w]`, by a run of the plain model that gives it too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if name not in [item.name for item in copy.graph.output]:
        copy.graph.output.extend([onnx.helper.make_empty_tensor_value_info(name)])
    found = oracle.run(copy, images)[name]
    found = found[..., None] if found.ndim == 3 else found
    return found.transpose(0, 3, 1, 2) if found.shape[-1] == 1 else found


def in_bytes(maps, threshold):
    low = np.minimum(maps.min(axis=(2, 3), keepdims=True), 0)
    high = 2 * threshold - low if threshold is not None else maps.max(axis=(2, 3), keepdims=True)
    low = low if threshold is not None else maps.min(axis=(2, 3), keepdims=True)
    return np.floor(255 * ((maps - low) / (high - low)).clip(0, 1))


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_is_the_models_own(name, batch, kind):
    model, maps, threshold = build(name, batch=batch)
    images = image(1 if batch == 1 else 3)
    wanted = raw_maps(model, maps, images)
    plain = models.as_format(model, kind)
    before = oracle.run(plain, images)
    for dtype in ("f32", "u8"):
        result = insert(plain, Options(output_dtype=dtype))
        assert (result.report.task, result.report.method) == ("anomaly detection", "anomaly-map")
        assert result.report.output_difference == 0
        assert result.report.place == "blocks"
        after = oracle.run(result.model, images)
        found = after.pop("saliency_map")
        for key, array in before.items():
            assert after[key].dtype == array.dtype
            np.testing.assert_array_equal(after[key], array)
        if dtype == "f32":
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        else:
            assert found.dtype == np.uint8
            assert np.mean(np.abs(found.astype(float) - in_bytes(wanted, threshold)) <= 1) >= 0.999


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_normal_image_does_not_glow(kind):
    model, maps, threshold = build("padim")
    images = image() * np.float32([[[[0.05]]], [[[20]]]])
    found = oracle.run(insert(models.as_format(model, kind)).model, images)["saliency_map"]
    raw = raw_maps(model, maps, images)
    np.testing.assert_array_equal(found > 127, raw > threshold)
    assert found[0].max() < 128
    assert found[1].max() == 255


@pytest.mark.parametrize("kind", models.FORMATS)
def test_the_range_is_that_of_the_raw_map(kind):
    model, maps, _ = build("padim")
    outputs = oracle.run(insert(models.as_format(model, kind), Options(range=True)).model, image())
    raw = raw_maps(model, maps, image())
    wanted = np.stack([raw.min(axis=(2, 3)), raw.max(axis=(2, 3))], axis=-1)
    np.testing.assert_allclose(outputs["saliency_range"], wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_an_image_of_any_size(kind):
    b = models.Builder(size=("H", "W"))
    x = feature(b)
    weights = b.node("Conv", x, b.weight(4, 8, 1, 1))
    coarse = b.node("ReduceMean", squared(b, weights), axes=[1], keepdims=1)
    maps = resized(b, coarse)
    model = b.model(greatest(b, maps), maps)
    result = insert(models.as_format(model, kind), Options(output_dtype="f32"))
    images = np.random.default_rng(1).standard_normal((2, 3, 48, 32)).astype(np.float32)
    outputs = oracle.run(result.model, images)
    np.testing.assert_allclose(outputs["saliency_map"], raw_maps(model, maps, images), rtol=1e-5)


def test_half_precision():
    b = models.Builder(size=(SIDE, SIDE), dtype=np.float16)
    x = feature(b)
    maps = b.node("ReduceMean", squared(b, x), axes=[1], keepdims=1)
    result = insert(b.model(b.node("ReduceMax", maps, axes=[1, 2, 3], keepdims=0), maps), Options(output_dtype="f32"))
    outputs = oracle.run(result.model, image().astype(np.float16))
    assert outputs["saliency_map"].dtype == np.float32
    np.testing.assert_allclose(outputs["saliency_map"], outputs[maps].astype(np.float32), rtol=2e-3)


def lonely(b):
    """A map and nothing beside it."""
    return [resized(b, distance(b, feature(b)))]


def beside_a_class(b):
    """A depth map beside a score that does not come from it."""
    x = feature(b)
    pooled = b.node("Flatten", b.node("GlobalAveragePool", x))
    return [resized(b, distance(b, x)), b.linear(pooled, 8, 1)]


def test_one_number_for_each_place_may_be_anything():
    b = models.Builder(size=(SIDE, SIDE))
    model = b.model(*lonely(b))
    with pytest.raises(errors.UnsupportedTaskError, match="--method anomaly-map"):
        insert(model)
    assert insert(model, Options(method="anomaly-map")).report.task == "anomaly detection"


def test_a_map_beside_a_class_is_none():
    b = models.Builder(size=(SIDE, SIDE))
    assert insert(b.model(*beside_a_class(b))).report.task == "classification"


def several(b):
    x = feature(b)
    first, second = resized(b, distance(b, x)), resized(b, distance(b, x))
    return [first, second, greatest(b, first)]


def test_of_several_maps_the_user_chooses():
    b = models.Builder(size=(SIDE, SIDE))
    outputs = several(b)
    model = b.model(*outputs)
    for name in outputs[:2]:
        report = insert(model, Options(method="anomaly-map", output=name)).report
        assert report.target["name"] == name
    with pytest.raises(errors.TargetNotFoundError, match="leave --method to the tool"):
        insert(model, Options(method="anomaly-map"))


def test_what_it_is_not_for():
    with pytest.raises(errors.TargetNotFoundError, match="leave --method to the tool"):
        insert(models.classifier(models.CLOSED["mean"]), Options(method="anomaly-map"))
    model, _, _ = build("padim")
    for options in (Options(top_k=2), Options(kernel="point"), Options(per_box=True), Options(num_classes=2)):
        with pytest.raises(errors.XaiInsertError):
            insert(model, options)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("head", [of_pooled, of_greatest, of_nearest, of_linear])
def test_a_score_alone_is_explained_by_recipro_cam(head, batch, kind):
    b = models.Builder(size=(SIDE, SIDE), batch=batch)
    score, target = head(b)
    model = b.model(score, b.node("Greater", score, number(b, 0.3)))
    plain, images = models.as_format(model, kind), image(1 if batch == 1 else 2)
    result = insert(plain, Options(output_dtype="f32"))
    is_distance = head is not of_linear
    assert result.report.task == ("anomaly detection" if is_distance else "classification")
    assert ("one number" in result.report.logits["note"]) is not is_distance
    outputs = oracle.run(result.model, images)
    for key, array in oracle.run(plain, images).items():
        np.testing.assert_array_equal(outputs[key], array)
    parts = oracle.Parts(model, target, score)
    features = parts._backbone(images)[0]
    cells = features.shape[2] * features.shape[3]
    wanted = np.zeros((len(images), cells))
    for cell in range(cells):
        mask = np.zeros(cells, np.float32)
        mask[cell] = 1
        wanted[:, cell] = parts._head(images, features * mask.reshape(features.shape[2:])).reshape(-1)
    wanted = wanted.reshape(len(images), 1, *features.shape[2:])
    np.testing.assert_allclose(outputs["saliency_map"], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", models.FORMATS)
def test_the_least_of_what_is_normal_is_no_score_of_an_anomaly(kind):
    b = models.Builder(size=(SIDE, SIDE))
    normal = b.node("Sub", number(b, 5), b.node("Sqrt", distance(b, feature(b))))
    model = models.as_format(b.model(normal, b.node("ReduceMin", normal, axes=[1, 2, 3], keepdims=0)), kind)
    with pytest.raises(errors.UnsupportedTaskError, match="dark where something is wrong; --num-classes 1"):
        insert(model)
