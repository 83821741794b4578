"""Image and text, and embeddings of the zoo: what is found in both formats, and the map against its definition."""

import numpy as np
import pytest

from model_zoo_fixtures import fixtures, materialise
from tests.zoo import zoo_table
from xai_insert import Options, insert_file

TASKS = {"image-text": "image and text", "embedding": "embedding"}
FORMS = {"class_token": "vit-recipro-cam", "attention_pool": "recipro-cam"}
FOUND = fixtures(task=set(TASKS))


@pytest.mark.parametrize("fixture", FOUND, ids=[fixture.id for fixture in FOUND])
def test_fixture(fixture, tmp_path, record_property):
    path = materialise(fixture, tmp_path)
    for suffix in (".xml", ".onnx"):
        report = insert_file(path, tmp_path / f"new{suffix}", Options(output_dtype="f32"))
        assert (report.task, report.form) == (TASKS[fixture.task], "closed form")
        assert report.method == FORMS[fixture.expected["collapse"]]
        assert list(report.target["grid"]) == fixture.expected["grid"]
        assert report.saliency_map["shape"][1] == (1 if fixture.task == "embedding" else None)
        assert report.map_difference < 1e-5
        assert report.output_difference == pytest.approx(0, abs=1e-6)
        assert report.place == "blocks"
    zoo_table.record(record_property, fixture, report, float(np.float32(report.map_difference)))
