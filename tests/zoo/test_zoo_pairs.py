"""Models of two images of the zoo: a map for each in both formats, against masked runs outside of the tool."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed import oracle
from tests.zoo import zoo_table
from xai_insert import Options, insert_file

FOUND = fixtures(task="image-pair")
FEEDS = {
    name: np.random.default_rng(seed).random((2, 3, 96, 96), np.float32) for seed, name in enumerate(("image", "other"))
}


def definition(path, features, which, grid):
    """Scores `[B, K, h, w]` where one image keeps one place of its feature alone, by the model's own head."""
    plain = onnx.shape_inference.infer_shapes(onnx.load(path))
    extract = onnx.utils.Extractor(plain).extract_model
    first = oracle.session(extract(list(FEEDS), features))
    values = dict(zip(features, first.run(features, FEEDS), strict=True))
    head = oracle.session(extract(features, [plain.graph.output[0].name]))
    maps = []
    for place in np.ndindex(*grid):
        kept = np.zeros_like(values[features[which]])
        kept[(slice(None), slice(None), *place)] = values[features[which]][(slice(None), slice(None), *place)]
        maps.append(head.run(None, {**values, features[which]: kept})[0])
    return np.stack(maps, axis=-1).reshape(*maps[0].shape, *grid)


@pytest.mark.long  # as `--zoo` does
@pytest.mark.parametrize("fixture", FOUND, ids=[fixture.id for fixture in FOUND])
def test_fixture(fixture, tmp_path, record_property):
    path = materialise(fixture, tmp_path)
    grid = tuple(fixture.expected["grid"])
    plain, difference = oracle.session(onnx.load(path)).run(None, FEEDS)[0], 0.0
    for suffix in (".onnx", ".xml"):
        report = insert_file(path, tmp_path / f"new{suffix}", Options(output_dtype="f32"))
        (beside,) = report.beside
        assert (report.method, report.form, beside["form"]) == ("recipro-cam", "closed form", "closed form")
        if suffix == ".onnx":
            features = [report.target["name"], beside["target"]["name"]]
            wanted = [definition(path, features, which, grid) for which in range(2)]
        model = oracle.load(tmp_path / f"new{suffix}")
        if suffix == ".onnx":
            session = oracle.session(model)
            outputs = dict(zip([item.name for item in session.get_outputs()], session.run(None, FEEDS), strict=True))
        else:
            found = oracle.compiled(model)(FEEDS)
            outputs = {min(port.get_names()): value for port, value in found.items()}
        for name, each in zip(("saliency_map", "saliency_map_2"), wanted, strict=True):
            difference = max(difference, float(np.abs(outputs[name] - each).max() / np.abs(plain).max()))
        np.testing.assert_allclose(next(iter(outputs.values())), plain, atol=1e-5)
    assert difference < 1e-5
    zoo_table.record(record_property, fixture, report, difference)
