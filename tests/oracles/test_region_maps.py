"""Maps of the boxes that two-stage detectors report: against their definition in NumPy, region by region."""

import numpy as np
import onnx
import pytest

from model_zoo_fixtures.testbed import models, oracle, region_oracle
from model_zoo_fixtures.testbed.detection_oracle import values
from model_zoo_fixtures.testbed.region_models import CLASSES, HEIGHT, SCALE, STRIDES, WIDTH, Net
from xai_insert import Options, errors, insert

COARSE = (HEIGHT // STRIDES[1], WIDTH // STRIDES[1])
LAYOUTS = [
    ("scattered", "flatten", "lists"),
    ("sorted", "mean", "rows"),
    ("one", "res5", "best"),
    ("scattered", "mean", "best"),
]


def image(seed=1):
    return np.random.default_rng(seed).standard_normal((1, 3, HEIGHT, WIDTH), dtype=np.float32)


def reported_rows(net, outputs):
    """Left, top, right, bottom in pixels, score and class of each reported row."""
    if net.report in ("lists", "masks"):
        return outputs[0] / np.array((SCALE if net.report == "lists" else (1, 1)) * 2), outputs[1], outputs[2]
    if net.report == "rows":
        return outputs[0][0, :, :4], outputs[0][0, :, 4], outputs[1][0]
    return outputs[0][:, [1, 0, 3, 2]] * np.array([WIDTH, HEIGHT] * 2), outputs[1], outputs[2]


def definition(tmp_path, net, outputs, grid):
    """`[M, h, w]`, from the plain model."""
    path = tmp_path / "plain.onnx"
    onnx.save(net.model, path)
    features, scores, regions = values(path, [net.feature, net.scores, net.regions], image())
    head = region_oracle.region_head(net.model, net.feature, net.logits)
    unit = np.array([grid[1] / WIDTH, grid[0] / HEIGHT] * 2)
    maps = []
    for box, score, label in zip(*reported_rows(net, outputs), strict=True):
        if score == 0:  # padding
            maps.append(np.zeros(grid))
            continue
        number = region_oracle.region_of(scores, score, label)
        assert number is not None, "the score does not tell its region"
        raw = region_oracle.masked_logits(head, features[number], label)
        maps.append(region_oracle.laid(raw, regions[number] * unit, box * unit, grid))
    return np.stack(maps)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(("levels", "head", "report"), LAYOUTS)
@pytest.mark.parametrize("size", [None, (17, 23)])
def test_definition(tmp_path, kind, levels, head, report, size):
    net = Net(levels, head, report)
    result = insert(models.as_format(net.model, kind), Options(per_box=True, output_dtype="f32", saliency_size=size))
    outputs = oracle.run(result.model, image())
    grid = size or (COARSE if levels != "one" else (HEIGHT // STRIDES[0], WIDTH // STRIDES[0]))
    expected = definition(tmp_path, net, list(outputs.values()), grid)
    assert len(expected) >= 3
    assert (expected.max((1, 2)) > 0).sum() >= 3
    maps = outputs["saliency_map_per_box"]
    np.testing.assert_allclose(maps[0], expected, atol=1e-5 * expected.max())
    assert result.report.output_difference == 0


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("size", [None, (17, 23)])
def test_boxes_of_a_segmenter(tmp_path, kind, size):
    net = Net(report="masks")
    plain = insert(models.as_format(net.model, kind), Options(output_dtype="f32", saliency_size=size))
    result = insert(models.as_format(net.model, kind), Options(per_box=True, output_dtype="f32", saliency_size=size))
    outputs = oracle.run(result.model, image())
    grid = size or (HEIGHT // 4, WIDTH // 4)
    expected = definition(tmp_path, net, list(outputs.values()), grid)
    assert len(expected) >= 3
    np.testing.assert_allclose(outputs["saliency_map_per_box"][0], expected, atol=1e-5 * expected.max())
    assert result.report.method == "instance-masks"
    np.testing.assert_array_equal(outputs["saliency_map"], oracle.run(plain.model, image())["saliency_map"])


@pytest.mark.parametrize("kind", models.FORMATS)
def test_each_map_is_scaled_to_bytes(kind):
    model = models.as_format(Net().model, kind)
    raw = oracle.run(insert(model, Options(per_box=True, output_dtype="f32")).model, image())["saliency_map_per_box"]
    maps = oracle.run(insert(model, Options(per_box=True)).model, image())["saliency_map_per_box"]
    assert maps.dtype == np.uint8
    assert np.abs(maps.astype(int) - oracle.scaled(raw.astype(np.float64)).astype(int)).max() <= 1
    assert (maps.max((2, 3)) == 255).any()


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("report", ["lists", "best"])
def test_no_detection_gives_no_map(kind, report):
    net = Net(report=report)
    bias = next(node for node in net.model.graph.node if net.logits in node.output).input[2]
    for tensor in net.model.graph.initializer:
        if tensor.name == bias:  # a background that is always sure, or classes that never are
            sure = np.float32([50, 0, 0, 0]) if report == "lists" else np.full(CLASSES, -50, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(sure, bias))
    result = insert(models.as_format(net.model, kind), Options(per_box=True))
    outputs = oracle.run(result.model, image())
    assert next(iter(outputs.values())).shape == (0, 4)
    assert outputs["saliency_map_per_box"].shape == (1, 0, *COARSE)


@pytest.mark.parametrize("kind", models.FORMATS)
def test_boxes_smaller_than_a_cell_keep_their_map(kind):
    net = Net(side=2.0)
    outputs = oracle.run(insert(models.as_format(net.model, kind), Options(per_box=True)).model, image())
    boxes = next(iter(outputs.values())) / np.array(SCALE * 2)
    sides = boxes[:, 2:] - boxes[:, :2]
    inner = (boxes[:, :2].min(1) > 0.5) & (boxes[:, 2] < WIDTH - 0.5) & (boxes[:, 3] < HEIGHT - 0.5)
    assert inner.sum() >= 3
    assert sides.max() < STRIDES[1]
    assert (outputs["saliency_map_per_box"][0, inner].max((1, 2)) > 0).all()


def test_report_names_what_was_found():
    net = Net()
    report = insert(net.model, Options(per_box=True)).report
    assert report.per_box["feature"] == net.feature
    assert report.per_box["logits"] == net.logits
    assert report.per_box["regions"] == net.regions
    assert report.per_box["boxes_format"] == "xyxy"
    assert "saliency_map_per_box [1, ?, 4, 5]" in report.text()


def test_boxes_with_y_first_are_told():
    report = insert(Net(report="best").model, Options(per_box=True)).report
    assert report.per_box["boxes_format"] == "yxyx"


def test_refused_where_the_head_attends():
    with pytest.raises(errors.UnsupportedTaskError, match="--per-box"):
        insert(Net(head="attention").model, Options(per_box=True))


def test_refused_where_scores_are_changed_on_the_way():
    net = Net()
    b = net.b
    half = b.node("Mul", net.model.graph.output[1].name, b.const(np.float32(0.5)))
    changed = b.model(net.model.graph.output[0].name, half, net.model.graph.output[2].name)
    with pytest.raises(errors.UnsupportedTaskError, match="reports class scores"):
        insert(changed, Options(per_box=True))


def test_of_one_image_where_the_model_takes_no_more():
    net = Net()
    net.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    result = insert(net.model, Options(per_box=True))
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert "one image at a time" in result.report.text()


def test_without_per_box_nothing_is_asked_of_the_head():
    result = insert(Net(head="attention").model)
    assert result.report.method == "activation-map"
