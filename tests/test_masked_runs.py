"""Masked runs in ONNX: a Loop that both runtimes read, whose masks are computed and not stored."""

import numpy as np
import onnx
import openvino as ov
import pytest

from tests import deployed, oracle
from tests.models import CHANNELS, attention_pooled, classifier
from xai_insert import Options, insert

RAW = {"output_dtype": "f32"}


def deep(b):
    """Normalised before the pool, with a side of its own for height and width."""
    x = b.node("Conv", b.backbone(), b.weight(CHANNELS, CHANNELS, 3, 3), pads=[1] * 4)
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", x))), CHANNELS)


CASES = {
    "attention pool": (attention_pooled, {}),
    "a deeper layer": (deep, {"target_layer": "Relu_4"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(12, 12), (12, 20)])
def test_both_runtimes_read_masked_runs(name, size):
    network, options = CASES[name]
    new = insert(classifier(network, batch=2, size=size), Options(**RAW, **options))
    assert new.report.form == "masked runs"
    assert "Loop" in {node.op_type for node in new.model.graph.node}
    image = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    wanted = oracle.run(new.model, image)["saliency_map"]
    read = ov.Core().read_model(new.model.SerializeToString())
    found = ov.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image)["saliency_map"]
    assert np.ptp(wanted) > 0
    assert np.allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_a_transformer_runs_masked_in_both_runtimes():
    options = Options(**RAW, method="vit-recipro-cam", block=2)
    new, other = (insert(deployed.plain("shapes_vit", suffix), options) for suffix in (".onnx", ".xml"))
    assert {new.report.form, other.report.form} == {"masked runs"}
    images = deployed.scenes(2)
    wanted = oracle.run(new.model, images)["saliency_map"]
    read = ov.Core().read_model(new.model.SerializeToString())
    for model in (read, other.model):
        found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)["saliency_map"]
        assert np.allclose(found, wanted, rtol=0, atol=1e-4 * abs(wanted).max())


def test_masks_are_not_stored():
    model = classifier(deep, size=(160, 160), batch=1)
    new = insert(model, Options(**RAW, target_layer="Relu_4", check=False))
    assert new.report.target["grid"] == (80, 80)
    assert len(new.model.SerializeToString()) < len(model.SerializeToString()) + 100_000
    onnx.checker.check_model(new.model)
