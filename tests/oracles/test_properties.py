"""Properties over random small networks: the map is its definition, batches are independent, sizes may be any."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model_zoo_fixtures.testbed import models, oracle
from xai_insert import Options, insert

POOLS = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "Flatten")
EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True, database=None)


@st.composite
def networks(draw):
    """A random convolutional classifier, its image size, and the batch it is exported with."""
    height, width = draw(st.integers(8, 21)), draw(st.integers(8, 21))
    layers = draw(
        st.lists(
            st.tuples(
                st.integers(1, 7),  # channels
                st.sampled_from((1, 3, 5)),  # kernel
                st.integers(1, 2),  # stride
                st.sampled_from(("Relu", "Sigmoid", "Tanh", None)),
                st.booleans(),  # residual
            ),
            min_size=1,
            max_size=3,
        )
    )
    pool = draw(st.sampled_from(POOLS))
    hidden = draw(st.sampled_from((None, 3)))
    classes = draw(st.integers(2, 6))
    batch = draw(st.sampled_from(("N", 1, 2)))
    b = models.Builder(batch=batch, size=(height, width), rng=np.random.default_rng(draw(st.integers(0, 2**16))))
    x, channels, h, w = "image", 3, height, width
    for index, (width_out, kernel, stride, activation, residual) in enumerate(layers):
        weight = b.weight(width_out, channels, kernel, kernel)
        y = b.node("Conv", x, weight, pads=[kernel // 2] * 4, strides=[stride] * 2)
        y = y if activation is None else b.node(activation, y)
        if residual and stride == 1 and width_out == channels and index:
            y = b.node("Add", x, y)
        x, channels, h, w = y, width_out, -(-h // stride), -(-w // stride)
    assume(min(h, w) > 1)  # a single cell, or a row of one channel, is nothing to localise, and refused
    if pool == "Flatten":
        x, features = b.node("Flatten", x), channels * h * w
    elif pool == "ReduceSum":
        x, features = b.node("ReduceSum", x, b.const(np.array([2, 3])), keepdims=0), channels
    elif pool == "ReduceMean":
        x, features = b.node("ReduceMean", x, axes=[2, 3], keepdims=0), channels
    else:
        x, features = b.node("Flatten", b.node(pool, x)), channels
    if hidden is not None:
        x, features = b.node("Tanh", b.linear(x, features, hidden)), hidden
    return b.model(b.linear(x, features, classes)), (height, width), 2 if batch == "N" else batch


def images(batch, size):
    return np.random.default_rng(5).standard_normal((batch, 3, *size)).astype(np.float32)


@EXAMPLES
@given(networks(), st.sampled_from(models.FORMATS))
def test_the_map_is_its_definition(network, kind):
    model, size, batch = network
    model = models.as_format(model, kind)
    result = insert(model, Options(output_dtype="f32"))
    x = images(batch, size)
    outputs = oracle.run(result.model, x)
    target = result.report.target
    expected = oracle.Parts(model, target["name"], result.report.logits["name"]).definition(x, target["grid_axes"])
    got = outputs["saliency_map"].reshape(expected.shape)
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(np.abs(expected).max(), 1e-3))
    for name, value in oracle.run(model, x).items():
        np.testing.assert_array_equal(outputs[name], value)


@EXAMPLES
@given(networks(), st.sampled_from(models.FORMATS))
def test_images_of_a_batch_do_not_meet(network, kind):
    model, size, batch = network
    if batch != 2:
        return
    inserted = insert(models.as_format(model, kind), Options(output_dtype="f32")).model
    x = images(2, size)
    both, swapped = oracle.run(inserted, x)["saliency_map"], oracle.run(inserted, x[::-1].copy())["saliency_map"]
    np.testing.assert_allclose(both, swapped[::-1], atol=1e-5 * max(np.abs(both).max(), 1e-3))


@EXAMPLES
@given(networks())
def test_bytes_are_the_scaled_scores(network):
    model, size, batch = network
    x = images(batch, size)
    raw = oracle.run(insert(model, Options(output_dtype="f32")).model, x)["saliency_map"]
    levels = oracle.run(insert(model).model, x)["saliency_map"]
    assert levels.dtype == np.uint8
    assert np.abs(levels.astype(int) - oracle.scaled(raw).astype(int)).max() <= 1
