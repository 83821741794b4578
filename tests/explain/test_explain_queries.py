"""Detectors with queries: boxes with the maps of their queries, and outputs that have no names."""

import pytest

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed.explaining import IMAGES, fine, records
from xai_insert import Options, insert_file


@pytest.mark.parametrize("method", ["activation-map", "query-attention"])
def test_boxes_of_queries_are_drawn_with_their_maps(method, tmp_path):
    (fixture,) = (f for f in fixtures(task="detection") if f.id == "hf_yolos.ptir")
    inserted = tmp_path / "new.xml"
    insert_file(
        materialise(fixture, tmp_path), inserted, Options(per_box=True, num_classes=20, method=method, check=False)
    )
    result = fine(inserted, IMAGES[0], "-o", tmp_path / "out", "--threshold", "0.05")
    assert "no boxes" not in result.stderr
    (record,) = records(tmp_path / "out")
    assert record["predictions"]
    assert all("box" in item for item in record["predictions"])
    drawn = {tuple(item["grid"]) for item in record["maps"]}
    assert (20, 16) in drawn
    assert len(record["maps"]) > 1
