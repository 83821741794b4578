"""ODAM beside slopes of each reported box's own score, cell by cell of the map that the class branch begins with."""

import numpy as np
import onnx
import pytest
from onnx.utils import Extractor

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed import query_models as queries
from model_zoo_fixtures.testbed.detection_oracle import resized, values
from model_zoo_fixtures.testbed.detector_models import ANCHORS, CLASSES, GRIDS, SIDE, Net, reporting_detector
from xai_insert import Options, errors, insert, plan_insertion

STEP = 3e-3


def tower(b, x):
    """Two convolutions with an activation written in parts, and a norm: zeros around the map at every one."""
    x = b.node("Conv", x, b.weight(6, 6, 3, 3, scale=0.2), b.weight(6), pads=[1] * 4)
    x = b.node("Mul", x, b.node("Sigmoid", x))
    x = b.node("Conv", x, b.weight(6, 2, 3, 3, scale=0.3), pads=[1] * 4, group=3)
    scale = [b.const(np.abs(np.linspace(0.5, 1.5, 6)).astype(np.float32)) for _ in range(4)]
    return b.node("Tanh", b.node("BatchNormalization", x, *scale))


def dense(net, path, images, boxes, labels):
    """`[N, M, h, w]`: every cell of the branch's map grown and shrunk in turn."""
    *features, decoded = values(path, [*net.maps, net.boxes], images)
    total = np.zeros((*labels.shape, GRIDS[1], GRIDS[1]))
    start = 0
    for grid, name, feature, head in zip(GRIDS, net.maps, features, net.heads[::2], strict=True):
        session = oracle.session(Extractor(onnx.shape_inference.infer_shapes(net.model)).extract_model([name], [head]))
        slopes = np.zeros((len(images), ANCHORS * CLASSES, grid, grid, grid, grid))
        for row, column in np.ndindex(grid, grid):
            both = []
            for sign in (1, -1):
                moved = feature.copy()
                moved[:, :, row, column] *= 1 + sign * STEP
                both.append(session.run(None, {name: moved})[0].astype(float))
            slopes[:, :, :, :, row, column] = (both[0] - both[1]) / (2 * STEP)
        count = grid * grid * ANCHORS
        for item, box in np.ndindex(labels.shape):
            place = int(np.abs(decoded[item] - boxes[item, box]).sum(axis=1).argmin()) - start
            if not 0 <= place < count:
                continue
            sizes = (ANCHORS, grid, grid) if net.anchors_first else (grid, grid, ANCHORS)
            where = np.unravel_index(place, sizes)
            anchor, row, column = where if net.anchors_first else (where[2], *where[:2])
            made = np.maximum(slopes[item, anchor * CLASSES + labels[item, box], row, column], 0)
            total[item, box] += resized(made[None, None], (GRIDS[1], GRIDS[1]))[0, 0]
        start += count
    return total


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    ("anchors_first", "decoded", "report", "is_free"),
    [(False, "xyxy", "rows", False), (False, "xyxy", "rows", True), (True, "cxcywh", "lists", False)],
)
def test_odam_is_the_derivative_of_each_box(tmp_path, anchors_first, decoded, report, is_free, kind):
    made = {"anchors_first": anchors_first, "decoded": decoded, "reported": decoded, "report": report}
    net = Net(exclusive=False, tower=tower, **made)
    batch = (3 if is_free else 2) if report == "rows" else 1
    images = np.random.default_rng(3).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)
    onnx.save(net.model, tmp_path / "net.onnx")
    shapes = {"image": images.shape} if report == "rows" and not is_free else {}
    options = Options(method="odam", per_box=True, output_dtype="f32", input_shapes=shapes)
    result = insert(models.as_format(net.model, kind), options)
    assert result.report.output_difference == 0
    outputs = oracle.run(result.model, images)
    first, *rest = list(outputs.values())
    boxes = first[..., :4] if report == "rows" else first[None]
    labels = first[..., 5].astype(int) if report == "rows" else rest[0].astype(int)[None] - 1
    assert boxes.shape[1] >= 3
    wanted = dense(net, tmp_path / "net.onnx", images, boxes, labels)
    assert wanted.max((2, 3)).min() > 0
    np.testing.assert_allclose(outputs["saliency_map_per_box"], wanted, atol=1e-3 * wanted.max())


@pytest.mark.parametrize("kind", models.FORMATS)
def test_no_detection_gives_no_map(kind):
    result = insert(models.as_format(reporting_detector(), kind), Options(method="odam", per_box=True))
    outputs = oracle.run(result.model, np.full((1, 3, 128, 128), 127, np.float32))
    assert outputs["saliency_map_per_box"].shape == (1, 0, 8, 8)


def test_what_odam_wants():
    with pytest.raises(errors.UnsupportedTaskError, match="add --per-box"):
        plan_insertion(reporting_detector(), Options(method="odam"))


QUERY_STEP = 1e-2


def by_values(net, path, images):
    """`[N, M, h, w]`: every cell that the last look of the queries reads grown and shrunk in turn."""
    (height, width), total = queries.GRIDS[0], 0.0
    logits = values(path, [net.logits], images)[0]
    best = logits.argmax(-1)
    for name, grid in net.read:
        (read,) = values(path, [name], images)
        session = oracle.session(
            Extractor(onnx.shape_inference.infer_shapes(net.model)).extract_model([name, "image"], [net.logits])
        )
        cells = grid[0] * grid[1]
        flat = (
            read.reshape(len(images), queries.HEADS, *read.shape[-2:])
            if net.look == "dense"
            else read.reshape(len(images), queries.HEADS, -1, cells).swapaxes(2, 3)
        )
        slopes = np.zeros((len(images), queries.QUERIES, cells))
        for cell in range(cells):
            both = []
            for sign in (1, -1):
                moved = flat.copy()
                moved[:, :, cell] *= 1 + sign * QUERY_STEP
                moved = moved if net.look == "dense" else moved.swapaxes(2, 3)
                found = session.run(None, {name: moved.reshape(read.shape), "image": images})[0].astype(float)
                both.append(np.take_along_axis(found, best[..., None], 2)[..., 0])
            slopes[:, :, cell] = (both[0] - both[1]) / (2 * QUERY_STEP)
        made = np.maximum(slopes, 0).reshape(len(images), -1, *grid)
        total = total + resized(made, (height, width))
    if net.report == "best":
        rows = values(path, [net.query], images)[0].astype(int)
        total = np.stack([item[row] for item, row in zip(total, rows, strict=True)])
    return total


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(("look", "report"), [("dense", "raw"), ("grid", "scores"), ("gather", "best")])
def test_odam_of_queries_is_the_derivative_by_what_they_read(tmp_path, look, report, kind):
    net = queries.Net(look, report)
    path = tmp_path / "net.onnx"
    onnx.save(net.model, path)
    images = np.random.default_rng(3).standard_normal((2, 3, *queries.SIZE), dtype=np.float32)
    classes = queries.CLASSES if report == "raw" else None
    options = Options(method="odam", per_box=True, output_dtype="f32", num_classes=classes)
    result = insert(models.as_format(net.model, kind), options)
    outputs = oracle.run(result.model, images)
    wanted = by_values(net, path, images)
    assert wanted.max((2, 3)).min() > 0
    np.testing.assert_allclose(outputs["saliency_map_per_box"], wanted, atol=1e-3 * wanted.max())
    assert result.report.output_difference == 0
