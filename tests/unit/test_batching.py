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


def joined_with_nothing(b):
    """A learned query over the tokens, there and back row by row, and none of those that an export keeps for others."""
    tokens = b.node("Reshape", b.backbone(), b.const(np.array([0, C, -1])))
    snake = np.arange(36).reshape(6, 6)
    snake[1::2] = snake[1::2, ::-1]
    tokens = b.node("Gather", b.node("Transpose", tokens, perm=[0, 2, 1]), b.const(snake.ravel()), axis=1)
    batch = b.node("Slice", b.node("Shape", "image"), b.const(np.array([0])), b.const(np.array([1])))
    others = b.node("Expand", b.weight(1, 1, C), b.node("Concat", batch, b.const(np.array([1, C])), axis=0))
    none = b.node("Slice", others, b.const(np.array([1])), b.const(np.array([1])), b.const(np.array([1])))
    tokens = b.node("Concat", tokens, none, axis=1)
    share = b.node("Softmax", b.node("MatMul", tokens, b.weight(C, 1)), axis=1)
    pooled = b.node("MatMul", b.node("Transpose", share, perm=[0, 2, 1]), tokens)
    return b.linear(b.node("Squeeze", pooled, b.const(np.array([1]))), C)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_masks_run_at_once_where_nothing_is_joined(batch, kind):
    model = models.as_format(models.classifier(joined_with_nothing, batch=batch), kind)
    options = Options(output_dtype="f32", mask_batch=8)
    assert_is_definition(model, 2 if batch == "N" else batch, (1,), form="masked runs", options=options)
