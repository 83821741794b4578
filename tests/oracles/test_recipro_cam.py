"""Recipro-CAM equals its definition, computed outside the tool, for every way a head can begin and in both formats."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.recipro_oracle import TOLERANCE, assert_is_definition, image
from xai_insert import Options, insert


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", models.CLOSED)
def test_closed_form_is_the_definition(name, kind, batch):
    model = models.as_format(models.classifier(models.CLOSED[name]), kind)
    known = {"channels last": (1, 2), "flatten, channels last": (1, 2), "tokens": (1,), "tokens as a map": (1,)}
    known["norm of a map"] = (1, 2)
    result, _ = assert_is_definition(model, batch, known.get(name, (2, 3)))
    assert result.report.target["grid"] == (models.SIDE // 2, models.SIDE // 2)


def test_computed_pads_and_a_pool_larger_than_the_grid(monkeypatch):
    """Two habits of EfficientNet in transformers; OpenVINO's reader, where it takes the pool, is kept out."""

    def network(b):
        sides = b.const(np.array([[0, 0], [0, 0], [0, 1], [0, 1]]))
        pads = b.node("Reshape", b.node("Transpose", sides, perm=[1, 0]), b.const(np.array([-1])))
        x = b.backbone(b.node("Pad", "image", pads))
        pool = b.node("AveragePool", x, kernel_shape=[20, 20], strides=[20, 20], ceil_mode=1)
        return b.linear(b.node("Flatten", pool), models.CHANNELS)

    monkeypatch.setattr("xai_insert.formats.onnx.shapes._read_shapes", lambda content, sizes: ({}, {}))
    result, _ = assert_is_definition(models.classifier(network), 3, (2, 3))
    assert result.report.target["grid"] == (7, 7)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("kind", models.FORMATS)
def test_batch_baked_into_the_head(kind, batch):
    model = models.as_format(models.classifier(models.STATIC["batch in reshape"], batch=batch), kind)
    assert_is_definition(model, batch, (2, 3))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_head_without_closed_form_runs_masked(kind, batch):
    model = models.as_format(models.classifier(models.MASKED["attention"]), kind)
    assert_is_definition(model, batch, (1,), form="masked runs")


@pytest.mark.parametrize("kind", models.FORMATS)
def test_masked_runs_from_a_deeper_layer(kind):
    def network(b):
        x = b.backbone()
        x = b.node("Conv", x, b.weight(models.CHANNELS, models.CHANNELS, 3, 3), pads=[1] * 4, strides=[2, 2])
        return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", x))), models.CHANNELS)

    model = models.as_format(models.classifier(network), kind)
    deep = insert(model).report
    assert deep.target["grid"] == (3, 3)
    options = Options(output_dtype="f32", target_layer="Relu_4")
    result, _ = assert_is_definition(model, 2, (2, 3), form="masked runs", options=options)
    assert result.report.target["grid"] == (6, 6)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_named_transpose_before_the_pool_keeps_the_closed_form(kind):
    """The check cuts the model at the target, so the branch may not read what stands before it."""
    model = models.as_format(models.classifier(models.CLOSED["norm of a map"]), kind)
    assert_is_definition(model, 2, (2, 3), options=Options(output_dtype="f32", target_layer="Transpose_7"))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_target_before_pointwise_operations_keeps_the_closed_form(kind):
    def network(b):
        x = b.node("Add", b.backbone(), b.weight(models.CHANNELS, 1, 1))
        return b.linear(b.node("Flatten", b.node("GlobalMaxPool", b.node("Sigmoid", x))), models.CHANNELS)

    model = models.as_format(models.classifier(network), kind)
    assert_is_definition(model, 2, (2, 3), options=Options(output_dtype="f32", target_layer="Relu_4"))


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("size", [(12, 12), (8, 20), (34, 22)])
@pytest.mark.parametrize(("head", "axes"), [("mean", (2, 3)), ("tokens", (1,))])
def test_grid_follows_a_dynamic_image(kind, size, head, axes):
    builder = models.classifier(models.CLOSED[head], size=("H", "W"))
    model = models.as_format(builder, kind)
    result = insert(model, Options(output_dtype="f32"))
    x = image(2, size)
    got = oracle.run(result.model, x)["saliency_map"]
    parts = oracle.Parts(model, result.report.target["name"], result.report.logits["name"])
    expected = parts.definition(x, axes)
    assert got.shape == (2, models.CLASSES, size[0] // 2, size[1] // 2)
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_onnx_operator_set_versions(opset):
    assert_is_definition(models.classifier(models.CLOSED["global average pool"], opset=opset), 2, (2, 3))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_moving_a_peak_moves_the_map(kind):
    """Only one cell of the feature map is lit, so the map of a class that likes it peaks there."""

    def network(b):
        x = b.node("Conv", "image", b.const(np.ones((2, 3, 2, 2), np.float32)), strides=[2, 2])
        weight = b.const(np.array([[1, 1], [-1, -1]], np.float32))
        return b.node("Gemm", b.node("Flatten", b.node("GlobalAveragePool", x)), weight, transB=1)

    model = insert(models.as_format(models.classifier(network, size=(8, 12)), kind)).model
    for row, column in ((0, 0), (3, 5), (2, 1)):
        x = np.zeros((1, 3, 8, 12), np.float32)
        x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1
        likes, dislikes = oracle.run(model, x)["saliency_map"][0]
        assert np.unravel_index(likes.argmax(), likes.shape) == (row, column)
        assert np.unravel_index(dislikes.argmin(), likes.shape) == (row, column)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_scores_beside_regressions_are_found_by_their_softmax(kind):
    """As in MTCNN, which gives a box and marks beside the scores."""
    b = models.Builder()
    pooled = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
    logits = b.linear(pooled, models.CHANNELS)
    outputs = (
        b.linear(pooled, models.CHANNELS, 4),
        b.node("Softmax", logits, axis=1),
        b.linear(pooled, models.CHANNELS, 10),
    )
    result = insert(models.as_format(b.model(*outputs), kind))
    assert result.report.logits["output"] == outputs[1]
    assert result.report.logits["classes"] == models.CLASSES


def shares(b, scores, spelling):
    """A softmax in several operators."""
    axes = b.const(np.array([1]))
    if spelling == "greatest first":
        scores = b.node("Sub", scores, b.node("ReduceMax", scores, axes=[1], keepdims=1))
    powers = b.node("Exp", scores)
    total = b.node("ReduceSum", powers, axes, keepdims=int(spelling != "axis added"))
    if spelling == "reciprocal":
        return b.node("Mul", powers, b.node("Reciprocal", total))
    return b.node("Div", powers, b.node("Unsqueeze", total, axes) if spelling == "axis added" else total)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("spelling", ["plain", "greatest first", "axis added", "reciprocal"])
def test_scores_are_those_before_a_softmax_that_is_written_out(spelling, kind):
    b = models.Builder()
    logits = b.node("MatMul", b.node("ReduceMean", b.backbone(), axes=[2, 3], keepdims=0), b.weight(models.CHANNELS, 4))
    model = b.model(shares(b, logits, spelling))
    plain = b.model(logits)
    images = image(2)
    results = [insert(models.as_format(item, kind), Options(output_dtype="f32")) for item in (model, plain)]
    found, wanted = (oracle.run(result.model, images)["saliency_map"] for result in results)
    np.testing.assert_array_equal(found, wanted)
    assert not results[0].report.logits["note"]
    assert "embedding" in results[1].report.logits["note"]


def test_exponentials_over_another_sum_are_no_softmax():
    b = models.Builder()
    pooled = b.node("ReduceMean", b.backbone(), axes=[2, 3], keepdims=0)
    powers, others = (b.node("Exp", b.node("MatMul", pooled, b.weight(models.CHANNELS, 4))) for _ in range(2))
    scores = b.node("Div", powers, b.node("ReduceSum", others, b.const(np.array([1]))))
    assert insert(b.model(scores)).report.logits["name"] == scores
