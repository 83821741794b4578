"""Recipro-CAM by its definition, masked runs outside the tool, beside the inserted map."""

import numpy as np

from model_zoo_fixtures.testbed import models, oracle
from xai_insert import Options, insert

# Another order of summation in float32; the scores are of order 1.
TOLERANCE = 1e-5


def image(batch, size=(models.SIDE, models.SIDE), dtype=np.float32):
    return np.random.default_rng(3).standard_normal((batch, 3, *size)).astype(dtype)


def assert_is_definition(model, batch, axes, form="closed form", size=(models.SIDE, models.SIDE), options=None):
    result = insert(model, options or Options(output_dtype="f32"))
    x = image(batch, size)
    outputs = oracle.run(result.model, x)
    parts = oracle.Parts(model, result.report.target["name"], result.report.logits["name"])
    expected = parts.definition(x, axes)
    got = outputs["saliency_map"]
    assert result.report.form == form
    assert got.shape == (batch, models.CLASSES, *result.report.target["grid"])
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=TOLERANCE * np.abs(expected).max())
    assert np.ptp(expected, axis=-1).min() > 1e-3, "the network is degenerate, so the comparison says nothing"
    return result, outputs
