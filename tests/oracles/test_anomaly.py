"""Anomaly detectors: their own map, by their own threshold, whatever else they give; score-only ones by Recipro-CAM."""

import numpy as np
import onnx
import pytest

from tests import models, oracle
from xai_insert import Options, errors, insert

SIDE, CELLS = 32, 8


def image(batch=2):
    return np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE)).astype(np.float32)


def feature(b):
    """`[N, 8, 8, 8]`."""
    x = b.node("Conv", b.backbone(), b.weight(8, models.CHANNELS, 3, 3), pads=[1] * 4, strides=[2, 2])
    return b.node("Relu", x)


def resized(b, x, times=4.0):
    scales = b.const(np.array([1, 1, times, times], np.float32))
    return b.node("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")


def squared(b, x):
    return b.node("Mul", x, x)


def ints(b, *values):
    return b.const(np.array(values, np.int64))


def number(b, value):
    return b.const(np.float32(value))


def distance(b, x, keepdims=1):
    """Mean square of the difference to what is normal at each place, as PaDiM with a diagonal covariance."""
    normal = b.const(b.rng.random((1, 8, CELLS, CELLS)).astype(np.float32))
    return b.node("ReduceMean", squared(b, b.node("Sub", x, normal)), axes=[1], keepdims=keepdims)


def greatest(b, x, keepdims=0):
    return b.node("ReduceMax", x, axes=[1, 2, 3], keepdims=keepdims)


def four(b, maps, score, threshold=0.8):
    label, mask = b.node("Greater", score, number(b, threshold)), b.node("Greater", maps, number(b, threshold))
    return [score, label, maps, mask]


def padim(b):
    maps = resized(b, distance(b, feature(b)))
    return four(b, maps, greatest(b, maps)), maps, 0.8


def smoothed(b):
    """A blur behind the resize, and numbers moved so that the threshold becomes 0.5, cut off at 0 and 1."""
    maps = resized(b, distance(b, feature(b)))
    blur = b.const(np.full((1, 1, 3, 3), 1 / 9, np.float32))
    raw = b.node("Conv", maps, blur, pads=[1] * 4)

    def normal(x):
        share = b.node("Div", b.node("Sub", x, number(b, 0.7)), number(b, 1.5))
        return b.node("Clip", b.node("Add", share, number(b, 0.5)), number(b, 0), number(b, 1))

    maps = normal(raw)
    return four(b, maps, normal(greatest(b, raw)), 0.5), maps, 0.5


def patchcore(b):
    """Each patch's distance to the nearest of a bank; the score is the greatest, of its own neighbourhood."""
    x = b.node("Reshape", b.node("Transpose", feature(b), perm=[0, 2, 3, 1]), ints(b, -1, 8))
    bank = b.rng.random((10, 8)).astype(np.float32)
    product = b.node("MatMul", x, b.const(bank.T.copy()))
    squares = b.node("ReduceSum", squared(b, x), ints(b, 1), keepdims=1)
    both = b.node("Sub", b.node("Add", squares, b.const((bank**2).sum(1))), b.node("Mul", product, number(b, 2)))
    nearest = b.node("ReduceMin", both, axes=[1], keepdims=0)
    patches = b.node("Reshape", nearest, ints(b, -1, CELLS * CELLS))
    score = b.node("ReduceMax", patches, axes=[1], keepdims=0)
    maps = resized(b, b.node("Reshape", patches, ints(b, -1, 1, CELLS, CELLS)))
    return four(b, maps, b.node("Mul", score, number(b, 0.5))), maps, 0.8


def student_and_teacher(b):
    """Products of the distances at two scales, `[N, H, W]`, as STFPM and reverse distillation have it."""
    x = feature(b)
    fine = b.node("Relu", b.node("Conv", b.backbone(), b.weight(8, models.CHANNELS, 1, 1)))
    student = b.node("Relu", b.node("Conv", fine, b.weight(8, 8, 3, 3), pads=[1] * 4))
    first = b.node("ReduceSum", squared(b, b.node("Sub", fine, student)), ints(b, 1), keepdims=1)
    both = b.node("Mul", resized(b, first, 2.0), resized(b, distance(b, x)))
    maps = b.node("Squeeze", both, ints(b, 1))
    score = b.node("ReduceMax", maps, axes=[1, 2], keepdims=0)
    return [maps, b.node("Unsqueeze", score, ints(b, 1))], maps, None


def without_channels(b):
    """A map that never had an axis of channels, and the score beside it."""
    x = feature(b)
    maps = distance(b, x, keepdims=0)
    score = b.node("ReduceMax", maps, axes=[1, 2], keepdims=0)
    return [score, maps, b.node("Greater", score, number(b, 0.8))], maps, 0.8


def channels_last(b):
    maps = b.node("Transpose", resized(b, distance(b, feature(b))), perm=[0, 2, 3, 1])
    return four(b, maps, greatest(b, maps)), maps, 0.8


def mask_alone(b):
    """The map is compared and not given; labels are bytes."""
    maps = resized(b, distance(b, feature(b)))
    mask = b.node("Cast", b.node("Less", number(b, 0.8), maps), to=onnx.TensorProto.UINT8)
    return [greatest(b, maps), mask], maps, 0.8


def below_zero(b):
    """A log-likelihood, of which the threshold is negative."""
    maps = resized(b, b.node("Neg", distance(b, feature(b))))
    return four(b, maps, greatest(b, maps), -0.5), maps, -0.5


NETWORKS = {
    item.__name__: item
    for item in (
        padim, smoothed, patchcore, student_and_teacher, without_channels, channels_last, mask_alone, below_zero
    )
}  # fmt: skip


def build(name, **more):
    b = models.Builder(size=(SIDE, SIDE), **more)
    outputs, maps, threshold = NETWORKS[name](b)
    return b.model(*outputs), maps, threshold


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
    np.testing.assert_allclose(outputs["saliency_map"], raw_maps(model, coarse, images), rtol=1e-5)


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


def of_pooled(b):
    """The squared distance of the pooled feature, one number `[N]` for each image, as DFM's."""
    x = feature(b)
    pooled = b.node("Flatten", b.node("GlobalAveragePool", x))
    apart = b.node("Sub", pooled, b.weight(1, 8))
    return b.node("ReduceSum", squared(b, apart), ints(b, 1), keepdims=0), x


def of_greatest(b):
    maps = distance(b, feature(b))
    return greatest(b, maps), maps


def of_linear(b):
    x = feature(b)
    return b.node("Squeeze", b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 8, 1), ints(b, 1)), x


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("head", [of_pooled, of_greatest, of_linear])
def test_a_score_alone_is_explained_by_recipro_cam(head, batch, kind):
    b = models.Builder(size=(SIDE, SIDE), batch=batch)
    score, target = head(b)
    model = b.model(score, b.node("Greater", score, number(b, 0.3)))
    plain, images = models.as_format(model, kind), image(1 if batch == 1 else 2)
    result = insert(plain, Options(output_dtype="f32"))
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
