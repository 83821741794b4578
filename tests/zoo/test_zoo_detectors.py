"""Detectors of the zoo: the class scores found are those of the PyTorch model, and the map is the definition's.

The default run takes a subset; `pytest --zoo -n 2 tests/zoo/test_zoo_detectors.py` takes them all.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from model_zoo_fixtures import fixtures, materialise
from model_zoo_fixtures.testbed import detection_oracle, oracle, region_oracle
from model_zoo_fixtures.testbed.oracle import load
from model_zoo_fixtures.testbed.quick import some
from tests.zoo import zoo_table
from xai_insert import Options, errors, insert_file
from xai_insert.formats.backend import load as load_model

QUICK = {
    "centernet.ptir",
    "fasterrcnn_mobilenet_v3_large_320_fpn.ptir",
    "hf_detr.legacy",
    "hf_rt_detr.dynamo",
    "otx_ssd_mobilenetv2.onnxir",
    "ssd_dense_drop_first.legacy",
    "ssdlite320_mobilenet_v3_large.ptir",
    "yolo26n_e2e.dynamo",
    "yolov5_anchor.legacy",
    "yolov8n.onnxir",
    "yolov8n_nc1.ptir",
}
# Undecoded heads of 3 x 4 box channels beside 3 x 4 class channels, in six outputs: no width tells them apart.
NAMED = {"retina_raw_nc4_a3": 3}
QUERIES = {
    "lwdetr_t.ptir": 100,
    "hf_detr.legacy": 30,
    "hf_yolos.ptir": 20,
    "hf_rt_detr.dynamo": 40,
    "libre_dfine.onnxir": 300,
}
ENOUGH = 0.999  # share of pixels at most one step of 255 away


def pytest_generate_tests(metafunc):
    whole = metafunc.config.getoption("--zoo")
    detectors, segmenters = fixtures(task="detection"), fixtures(task="instance-segmentation")
    two_stages = [f for f in detectors if f.expected["kind"] == "two_stage"]
    two_stages += [f for f in segmenters if f.arch.startswith("maskrcnn")]
    for name, known in (("fixture", detectors), ("two_stages", two_stages)):
        if name in metafunc.fixturenames:
            chosen = [f for f in known if whole or f.id in QUICK]
            metafunc.parametrize(name, chosen, ids=[f.id for f in chosen])


def test_fixture(fixture, tmp_path, record_property):
    path = materialise(fixture, tmp_path)
    inserted = tmp_path / f"new{path.suffix}"
    try:
        report = insert_file(path, inserted, Options(check=False))
    except errors.AmbiguousModelError:  # undecoded heads, whose widths fit several readings
        options = Options(check=False, num_classes=fixture.expected["classes"])
        if fixture.arch in NAMED:
            with pytest.raises(errors.AmbiguousModelError, match="--output NAME says which are classes"):
                insert_file(path, inserted, options)
            names = load_model(path, {}).view().output_names[: NAMED[fixture.arch]]
            options = replace(options, output=",".join(names))
        report = insert_file(path, inserted, options)
    shape = [abs(size) for size in fixture.input_shape]
    image = np.random.default_rng(11).standard_normal(shape, dtype=np.float32)
    before, after = oracle.run(load(path), image), oracle.run(load(inserted), image)
    ours = after.pop("saliency_map")
    for old, new in zip(before.values(), after.values(), strict=True):
        np.testing.assert_array_equal(new, old)
    close = max(detection_oracle.share_within_one(ours, map_) for map_ in _wanted(fixture, path, image, ours))
    zoo_table.record(record_property, fixture, report, 1 - close)
    assert close >= ENOUGH
    assert np.ptp(ours.reshape(*ours.shape[:-2], -1), axis=-1).max() > 0, "the map is flat, so it says little"


@pytest.mark.long
def test_boxes_of_two_stages(two_stages, tmp_path):
    path = materialise(two_stages, tmp_path)
    inserted = tmp_path / f"new{path.suffix}"
    found = insert_file(path, inserted, Options(per_box=True, output_dtype="f32")).per_box
    shape = [abs(size) for size in two_stages.input_shape]
    image = np.random.default_rng(11).random(shape, dtype=np.float32)
    plain = load(path)
    before, after = oracle.run(plain, image), oracle.run(load(inserted), image)
    for name, old in before.items():
        np.testing.assert_array_equal(after[name], old)
    maps = after["saliency_map_per_box"][0]
    names = two_stages.expected.get("outputs", ["boxes", "scores", "labels"])
    reported = dict(zip(names, before.values(), strict=True))
    boxes, labels = reported["boxes"], reported["labels"].astype(int)
    if "scores" not in reported:  # a column of the boxes; labels leave out the background, the first class
        reported["scores"], labels = boxes[:, 4], labels + 1
    features, logits, regions = detection_oracle.values(
        path, [found["feature"], found["logits"], found["regions"]], image
    )
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    head = region_oracle.region_head(plain, found["feature"], found["logits"])
    unit = np.array([maps.shape[2] / shape[3], maps.shape[1] / shape[2]] * 2)
    compared, largest = 0, 0.0
    for map_, box, score, label in zip(maps, boxes[:, :4], reported["scores"], labels, strict=True):
        number = region_oracle.region_of(shares, score, label)
        if number is not None:  # equal scores do not tell their regions
            raw = region_oracle.masked_logits(head, features[number], label)
            wanted = region_oracle.laid(raw, regions[number] * unit, box * unit, maps.shape[1:])
            largest = max(largest, wanted.max())
            np.testing.assert_allclose(map_, wanted, atol=1e-5 * max(np.abs(raw).max(), 1e-3))
            compared += 1
    assert compared >= 3
    assert largest > 0


@pytest.mark.parametrize("id_", QUERIES)
def test_every_query_of_a_real_export_has_a_map_whose_sum_is_its_attention(id_, tmp_path):
    fixture = next(f for f in fixtures(task="detection") if f.id == id_)
    path = materialise(fixture, tmp_path)
    classes = fixture.expected["classes"] - (fixture.expected["background"] >= 0)
    inserted = tmp_path / f"new{path.suffix}"
    insert_file(path, inserted, Options(per_box=True, output_dtype="f32", num_classes=classes))
    image = np.random.default_rng(1).standard_normal([abs(s) for s in fixture.input_shape], dtype=np.float32)
    outputs = oracle.run(load(inserted), image)
    maps = outputs["saliency_map_per_box"]
    logits = next(array for array in outputs.values() if array.shape[-1] == fixture.expected["classes"])
    if classes < logits.shape[-1]:
        scores = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[..., :-1]
    else:
        scores = 1 / (1 + np.exp(-logits))
    assert maps.shape[1] == QUERIES[id_]
    shares = maps.sum((2, 3)) / scores.max(-1)
    assert shares.max() <= 1 + 1e-4
    assert shares.mean() > 0.5  # the class token, other queries and points outside take the rest


@pytest.mark.parametrize(
    "id_",
    some(
        [f"otx_{arch}_mobilenetv2.{how}" for arch in ("ssd", "atss") for how in ("legacy", "onnxir")],
        "otx_ssd_mobilenetv2.legacy",
    ),
)
def test_boxes_of_several_images_have_the_maps_of_each(id_, tmp_path):
    """SSD decodes the boxes of all images in one list, ATSS where it has selected."""
    fixture = next(f for f in fixtures(task="detection") if f.id == id_)
    path = materialise(fixture, tmp_path)
    inserted = tmp_path / f"new{path.suffix}"
    insert_file(path, inserted, Options(per_box=True, output_dtype="f32"))
    images = np.random.default_rng(11).random((2, *fixture.input_shape[1:]), dtype=np.float32) * 255
    both = oracle.run(load(inserted), images)
    for number in range(2):
        for name, alone in oracle.run(load(inserted), images[number : number + 1]).items():
            np.testing.assert_allclose(both[name][number], alone[0], atol=1e-5)


def _wanted(fixture, path, image, ours):
    """The map by its definition, or those of all features where no location has a class score."""
    expected = fixture.expected
    if expected["kind"] in ("single_stage", "encoder_scores"):
        levels = detection_oracle.raw_scores(path, fixture.tensors, expected, image)
        wanted = detection_oracle.definition(levels, expected["anchors"], expected["classes"])
        assert ours.shape == wanted.shape
        return [oracle.scaled(wanted)]
    maps = []
    for array, (height, width) in zip(_maps(fixture, path, image), expected["grids"], strict=True):
        map_ = array.mean(axis=1) if array.ndim == 4 else array.reshape(len(image), height, width, -1).mean(axis=-1)
        maps.append(oracle.scaled(map_.astype(np.float64)))
    found = [map_ for map_ in maps if map_.shape == ours.shape]
    assert found, f"the map has shape {ours.shape}, the features have {[map_.shape for map_ in maps]}"
    return found


def _maps(fixture, path, image):
    """Feature maps; tokens of several levels in one tensor are split."""
    arrays = detection_oracle.values(path, fixture.tensors, image)
    grids = fixture.expected["grids"]
    if len(arrays) == len(grids) and arrays[0].ndim == 4:
        return arrays
    start = fixture.expected["row_offset"]
    bounds = start + np.cumsum([0, *(height * width for height, width in grids)])
    tokens = arrays[0].reshape(len(image), -1, arrays[0].shape[-1])
    return [tokens[:, low:high] for low, high in itertools.pairwise(bounds)]


@pytest.mark.parametrize("anchors", [1, 3])
def test_definition_resizes_as_torch_does(anchors):
    # torch.nn.functional.interpolate(torch.arange(12.).reshape(1, 1, 3, 4), (2, 2), mode="bilinear")
    level = np.arange(12.0).reshape(1, 1, 3, 4)
    np.testing.assert_allclose(detection_oracle.resized(level, (2, 2))[0, 0], [[1.5, 3.5], [7.5, 9.5]])
    flat = np.tile(level, (1, anchors, 1, 1))
    both = detection_oracle.definition([flat, level[..., :2, :2]], [anchors, 1], 1)
    np.testing.assert_allclose(both[0, 0], [[0.75, 2.25], [5.75, 7.25]])
