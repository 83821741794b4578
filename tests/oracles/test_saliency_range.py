"""The output `saliency_range`: what stands behind 0 and 255 of each map."""

from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.testbed import anomaly_models, keypoint_models, models, oracle, vector_models
from model_zoo_fixtures.testbed.transformer_models import CLOSED as TOKENS
from xai_insert import Options, insert
from xai_insert.explain.scale import raw_values

SHAPES = Path(__file__).resolve().parents[2] / "model_zoo_fixtures" / "shapes"


def compared(model, image, **options):
    """Raw maps, and bytes with their range, of one model and image."""
    raw = oracle.run(insert(model, Options(output_dtype="f32", **options)).model, image)
    both = oracle.run(insert(model, Options(range=True, **options)).model, image)
    return raw["saliency_map"], both["saliency_map"], both["saliency_range"]


def assert_is_range(raw, maps, ranges):
    assert (ranges.shape, ranges.dtype) == ((*raw.shape[:-2], 2), np.float32)
    np.testing.assert_allclose(ranges[..., 0], raw.min(axis=(-2, -1)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ranges[..., 1], raw.max(axis=(-2, -1)), rtol=1e-6, atol=1e-6)
    step = np.ptp(ranges, axis=-1)[..., None, None] / 255
    assert (np.abs(raw_values(maps, ranges) - raw) <= step * 1.001 + 1e-6).all()


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("options", [{}, {"method": "activation-map"}, {"top_k": 2}, {"saliency_size": (12, 12)}])
def test_bytes_become_raw_values_again(kind, options):
    model = models.as_format(models.classifier(models.CLOSED["mean"]), kind)
    image = np.random.default_rng(0).standard_normal((2, 3, models.SIDE, models.SIDE)).astype(np.float32)
    assert_is_range(*compared(model, image, **options))


@pytest.mark.parametrize(
    ("name", "side"), [("shapes_detector.onnx", 128), ("shapes_segmenter.xml", 128), ("shapes_vit.xml", 96)]
)
def test_tasks_have_it(name, side):
    path = SHAPES / name
    model = onnx.load(path) if name.endswith(".onnx") else ov.Core().read_model(path)
    image = np.random.default_rng(0).integers(0, 255, (1, 3, side, side)).astype(np.float32)
    assert_is_range(*compared(model, image))


def segmenter():
    b = models.Builder(size=(16, 24))
    scores = b.node("Conv", b.backbone(), b.weight(5, models.CHANNELS, 1, 1), b.weight(5))
    return b.model(b.node("Softmax", scores, axis=1))


BY_GRADIENT = {
    f"classifier, {method}": (lambda: models.classifier(models.CLOSED["mean"]), {"method": method})
    for method in ("hirescam", "grad-cam", "layercam", "input-x-gradient")
}
OTHERS = {
    "keypoints": (lambda: keypoint_models.build("hrnet")[0], {}),
    "segmenter": (segmenter, {}),
    "segmenter, regions": (segmenter, {"method": "seg-recipro-cam"}),
    "anomalies": (lambda: anomaly_models.build("averaged")[0], {}),
    "embedding": (vector_models.model_of, {}),
    "transformer": (lambda: models.classifier(TOKENS["plain"], size=(8, 12)), {}),
    "transformer, legrad": (lambda: models.classifier(TOKENS["plain"], size=(8, 12)), {"method": "legrad"}),
}


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("name", BY_GRADIENT | OTHERS)
def test_every_task_and_method_has_it(name, kind):
    build, options = (BY_GRADIENT | OTHERS)[name]
    plain = build()
    sides = [size.dim_value for size in plain.graph.input[0].type.tensor_type.shape.dim[2:]]
    image = np.random.default_rng(0).standard_normal((1, 3, *sides)).astype(np.float32)
    raw, maps, ranges = compared(models.as_format(plain, kind), image, **options)
    assert_is_range(raw, maps, ranges)
    assert (np.abs(oracle.scaled(raw[0]) - maps[0].astype(int)) <= 1).mean() >= 0.999
