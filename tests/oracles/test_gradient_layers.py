"""Derivatives by several layers, of chosen classes, and where no map of every class can be had."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed import transformer_models as tm
from model_zoo_fixtures.testbed.gradient_oracle import in_float64
from xai_insert import Options, errors, insert, plan_insertion

KINDS = pytest.mark.parametrize("kind", models.FORMATS)


def image(batch=2):
    return np.random.default_rng(3).standard_normal((batch, 3, models.SIDE, models.SIDE)).astype(np.float32)


def deep(b):
    """Two stages, the grid halved between them."""
    x = b.backbone()
    x = b.node("Conv", x, b.weight(models.CHANNELS, models.CHANNELS, 3, 3), pads=[1] * 4, strides=[2, 2])
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", x))), models.CHANNELS)


def two_sides(b):
    """Pools of two grids, joined: no map lies on every path but the image."""
    parts = []
    for stride in (2, 3):
        x = b.node("Conv", "image", b.weight(models.CHANNELS, 3, stride, stride), strides=[stride, stride])
        parts.append(b.node("Flatten", b.node("GlobalAveragePool", b.node("Tanh", x))))
    return b.linear(b.node("Concat", *parts, axis=1), 2 * models.CHANNELS)


def outputs(model, x, **options):
    result = insert(model, Options(output_dtype="f32", **options))
    assert result.report.output_difference == 0
    return result.report, oracle.run(result.model, x)


def widened(maps, size):
    """Bilinear, pixel centres at halves."""
    places = (np.arange(size) + 0.5) * maps.shape[-1] / size - 0.5
    matrix = np.maximum(1 - np.abs(np.clip(places, 0, maps.shape[-1] - 1)[:, None] - np.arange(maps.shape[-1])), 0)
    return matrix @ maps @ matrix.T


@KINDS
def test_chosen_classes_come_in_their_order(kind):
    model, x = models.as_format(models.classifier(deep), kind), image()
    for method in ("layercam", "recipro-cam"):
        _, found = outputs(model, x, method=method, classes=(3, 0))
        _, every = outputs(model, x, method=method, top_k=models.CLASSES)
        np.testing.assert_array_equal(found["saliency_classes"], [[3, 0]] * 2)
        for item in range(2):
            order = [every["saliency_classes"][item].tolist().index(number) for number in (3, 0)]
            scale = np.abs(every["saliency_map"]).max()
            np.testing.assert_allclose(
                found["saliency_map"][item], every["saliency_map"][item][order], atol=1e-6 * scale
            )


def test_classes_that_cannot_be():
    model = models.classifier(deep)
    with pytest.raises(errors.TargetNotFoundError, match="no class 5: the model gives 5"):
        plan_insertion(model, Options(classes=(1, 5)))
    with pytest.raises(errors.UnsupportedTaskError, match="leave one of them out"):
        plan_insertion(model, Options(classes=(1,), top_k=2))
    with pytest.raises(ValueError, match="different numbers"):
        Options(classes=(1, 1))


@KINDS
@pytest.mark.parametrize("top_k", [1, 2])
def test_layercam_of_several_layers(top_k, kind):
    model, x = models.as_format(models.classifier(deep), kind), image()
    chosen = {"method": "layercam", "top_k": top_k}
    report, found = outputs(model, x, target_layer="-2", fuse=True, **chosen)
    last, shallow = (outputs(model, x, target_layer=layer, **chosen)[1]["saliency_map"] for layer in ("-1", "-2"))
    assert report.map_difference < 0.02
    shares = [maps / np.maximum(maps.max(axis=(2, 3), keepdims=True), 1e-30) for maps in (last, shallow)]
    wanted = np.maximum(widened(shares[0], 6), np.tanh(2 * shares[1]))
    np.testing.assert_allclose(found["saliency_map"], wanted, atol=1e-5)


@pytest.mark.parametrize("layer", [None, "-1", "Relu_4"])
def test_fusing_wants_a_stage_to_begin_with(layer):
    with pytest.raises(errors.TargetNotFoundError, match="-2 to -9"):
        plan_insertion(models.classifier(deep), Options(method="layercam", fuse=True, target_layer=layer))


def test_pools_of_several_grids_are_refused_as_ever():
    for options in ({}, {"method": "hirescam"}, {"form": "masked"}, {"method": "recipro-cam"}):
        with pytest.raises(errors.TargetNotFoundError, match="streams that cannot be masked as one"):
            plan_insertion(models.classifier(two_sides), Options(**options))


@KINDS
def test_pools_of_several_grids_are_explained_by_the_image(kind):
    """As the refusal says; against differences in float64."""
    plain, x = models.classifier(two_sides), image(1)
    report, found = outputs(models.as_format(plain, kind), x, method="input-x-gradient")
    assert report.target["grid"] == (models.SIDE, models.SIDE)
    run, step = in_float64(plain), 1e-4
    moves = np.eye(x.size).reshape(-1, *x.shape[1:]) * step
    ahead, behind = (run.run(None, {"image": x.astype(np.float64) + sign * moves})[0] for sign in (1, -1))
    slope = ((ahead - behind) / (2 * step))[:, found["saliency_classes"][0, 0]].reshape(x.shape)
    np.testing.assert_allclose(found["saliency_map"], (slope * x).sum(axis=1, keepdims=True), atol=1e-5)


@KINDS
@pytest.mark.parametrize("name", tm.READERS)
def test_a_head_that_reads_patches_as_well_has_its_derivatives(name, kind):
    """By a layer through which every path runs; `map_difference` is from the slopes of the model's own scores."""
    model = models.as_format(models.classifier(tm.reading(*tm.READERS[name]), size=(8, 12)), kind)
    report = insert(model, Options(method="hirescam")).report
    assert report.form == "derivative"
    assert report.map_difference < 0.02
    assert report.target["grid"] == tm.GRID
