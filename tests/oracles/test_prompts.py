"""A map for each prompt: models of images and text, compared by NumPy from masked runs of the image's part."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.transformer_models import transformer, weights
from model_zoo_fixtures.testbed.vector_models import (
    LENGTH,
    TOLERANCE,
    WIDTH,
    WORDS,
    assert_close,
    both,
    run,
    scaled,
    texts_first,
)
from xai_insert import Options, errors, insert
from xai_insert.verify import verify

IMAGES = np.random.default_rng(3).standard_normal((2, 3, 8, 12)).astype(np.float32)
IDS = np.random.default_rng(4).integers(0, WORDS, (3, LENGTH))


def images_first(b, image, text):
    """CLIP's own code: the images are scaled, then multiplied with the texts."""
    return [b.node("MatMul", scaled(b, image), b.node("Transpose", text, perm=[1, 0]))]


def texts_derived(b, image, text):
    """The scores of the texts are those of the images, transposed."""
    product = scaled(b, b.node("Gemm", image, text, transB=1))
    return [b.node("Transpose", product, perm=[1, 0]), product]


def softmax_of(b, image, text):
    return [b.node("Softmax", images_first(b, image, text)[0], axis=-1)]


def sigmoid_of(b, image, text):
    return [b.node("Sigmoid", texts_first(b, image, text)[0])]


FORMS = {f.__name__: f for f in (images_first, texts_first, texts_derived, softmax_of, sigmoid_of)}


def alone(model, image):
    """The part that embeds images."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.add(name=image).type.tensor_type.elem_type = TensorProto.FLOAT
    return onnx.utils.Extractor(onnx.shape_inference.infer_shapes(part)).extract_model(["image"], [image])


def logits(name, image, text):
    """`[..., P]` of vectors `[..., D]` in NumPy."""
    return np.exp(2.5) * image @ text.T - (3 if name in ("texts_first", "sigmoid_of") else 0)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", FORMS)
def test_each_prompt_has_a_map(name, kind):
    plain, image = both(FORMS[name])
    model = models.as_format(plain, kind)
    result = insert(model, Options(output_dtype="f32", range=True))
    report = result.report
    assert (report.task, report.form, report.place) == ("image and text", "closed form", "blocks")
    assert report.saliency_map["shape"] == (None, None, 4, 6)
    tower = alone(plain, image)
    target = insert(tower, Options(reference="self")).report.target
    parts = oracle.Parts(tower, target["name"], image)
    for ids in (IDS, IDS[:2], np.tile(IDS, (2, 1))):
        text = embedded(plain, ids)
        each = np.moveaxis(parts.definition(IMAGES, target["grid_axes"]), 1, -1)
        wanted = np.moveaxis(logits(name, each, text), -1, 1).reshape(2, len(ids), 4, 6)
        outputs = run(result.model, IMAGES, ids=ids)
        assert_close(outputs["saliency_map"], wanted)
        assert "saliency_scores" not in outputs
        extremes = np.stack([wanted.min((2, 3)), wanted.max((2, 3))], -1)
        np.testing.assert_allclose(outputs["saliency_range"], extremes, atol=1e-4)
        for key, value in run(model, IMAGES, ids=ids).items():
            np.testing.assert_allclose(outputs[key], value, atol=1e-5)
        in_bytes = run(insert(model).model, IMAGES, ids=ids)["saliency_map"]
        assert np.mean(np.abs(in_bytes.astype(int) - oracle.scaled(wanted)) <= 1) >= 0.999


def embedded(model, ids):
    """The embeddings of texts, from the stored words."""
    words = next(w for w in model.graph.initializer if list(w.dims) == [WORDS, WIDTH])
    mean = onnx.numpy_helper.to_array(words)[ids].mean(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("kind", models.FORMATS)
def test_each_prompt_has_a_map_by_the_class_token(kind, batch):
    plain, image = both(texts_first, transformer(), batch=batch)
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32"))
    assert (result.report.method, result.report.form) == ("vit-recipro-cam", "closed form")
    images = IMAGES[: 1 if batch == 1 else 2]
    tower = alone(plain, image)
    parts = oracle.Parts(tower, insert(tower, Options(reference="self")).report.target["masked"], image)
    tokens = parts.features(images)
    each = np.stack([parts.head(images, *(array * row[:, None] for array in tokens)) for row in weights(1)], axis=1)
    wanted = np.moveaxis(logits("texts_first", each, embedded(plain, IDS)), -1, 1).reshape(len(images), 3, 4, 6)
    assert_close(run(result.model, images, ids=IDS)["saliency_map"], wanted)
    assert not verify(result.model).off


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", FORMS)
def test_frozen_prompts_are_classes(name, kind, batch):
    rows = np.random.default_rng(8).standard_normal((3, WIDTH)).astype(np.float32)
    plain, image = both(FORMS[name], frozen=rows, batch=batch)
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32"))
    assert (result.report.task, result.report.form) == ("classification", "closed form")
    images = IMAGES[: 1 if batch == 1 else 2]
    tower = alone(plain, image)
    target = insert(tower, Options(reference="self")).report.target
    each = np.moveaxis(oracle.Parts(tower, target["name"], image).definition(images, target["grid_axes"]), 1, -1)
    wanted = np.moveaxis(logits(name, each, rows), -1, 1).reshape(len(images), 3, 4, 6)
    got = run(result.model, images)["saliency_map"]
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("most", [2, 5])
def test_the_best_prompts_alone(most, kind):
    """As many as are wanted, or all of them, the best first."""
    plain, _ = both(images_first)
    model = models.as_format(plain, kind)
    result = insert(model, Options(output_dtype="f32", top_k=most))
    every = run(insert(model, Options(output_dtype="f32")).model, IMAGES, ids=IDS)["saliency_map"]
    outputs = run(result.model, IMAGES, ids=IDS)
    scores = next(value for key, value in outputs.items() if not key.startswith("saliency"))
    best = np.argsort(-scores, axis=1)[:, :most]
    np.testing.assert_array_equal(outputs["saliency_classes"], best)
    np.testing.assert_array_equal(outputs["saliency_map"], np.take_along_axis(every, best[..., None, None], 1))


def texts_by_images(b, image, text):
    """The texts first, and nothing behind it: a row for each prompt."""
    return [b.node("MatMul", text, b.node("Transpose", image, perm=[1, 0]))]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("most", [None, 2])
def test_frozen_prompts_may_come_first(most, kind):
    rows = np.random.default_rng(8).standard_normal((3, WIDTH)).astype(np.float32)
    plain, image = both(texts_by_images, frozen=rows, batch=1)
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32", top_k=most))
    assert (result.report.task, result.report.form) == ("image and text", "closed form")
    tower = alone(plain, image)
    target = insert(tower, Options(reference="self")).report.target
    each = np.moveaxis(oracle.Parts(tower, target["name"], image).definition(IMAGES[:1], target["grid_axes"]), 1, -1)
    wanted = np.moveaxis(each @ rows.T, -1, 1).reshape(1, 3, 4, 6)
    outputs = run(result.model, IMAGES[:1])
    if most is not None:
        best = np.argsort(-outputs["saliency_scores"], axis=1)[:, :most]
        np.testing.assert_array_equal(outputs["saliency_classes"], best)
        wanted = wanted[:, best[0]]
    assert_close(outputs["saliency_map"], wanted)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_one_image_turned_by_a_reshape(kind):
    """OpenVINO writes the transpose of one column as a reshape."""

    def reshaped(b, image, text):
        product = b.node("Gemm", text, image, transB=1)
        return [b.node("Reshape", product, b.const(np.array([1, 3], np.int64)))]

    plain, _ = both(reshaped, batch=1)
    plain.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 3
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32"))
    assert (result.report.task, result.report.saliency_map["shape"]) == ("image and text", (1, 3, 4, 6))


def test_options_that_say_nothing_to_prompts_are_refused():
    model, _ = both(images_first)
    with pytest.raises(errors.UnusedOptionError, match="--classes"):
        insert(model, Options(classes=(1,)))
    with pytest.raises(errors.UnknownNameError):
        insert(model, Options(output="nowhere"))
