"""Where a map lies in the image, when layers pad or crop on the way: told as soon as it is more than a drift."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from model_zoo_fixtures.testbed import detector_models, models
from xai_insert import errors, insert


def patches(b, image, cell=4):
    return b.node("Relu", b.node("Conv", image, b.weight(models.CHANNELS, 3, cell, cell), strides=[cell, cell]))


def padded(rows):
    return lambda b: patches(b, b.node("Pad", "image", b.const(np.array([0, 0, rows, 0, 0, 0, rows, 0]))))


def cropped(b):
    """Two cells less on each side."""
    axes = b.const(np.array([2, 3]))
    return patches(b, b.node("Slice", "image", b.const(np.array([4, 4])), b.const(np.array([8, 8])), axes), cell=2)


def shifted(b):
    """By a layer of each channel that reads the cell to the right."""
    taps = np.zeros((models.CHANNELS, 1, 3, 3), np.float32)
    taps[:, :, 1, 2] = 1
    x = b.node("Conv", patches(b, "image"), b.const(taps), pads=[1] * 4, group=models.CHANNELS)
    return b.node("Relu", b.node("Conv", x, b.weight(models.CHANNELS, models.CHANNELS, 1, 1)))


CASES = {
    "shifted by a layer": (shifted, (0, 1 / 3, 1, 4 / 3)),
    "padded by a cell": (padded(4), (-1 / 3, 0, 4 / 3, 1)),
    "padded by half a cell": (padded(2), None),
    "cropped by two cells": (cropped, (1 / 3, 1 / 3, 2 / 3, 2 / 3)),
    "drift of a strided layer": (lambda b: b.backbone(), None),
}


def written(model):
    """The tool's own metadata."""
    if isinstance(model, onnx.ModelProto):
        return {entry.key.removeprefix("xai_insert."): entry.value for entry in model.metadata_props}
    return dict(model.get_rt_info("xai_insert").value)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_rectangles(kind, case):
    feature, expected = CASES[case]

    def network(b):
        return b.linear(b.node("Flatten", b.node("GlobalAveragePool", feature(b))), models.CHANNELS)

    found = written(insert(models.as_format(models.classifier(network), kind)).model).get("rectangle")
    assert found is None if expected is None else tuple(map(float, found.split())) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_detectors_that_crop(kind):
    """The finest level says it for all; the report says so too."""
    style = {"anchors_first": False, "exclusive": False, "decoded": "xyxy", "reported": "xyxy"}
    model = detector_models.Net(**style, report="lists").model
    image, side = model.graph.input[0], detector_models.SIDE
    for size in image.type.tensor_type.shape.dim[2:]:
        size.dim_value = side + 16
    parts = {"first": [16, 0], "last": [side + 16, side], "axes": [2, 3]}
    for node in model.graph.node:
        node.input[:] = ["cropped" if name == image.name else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Slice", [image.name, *parts], ["cropped"]))
    model.graph.initializer.extend(numpy_helper.from_array(np.array(ends), name) for name, ends in parts.items())
    result = insert(models.as_format(model, kind))
    part = 16 / (side + 16)
    assert result.report.saliency_map["rectangle"] == pytest.approx((part, 0, 1, 1 - part), abs=0.02)
    assert "a part of the image" in result.report.text()
    assert "rectangle" in written(result.model)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("case", ["padded by a cell", "cropped by two cells"])
def test_of_an_open_size_the_part_would_differ(kind, case):
    feature, _ = CASES[case]
    b = models.Builder(size=("H", "W"))
    model = b.model(b.linear(b.node("Flatten", b.node("GlobalAveragePool", feature(b))), models.CHANNELS))
    with pytest.raises(errors.MisplacedMapError, match="--input-shape"):
        insert(models.as_format(model, kind))


@pytest.mark.parametrize(("edges", "is_told"), [((-0.001, 0, 1.004, 1), False), ((-0.001, 0.25, 1, 1), True)])
def test_no_part_is_told_where_it_is_the_whole_image(edges, is_told):
    report = insert(models.classifier(models.CLOSED["mean"])).report
    text = replace(report, saliency_map=report.saliency_map | {"rectangle": edges}).text()
    assert ("lies in" in text) is is_told
    assert ("rows from 0 to 100 %, columns from 25 to 100 %" in text) is is_told


@pytest.mark.parametrize("kind", models.FORMATS)
def test_views_that_are_turned_back_and_added(kind):
    """Layers with strides and pads lay the cells of the mirrored image almost a cell to the side; they meet between."""

    def network(b):
        weights = [b.weight(models.CHANNELS, width, 3, 3) for width in (3, models.CHANNELS)]
        back = b.const(np.array([-1])), b.const(np.array([np.iinfo(np.int64).min])), b.const(np.array([3]))
        whole = b.const(np.array([-1]))

        def view(x):
            for weight in weights:
                x = b.node("Relu", b.node("Conv", x, weight, strides=[2, 2], pads=[1, 1, 1, 1]))
            return x

        def mirrored(x):
            return b.node("Slice", x, *back, whole)

        both = b.node("Add", view("image"), mirrored(view(mirrored("image"))))
        return b.linear(b.node("Flatten", b.node("GlobalAveragePool", both)), models.CHANNELS)

    report = insert(models.as_format(models.classifier(network), kind)).report
    assert (report.method, report.place) == ("recipro-cam", "blocks")
    assert report.target["grid"] == (3, 3)
