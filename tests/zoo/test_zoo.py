"""The promise "found by structure", on graphs of real exports: target, predictions and map of each.

The default run takes a subset; `pytest --zoo -n 2 tests/zoo/test_zoo.py` takes them all.
"""

import numpy as np
import openvino as ov

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.oracle import image_for, load
from tests.zoo import zoo_table
from xai_insert import Options, insert_file

QUICK = [
    "deit_tiny_distilled_patch16_224",
    "levit_128",
    "mobilenetv3_large_100",
    "resnet18_catavgmax",
    "resnet18_gem",
    "squeezenet1_1",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
]
POSITIONS = 4

# Another order of summation in float32, relative to the largest score of the definition.
TOLERANCE = 1e-5

# Known exceptions, each with its reason. These have no map by masks, and get the derivative of the best class:
UNMASKED = {
    "crossvit_9_240": "two branches of tokens are read",
    "coat_lite_tiny": "its attention has no softmax over tokens",
    "hf_cvt": "convolutions pool its keys, which are no function of one token",
}
# In these the tap keeps the runtime from merging two operations of the model: largest relative difference.
MOVED = {"resnet50_clip.legacy": 5e-6, "resnet50_clip.dynamo": 5e-6, "torchvision_vit_b_32.onnxir": 5e-6}
# Before 2026.2, OpenVINO merged two operations of transformers as its ONNX reader gives them, but not beside a tap.
_MERGES = tuple(map(int, ov.__version__.split(".")[:2])) < (2026, 2)
# Scores are differences of large sums: rounding of a state-space model with random weights.
ROUNDED = {"efficientvim_m1": 1e-4}


def pytest_generate_tests(metafunc):
    whole = metafunc.config.getoption("--zoo")
    chosen = [f for f in fixtures(task="classification") if whole or f.arch in QUICK]
    metafunc.parametrize("fixture", chosen, ids=[f.id for f in chosen])


def masks_of(report, shape):
    """`[P, ...]`: what the definition multiplies the masked values by, one mask for each position tested."""
    height, width = report.target["grid"]
    cells = height * width
    chosen = np.random.default_rng(1).choice(cells, min(cells, POSITIONS), replace=False)
    if report.method == "vit-recipro-cam":
        prefix = shape[1] - cells
        rows, columns = (np.eye(n) / 2 + np.eye(n, k=1) / 4 + np.eye(n, k=-1) / 4 for n in (height, width))
        weights = np.concatenate([np.ones((cells, prefix)), np.kron(rows, columns)], axis=1)
        return chosen, [weights[i].reshape(1, -1, 1).astype(np.float32) for i in chosen]
    grid_axes = report.target["grid_axes"]
    sizes = [shape[axis] if axis in grid_axes else 1 for axis in range(len(shape))]
    return chosen, [np.eye(cells, dtype=np.float32)[i].reshape(sizes) for i in chosen]


def test_fixture(fixture, tmp_path, record_property):
    path = materialise(fixture, tmp_path)
    if fixture.arch in UNMASKED:
        report = insert_file(path, tmp_path / f"new{path.suffix}")
        assert report.method == "hirescam"
        assert "in place of Recipro-CAM" in report.reason
        assert report.output_difference <= 5e-6
        zoo_table.record(record_property, fixture, report, report.map_difference, exact=True)
        return
    report = insert_file(path, tmp_path / f"new{path.suffix}", Options(output_dtype="f32", check=False))
    expected = fixture.expected
    if "grid" in expected:
        assert report.target["grid"] == tuple(expected["grid"])
    assert report.logits["classes"] == expected["classes"]

    plain = load(path)
    image = image_for(plain)
    before, after = oracle.run(plain, image), oracle.run(load(tmp_path / f"new{path.suffix}"), image)
    moved = MOVED.get(fixture.id, 5e-6 if _MERGES and fixture.id.endswith(".onnxir") else 0)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=moved * np.abs(value).max())

    parts = oracle.Parts(plain, report.target["masked"], report.logits["name"])
    features, logits = parts.values(image)
    chosen, masks = masks_of(report, features[0].shape)
    raw = after["saliency_map"].reshape(*after["saliency_map"].shape[:2], -1)
    scores = np.stack([parts.head(image, *(feature * mask for feature in features)) for mask in masks], axis=-1)
    scale = max(np.abs(scores).max(), np.abs(logits).max())
    difference = float(np.abs(raw[..., chosen] - scores).max() / scale)
    is_masked = report.form == "masked runs"
    exact = is_masked and zoo_table.exact_map(path, tmp_path)
    zoo_table.record(record_property, fixture, report, difference, exact=exact if is_masked else None)
    assert exact or not is_masked
    assert difference <= ROUNDED.get(fixture.arch, TOLERANCE)
    assert np.ptp(raw, axis=-1).mean() > 1e-5 * scale, "the map is flat, so the comparison says little"
