"""Transformers whose height and width are open (DINOv2, DINOv3): the map follows, and is its definition at any size."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.transformer_models import (
    DEPTH,
    HEADS,
    WIDTH,
    block,
    embed_any,
    heads_of,
    linear,
    mlp,
    norm,
    resized_table,
    transformer,
    weights,
)
from model_zoo_fixtures.testbed.vector_models import by_norm
from xai_insert import Options, errors, insert, plan_insertion

GRIDS = [(3, 5), (6, 2)]


def turned_block(b, x, tokens):
    """Keys and queries times a table of places (DINOv3, EVA): what a zero token gives differs between places."""
    y = norm(b, x)
    grid = b.node("Conv", "image", b.weight(1, 3, 16, 16), strides=[16, 16])
    table = b.node("Concat", b.const(np.ones((1, 1, DEPTH), np.float32)), resized_table(b, grid, DEPTH), axis=1)
    q, k = (b.node("Mul", heads_of(b, linear(b, y, WIDTH, WIDTH)), table) for _ in range(2))
    v = heads_of(b, linear(b, y, WIDTH, WIDTH))
    shares = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    z = b.node("Transpose", b.node("MatMul", shares, v), perm=[0, 2, 1, 3])
    x = b.node("Add", x, linear(b, b.node("Reshape", z, b.const(np.array([0, 0, WIDTH]))), WIDTH, WIDTH))
    return b.node("Add", x, mlp(b, norm(b, x)))


def class_and_mean(b):
    """DINOv2 with a linear head, which the mean of the patches is joined to."""
    x = norm(b, block(b, block(b, embed_any(b, 1), None), None))
    ends = [(0, 1), (1, 1 << 30)]
    first, patches = (b.node("Slice", x, *(b.const(np.array([n])) for n in (*end, 1))) for end in ends)
    first = b.node("Squeeze", first, b.const(np.array([1])))
    return b.linear(b.node("Concat", first, b.node("ReduceMean", patches, axes=[1], keepdims=0), axis=1), 2 * WIDTH)


def pooled(b, queries=2):
    """Attention with learned queries over all tokens (SigLIP, Q-Former)."""
    x = norm(b, block(b, embed_any(b, 0), None))
    k, v = (heads_of(b, linear(b, x, WIDTH, WIDTH)) for _ in range(2))
    query = b.weight(1, HEADS, queries, DEPTH, scale=1)
    shares = b.node("Softmax", b.node("MatMul", query, b.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    z = b.node("Transpose", b.node("MatMul", shares, v), perm=[0, 2, 1, 3])
    z = b.node("Reshape", z, b.const(np.array([0, queries * WIDTH])))
    return b.linear(z, queries * WIDTH)


def named(**kind):
    return transformer(start=embed_any, **kind)


NETS = {
    "class token": (named(), 1),
    "one projection": (named(fused=True), 1),
    "registers": (named(prefix=5), 5),
    "distilled": (named(prefix=2, rows=2), 2),
    "key norm": (named(key_norm=True), 1),
    "turned keys": (named(last=turned_block), 1),
    "class and mean": (class_and_mean, 1),
    "queries": (pooled, 0),
}


def definition(model, report, images, prefix, grid, kernel="gaussian"):
    """Vectors `[B, K, h * w]` of masked runs, and those of the whole images."""
    parts = oracle.Parts(model, report.target["masked"], report.logits["name"])
    tokens = parts.features(images)
    masked = [[array * row[:, None] for array in tokens] for row in weights(prefix, kernel, grid)]
    return np.stack([parts.head(images, *arrays) for arrays in masked], axis=-1), parts.logits(images)


def pictures(grid, batch=2):
    return np.random.default_rng(3).standard_normal((batch, 3, 16 * grid[0], 16 * grid[1])).astype(np.float32)


def network(name, kind, batch="N"):
    build, prefix = NETS[name]
    return models.as_format(models.classifier(build, size=("H", "W"), batch=batch), kind), prefix


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("name", NETS)
def test_the_map_follows_the_image(name, batch, kind):
    model, prefix = network(name, kind, batch)
    result = insert(model, Options(output_dtype="f32"))
    report = result.report
    assert report.form == ("masked runs" if name == "class and mean" else "closed form"), report.reason
    assert (report.saliency_map["shape"][2:], report.target["grid"]) == ((None, None), (None, None))
    for grid in GRIDS:
        images = pictures(grid, 2 if batch == "N" else 1)
        wanted, whole = definition(model, report, images, prefix, grid, "point" if name == "queries" else "gaussian")
        outputs = oracle.run(result.model, images)
        got = outputs["saliency_map"]
        assert got.shape == (len(images), whole.shape[1], *grid)
        np.testing.assert_allclose(got.reshape(wanted.shape), wanted, atol=1e-5 * np.abs(wanted).max())
        assert np.ptp(wanted, axis=-1).min() > 1e-4
        for given, value in oracle.run(model, images).items():
            np.testing.assert_allclose(outputs[given], value, atol=1e-6 * np.abs(value).max())


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("chosen", [{"top_k": 2}, {"kernel": "point"}, {"form": "masked"}], ids=str)
def test_what_is_chosen_follows_too(chosen, kind):
    model, prefix = network("class token", kind)
    result, grid = insert(model, Options(output_dtype="f32", range=True, **chosen)), GRIDS[0]
    images = pictures(grid)
    wanted, whole = definition(model, result.report, images, prefix, grid, chosen.get("kernel", "gaussian"))
    if "top_k" in chosen:
        wanted = np.take_along_axis(wanted, np.argsort(-whole, axis=1)[:, :2, None], axis=1)
    outputs = oracle.run(result.model, images)
    np.testing.assert_allclose(outputs["saliency_map"].reshape(wanted.shape), wanted, atol=1e-5 * np.abs(wanted).max())
    extremes = np.stack([wanted.min(-1), wanted.max(-1)], axis=-1)
    np.testing.assert_allclose(outputs["saliency_range"], extremes, atol=1e-5 * np.abs(wanted).max())
    in_bytes = oracle.run(insert(model, Options(**chosen)).model, images)["saliency_map"]
    apart = np.abs(in_bytes.astype(int) - oracle.scaled(outputs["saliency_map"]))
    assert np.mean(apart <= 1) >= 0.999


@pytest.mark.parametrize("kind", models.FORMATS)
def test_an_embedding_of_any_size_is_compared_with_itself(kind):
    b = models.Builder(size=("H", "W"))
    model = models.as_format(b.model(by_norm(b, named()(b))), kind)
    result, grid = insert(model, Options(output_dtype="f32")), GRIDS[1]
    assert (result.report.task, result.report.form) == ("embedding", "closed form")
    each, whole = definition(model, result.report, pictures(grid), 1, grid)
    wanted = np.einsum("bdp,bd->bp", each, whole).reshape(2, 1, *grid)
    got = oracle.run(result.model, pictures(grid))["saliency_map"]
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_plan_names_open_sides():
    report = plan_insertion(network("class token", "onnx")[0])
    assert (report.target["grid"], report.saliency_map["shape"]) == ((None, None), (None, models.CLASSES, None, None))


def stored_positions(b):
    """Open sides beside a table of 24 places that nothing resizes, as a tracer writes DINOv2 at its own size."""
    cells = b.node("Conv", "image", b.weight(WIDTH, 3, 2, 2), strides=[2, 2])
    x = b.node("Transpose", b.node("Reshape", cells, b.const(np.array([0, WIDTH, -1]))), perm=[0, 2, 1])
    count = b.node("Slice", b.node("Shape", x), *(b.const(np.array([n])) for n in (1, 2)))
    x = b.node("Add", x, b.weight(1, 24, WIDTH))
    sizes = b.node("Concat", b.const(np.array([-1])), count, b.const(np.array([HEADS, DEPTH])), axis=0)
    q, k, v = (b.node("Transpose", b.node("Reshape", y, sizes), perm=[0, 2, 1, 3])
               for y in (linear(b, norm(b, x), WIDTH, WIDTH) for _ in range(3)))  # fmt: skip
    shares = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    z = b.node("Transpose", b.node("MatMul", shares, v), perm=[0, 2, 1, 3])
    x = b.node("Add", x, b.node("Reshape", z, b.const(np.array([0, 0, WIDTH]))))
    return b.linear(b.node("Gather", x, b.const(np.array(0)), axis=1), WIDTH)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_stored_positions_are_of_one_size(kind):
    model = models.as_format(models.classifier(stored_positions, size=("H", "W")), kind)
    cause = r"\[.*24, 8\] holds 24 tokens, whatever the size of the image: .* --input-shape"
    with pytest.raises(errors.TargetNotFoundError, match=cause):
        plan_insertion(model, Options(method="vit-recipro-cam"))
