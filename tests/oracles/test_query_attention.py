"""Maps of the boxes of queries: the attention of the last decoder layer, against its definition in NumPy."""

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.detection_oracle import values
from model_zoo_fixtures.testbed.query_models import CLASSES, SIZE, Net, sigmoid
from xai_insert import Options, errors, insert


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("report", ["raw", "scores", "best"])
@pytest.mark.parametrize("look", ["dense", "grid", "gather"])
def test_definition(tmp_path, look, report, kind):
    net = Net(look, report)
    path = tmp_path / "net.onnx"
    onnx.save(net.model, path)
    images = np.random.default_rng(3).standard_normal((2, 3, *SIZE), dtype=np.float32)
    model = net.model if kind == "onnx" else ov.Core().read_model(path)
    classes = CLASSES if report == "raw" else None
    plain, result = (
        oracle.run(model, images),
        insert(model, Options(per_box=True, output_dtype="f32", num_classes=classes)),
    )
    outputs = oracle.run(result.model, images)
    for name, array in plain.items():
        np.testing.assert_array_equal(outputs[name], array)
    wanted = net.expected(path, images)
    assert np.ptp(wanted, axis=(2, 3)).min() > 1e-3
    np.testing.assert_allclose(outputs["saliency_map_per_box"], wanted, atol=1e-5)
    assert result.report.per_box["shape"][1:] == wanted.shape[1:]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("look", ["dense", "grid"])
@pytest.mark.parametrize("form", ["turned", "assigned"])
def test_queries_in_forms_of_irs(tmp_path, look, form, kind):
    """LW-DETR: a batch of one is left behind in the axis of the queries. RF-DETR: they are assigned, `x[:] = y`."""
    net = Net(look, "scores", **{form: True})
    onnx.save(net.model, tmp_path / "net.onnx")
    image = np.random.default_rng(3).standard_normal((1, 3, *SIZE), dtype=np.float32)
    result = insert(models.as_format(net.model, kind), Options(per_box=True, output_dtype="f32"))
    wanted = net.expected(tmp_path / "net.onnx", image)
    np.testing.assert_allclose(oracle.run(result.model, image)["saliency_map_per_box"], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("look", ["dense", "scaled", "gather"])
def test_class_maps(tmp_path, look, kind):
    """Where queries and keys are scaled, onnxruntime could not load what was inserted."""
    net = Net("dense", "scores", scaled=True) if look == "scaled" else Net(look, "scores")
    path = tmp_path / "net.onnx"
    onnx.save(net.model, path)
    images = np.random.default_rng(3).standard_normal((2, 3, *SIZE), dtype=np.float32)
    model = net.model if kind == "onnx" else ov.Core().read_model(path)
    result = insert(model, Options(output_dtype="f32"))
    assert result.report.method == "query-attention"
    (logits,) = values(path, [net.logits], images)
    scores = sigmoid(logits)
    looks = net.expected(path, images) / scores.max(-1)[..., None, None]
    wanted = np.einsum("bqk,bqhw->bkhw", scores, looks)
    np.testing.assert_allclose(oracle.run(result.model, images)["saliency_map"], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_what_queries_look_at_with_tokens_before_the_images(tmp_path, kind):
    """The encoder's output was passed over for the map that it begins with."""
    net = Net("dense", "raw", first=True)
    onnx.save(net.model, tmp_path / "net.onnx")
    images = np.random.default_rng(3).standard_normal((3, 3, *SIZE), dtype=np.float32)
    result = insert(models.as_format(net.model, kind), Options(output_dtype="f32"))
    (tokens,) = values(tmp_path / "net.onnx", [net.tokens], images)
    maps = oracle.run(result.model, images)["saliency_map"]
    np.testing.assert_allclose(maps.reshape(3, -1), tokens.mean(-1).T, atol=1e-5)


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("quality", [False, True])
def test_four_scores_beside_four_sides_of_boxes_want_to_be_named(tmp_path, memory, quality):
    """Both are rows of four in 0..1, and the map was made of the sides, or of what says how good a box is."""
    net = Net("dense", "scores", classes=4, memory=memory)
    if quality:
        net.model.graph.node.append(helper.make_node("Sigmoid", [net.logits], ["shares"]))
        net.model.graph.node.append(helper.make_node("ReduceMax", ["shares"], ["quality"], axes=[2]))
        net.model.graph.output.append(helper.make_tensor_value_info("quality", TensorProto.FLOAT, None))
    onnx.save(net.model, tmp_path / "net.onnx")
    report = insert(net.model).report
    assert report.method == "activation-map"
    assert "--output NAME" in report.reason
    with pytest.raises(errors.AmbiguousModelError, match="--output NAME"):
        insert(net.model, Options(num_classes=4))
    images = np.random.default_rng(3).standard_normal((2, 3, *SIZE), dtype=np.float32)
    result = insert(net.model, Options(output=net.model.graph.output[1].name, output_dtype="f32"))
    logits, looks = values(tmp_path / "net.onnx", [net.logits, net.shares], images)
    wanted = np.einsum("bqk,bqp->bkp", sigmoid(logits), looks.mean(1))
    maps = oracle.run(result.model, images)["saliency_map"]
    np.testing.assert_allclose(maps.reshape(wanted.shape), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_scores_times_an_objectness_are_no_raw_scores(tmp_path, kind):
    net = Net("dense", "scores")
    graph = net.model.graph
    name = graph.output[1].name
    (maker,) = (node for node in graph.node if name in node.output)
    maker.output[0] = "own"
    graph.node.append(helper.make_node("ReduceMean", [net.logits], ["objectness"], axes=[2]))
    graph.node.append(helper.make_node("Sigmoid", ["objectness"], ["quality"]))
    graph.node.append(helper.make_node("Mul", ["own", "quality"], [name]))
    path = tmp_path / "net.onnx"
    onnx.save(net.model, path)
    images = np.random.default_rng(3).standard_normal((2, 3, *SIZE), dtype=np.float32)
    logits, looks = values(path, [net.logits, net.shares], images)
    scores = sigmoid(logits) * sigmoid(logits.mean(axis=2, keepdims=True))
    wanted = np.einsum("bqk,bqp->bkp", scores, looks.mean(1))
    made = insert(models.as_format(net.model, kind), Options(output_dtype="f32"))
    maps = oracle.run(made.model, images)["saliency_map"]
    np.testing.assert_allclose(maps.reshape(wanted.shape), wanted, atol=1e-5)


@pytest.mark.parametrize("classes", [CLASSES + 1, CLASSES])
def test_shares_without_no_object_are_scores(tmp_path, classes):
    """Four of them stand beside four sides of boxes: what a softmax gives are no sides."""
    net = Net("dense", "shares", classes=classes)
    path = tmp_path / "net.onnx"
    onnx.save(net.model, path)
    images = np.random.default_rng(3).standard_normal((2, 3, *SIZE), dtype=np.float32)
    logits, looks = values(path, [net.logits, net.shares], images)
    scores = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[..., :-1]
    wanted = np.einsum("bqk,bqp->bkp", scores, looks.mean(1))
    maps = oracle.run(insert(net.model, Options(output_dtype="f32")).model, images)["saliency_map"]
    np.testing.assert_allclose(maps.reshape(wanted.shape), wanted, atol=1e-5)


def test_without_scores_that_are_told_the_activation_map_remains():
    report = insert(Net("dense", "raw").model).report
    assert report.method == "activation-map"
    assert "--num-classes 5 or 4" in report.reason
    with pytest.raises(errors.AmbiguousModelError, match="--num-classes 5 or 4"):
        insert(Net("dense", "raw").model, Options(method="query-attention"))


@pytest.mark.parametrize("look", ["dense", "grid"])
def test_bytes(tmp_path, look):
    net = Net(look, "raw")
    path = tmp_path / "net.onnx"
    onnx.save(net.model, path)
    images = np.random.default_rng(3).standard_normal((2, 3, *SIZE), dtype=np.float32)
    maps = oracle.run(insert(net.model, Options(per_box=True)).model, images)["saliency_map_per_box"]
    wanted = oracle.scaled(net.expected(path, images))  # a factor for each map does not show
    assert maps.dtype == np.uint8
    assert np.mean(np.abs(maps.astype(int) - wanted) <= 1) > 0.999


def test_raw_scores_that_may_have_a_column_for_no_object_are_asked_about():
    with pytest.raises(errors.AmbiguousModelError, match="--num-classes 5 or 4"):
        insert(Net("dense", "raw").model, Options(per_box=True, output_dtype="f32"))


def test_no_object_takes_part_in_the_softmax(tmp_path):
    net = Net("dense", "raw")
    path = tmp_path / "net.onnx"
    onnx.save(net.model, path)
    images = np.random.default_rng(3).standard_normal((1, 3, *SIZE), dtype=np.float32)
    options = Options(per_box=True, output_dtype="f32", num_classes=CLASSES - 1)
    maps = oracle.run(insert(net.model, options).model, images)["saliency_map_per_box"]
    logits, shares = values(path, [net.logits, net.shares], images)
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = shares.mean(1) * scores[..., :-1].max(-1)[..., None]
    np.testing.assert_allclose(maps.reshape(wanted.shape), wanted, atol=1e-5)
