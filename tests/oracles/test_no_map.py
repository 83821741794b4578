"""The feature vector without a map: the mean of what the head reads, in NumPy, and nothing else added."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.models import CHANNELS, Builder
from model_zoo_fixtures.testbed.transformer_models import CLOSED as TOKENS
from xai_insert import Options, errors, insert, insert_file, plan_insertion
from xai_insert.strip import strip_file

VECTOR = Options(method="none", feature_vector=True)


def segmenter():
    b = Builder(size=(16, 24))
    feature = b.backbone()
    scores = b.node("Conv", feature, b.weight(5, CHANNELS, 1, 1), b.weight(5))
    scales = b.const(np.array([1, 1, 2, 2], np.float32))
    return b.model(b.node("Resize", scores, "", scales, mode="linear"), feature)


def images(size, batch=2):
    return np.random.default_rng(3).standard_normal((batch, 3, *size)).astype(np.float32)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_the_vector_is_the_mean_of_the_feature(kind):
    plain = segmenter()
    before = oracle.run(plain, images((16, 24)))
    feature = next(value for value in before.values() if value.shape[1] == CHANNELS)
    del plain.graph.output[1]
    result = insert(models.as_format(plain, kind), VECTOR)
    outputs = oracle.run(result.model, images((16, 24)))
    assert set(outputs) == {plain.graph.output[0].name, "feature_vector"}
    np.testing.assert_allclose(outputs["feature_vector"], feature.mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(outputs[plain.graph.output[0].name], before[plain.graph.output[0].name], atol=1e-5)
    report = result.report
    assert (report.task, report.method, report.form) == ("semantic segmentation", "none", "no map")
    assert not report.saliency_map
    assert "feature_vector" in report.text()
    assert "feature_vector" in repr(result)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    ("network", "size"), [(models.CLOSED["mean"], (12, 12)), (TOKENS["plain"], (8, 12))], ids=["pooled", "tokens"]
)
def test_it_is_that_beside_a_map(network, size, kind):
    model = models.as_format(models.classifier(network, size=size), kind)
    alone = oracle.run(insert(model, VECTOR).model, images(size))
    beside = oracle.run(insert(model, Options(feature_vector=True)).model, images(size))
    assert "saliency_map" not in alone
    np.testing.assert_allclose(alone["feature_vector"], beside["feature_vector"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "without --feature-vector nothing"),
        ({"feature_vector": True, "range": True}, "leave out --range"),
        ({"feature_vector": True, "saliency_size": (8, 8)}, "leave out --saliency-size"),
        ({"feature_vector": True, "top_k": 2}, "--top-k"),
    ],
    ids=str,
)
def test_options_of_maps_are_refused(options, said):
    with pytest.raises(errors.XaiInsertError, match=said):
        plan_insertion(models.classifier(models.CLOSED["mean"]), Options(method="none", **options))


def test_it_comes_off_again_and_is_not_added_twice(tmp_path):
    onnx.save(models.classifier(models.CLOSED["mean"]), tmp_path / "plain.onnx")
    insert_file(tmp_path / "plain.onnx", tmp_path / "vector.onnx", VECTOR)
    with pytest.raises(errors.AlreadyInsertedError, match="already has a feature vector"):
        plan_insertion(tmp_path / "vector.onnx")
    strip_file(tmp_path / "vector.onnx", tmp_path / "again.onnx")
    names = [output.name for output in onnx.load(tmp_path / "again.onnx").graph.output]
    assert names == [output.name for output in onnx.load(tmp_path / "plain.onnx").graph.output]
