"""Large maps become bytes in parts of their classes: the same bytes."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.oracle import run
from xai_insert import Options, insert
from xai_insert.methods import scaling


@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize("kind", models.FORMATS)
def test_parts_hold_the_bytes_of_the_whole(kind, batch, monkeypatch):
    model = models.as_format(models.classifier(models.CLOSED["global average pool"], batch=batch), kind)
    image = np.random.default_rng(0).standard_normal((2, 3, models.SIDE, models.SIDE), dtype=np.float32)
    raw = run(insert(model, Options(output_dtype="f32")).model, image)["saliency_map"]
    low, high = (end(axis=(2, 3), keepdims=True) for end in (raw.min, raw.max))
    whole = run(insert(model).model, image)["saliency_map"]
    wanted = np.floor((raw - low) / (high - low) * np.float32(255))
    assert np.abs(whole - wanted).max() <= 1  # OpenVINO multiplies by the reciprocal
    for most in (1, 200):  # bytes: a class at a time, some
        monkeypatch.setattr(scaling, "_MOST_BYTES", most)
        np.testing.assert_array_equal(run(insert(model).model, image)["saliency_map"], whole)
