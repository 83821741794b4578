"""Maps of semantic segmenters: the class scores before softmax, argmax and the last resize, and overlays of them."""

import json

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest
from click.testing import CliRunner

from model_zoo_fixtures.shapes import semantic
from model_zoo_fixtures.shapes.dataset import HELD_OUT_SEED, multi_object_scene
from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.segmenter_models import (
    NETWORKS,
    SIDE,
    K,
    build,
    coarse,
    deeplab,
    enlarged,
    head,
    image,
    raw_scores,
)
from xai_insert import Explainer, Options, errors, insert
from xai_insert.cli.explain import main as explain


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("times", [4, 2])
def test_the_model_lays_its_output_over_the_image(times, kind):
    """Corners on corners before the head: what is as large as the image says of each pixel what lies there."""
    b = models.Builder(size=(SIDE, SIDE))
    scales = b.const(np.array([1, 1, times, times], np.float32))
    x = b.node("Resize", coarse(b), "", scales, mode="linear", coordinate_transformation_mode="align_corners")
    scores = head(b, b.node("Relu", b.node("Conv", x, b.weight(models.CHANNELS, 6, 3, 3), pads=[1] * 4)))
    model = b.model(b.node("Softmax", scores, axis=1))
    found = insert(models.as_format(model, kind)).report.saliency_map["rectangle"]
    assert (found is None) is (times == 4)


def in_bytes(maps):
    low, high = (function(maps, axis=(2, 3), keepdims=True) for function in (np.min, np.max))
    return np.floor(255 * (maps - low) / np.maximum(high - low, 1e-12))


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_is_what_is_compared(name, batch, kind):
    model, scores = build(name, batch=batch)
    images = image(1 if batch == 1 else 3)
    wanted = raw_scores(model, name, scores, images)
    plain = models.as_format(model, kind)
    before = oracle.run(plain, images)
    for dtype in ("f32", "u8"):
        result = insert(plain, Options(output_dtype=dtype))
        assert (result.report.task, result.report.method) == ("semantic segmentation", "class-score-map")
        assert result.report.output_difference == 0
        after = oracle.run(result.model, images)
        maps = after.pop("saliency_map")
        for key, array in before.items():
            np.testing.assert_array_equal(after[key], array)
        if dtype == "f32":
            np.testing.assert_allclose(maps, wanted, rtol=1e-5, atol=1e-5)
        else:
            assert np.mean(np.abs(maps.astype(float) - in_bytes(wanted)) <= 1) >= 0.999


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_size_may_be_asked_for(kind):
    model, _ = build("deeplab")
    result = insert(models.as_format(model, kind), Options(saliency_size=(20, 10)))
    assert oracle.run(result.model, image())["saliency_map"].shape == (2, K, 20, 10)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_the_feature_vector_is_the_mean_of_what_the_head_reads(kind):
    model, _ = build("deeplab")
    result = insert(models.as_format(model, kind), Options(feature_vector=True))
    relu = next(node.output[0] for node in reversed(model.graph.node) if node.op_type == "Relu")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend([onnx.helper.make_empty_tensor_value_info(relu)])
    wanted = oracle.run(copy, image())[relu].mean(axis=(2, 3))
    np.testing.assert_allclose(oracle.run(result.model, image())["feature_vector"], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    "name", ["deeplab", "argmax", "channels_last", "softmaxed", "logits_and_labels", "rows_of_places"]
)
def test_overlays_are_of_the_classes_in_the_image(name, kind, tmp_path):
    model, _ = build(name, batch=1)
    file = tmp_path / ("model.onnx" if kind == "onnx" else "model.xml")
    inserted = insert(models.as_format(model, kind)).model
    onnx.save(inserted, file) if kind == "onnx" else ov.save_model(inserted, file, compress_to_fp16=False)
    picture = (image(1)[0].transpose(1, 2, 0) * 60 + 120).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "scene.png"), picture[..., ::-1])
    arguments = [file, tmp_path / "scene.png", "-o", tmp_path / "out", "--raw", "npy", "--classes", "all"]
    done = CliRunner().invoke(explain, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    (record,) = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    outputs = oracle.run(model, picture.transpose(2, 0, 1)[None].astype(np.float32))
    found = next(iter(outputs.values()))
    is_labels = name in ("argmax", "logits_and_labels")
    labels = found if is_labels else found.argmax(axis={"channels_last": 3, "rows_of_places": 2}.get(name, 1))
    shares = np.bincount(labels.reshape(-1), minlength=K) / labels.size
    for item in record["predictions"]:
        assert item["score"] == pytest.approx(shares[item["class_id"]], abs=0.005)  # a runtime may use half precision
    for item in record["maps"]:  # a small object is there as much as a large one
        assert item["strength"] == pytest.approx(min(100 * shares[item["class_id"]], 1), abs=0.1)
    done = CliRunner().invoke(explain, [*map(str, arguments[:-2])])
    assert done.exit_code == 0, done.output
    (record,) = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()[-1:]]
    assert [item["class_id"] for item in record["maps"]] == [n for n in np.argsort(-shares) if shares[n] >= 0.01]


@pytest.mark.parametrize(("count", "first"), [(K, "name0"), (K - 1, "background")])
def test_model_api_names_no_background(count, first, tmp_path):
    model, _ = build("deeplab", batch=1)
    model.metadata_props.add(key="model_info labels", value=" ".join(f"name{n}" for n in range(count)))
    onnx.save(model, tmp_path / "model.onnx")
    (found,) = Explainer(tmp_path / "model.onnx").explain([np.zeros((SIDE, SIDE, 3), np.uint8)])
    named = dict(enumerate(["background"] * (count < K) + [f"name{n}" for n in range(count)]))
    assert named[0] == first
    assert {item.class_id: item.label for item in found.predictions}.items() <= named.items()
    with pytest.raises(errors.XaiInsertError, match=f"{K - 1} labels, but {K} classes"):
        Explainer(tmp_path / "model.onnx", labels=["x"] * (K - 1)).explain([np.zeros((SIDE, SIDE, 3), np.uint8)])


def labelled(b, how):
    """Scores of three classes, and outputs made of the best of them."""
    scores = head(b, coarse(b), 3)
    x = enlarged(b, scores)
    if how == "masks":
        return scores, [b.node("Greater", b.node("Sigmoid", x), b.const(np.float32(0.5)))]
    best = b.node("ArgMax", x, axis=1, keepdims=0)
    if how == "looked up":
        return scores, [b.node("Gather", b.const(np.array([7, 8, 11])), best, axis=0)]
    if how == "from one":
        return scores, [b.node("Add", best, b.const(np.array(1)))]
    sure = b.node("ReduceMax", b.node("Softmax", x, axis=1), axes=[1], keepdims=0)
    if how == "with the greatest":
        return scores, [sure, best]
    is_unsure = b.node("Less", sure, b.const(np.float32(0.5)))
    return scores, [b.node("Where", is_unsure, b.const(np.array(255)), best)]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("how", ["masks", "from one", "looked up", "with the greatest", "unsure places"])
def test_what_is_made_of_the_best_class(how, kind, tmp_path):
    b = models.Builder(size=(SIDE, SIDE), batch=1)
    scores, outputs = labelled(b, how)
    model = b.model(*outputs)
    file = tmp_path / ("model.onnx" if kind == "onnx" else "model.xml")
    inserted = insert(models.as_format(model, kind), Options(output_dtype="f32")).model
    wanted = raw_scores(model, "", scores, image(1))
    np.testing.assert_allclose(oracle.run(inserted, image(1))["saliency_map"], wanted, rtol=1e-5, atol=1e-5)
    onnx.save(inserted, file) if kind == "onnx" else ov.save_model(inserted, file, compress_to_fp16=False)
    picture = (image(1)[0].transpose(1, 2, 0) * 60 + 120).clip(0, 255).astype(np.uint8)
    (found,) = Explainer(file).explain([picture])
    given = oracle.run(model, picture.transpose(2, 0, 1)[None].astype(np.float32))[outputs[-1]][0]
    called = {"from one": (1, 2, 3), "looked up": (7, 8, 11)}.get(how, (0, 1, 2))
    shares = [np.mean(given[k] if how == "masks" else given == called[k]) for k in range(3)]
    for item in found.predictions:
        assert item.score == pytest.approx(shares[item.class_id], abs=0.005)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_an_image_of_any_size(kind):
    b = models.Builder(size=("H", "W"))
    scores, outputs = deeplab(b)
    model = b.model(*outputs)
    result = insert(models.as_format(model, kind), Options(output_dtype="f32"))
    images = np.random.default_rng(1).standard_normal((2, 3, 48, 32)).astype(np.float32)
    maps = oracle.run(result.model, images)["saliency_map"]
    assert maps.shape == (2, K, 12, 8)
    np.testing.assert_allclose(maps, raw_scores(model, "deeplab", scores, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["class-score-map", "seg-recipro-cam"])
def test_half_precision(method):
    b = models.Builder(size=(SIDE, SIDE), dtype=np.float16)
    scores = head(b, coarse(b))
    scales = b.const(np.array([1, 1, 4, 4]))
    b.weights[-1].CopyFrom(onnx.numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), scales))
    whole = b.node("Resize", scores, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    result = insert(b.model(whole), Options(method=method, output_dtype="f32"))
    outputs = oracle.run(result.model, image().astype(np.float16))
    assert outputs["saliency_map"].dtype == np.float32
    assert np.isfinite(outputs["saliency_map"]).all()
    assert outputs[whole].dtype == np.float16


@pytest.mark.parametrize("method", ["class-score-map", "seg-recipro-cam"])
def test_the_peak_lies_on_a_shape_of_the_class(method):
    """Of a segmenter whose head was fitted to shape scenes, on scenes that it has not seen."""
    scenes = [multi_object_scene(HELD_OUT_SEED + index) for index in range(60)]
    result = insert(semantic.shape_segmenter(), Options(method=method))
    outputs = oracle.run(result.model, semantic.pixels(scenes))
    hits = []
    for scene, maps, scores in zip(scenes, outputs["saliency_map"], outputs["classes"], strict=True):
        truth, said = semantic.labels(scene), scores.argmax(axis=0)
        for number in {item.class_id for item in scene.objects} & set(said.flat):
            row, column = np.unravel_index(int(maps[number].argmax()), maps[number].shape)
            hits.append(truth[4 * row + 2, 4 * column + 2] == number)
    assert len(hits) > 100
    assert np.mean(hits) >= 0.95
