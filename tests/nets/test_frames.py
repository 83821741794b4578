"""Where a map lies in the image, when layers pad or crop on the way: told as soon as it is more than a drift."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import models
from xai_insert import insert


def patches(b, image, cell=4):
    return b.node("Relu", b.node("Conv", image, b.weight(models.CHANNELS, 3, cell, cell), strides=[cell, cell]))


def padded(rows):
    return lambda b: patches(b, b.node("Pad", "image", b.const(np.array([0, 0, rows, 0, 0, 0, rows, 0]))))


def cropped(b):
    """Two cells less on each side."""
    axes = b.const(np.array([2, 3]))
    return patches(b, b.node("Slice", "image", b.const(np.array([4, 4])), b.const(np.array([8, 8])), axes), cell=2)


CASES = {
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
    assert found is None if expected is None else tuple(map(float, found.split())) == pytest.approx(expected)
