"""FakeConvert, as NNCF writes FP8 models: the branch does not round."""

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest

from model_zoo_fixtures.testbed import oracle
from xai_insert import Options, insert

RAW = Options(output_dtype="f32")
WANTED = Options(output_dtype="f32", check=False)  # of the plain twin


def rounded(x, kind, low=False):
    if not low:
        return x
    scale, shift = np.array(448 / 4 if kind == "f8e4m3" else 57344 / 4, np.float32), np.array(0, np.float32)
    return opset.fake_convert(x, scale, shift, kind)


def build(kind, *, low):
    rng = np.random.default_rng(0)
    image = opset.parameter([2, 3, 16, 16], np.float32, name="image")
    image.output(0).set_names({"image"})
    weight = rounded(opset.constant(rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)), kind, low)
    x = opset.relu(opset.convolution(rounded(image, kind, low), weight, [2, 2], [1, 1], [1, 1], [1, 1]))
    x = opset.reduce_mean(rounded(x, kind, low), np.array([2, 3]), False)
    weight = rounded(opset.constant(rng.normal(0, 0.3, (16, 8)).astype(np.float32)), kind, low)
    x = opset.relu(opset.matmul(rounded(x, kind, low), weight, False, True))
    weight = rounded(opset.constant(rng.normal(0, 0.3, (5, 16)).astype(np.float32)), kind, low)
    logits = opset.matmul(rounded(x, kind, low), weight, False, True)
    logits.output(0).set_names({"logits"})
    return ov.Model([opset.result(logits)], [image], "eight")


@pytest.mark.parametrize("kind", ["f8e4m3", "f8e5m2"])
def test_the_branch_of_an_fp8_model_does_not_round(kind):
    new = insert(build(kind, low=True), RAW)
    assert new.report.output_difference == 0
    assert new.report.map_difference <= 1e-5
    read_by_branch = [
        node
        for node in new.model.get_ordered_ops()
        if node.get_friendly_name().startswith("xai/") and node.get_type_name() == "FakeConvert"
    ]
    assert not read_by_branch
    image = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    wanted = oracle.run(insert(build(kind, low=False), WANTED).model, image)["saliency_map"]
    found = oracle.run(new.model, image)["saliency_map"]
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.95
