"""Heads in which the batch meets other axes: never in closed form, never a file that no runtime loads."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.recipro_oracle import assert_is_definition
from model_zoo_fixtures.testbed.unknown_models import head
from xai_insert import Options, plan_insertion

C = models.CHANNELS  # as many images as channels, so that sizes tell nothing


def turned(b, x):
    return b.node("Transpose", x, perm=[1, 0])


def normalised(b, x):
    """As `torch.nn.functional.normalize` is exported."""
    norm = b.node("Clip", b.node("ReduceL2", x, axes=[1], keepdims=1), b.const(np.array(1e-12, np.float32)))
    return b.node("Div", x, b.node("Expand", norm, b.node("Shape", x)))


MIXED = {
    "the mean of each image, laid along the channels": lambda b, x: b.node(
        "Add", x, b.node("ReduceMean", x, axes=[1], keepdims=0)
    ),
    "a constant for each image": lambda b, x: b.node("Mul", x, b.weight(C, 1)),
    "sum with its transpose": lambda b, x: b.node("Add", x, turned(b, x)),
    "products of images": lambda b, x: b.node("Add", x, b.node("MatMul", b.node("MatMul", x, turned(b, x)), x)),
    "channels chosen by the image": lambda b, x: b.node("Gather", x, b.node("ArgMax", x, axis=1, keepdims=0), axis=1),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", MIXED)
def test_mixed_batches_are_masked_runs(name, kind, check):
    model = models.as_format(models.classifier(head(MIXED[name]), batch=C), kind)
    options = Options(output_dtype="f32", check=check)
    assert plan_insertion(model, options).form == "masked runs"
    assert_is_definition(model, C, (2, 3), form="masked runs", options=options)


KEPT = {
    "an expanded norm": normalised,
    "weights on the left": lambda b, x: turned(b, b.node("MatMul", b.weight(C, C), turned(b, x))),
    "norm over the channels": lambda b, x: b.node("LpNormalization", x, axis=1, p=2),
}


@pytest.mark.parametrize("batch", [1, C, "N"])
@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", KEPT)
def test_what_keeps_images_apart_keeps_the_closed_form(name, kind, batch):
    model = models.as_format(models.classifier(head(KEPT[name]), batch=batch), kind)
    assert_is_definition(model, C if batch == "N" else batch, (2, 3))
