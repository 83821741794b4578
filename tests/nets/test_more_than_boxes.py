"""Detectors with unequal levels, or with masks, vectors or factors beside their boxes, and what only looks like one."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from model_zoo_fixtures.testbed.detection_oracle import definition
from model_zoo_fixtures.testbed.models import Builder
from model_zoo_fixtures.testbed.small_detectors import GRID, SIDE, Small, require_map, run
from xai_insert import Options, insert, plan_insertion
from xai_insert.errors import AmbiguousModelError, UnsupportedTaskError

IMAGE = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)


def rows_of_two_levels(classes):
    """Boxes and scores of each place in one row, decoded; the heads that score."""
    net, heads, rows = Small(), [], []
    for grid in (GRID, GRID // 2):
        if grid != GRID:
            net.coarser()
        heads.append(net.head(classes))
        boxes = net.op("Add", net.op("Exp", net.rows(net.head(4))), net.constant(net.centres(grid)))
        rows.append(net.op("Concat", boxes, net.op("Sigmoid", net.rows(heads[-1])), axis=2))
    net.boxes = net.op("Concat", *rows, axis=1)
    return net, heads


def test_a_joint_layer_of_unequal_anchors_is_found_on_every_level():
    """Channels by part and then by anchor; of few channels, any four columns may be hit."""
    net, classes, rows, scores = Small(), 6, [], []
    counts = (4, 6, 6)
    for level, anchors in enumerate(counts):
        if level:
            net.coarser()
        head = net.head(anchors * (4 + classes))
        apart = net.op("Reshape", head, net.constant([1, 4 + classes, anchors, -1]))
        flat = net.op("Reshape", net.op("Transpose", apart, perm=[0, 3, 2, 1]), net.constant([1, -1, 4 + classes]))
        parts = [
            net.op("Slice", flat, *(net.constant(np.array([n])) for n in (*ends, 2))) for ends in ((0, 4), (4, 99))
        ]
        centres = net.constant(np.repeat(net.centres(GRID >> level), anchors, axis=1))
        boxes = net.op("Add", net.op("Exp", parts[0]), centres)
        rows.append(net.op("Concat", boxes, net.op("Sigmoid", parts[1]), axis=2))
        scores.append(apart)
    net.boxes = net.op("Concat", *rows, axis=1)
    model = net.model(net.op("Identity", net.boxes))
    wanted = [
        part[:, 4:].swapaxes(1, 2).reshape(1, -1, GRID >> level, GRID >> level)
        for level, part in enumerate(run(model, scores, IMAGE))
    ]
    (found,) = run(insert(model, Options(output_dtype="f32", num_classes=classes)).model, ["saliency_map"], IMAGE)
    np.testing.assert_allclose(found, definition(wanted, counts, classes), atol=1e-5)


@pytest.mark.parametrize("classes", [4, 5])
def test_scores_of_the_image_beside_rows_of_boxes_leave_it_a_detector(classes):
    """A vector of features, or classes of the scene."""
    net, heads = rows_of_two_levels(classes)
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.feature))
    scene = net.op("MatMul", pooled, net.weight(8, 4))
    model = net.model(scene, pooled)
    assert require_map(model, heads, [1, 1], classes).task == "detection"


def test_a_mask_beside_rows_of_one_class_is_no_level():
    net, heads = rows_of_two_levels(1)
    mask = net.op("Sigmoid", net.op("Resize", net.head(1), "", net.constant(np.float32([1, 1, 4, 4]))))
    require_map(net.model(mask), heads, [1, 1], 1)


@pytest.mark.parametrize(("join", "told"), [("Add", None), ("Mul", "is multiplied by that of")])
def test_one_class_of_two_heads(join, told):
    net, squash = Small(), "Sigmoid" if join == "Mul" else "Identity"
    heads = [net.head(1), net.head(1)]
    both = net.op(join, *(net.op(squash, net.rows(head)) for head in heads))
    model = net.model(both if told else net.op("Sigmoid", both))
    if told:
        assert told in insert(model).report.reason
        return
    with pytest.raises(AmbiguousModelError, match="the score of the only class is the sum of"):
        insert(model)


def test_one_class_may_be_that_beside_a_background_or_the_factor():
    """Which `--num-classes 1` does not tell."""
    net = Small()
    shares, centre = net.head(4), net.head(2)
    apart = net.op("Reshape", net.rows(shares), net.constant([1, -1, 2]))
    scored = net.pick(net.op("Softmax", apart, axis=2), [1])
    net.boxes = net.boxes_of(2)
    model = net.model(
        net.op("Mul", scored, net.op("Reshape", net.op("Sigmoid", net.rows(centre)), net.constant([1, -1, 1])))
    )
    with pytest.raises(AmbiguousModelError, match="a background counted"):
        insert(model, Options(num_classes=1))
    assert require_map(model, [shares], [2], 2, num_classes=2).background == 0


@pytest.mark.parametrize("classes", [4, 80])
def test_maps_beside_sizes_and_offsets_are_told_by_their_number(classes):
    """CenterNet as its authors export it: neither squashed nor decoded."""
    net = Small()
    heads = [net.head(width) for width in (classes, 2, 2)]
    net.boxes = heads[1]
    model = net.model(heads[0], heads[2])
    with pytest.raises(AmbiguousModelError, match="--num-classes"):
        insert(model)
    require_map(model, heads[:1], [1], classes, num_classes=classes)


def test_boxes_scores_and_labels_above_a_threshold_are_of_a_detector():
    """As `boxes[keep], scores[keep], labels[keep]` of one image."""
    net = Small()
    head = net.head(3)
    every = net.op("Sigmoid", net.rows(head))
    first = net.constant(np.array(0))
    best, label, boxes = (
        net.op("Gather", value, first, axis=0)
        for value in (
            net.op("ReduceMax", every, axes=[2], keepdims=0),
            net.op("ArgMax", every, axis=2, keepdims=0),
            net.boxes,
        )
    )
    keep = net.op("NonZero", net.op("Greater", best, net.constant(np.float32(0.5))))
    rows = net.op("Gather", net.op("Transpose", keep, perm=[1, 0]), first, axis=1)
    net.boxes, best, label = (net.op("Gather", value, rows, axis=0) for value in (boxes, best, label))
    net.types[label] = TensorProto.INT64
    require_map(net.model(best, label), [head], [1], 3)


def test_descriptors_of_length_one_are_no_boxes():
    """Local features and how good they are, of one layer, as R2D2 and ALIKE give them."""
    net = Small()
    head = net.head(65)
    features, score = (
        net.op("Slice", head, *(net.constant(np.array([n])) for n in (*ends, 1))) for ends in ((0, 64), (64, 65))
    )
    net.boxes = net.op("Div", features, net.op("ReduceL2", features, axes=[1]))
    with pytest.raises(UnsupportedTaskError, match="is a value for every place"):
        plan_insertion(net.model(net.op("Sigmoid", score)))


@pytest.mark.parametrize(("channels", "steered"), [(4, False), (3, True)])
def test_new_values_of_an_image_are_no_classes(channels, steered):
    """As a denoiser of four channels, or one that a step steers, gives them."""
    b = Builder()
    x = b.node("Conv", "image", b.weight(8, channels, 3, 3), pads=[1] * 4)
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, 16, 16])]
    if steered:
        inputs.append(helper.make_tensor_value_info("step", TensorProto.FLOAT, [1, 8]))
        x = b.node("Add", x, b.node("Reshape", "step", b.const(np.array([1, 8, 1, 1]))))
    y = b.node("Conv", b.node("Relu", x), b.weight(4, 8, 1, 1))
    graph = b.model(y, inputs=inputs)
    with pytest.raises(AmbiguousModelError, match="--method class-score-map"):
        plan_insertion(graph)
    assert plan_insertion(graph, Options(method="class-score-map")).task == "semantic segmentation"


def test_levels_of_more_anchors_tell_the_order_of_channels():
    """The finest level, of one anchor, fits any order: class by class here, as `k * A + a`."""
    net, classes, counts = Small(), 4, (1, 3)
    heads, rows, boxes = [], [], []
    for level, anchors in enumerate(counts):
        if level:
            net.coarser()
        heads.append(net.head(anchors * classes))
        apart = net.op("Reshape", heads[-1], net.constant([1, classes, anchors, -1]))
        rows.append(net.op("Reshape", net.op("Transpose", apart, perm=[0, 3, 2, 1]), net.constant([1, -1, classes])))
        sides = net.op("Reshape", net.op("Exp", net.rows(net.head(4 * anchors))), net.constant([1, -1, 4]))
        centres = np.repeat(net.centres(GRID >> level), anchors, axis=1)
        boxes.append(net.op("Add", sides, net.constant(centres)))
    net.boxes = net.op("Concat", *boxes, axis=1)
    model = net.model(net.op("Sigmoid", net.op("Concat", *rows, axis=1)))
    raw = [
        part.reshape(1, classes, anchors, *part.shape[2:]).swapaxes(1, 2).reshape(part.shape)
        for part, anchors in zip(run(model, heads, IMAGE), counts, strict=True)
    ]
    (found,) = run(insert(model, Options(output_dtype="f32")).model, ["saliency_map"], IMAGE)
    np.testing.assert_allclose(found, definition(raw, counts, classes), atol=1e-5)


def test_a_level_that_a_mask_keeps_still_is_not_left_out():
    """Scores of places whose objectness passes no threshold are zero; where one level alone is asked through it."""
    net, classes = Small(), 3
    boxes, scores = [], []
    for level, bias in enumerate((-9, 9)):
        if level:
            net.coarser()
        gate = net.op("Greater", net.op("Add", net.rows(net.head(1)), net.constant(np.float32(bias))),
                      net.constant(np.float32(0)))  # fmt: skip
        gate = net.op("Cast", gate, to=TensorProto.FLOAT)
        scores.append(net.op("Mul", net.op("Sigmoid", net.rows(net.head(classes))), gate))
        boxes.append(net.op("Add", net.op("Exp", net.rows(net.head(4))), net.constant(net.centres(GRID >> level))))
    net.boxes = net.op("Concat", *boxes, axis=1)
    with pytest.raises(AmbiguousModelError, match="lets none through"):
        insert(net.model(net.op("Concat", *scores, axis=1)))


def test_the_mean_of_a_layer_of_another_branch_is_no_level():
    net = Small()
    heads = [net.head(3)]
    scores = net.op("Sigmoid", net.rows(heads[0]))
    net.coarser()
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.head(12))))
    require_map(net.model(scores, pooled), heads, [1], 3)


@pytest.mark.parametrize("width", [2, 17])
def test_one_score_beside_several_is_said_to_be_an_objectness_and_may_be_the_class(width):
    """As of pillars and their directions, or a box and the visibilities of its points."""
    net = Small()
    heads = [net.head(1), net.head(width)]
    model = net.model(net.op("Sigmoid", net.rows(heads[0])), net.op("Softmax", net.rows(heads[1]), axis=2))
    assert "is taken for objectness" in require_map(model, heads[1:], [1], width).reason
    require_map(model, heads[:1], [1], 1, num_classes=1)
