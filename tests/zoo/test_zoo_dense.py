"""Pose models, anomaly detectors and segmenters of the zoo: what is found, and the map against NumPy on the outputs."""

import numpy as np

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.detection_oracle import resized
from model_zoo_fixtures.testbed.oracle import load
from tests.zoo import zoo_table
from xai_insert import Options, insert_file

QUICK = ["hf_dpt", "hf_vitpose", "rtmpose_cspnext_tiny", "padim_resnet18"]
CELL, THRESHOLD = 4, 0.5
EVERY = {"keypoints": "keypoint-map", "anomaly": "anomaly-map"}
SEGMENTED = ("segmentation",)


def pytest_generate_tests(metafunc):
    whole = metafunc.config.getoption("--zoo")
    chosen = [f for f in fixtures(task={*EVERY, *SEGMENTED}) if whole or f.arch in QUICK]
    metafunc.parametrize("fixture", chosen, ids=[f.id for f in chosen])


def shares(scores):
    """Softmax over bins, and the sum over those of four pixels, two for each."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found = powers / powers.sum(axis=-1, keepdims=True)
    return found.reshape(*found.shape[:-1], -1, 2 * CELL).sum(axis=-1)


def expected_map(fixture, outputs):
    """The raw map `[K, h, w]`."""
    if fixture.task == "anomaly":
        return outputs[fixture.expected["map"]][0]
    if fixture.expected["layout"] == "maps":
        return outputs[0][0]
    columns, rows = (shares(array[0].astype(np.float64)) for array in outputs)
    return rows[:, :, None] * columns[:, None, :]


def between_corners(maps, grid):
    """Bilinear, centres of the corner cells aligned."""
    for axis, size in zip((2, 3), grid, strict=True):
        before = maps.shape[axis]
        places = np.linspace(0, before - 1, size)
        weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(before)))
        maps = np.moveaxis(np.tensordot(weights, maps, (1, axis)), 0, axis)
    return maps


def of_segmenter(fixture, path, folder, record):
    """The raw scores, enlarged by another hand, are the output; their bytes are those of the raw scores."""
    new = folder / f"new{path.suffix}"
    picture = np.random.default_rng(0).standard_normal((1, *fixture.input_shape[1:]), dtype=np.float32)
    report = insert_file(path, new, Options(output_dtype="f32"))
    assert report.method == "class-score-map"
    assert report.place in {"blocks", "axes"}  # attention of random weights mixes places
    (scores,) = oracle.run(load(path), picture).values()
    same, raw = oracle.run(load(new), picture).values()
    assert raw.shape == (1, fixture.expected["classes"], *fixture.expected["grid"])
    np.testing.assert_array_equal(same, scores)
    enlarged = between_corners if fixture.expected.get("resize") == "corners" else resized
    np.testing.assert_allclose(enlarged(raw, scores.shape[2:]), scores, atol=1e-5 * np.abs(scores).max())
    insert_file(path, new)
    levels = np.abs(oracle.run(load(new), picture)["saliency_map"].astype(int) - oracle.scaled(raw))
    zoo_table.record(record, fixture, report, float((levels > 1).mean()))
    assert (levels <= 1).mean() >= 0.999


def test_fixture(fixture, tmp_path, record_property):
    if fixture.task in SEGMENTED:
        of_segmenter(fixture, materialise(fixture, tmp_path), tmp_path, record_property)
        return
    path = materialise(fixture, tmp_path)
    report = insert_file(path, tmp_path / f"new{path.suffix}")
    grid, maps = tuple(fixture.expected["grid"]), fixture.expected.get("joints", 1)
    assert report.method == EVERY[fixture.task]
    assert report.saliency_map["shape"] == (1, maps, *grid)
    assert report.place == (None if fixture.expected.get("layout") == "bins" else "blocks")
    picture = np.random.default_rng(0).standard_normal((1, *fixture.input_shape[1:]), dtype=np.float32)
    before, after = oracle.run(load(path), picture), oracle.run(load(tmp_path / f"new{path.suffix}"), picture)
    for value, same in zip(before.values(), after.values(), strict=False):
        assert value.dtype == same.dtype
        np.testing.assert_array_equal(same, value)
    raw = expected_map(fixture, list(before.values())).astype(np.float32)
    has_threshold = fixture.expected.get("map") == 2
    wanted = np.floor(255 * (raw / (2 * THRESHOLD)).clip(0, 1)) if has_threshold else oracle.scaled(raw)
    levels = np.abs(after["saliency_map"][0].astype(int) - wanted)
    zoo_table.record(record_property, fixture, report, float((levels > 1).mean()))
    assert (levels <= 1).mean() >= 0.999
