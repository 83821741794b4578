"""Scores in 0..1 that are given as maps beside raw boxes, and scores of a joint layer that a softmax ties."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import models, oracle
from model_zoo_fixtures.testbed.detection_oracle import definition
from model_zoo_fixtures.testbed.small_detectors import SIDE, Small, run
from xai_insert import Options, insert
from xai_insert.errors import AmbiguousModelError


def given_as_maps(anchors, classes, *, softmax=False, bins=1):
    """As RetinaNet is exported for accelerators: squashed scores and raw boxes of each level."""
    net, heads, outputs = Small(), [], []
    for level in range(2):
        if level:
            net.coarser()
        heads.append(net.head(anchors * classes))
        scores = heads[-1]
        if softmax:
            apart = net.op("Reshape", scores, net.constant([1, anchors, classes, -1]))
            scores = net.op("Reshape", net.op("Softmax", apart, axis=2), net.op("Shape", scores))
        outputs.append((scores if softmax else net.op("Sigmoid", scores), net.head(4 * anchors * bins)))
    (net.boxes, *boxes), scores = ([pair[index] for pair in outputs] for index in (1, 0))
    return net.model(*scores, *boxes), heads


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(("anchors", "classes", "softmax"), [(2, 3, True), (6, 7, True), (9, 3, False), (1, 5, False)])
def test_raw_boxes_tell_how_many_a_place_has(anchors, classes, softmax, kind):
    model, heads = given_as_maps(anchors, classes, softmax=softmax)
    made = insert(models.as_format(model, kind), Options(output_dtype="f32"))
    assert [head["anchors"] for head in made.report.heads] == [anchors] * 2
    assert ("boxes of each place" in made.report.reason) == (anchors == 9)
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    wanted = definition(run(model, heads, image), [anchors] * 2, classes)
    np.testing.assert_allclose(oracle.run(made.model, image)["saliency_map"], wanted, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_axes_of_their_own_for_boxes_and_classes_are_told_apart_by_the_boxes(last):
    """Of each level `[N, A, K, h, w]`, or `[N, h, w, A, K]`."""
    net, anchors, classes = Small(), 3, 5
    heads, outputs = [], []
    for level in range(2):
        if level:
            net.coarser()
        made = [net.head(anchors * width) for width in (classes, 4)]
        heads.append(made[0])
        for head, width in zip(made, (classes, 4), strict=True):
            apart = net.op("Reshape", head, net.constant([1, anchors, width, *[8 >> level] * 2]))
            outputs.append(net.op("Transpose", apart, perm=[0, 3, 4, 1, 2]) if last else apart)
    (net.boxes, *boxes), scores = outputs[1::2], [net.op("Sigmoid", value) for value in outputs[::2]]
    require_map(net.model(*scores, *boxes), heads, anchors, classes)


@pytest.mark.parametrize(("bins", "classes"), [(2, 6), (3, 15), (4, 4)])
def test_as_many_numbers_as_those_of_boxes_ask_for_the_number_of_classes(bins, classes):
    """The four of several boxes, or bins, corners and variances of one."""
    model, heads = given_as_maps(1, classes, bins=bins)
    with pytest.raises(AmbiguousModelError, match=f"--num-classes {classes} or {classes // bins}"):
        insert(model)
    for count in (classes, classes // bins):
        require_map(model, heads, classes // count, count, num_classes=count)


@pytest.mark.parametrize(("bins", "classes"), [(8, 24), (16, 80), (17, 51)])
def test_more_numbers_than_boxes_of_a_place_are_bins(bins, classes):
    """As YOLOv8 is exported for accelerators; the report says what is taken for granted."""
    model, heads = given_as_maps(1, classes, bins=bins)
    assert f"if they are {bins} boxes, say so with --num-classes {classes // bins}" in insert(model).report.reason
    require_map(model, heads, 1, classes)
    require_map(model, heads, bins, classes // bins, num_classes=classes // bins)


def require_map(model, heads, anchors, classes, **options):
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    wanted = definition(run(model, heads, image), [anchors] * 2, classes)
    (found,) = run(insert(model, Options(output_dtype="f32", **options)).model, ["saliency_map"], image)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("anchors", [1, 3])
def test_scores_that_a_softmax_ties_have_no_objectness(anchors):
    """Of a joint layer: the first score is a class, as all of them are shares of one."""
    net, classes = Small(), 4
    head = net.head(anchors * (4 + classes))
    apart = net.op("Reshape", head, net.constant([1, anchors, 4 + classes, -1]))
    sides, scores = (
        net.op("Slice", apart, *(net.constant(np.array([value])) for value in (start, stop, 2)))
        for start, stop in ((0, 4), (4, 4 + classes))
    )
    rows = [net.op("Reshape", net.op("Transpose", part, perm=[0, 3, 1, 2]), net.constant([1, -1, width]))
            for part, width in ((sides, 4), (net.op("Softmax", scores, axis=2), classes))]  # fmt: skip
    boxes = net.op("Add", net.op("Exp", rows[0]), net.constant(np.repeat(net.centres(), anchors, axis=1)))
    net.boxes = net.op("Concat", boxes, rows[1], axis=2)
    model = net.model(net.op("Identity", net.boxes))
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    (raw,) = run(model, [apart], image)
    wanted = definition([raw[:, :, 4:].reshape(1, -1, 8, 8)], [anchors], classes)
    (found,) = run(insert(model, Options(output_dtype="f32")).model, ["saliency_map"], image)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_rows_of_sigmoids_have_boxes_among_them():
    """YOLO's heads with a sigmoid over all, joined, and decoded by who calls them: boxes, objectness, classes."""
    net, anchors, classes = Small(), 3, 5
    width = 5 + classes
    heads, rows = [], []
    for level in range(2):
        if level:
            net.coarser()
        heads.append(net.head(anchors * width))
        apart = net.op("Reshape", heads[-1], net.constant([1, anchors, width, -1]))
        rows.append(net.op("Reshape", net.op("Transpose", apart, perm=[0, 1, 3, 2]), net.constant([1, -1, width])))
    net.boxes = net.op("Sigmoid", net.op("Concat", *rows, axis=1))
    model = net.model(net.op("Identity", net.boxes))
    del model.graph.output[1:]
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    raw = [head.reshape(1, anchors, width, *head.shape[2:])[:, :, 5:] for head in run(model, heads, image)]
    wanted = definition([part.reshape(1, -1, *part.shape[3:]) for part in raw], [anchors] * 2, classes)
    for options in ({}, {"num_classes": classes}):
        made = insert(model, Options(output_dtype="f32", **options))
        assert "channels 5 to 9 are taken for its classes" in made.report.reason
        (found,) = run(made.model, ["saliency_map"], image)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_classes_parted_among_layers_are_said_to_be_those_behind_others():
    net = Small()
    rows = [net.op("Sigmoid", net.rows(net.head(width))) for width in (2, 3)]
    net.boxes = net.op("Concat", net.boxes, *rows, axis=2)
    model = net.model(net.op("Identity", net.boxes))
    with pytest.raises(AmbiguousModelError, match="two heads could hold the class scores"):
        insert(model)
    reasons = [insert(model, Options(num_classes=count)).report.reason for count in (2, 3)]
    assert ["stand before them in each row" in reason for reason in reasons] == [False, True]
