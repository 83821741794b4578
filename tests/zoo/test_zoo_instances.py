"""Instance segmenters of the zoo: what is found, predictions, and the map against its definition on the outputs."""

import numpy as np

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed import instance_oracle as definition
from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.instance_oracle import opened
from model_zoo_fixtures.testbed.oracle import load
from tests.zoo import zoo_table
from xai_insert import insert_file

QUICK = ["maskformer_resnet", "rtmdet_ins", "yolov8n_seg"]


def pytest_generate_tests(metafunc):
    whole = metafunc.config.getoption("--zoo")
    chosen = [f for f in fixtures(task="instance-segmentation") if whole or f.arch in QUICK]
    metafunc.parametrize("fixture", chosen, ids=[f.id for f in chosen])


def expected_map(fixture, outputs, size, grid):
    """The definition on a model's own outputs, in the order that the manifest names them in, and what it counts."""
    layout, classes = fixture.expected["layout"], fixture.expected["classes"]
    if layout == "locations":
        columns, prototypes = outputs[0][0], outputs[1][0]
        count = (columns[4 : 4 + classes].max(axis=0) > 0.25).sum()
        return definition.yolo_locations(columns, prototypes, size, grid), count
    if layout == "rows":
        rows, prototypes = outputs[0][0], outputs[1][0]
        return definition.yolo_rows(rows, prototypes, size, grid, classes), (rows[:, 4] > 0).sum()
    if layout == "queries":
        logits, masks = outputs[0][0], outputs[1][0]
        return definition.queries(logits, masks, grid), (logits.argmax(axis=1) < classes).sum()
    named = dict(zip(fixture.expected["outputs"], outputs, strict=True))
    boxes, masks = named["boxes"], named["masks"]
    boxes, masks = boxes.reshape(-1, boxes.shape[-1]), masks.reshape(-1, *masks.shape[-2:])
    scores = named["scores"] if "scores" in named else boxes[:, 4]
    labels = named["labels"].reshape(-1)
    return definition.listed(boxes[:, :4], labels, scores, masks, size, grid, classes), len(labels)


def test_fixture(fixture, tmp_path, record_property):
    path = materialise(fixture, tmp_path)
    report = insert_file(path, tmp_path / f"new{path.suffix}")
    size = fixture.input_shape[2:]
    grid = (size[0] // 4, size[1] // 4)
    classes = fixture.expected["classes"]
    assert report.method == "instance-masks"
    assert report.saliency_map["shape"] == (1, classes, *grid)

    picture = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
    before, after = opened(load(path))(picture), opened(load(tmp_path / f"new{path.suffix}"))(picture)
    for value, same in zip(before, after, strict=False):
        np.testing.assert_array_equal(same, value)
    raw, count = expected_map(fixture, before, size, grid)
    assert count > 0, "nothing is found, so the comparison says little"
    levels = np.abs(after[-1][0].astype(int) - oracle.scaled(raw.astype(np.float32)))
    zoo_table.record(record_property, fixture, report, float((levels > 1).mean()))
    assert (levels <= 1).mean() >= 0.999
