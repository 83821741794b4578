"""Streams that meet behind their pools: one map where they share a grid of the image, else a refusal."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models
from xai_insert import errors, insert


def streams(*crops):
    """A convolution and a pool on each crop of the image (rows from, columns from, side), added."""

    def network(b):
        parts = []
        for top, left, side in crops:
            corners = [b.const(np.array(pair, np.int64)) for pair in ((top, left), (top + side, left + side), (2, 3))]
            x = b.node("Conv", b.node("Slice", "image", *corners), b.weight(models.CHANNELS, 3, 2, 2), strides=[2, 2])
            parts.append(b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", x))))
        return b.linear(b.node("Add", *parts), models.CHANNELS)

    return models.classifier(network)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_streams_of_one_place_are_masked_together(kind):
    report = insert(models.as_format(streams((0, 0, 12), (0, 0, 12)), kind)).report
    assert report.form == "masked runs"
    assert len(report.target["masked"]) == 2


@pytest.mark.parametrize("kind", models.FORMATS)
def test_crops_of_equal_size_are_other_places(kind):
    with pytest.raises(errors.TargetNotFoundError, match="streams that cannot be masked as one"):
        insert(models.as_format(streams((0, 0, 8), (4, 4, 8)), kind))
