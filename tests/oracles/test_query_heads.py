"""Heads with several learned queries (Query2Label, ML-Decoder, Q-Former pools): the pool in closed form."""

from functools import partial

import numpy as np
import openvino as ov
import openvino.opset13 as opset
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


def batch_of(b):
    return b.node("Gather", b.node("Shape", "image"), b.const(np.array([0])), axis=0)


def fused(b, *, form):
    """The same attention in one operator: of ONNX 23 in four and in three axes, and of onnxruntime."""
    x = linear(b, embed(b, 0), WIDTH, WIDTH)
    k, v = (linear(b, x, WIDTH, WIDTH) for _ in range(2))
    sizes = [HEADS, QUERIES, DEPTH] if form == "four axes" else [QUERIES, WIDTH]
    query = b.node(
        "Expand",
        b.weight(1, *sizes, scale=1),
        b.node("Concat", batch_of(b), b.const(np.array([1] * len(sizes))), axis=0),
    )
    if form == "four axes":
        z = b.node("Attention", query, *(heads_of(b, item) for item in (k, v)))
        z = b.node("Reshape", b.node("Transpose", z, perm=[0, 2, 1, 3]), b.const(np.array([0, QUERIES, WIDTH])))
    elif form == "three axes":
        z = b.node("Attention", query, k, v, q_num_heads=HEADS, kv_num_heads=HEADS)
    else:
        z = b.node("MultiHeadAttention", query, k, v, domain="com.microsoft", num_heads=HEADS)
    z = norm(b, b.node("Add", b.weight(1, QUERIES, WIDTH), linear(b, z, WIDTH, WIDTH)))
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


def one_by_one(b, z, *, form):
    """Scores are written over zeros, class by class, as the loop of timm's ML-Decoder is exported for one image."""
    sizes, operator = ((QUERIES,) if form == "a vector" else (1, QUERIES, 1)), "ScatterND"
    scores = b.const(np.zeros(sizes, np.float32))
    for query in range(QUERIES):
        row = b.node("Gather", z, b.const(np.array(query)), axis=1)
        score = b.node("MatMul", row, b.weight(WIDTH, 1))
        places, options = np.array([[[[0, query, 0]]]]), {}
        if form == "a vector":
            places = np.array([[query]])
        elif form == "elements":
            operator, places, options = "ScatterElements", np.array([[[query]]]), {"axis": 1}
        new = b.node("Reshape", score, b.const(np.array([1] * len(sizes))))
        scores = b.node(operator, scores, b.const(places), new, **options)
    return b.node("Reshape", scores, b.const(np.array([1, QUERIES])))


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


def assert_is_definition(model, batch):
    result = insert(model, Options(output_dtype="f32"))
    report = result.report
    assert (report.method, report.form, report.target["grid"]) == ("recipro-cam", "closed form", GRID), report.reason
    images = IMAGES[:batch]
    parts = oracle.Parts(model, report.target["name"], report.logits["name"])
    wanted = parts.definition(images, report.target["grid_axes"])
    outputs = oracle.run(result.model, images)
    got = outputs["saliency_map"]
    np.testing.assert_allclose(got, wanted.reshape(got.shape), atol=1e-5 * np.abs(wanted).max())
    assert np.ptp(wanted, axis=-1).min() > 1e-4
    in_bytes = oracle.run(insert(model).model, images)["saliency_map"]
    assert np.mean(np.abs(in_bytes.astype(int) - oracle.scaled(got)) <= 1) >= 0.999


@pytest.mark.parametrize("head", [each_a_group, side_by_side])
@pytest.mark.parametrize("form", ["four axes", "three axes", "of onnxruntime"])
def test_a_fused_attention_of_queries_has_the_closed_form(form, head):
    b = models.Builder(size=(8, 12), opset=17 if form == "of onnxruntime" else 23)
    assert_is_definition(b.model(head(b, fused(b, form=form))), 3)


def class_attention(b, *, is_fused):
    """CaiT with one layer of class attention: a stored token before the patches attends to them and to itself."""
    token = b.node("Expand", b.weight(1, 1, WIDTH), b.node("Concat", batch_of(b), b.const(np.array([1, 1])), axis=0))
    rows = norm(b, b.node("Concat", token, linear(b, embed(b, 0), WIDTH, WIDTH), axis=1))
    first = b.node("Slice", rows, *(b.const(np.array([number])) for number in (0, 1, 1)))
    q, k, v = (heads_of(b, linear(b, item, WIDTH, WIDTH)) for item in (first, rows, rows))
    if is_fused:
        z = b.node("Attention", q, k, v, scale=1.0)
    else:
        z = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
        z = b.node("MatMul", b.node("Softmax", z, axis=-1), v)
    z = b.node("Reshape", b.node("Transpose", z, perm=[0, 2, 1, 3]), b.const(np.array([0, WIDTH])))
    return b.linear(linear(b, z, WIDTH, WIDTH), WIDTH)


def test_a_fused_attention_of_one_class_token_is_explained_as_in_parts():
    found = [
        insert(
            models.classifier(partial(class_attention, is_fused=fused), size=(8, 12), opset=23),
            Options(output_dtype="f32"),
        )
        for fused in (True, False)
    ]
    assert [new.report.method for new in found] == ["recipro-cam", "recipro-cam"]
    maps = [oracle.run(new.model, IMAGES)["saliency_map"] for new in found]
    np.testing.assert_allclose(*maps, atol=1e-5 * np.abs(maps[1]).max())


@pytest.mark.parametrize("batch", [-1, 1])
@pytest.mark.parametrize("is_expanded", [True, False])
def test_openvinos_attention_of_queries_has_the_closed_form(is_expanded, batch):
    rng = np.random.default_rng(0)

    def weight(*shape):
        return opset.constant(rng.normal(0, 0.5, shape).astype(np.float32))

    image = opset.parameter([batch, 3, 8, 12], np.float32, name="image")
    grid = opset.convolution(image, weight(WIDTH, 3, 2, 2), [2, 2], [0, 0], [0, 0], [1, 1])
    rows = opset.transpose(opset.reshape(grid, [0, WIDTH, -1], special_zero=True), [0, 2, 1])
    rows = opset.add(opset.matmul(rows, weight(WIDTH, WIDTH), False, False), weight(WIDTH))
    query = weight(1, HEADS, QUERIES, DEPTH)
    if is_expanded:
        number = opset.gather(opset.shape_of(image), np.array([0]), np.array(0))
        query = opset.broadcast(query, opset.concat([number, np.array([HEADS, QUERIES, DEPTH])], 0))
    parts = [opset.add(opset.matmul(rows, weight(WIDTH, WIDTH), False, False), weight(WIDTH)) for _ in range(2)]
    parts = [opset.reshape(part, [0, 0, HEADS, DEPTH], special_zero=True) for part in parts]
    attended = opset.scaled_dot_product_attention(query, *(opset.transpose(part, [0, 2, 1, 3]) for part in parts))
    z = opset.reshape(opset.transpose(attended, [0, 2, 1, 3]), [0, QUERIES, WIDTH], special_zero=True)
    z = opset.tanh(opset.matmul(z, weight(WIDTH, WIDTH), False, False))
    # Of several images of an open batch, OpenVINO adds a bias behind this sum to others than its own.
    scores = opset.reduce_sum(opset.multiply(z, weight(QUERIES, WIDTH)), np.array([2]))
    assert_is_definition(ov.Model([scores], [image]), 1 if batch == 1 else 3)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("form", ["places", "elements", "a vector"])
def test_scores_that_are_written_one_by_one_have_the_closed_form(form, kind):
    plain = models.classifier(lambda b: one_by_one(b, decoder(b), form=form), size=(8, 12), batch=1)
    model = models.as_format(plain, kind)
    closed, masked = (insert(model, Options(output_dtype="f32", form=way)) for way in ("closed", "masked"))
    assert closed.report.form == "closed form"
    wanted, got = (oracle.run(made.model, IMAGES[:1])["saliency_map"] for made in (masked, closed))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", ["bare, class each", "decoder, mean"])
def test_a_baked_in_batch_and_masked_runs_give_the_same(name, kind):
    plain = models.classifier(NETS[name], size=(8, 12), batch=1)
    model = models.as_format(plain, kind)
    closed = oracle.run(insert(model, Options(output_dtype="f32", form="closed")).model, IMAGES[:1])["saliency_map"]
    masked = oracle.run(insert(model, Options(output_dtype="f32", form="masked")).model, IMAGES[:1])["saliency_map"]
    np.testing.assert_allclose(closed, masked, atol=1e-5 * np.abs(masked).max())
