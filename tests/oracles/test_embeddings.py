"""Maps of embeddings: what makes an image like itself, another or stored classes; by NumPy from masked runs."""

from contextlib import suppress

import numpy as np
import openvino as ov
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.transformer_models import linear, norm, transformer, weights
from model_zoo_fixtures.testbed.vector_models import NORMS, WIDTH, assert_close, by_norm, model_of, projected, run
from xai_insert import Options, errors, insert, insert_file
from xai_insert.cli.insert import main
from xai_insert.verify import verify

IMAGES = np.random.default_rng(3).standard_normal((2, 3, 12, 12)).astype(np.float32)


def vectors(model, report, images=IMAGES):
    """The model's vectors `[B, D]`, and those for each place `[B, D, h, w]`, by masked runs."""
    parts = oracle.Parts(model, report.target["name"], report.logits["name"])
    maps = parts.definition(images, report.target["grid_axes"])
    return parts.logits(images), maps.reshape(*maps.shape[:2], *report.target["grid"])


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", NORMS)
def test_an_embedding_is_compared_with_itself(name, kind):
    model = model_of(NORMS[name], kind)
    result = insert(model, Options(output_dtype="f32"))
    report = result.report
    assert (report.task, report.form, report.place) == ("embedding", "closed form", "blocks")
    whole, each = vectors(model, report)
    wanted = np.einsum("bdhw,bd->bhw", each, whole)[:, None]
    outputs = run(result.model, IMAGES)
    assert_close(outputs["saliency_map"], wanted)
    np.testing.assert_allclose(outputs["saliency_scores"], (whole * whole).sum(1, keepdims=True), atol=1e-5)
    in_bytes = run(insert(model).model, IMAGES)["saliency_map"]
    assert in_bytes.shape == wanted.shape
    assert np.mean(np.abs(in_bytes.astype(int) - oracle.scaled(wanted)) <= 1) >= 0.999


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("norm_of", [by_norm, None])
def test_an_embedding_is_compared_with_what_is_fed(norm_of, kind):
    model = model_of(norm_of, kind)
    result = insert(model, Options(output_dtype="f32", reference="input", range=True))
    reference = np.random.default_rng(5).standard_normal((2, WIDTH)).astype(np.float32)
    whole, each = vectors(model, result.report)
    outputs = run(result.model, IMAGES, reference=reference)
    wanted = np.einsum("bdhw,bd->bhw", each, reference)[:, None]
    assert_close(outputs["saliency_map"], wanted)
    np.testing.assert_allclose(outputs["saliency_scores"], (whole * reference).sum(1, keepdims=True), atol=1e-5)
    extremes = np.stack([wanted.min((2, 3)), wanted.max((2, 3))], axis=-1)
    np.testing.assert_allclose(outputs["saliency_range"], extremes, atol=1e-5)
    (plain,) = run(model, IMAGES).values()
    np.testing.assert_allclose(next(iter(outputs.values())), plain, atol=1e-6)
    with suppress(ValueError, RuntimeError):  # on one core OpenVINO runs on nothing, and gives nothing
        assert all(value.size == 0 for value in run(result.model, IMAGES).values())
    assert not verify(result.model).off


@pytest.mark.parametrize("kind", models.FORMATS)
def test_stored_classes_are_compared_by_their_cosine(kind, tmp_path):
    rows = np.random.default_rng(6).standard_normal((7, WIDTH))
    np.save(tmp_path / "rows.npy", rows)
    model = model_of(None, kind)
    result = insert(model, Options(output_dtype="f32", class_embeddings=str(tmp_path / "rows.npy")))
    whole, each = vectors(model, result.report)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    outputs = run(result.model, IMAGES)
    wanted = 100 * np.einsum("bdhw,kd->bkhw", each / np.linalg.norm(each, axis=1, keepdims=True), rows)
    assert_close(outputs["saliency_map"], wanted)
    scores = 100 * whole @ rows.T / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["saliency_scores"], scores, atol=1e-3)
    assert "rows.npy" not in str(result.model)
    assert not verify(result.model).off


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("reference", ["self", "input"])
def test_a_class_token_as_an_embedding(reference, kind):
    b = models.Builder(size=(8, 12))
    model = models.as_format(b.model(by_norm(b, transformer()(b))), kind)
    images = np.random.default_rng(3).standard_normal((2, 3, 8, 12)).astype(np.float32)
    result = insert(model, Options(output_dtype="f32", reference=reference))
    assert (result.report.method, result.report.form) == ("vit-recipro-cam", "closed form")
    parts = oracle.Parts(model, result.report.target["masked"], result.report.logits["name"])
    tokens, whole = parts.features(images), parts.logits(images)
    each = np.stack([parts.head(images, *(array * row[:, None] for array in tokens)) for row in weights(1)], axis=-1)
    with_what = whole if reference == "self" else np.ones_like(whole)
    more = {} if reference == "self" else {"reference": with_what}
    wanted = np.einsum("bdp,bd->bp", each, with_what).reshape(2, 1, 4, 6)
    assert_close(run(result.model, images, **more)["saliency_map"], wanted)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_masked_runs_compare_too(kind):
    model = model_of(by_norm, kind)
    result = insert(model, Options(output_dtype="f32", form="masked"))
    whole, each = vectors(model, result.report)
    assert_close(run(result.model, IMAGES)["saliency_map"], np.einsum("bdhw,bd->bhw", each, whole)[:, None])


@pytest.mark.parametrize("is_unit", [True, False])
def test_classes_beside_an_embedding(is_unit):
    """A vector of length one, or that the scores are made of, is what is compared, not what is classified."""
    b = models.Builder()
    vector = projected(b)
    given = by_norm(b, vector) if is_unit else b.node("Identity", vector)
    scores = linear(b, vector, WIDTH, 7)
    model = b.model(given, scores)
    report = insert(model).report
    assert (report.task, report.logits["output"], report.logits["classes"]) == ("classification", scores, 7)
    report = insert(model, Options(reference="self")).report
    assert (report.task, report.logits["output"], report.logits["shape"][1]) == ("embedding", given, WIDTH)


def last(kind):
    """What a vector ends in."""
    b = models.Builder()
    if kind == "norm of a token":
        return b.model(norm(b, b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), models.CHANNELS))
    if kind == "no bias":
        x = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
        return b.model(linear(b, x, models.CHANNELS, WIDTH, bias=False))
    x = projected(b)
    if kind == "softmax written out":
        power = b.node("Exp", x)
        return b.model(b.node("Div", power, b.node("ReduceSum", power, b.const(np.array([1])), keepdims=1)))
    return b.model(b.node("Softmax", x, axis=1) if kind == "softmax" else x)


@pytest.mark.parametrize(
    ("kind", "task", "noted"),
    [
        ("norm of a token", "embedding", False),
        ("no bias", "classification", True),
        ("softmax written out", "classification", False),
        ("softmax", "classification", False),
        ("bias", "classification", False),
    ],
)
def test_structure_says_what_a_vector_is(kind, task, noted):
    report = insert(last(kind)).report
    assert report.task == task
    assert ("--reference" in report.text()) == noted
    width = report.logits["shape"][1]
    stated = insert(last(kind), Options(num_classes=width)).report
    assert (stated.task, stated.saliency_map["shape"][1]) == ("classification", width)
    assert "--reference" not in stated.text()
    assert insert(last(kind), Options(reference="self")).report.task == "embedding"


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", NORMS)
def test_a_pose_has_a_map_of_each_number_and_is_called_no_classes(name, kind):
    """A translation beside a quaternion of length one: what raises each of them, by masked runs."""
    b = models.Builder()
    x = projected(b)
    low, middle, high, axis = (b.const(np.array([number])) for number in (0, 2, WIDTH, 1))
    quaternion = NORMS[name](b, b.node("Slice", x, middle, high, axis))
    model = models.as_format(b.model(b.node("Concat", b.node("Slice", x, low, middle, axis), quaternion, axis=1)), kind)
    result = insert(model, Options(output_dtype="f32"))
    assert "a rotation is: no classes" in result.report.text()
    _, each = vectors(model, result.report)
    assert_close(run(result.model, IMAGES)["saliency_map"], each)
    assert "no classes" not in insert(model, Options(num_classes=WIDTH)).report.text()


def test_what_cannot_be_compared_is_refused_in_plain_words(tmp_path):
    def refused(match, kind=errors.ModelFileError, **options):
        with pytest.raises(kind, match=match):
            insert(model_of(), Options(**options))

    for name, rows in {
        "wide": np.ones((2, 9)),
        "zero": np.zeros((2, WIDTH)),
        "word": np.array([["a"] * WIDTH]),
    }.items():
        np.save(tmp_path / name, rows)
    (tmp_path / "text.npy").write_text("no array")
    refused("must be .K, 5", class_embeddings=str(tmp_path / "wide.npy"))
    refused("has no direction", class_embeddings=str(tmp_path / "zero.npy"))
    refused("finite numbers", class_embeddings=str(tmp_path / "word.npy"))
    refused("cannot read the class embeddings", class_embeddings=str(tmp_path / "text.npy"))
    refused("cannot read the class embeddings", class_embeddings=str(tmp_path / "none.npy"))
    both = {"class_embeddings": str(tmp_path / "wide.npy"), "reference": "self"}
    refused("contradict", errors.UnsupportedTaskError, **both)
    refused("as an embedding does.*--num-classes 5", errors.UnsupportedTaskError, method="hirescam")
    refused("--top-k", errors.UnusedOptionError, top_k=2)
    b = models.Builder()
    model = b.model(b.backbone())
    with pytest.raises(errors.UnsupportedTaskError, match=r"no output \[N, D\]"):
        insert(model, Options(reference="self"))


def test_a_name_that_is_taken_is_refused():
    b = models.Builder()
    kinds = [("image", ["N", 3, 12, 12]), ("reference", ["N", WIDTH])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in kinds]
    model = b.model(b.node("Add", by_norm(b, projected(b)), "reference"), inputs=inputs)
    with pytest.raises(errors.UnsupportedTaskError, match="already has an input 'reference'"):
        insert(model, Options(reference="input"))


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_stripping_takes_the_new_input_away(suffix, tmp_path):
    source, inserted, plain = tmp_path / "e.onnx", tmp_path / f"m.{suffix}", tmp_path / f"p.{suffix}"
    source.write_bytes(model_of().SerializeToString())
    insert_file(source, inserted, Options(reference="input"))
    with pytest.raises(SystemExit) as stopped:
        main([str(inserted), "--strip", "-o", str(plain)])
    assert stopped.value.code == 0
    model = ov.Core().read_model(plain)
    assert ([port.any_name for port in model.inputs], len(model.outputs)) == (["image"], 1)
