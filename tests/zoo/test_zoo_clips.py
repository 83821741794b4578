"""Models of clips of the zoo: what is found, and maps against their definition."""

from itertools import product

import numpy as np

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.oracle import load
from tests.zoo import zoo_table
from xai_insert import Options, insert_file

QUICK = {"clip_r3d.ptir", "clip_tsn.legacy", "clip_videomae.legacy", "clip_vivit.ptir", "clip_timesformer.legacy"}
AROUND = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def pytest_generate_tests(metafunc):
    whole = metafunc.config.getoption("--zoo")
    chosen = [f for f in fixtures(task="video-classification") if whole or f.id in QUICK]
    metafunc.parametrize("fixture", chosen, ids=[f.id for f in chosen])


def mask_of(fixture, place, shape):
    """What the definition keeps of a feature of that shape."""
    mask = np.zeros(fixture.expected["grid"], np.float32)
    mask[place] = 1
    if fixture.expected["method"] == "vit-recipro-cam":
        time, row, column = place
        for i, j in product(*map(range, mask.shape[1:])):
            near = abs(i - row) < 2 and abs(j - column) < 2
            mask[time, i, j] = AROUND[1 + i - row, 1 + j - column] if near else 0
    if fixture.arch == "clip_timesformer":
        mask = mask.transpose(1, 2, 0)
    if fixture.arch == "clip_tsn":
        return mask[:, None]
    if len(shape) == 5:
        return mask[None, None]
    before = np.ones(shape[1] - mask.size, np.float32)
    return np.concatenate([before, mask.reshape(-1)])[None, :, None]


def test_fixture(fixture, tmp_path, record_property):
    path = materialise(fixture, tmp_path)
    inserted = tmp_path / f"new{path.suffix}"
    report = insert_file(path, inserted, Options(output_dtype="f32"))
    assert (report.method, report.place) == (fixture.expected["method"], "blocks")
    clip = np.random.default_rng(5).standard_normal(fixture.input_shape, dtype=np.float32)
    plain = load(path)
    before, after = oracle.run(plain, clip), oracle.run(load(inserted), clip)
    maps = after.pop("saliency_map")[0]
    for old, new in zip(before.values(), after.values(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert list(maps.shape) == [fixture.expected["classes"], *fixture.expected["grid"]]
    parts = oracle.Parts(plain, report.target["masked"], _scores(plain))
    features = parts.features(clip)
    wanted = np.zeros_like(maps)
    for place in product(*map(range, maps.shape[1:])):
        kept = [feature * mask_of(fixture, place, feature.shape) for feature in features]
        wanted[(slice(None), *place)] = parts.head(clip, *kept)[0]
    difference = float(np.abs(maps - wanted).max() / np.abs(wanted).max())
    is_masked = report.form == "masked runs"
    exact = is_masked and zoo_table.exact_map(path, tmp_path)
    zoo_table.record(record_property, fixture, report, difference, exact=exact if is_masked else None)
    assert exact or not is_masked
    assert difference <= 1e-5


def _scores(model):
    """The layer or value that is the only output."""
    if hasattr(model, "graph"):
        return model.graph.output[0].name
    return model.get_results()[0].input_value(0).get_node().get_friendly_name()
