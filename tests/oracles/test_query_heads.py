"""Heads with several learned queries (Query2Label, ML-Decoder, Q-Former pools): the pool in closed form."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.transformer_models import DEPTH, GRID, HEADS, WIDTH, embed, heads_of, linear, mlp, norm
from xai_insert import Options, insert

QUERIES = 3
IMAGES = np.random.default_rng(3).standard_normal((3, 3, 8, 12)).astype(np.float32)
TOKENS = GRID[0] * GRID[1]


def bare(b):
    """Keys and values are the features, channels first: nothing is projected."""
    x = b.node("Conv", "image", b.weight(WIDTH, 3, 2, 2), strides=[2, 2])
    keys = b.node("Reshape", b.node("Relu", x), b.const(np.array([0, WIDTH, -1])))
    shares = b.node("Softmax", b.node("MatMul", b.weight(1, QUERIES, WIDTH, scale=1), keys), axis=-1)
    return b.node("MatMul", shares, b.node("Transpose", keys, perm=[0, 2, 1]))


def decoder(b, *, expanded=False):
    """ML-Decoder: queries of several heads, a norm, a residual and an MLP behind the attention."""
    x = linear(b, embed(b, 0), WIDTH, WIDTH)
    query = b.weight(1, HEADS, QUERIES, DEPTH, scale=1)
    if expanded:  # as many as images
        batch = b.node("Gather", b.node("Shape", "image"), b.const(np.array([0])), axis=0)
        query = b.node("Expand", query, b.node("Concat", batch, b.const(np.array([1, 1, 1])), axis=0))
    k, v = (heads_of(b, linear(b, x, WIDTH, WIDTH)) for _ in range(2))
    shares = b.node("Softmax", b.node("MatMul", query, b.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    z = b.node("Transpose", b.node("MatMul", shares, v), perm=[0, 2, 1, 3])
    z = linear(b, b.node("Reshape", z, b.const(np.array([0, QUERIES, WIDTH]))), WIDTH, WIDTH)
    z = norm(b, b.node("Add", b.weight(1, QUERIES, WIDTH), z))
    return b.node("Add", z, mlp(b, z))


def each_its_class(b, z):
    """A weight and a bias for each query: `sum_d h[k, d] w[k, d]`."""
    product = b.node("ReduceSum", b.node("Mul", z, b.weight(QUERIES, WIDTH)), b.const(np.array([-1])), keepdims=0)
    return b.node("Add", product, b.weight(QUERIES))


def each_a_group(b, z):
    """A matrix for each query, which decodes several classes."""
    by_query = b.node("MatMul", b.node("Transpose", z, perm=[1, 0, 2]), b.weight(QUERIES, WIDTH, 2))
    groups = b.node("Reshape", b.node("Transpose", by_query, perm=[1, 0, 2]), b.const(np.array([0, 2 * QUERIES])))
    return b.node("Add", groups, b.weight(2 * QUERIES))


def all_of_them(b, z):
    """The mean of the queries is classified."""
    return b.linear(b.node("ReduceMean", z, axes=[1], keepdims=0), WIDTH)


def side_by_side(b, z):
    """They are joined to one vector."""
    return b.linear(b.node("Reshape", z, b.const(np.array([0, QUERIES * WIDTH]))), QUERIES * WIDTH)


NETS = {
    "bare, class each": lambda b: each_its_class(b, bare(b)),
    "bare, mean": lambda b: all_of_them(b, bare(b)),
    "decoder, class each": lambda b: each_its_class(b, decoder(b)),
    "decoder, group each": lambda b: each_a_group(b, decoder(b)),
    "decoder, mean": lambda b: all_of_them(b, decoder(b)),
    "decoder, joined": lambda b: side_by_side(b, decoder(b)),
    "expanded, class each": lambda b: each_its_class(b, decoder(b, expanded=True)),
}


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", NETS)
def test_queries_have_a_closed_form(name, kind):
    plain = models.classifier(NETS[name], size=(8, 12))
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32"))
    report = result.report
    assert (report.method, report.form, report.place) == ("recipro-cam", "closed form", "blocks")
    target = insert(plain).report.target
    assert (report.target["grid"], target["grid"]) == (GRID, GRID)
    wanted = oracle.Parts(plain, target["name"], plain.graph.output[0].name).definition(IMAGES, target["grid_axes"])
    got = oracle.run(result.model, IMAGES)["saliency_map"]
    np.testing.assert_allclose(got, wanted.reshape(got.shape), atol=1e-5 * np.abs(wanted).max())
    assert np.ptp(wanted, axis=-1).min() > 1e-4


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", ["bare, class each", "decoder, mean"])
def test_a_baked_in_batch_and_masked_runs_give_the_same(name, kind):
    plain = models.classifier(NETS[name], size=(8, 12), batch=1)
    model = models.as_format(plain, kind)
    closed = oracle.run(insert(model, Options(output_dtype="f32", form="closed")).model, IMAGES[:1])["saliency_map"]
    masked = oracle.run(insert(model, Options(output_dtype="f32", form="masked")).model, IMAGES[:1])["saliency_map"]
    np.testing.assert_allclose(closed, masked, atol=1e-5 * np.abs(masked).max())
