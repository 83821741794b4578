"""Streams that meet behind their pools: one map where they share a grid of the image, else a refusal."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.transformer_models import WIDTH, embed, transformer
from xai_insert import Options, errors, insert


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


def of_one_map(b):
    """A pool of a map, and the class token of what attends to its cells."""

    def start(b, prefix):
        x = embed(b, prefix)
        seen.append(x)
        return x

    seen = list[str]()
    scores = transformer(start=start)(b)
    rows = b.node("Slice", seen[0], *(b.const(np.array([number], np.int64)) for number in (1, 99, 1)))
    pooled = b.node("ReduceMean", rows, axes=[1], keepdims=0)
    return b.node("Add", scores, b.linear(pooled, WIDTH))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_class_token_beside_a_pool_of_the_map_it_sees(kind):
    model = models.as_format(models.classifier(of_one_map, size=(8, 12)), kind)
    with pytest.raises(errors.TargetNotFoundError, match="the map of one leaves out the other"):
        insert(model, Options(method="vit-recipro-cam"))
    assert insert(model).report.method == "hirescam"
