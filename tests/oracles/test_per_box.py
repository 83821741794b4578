"""Maps of reported boxes: against their definition in NumPy, and told apart where two objects of one class overlap."""

import numpy as np
import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.shapes.dataset import overlapping_scene
from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.detection_oracle import values
from model_zoo_fixtures.testbed.detector_models import DETECTOR, SIDE, Net, found_objects, reporting_detector
from model_zoo_fixtures.testbed.quick import some
from xai_insert import Options, errors, insert


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    ("anchors_first", "exclusive", "decoded", "reported", "report"),
    [
        (False, False, "xyxy", "xyxy", "rows"),
        (True, True, "xyxy", "xyxy", "rows"),
        (False, True, "cxcywh", "xyxy", "lists"),
        (True, False, "cxcywh", "cxcywh", "lists"),
        (False, False, "xyxy", "xyxy", "late"),
        (False, False, "xyxy", "xyxy", "elements"),
    ],
)
def test_definition(tmp_path, kind, anchors_first, exclusive, decoded, reported, report):
    net = Net(anchors_first=anchors_first, exclusive=exclusive, decoded=decoded, reported=reported, report=report)
    rng = np.random.default_rng(3)
    images = rng.standard_normal((2 if report in ("rows", "elements") else 1, 3, SIDE, SIDE), dtype=np.float32)
    path = tmp_path / "net.onnx"
    onnx.save(net.model, path)
    model = net.model if kind == "onnx" else ov.Core().read_model(path)
    result = insert(model, Options(per_box=True, output_dtype="f32"))
    outputs = oracle.run(result.model, images)
    maps = outputs["saliency_map_per_box"]
    first, *rest = list(outputs.values())
    if report in ("rows", "elements"):
        boxes, labels = first[..., :4], first[..., 5].astype(int) + exclusive
    else:
        boxes, labels = first[None], rest[0].astype(int)[None] - 1 + exclusive
    assert boxes.shape[1] >= 3
    expected = net.expected(values(path, net.heads, images), images, boxes, labels)
    assert expected.max((2, 3)).min() > 0.05  # every box has voters
    np.testing.assert_allclose(maps, expected, atol=2e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_boxes_of_chosen_scores_in_a_fixed_batch(tmp_path, kind):
    """EfficientDet: elements are taken for each image on its own, so any batch will do."""
    net = Net(anchors_first=True, exclusive=False, decoded="xyxy", reported="xyxy", report="elements")
    images = np.random.default_rng(5).standard_normal((2, 3, SIDE, SIDE), dtype=np.float32)
    onnx.save(net.model, tmp_path / "net.onnx")
    model = models.as_format(net.model, kind)
    name = "image" if kind == "onnx" else model.input(0).any_name
    result = insert(model, Options(per_box=True, output_dtype="f32", input_shapes={name: (2, 3, SIDE, SIDE)}))
    first, *_, maps = oracle.run(result.model, images).values()
    plain = values(tmp_path / "net.onnx", net.heads, images)
    expected = net.expected(plain, images, first[..., :4], first[..., 5].astype(int))
    np.testing.assert_allclose(maps, expected, atol=2e-5)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("wide", [(1.5, 2, 20), (12, 16, 20)])
def test_anchors_larger_than_the_image(tmp_path, kind, wide):
    """SSD and ATSS: boxes that are cut off to the whole image follow no location, until they are made smaller."""
    net = Net(anchors_first=False, exclusive=False, decoded="xyxy", reported="xyxy", report="late", wide=wide)
    images = np.random.default_rng(3).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
    onnx.save(net.model, tmp_path / "net.onnx")
    result = insert(models.as_format(net.model, kind), Options(per_box=True, output_dtype="f32"))
    outputs = oracle.run(result.model, images)
    boxes, labels, *_ = outputs.values()
    plain = values(tmp_path / "net.onnx", net.heads, images)
    expected = net.expected(plain, images, boxes[None], labels.astype(int)[None] - 1)
    np.testing.assert_allclose(outputs["saliency_map_per_box"], expected, atol=1e-4)


@pytest.mark.parametrize("kind", some(models.FORMATS, "onnx"))
def test_tells_overlapping_objects_of_one_class_apart(kind):
    model = insert(models.as_format(reporting_detector(), kind), Options(per_box=True)).model
    scenes = in_own = in_other = 0
    for seed in range(30):
        scene = overlapping_scene(seed)
        outputs = oracle.run(model, scene.model_input())
        boxes, _, labels, _, maps = outputs.values()
        chosen = found_objects(scene, boxes, labels)
        if chosen is None:
            continue
        scenes += 1
        for number, own, other in zip(chosen, scene.objects, scene.objects[::-1], strict=True):
            row, column = np.unravel_index(maps[0, number].argmax(), maps.shape[2:])
            place = (column + 0.5) * 128 / maps.shape[3], (row + 0.5) * 128 / maps.shape[2]
            in_own += own.contains(*place)
            in_other += other.contains(*place) and not own.contains(*place)
    assert scenes >= 8
    assert in_other == 0
    assert in_own == 2 * scenes


@pytest.mark.parametrize("kind", models.FORMATS)
def test_no_detection_gives_no_map(kind):
    result = insert(models.as_format(reporting_detector(), kind), Options(per_box=True))
    outputs = oracle.run(result.model, np.full((1, 3, 128, 128), 127, np.float32))
    assert outputs["found"].shape == (0, 4)
    assert outputs["saliency_map_per_box"].shape == (1, 0, 8, 8)


def test_size_is_an_option():
    scene = overlapping_scene(0)
    result = insert(reporting_detector(), Options(per_box=True, saliency_size=(20, 24)))
    outputs = oracle.run(result.model, scene.model_input())
    assert outputs["saliency_map_per_box"].shape == (1, len(outputs["label"]), 20, 24)
    assert all(one.max() == 255 for one in outputs["saliency_map_per_box"][0])
    assert "saliency_map_per_box [1, ?, 20, 24] of 'found'" in result.report.text()


def test_a_list_of_boxes_of_several_images_is_refused():
    model = reporting_detector()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    with pytest.raises(errors.ShapeUnknownError, match="--input-shape"):
        insert(model, Options(per_box=True))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_refused_where_the_number_of_chosen_locations_is_built_in(kind):
    layout = {"anchors_first": False, "exclusive": False, "decoded": "xyxy", "reported": "xyxy", "report": "late"}
    net = Net(**layout, count_baked=True)
    with pytest.raises(errors.UnsupportedTaskError, match="--per-box"):
        insert(models.as_format(net.model, kind), Options(per_box=True))


def test_refused_without_reported_boxes():
    with pytest.raises(errors.UnsupportedTaskError, match="reports the boxes"):
        insert(DETECTOR, Options(per_box=True))


def test_of_one_image_where_the_model_takes_no_more():
    """One list of chosen locations, whatever batch is declared: the plain model fails for two images."""
    net = Net(anchors_first=False, exclusive=False, decoded="xyxy", reported="xyxy", report="late")
    net.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    result = insert(net.model, Options(per_box=True))
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert "one image at a time, since Squeeze" in result.report.text()


def test_refused_for_a_classifier():
    with pytest.raises(errors.UnsupportedTaskError, match="--per-box"):
        insert(models.classifier(models.flattened), Options(per_box=True))
