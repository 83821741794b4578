"""Key points: heat maps that are given or read off, bins along columns and rows; told from class scores."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.keypoint_models import (
    HEIGHT,
    JOINTS,
    NETWORKS,
    WIDTH,
    build,
    conv,
    feature,
    flat,
    ints,
    simcc,
)
from xai_insert import Options, errors, insert


def image(batch=2, size=(HEIGHT, WIDTH)):
    return np.random.default_rng(0).standard_normal((batch, 3, *size)).astype(np.float32)


def with_output(model, *names):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {item.name for item in copy.graph.output}
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    return copy


def raw_maps(model, name, maps, images):
    """`[B, J, h, w]`, by a run of the plain model that gives them too."""
    found = oracle.run(with_output(model, maps), images)[maps]
    found = found.transpose(0, 2, 1) if name == "movenet" else found
    return found.reshape(len(images), JOINTS, images.shape[2] // 4, images.shape[3] // 4)


def in_bytes(maps):
    low, high = (function(maps, axis=(2, 3), keepdims=True) for function in (np.min, np.max))
    return np.floor(255 * (maps - low) / np.maximum(high - low, 1e-12))


def compare(plain, images, wanted, kind, place="blocks", **options):
    plain = models.as_format(plain, kind)
    before = oracle.run(plain, images)
    for dtype in ("f32", "u8"):
        result = insert(plain, Options(output_dtype=dtype, **options))
        assert (result.report.task, result.report.method) == ("keypoints", "keypoint-map")
        assert result.report.output_difference == 0
        assert result.report.place == place
        after = oracle.run(result.model, images)
        found = after.pop("saliency_map")
        for key, array in before.items():
            np.testing.assert_array_equal(after[key], array)
        if dtype == "f32":
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
        else:
            assert np.mean(np.abs(found.astype(float) - in_bytes(wanted)) <= 1) >= 0.999


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_maps_are_what_the_model_gives_or_reads(name, batch, kind):
    model, maps = build(name, batch=batch)
    images = image(1 if batch == 1 else 3)
    compare(model, images, raw_maps(model, name, maps, images), kind)


def product(model, bins, images, cells):
    """`softmax(y)` times `softmax(x)` for every pair of bins, and the sum over those of a cell."""
    found = oracle.run(with_output(model, *bins), images)
    shares = []
    for name in bins:
        powers = np.exp(found[name] - found[name].max(axis=2, keepdims=True).astype(np.float64))
        shares.append(powers / powers.sum(axis=2, keepdims=True))
    fine = shares[1][..., :, None] * shares[0][..., None, :]
    each = fine.shape[2] // cells[0], fine.shape[3] // cells[1]
    return fine.reshape(*fine.shape[:2], cells[0], each[0], cells[1], each[1]).sum(axis=(3, 5))


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("more", [{}, {"softmax": True}, {"order": (1, 0)}, {"per_pixel": 1}], ids=str)
def test_bins_are_multiplied(more, batch, kind):
    b = models.Builder(size=(HEIGHT, WIDTH), batch=batch)
    bins, outputs = simcc(b, **more)
    model, images = b.model(*outputs), image(1 if batch == 1 else 3)
    compare(model, images, product(model, bins, images, (16, 12)), kind, place=None)


def test_bins_of_a_square_image_want_a_word():
    b = models.Builder(size=(64, 64))
    bins, outputs = simcc(b)
    model, images = b.model(*outputs), image(size=(64, 64))
    with pytest.raises(errors.AmbiguousModelError, match="--output"):
        insert(model)
    for first, second in (bins, bins[::-1]):
        compare(model, images, product(model, (first, second), images, (16, 16)), "onnx", place=None, output=first)


@pytest.mark.parametrize("name", ["hrnet", "with_sigmoid"])
def test_maps_of_a_square_image_may_be_class_scores(name):
    model, maps = build(name, size=(64, 64))
    report = insert(model).report
    assert report.task == "semantic segmentation"
    assert "--method keypoint-map" in report.reason
    images = image(size=(64, 64))
    compare(model, images, raw_maps(model, name, maps, images), "onnx", method="keypoint-map")


def test_maps_of_an_upright_image_may_be_asked_for_as_class_scores():
    model, _ = build("hrnet")
    assert "--method class-score-map" in insert(model).report.reason
    assert insert(model, Options(method="class-score-map")).report.task == "semantic segmentation"


def resized(b, x):
    scales = b.const(np.array([1, 1, 4, 4], np.float32))
    return b.node("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")


def test_what_is_enlarged_or_compared_is_a_segmenter():
    for last in (resized, lambda b, x: b.node("Softmax", x, axis=1), lambda b, x: b.node("ArgMax", x, axis=1)):
        b = models.Builder(size=(HEIGHT, WIDTH))
        model = b.model(last(b, conv(b, feature(b), JOINTS)))
        assert insert(model).report.task == "semantic segmentation"


def test_enlarged_maps_may_be_asked_for():
    b = models.Builder(size=(HEIGHT, WIDTH))
    maps = conv(b, feature(b), JOINTS)
    model = b.model(resized(b, maps))
    wanted = oracle.run(with_output(model, maps), image())[maps]
    compare(model, image(), wanted, "onnx", method="keypoint-map")


def test_of_several_stacks_the_user_chooses():
    """An hourglass gives the maps of each of its stacks."""
    b = models.Builder(size=(HEIGHT, WIDTH))
    first, last = conv(b, feature(b), JOINTS), conv(b, feature(b), JOINTS)
    model = b.model(first, last)
    with pytest.raises(errors.XaiInsertError, match="--method keypoint-map"):
        insert(model)
    compare(model, image(), raw_maps(model, "hrnet", last, image()), "onnx", output=last)


def test_a_detector_of_one_level_is_none():
    """Boxes and classes in one undecoded head at stride 32 of an upright image."""
    b = models.Builder(size=(256, 192))
    model = b.model(conv(b, feature(b, 32), 3 * 10))
    with pytest.raises(errors.XaiInsertError):
        insert(model)
    assert insert(model, Options(num_classes=5)).report.task == "detection"


def test_heads_that_may_be_a_detectors_want_a_word():
    """Eight channels and sixteen: two anchors' boxes and eight classes, or eight key points and their offsets."""
    b = models.Builder(size=(HEIGHT, WIDTH))
    x = feature(b)
    maps, offsets = conv(b, x, 8), conv(b, x, 16)
    model = b.model(maps, offsets)
    with pytest.raises(errors.AmbiguousModelError, match=r"--num-classes; else .* --method keypoint-map"):
        insert(model)
    wanted = oracle.run(with_output(model, maps), image())[maps]
    compare(model, image(), wanted, "onnx", method="keypoint-map")


@pytest.mark.parametrize(("others", "task"), [((60,), "keypoints"), ((3, 1), "detection")])
def test_what_stands_beside_maps_and_offsets_tells(others, task):
    """Offsets to neighbours, as PIPNet has them for faces; sizes and depths, as detectors of solids have them."""
    b = models.Builder(size=(HEIGHT, WIDTH))
    x = feature(b)
    maps = b.node("Sigmoid", conv(b, x, 6))
    assert insert(b.model(maps, *(conv(b, x, width) for width in (12, *others)))).report.task == task


def test_squashed_maps_beside_two_offsets_each_want_a_word():
    """As PoseNet gives key points, and as centres of boxes with two numbers for each class may be given."""
    b = models.Builder(size=(HEIGHT, WIDTH))
    x = feature(b)
    model = b.model(b.node("Sigmoid", conv(b, x, 6)), conv(b, x, 12))
    with pytest.raises(errors.AmbiguousModelError, match="--num-classes 6, or --method keypoint-map"):
        insert(model)
    assert insert(model, Options(num_classes=6)).report.task == "detection"
    assert insert(model, Options(method="keypoint-map")).report.task == "keypoints"


def test_an_attention_pool_is_none():
    """A softmax over places of as many heads as half of the classes; the values go round it."""
    b = models.Builder(size=(HEIGHT, WIDTH))
    x = feature(b)
    shares = b.node("Softmax", flat(b, conv(b, x, JOINTS)), axis=2)
    values = b.node("Transpose", b.node("Reshape", x, ints(b, 0, models.CHANNELS, -1)), perm=[0, 2, 1])
    pooled = b.node("Flatten", b.node("MatMul", shares, values))
    model = b.model(b.linear(pooled, JOINTS * models.CHANNELS, 2 * JOINTS))
    assert insert(model).report.task == "classification"


def test_what_it_is_not_for():
    with pytest.raises(errors.TargetNotFoundError, match="leave --method to the tool"):
        insert(models.classifier(models.CLOSED["mean"]), Options(method="keypoint-map"))
    model, _ = build("hrnet")
    for options in (Options(top_k=2), Options(kernel="point"), Options(per_box=True)):
        with pytest.raises(errors.XaiInsertError):
            insert(model, options)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_an_image_of_any_size(kind):
    b = models.Builder(size=("H", "W"))
    widened = b.node("ConvTranspose", feature(b, 8), b.weight(models.CHANNELS, models.CHANNELS, 2, 2), strides=[2, 2])
    maps = conv(b, b.node("Relu", widened), JOINTS)
    model = b.model(maps)
    result = insert(models.as_format(model, kind), Options(output_dtype="f32"))
    outputs = oracle.run(result.model, image())
    np.testing.assert_array_equal(outputs["saliency_map"], outputs[maps])


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", ["greatest", "mean_place"])
def test_rows_in_another_order_than_their_maps_are_refused(name, kind):
    model, _ = build(name, batch=1)
    output = model.graph.output[0]
    last = next(node for node in model.graph.node if output.name in node.output)
    last.output[0] = "ordered"
    order = onnx.numpy_helper.from_array(np.arange(JOINTS)[::-1].copy(), "order")
    model.graph.initializer.append(order)
    model.graph.node.append(onnx.helper.make_node("Gather", ["ordered", "order"], [output.name], axis=1))
    with pytest.raises(errors.UnsupportedTaskError, match=r"row \d+ of output .* is read off map 0"):
        insert(models.as_format(model, kind))
