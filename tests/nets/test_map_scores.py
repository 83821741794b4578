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
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("anchors", "classes"), [(2, 3), (3, 5), (6, 7), (9, 3), (1, 5)])
def test_raw_boxes_tell_how_many_a_place_has(anchors, classes, softmax, kind):
    model, heads = given_as_maps(anchors, classes, softmax=softmax)
    made = insert(models.as_format(model, kind), Options(output_dtype="f32"))
    assert [head["anchors"] for head in made.report.heads] == [anchors] * 2
    assert ("boxes of each place" in made.report.reason) == (anchors > 1)
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    wanted = definition(run(model, heads, image), [anchors] * 2, classes)
    np.testing.assert_allclose(oracle.run(made.model, image)["saliency_map"], wanted, atol=1e-5)


@pytest.mark.parametrize(("bins", "classes"), [(8, 16), (16, 32), (4, 4)])
def test_as_many_bins_as_boxes_ask_for_the_number_of_classes(bins, classes):
    model, heads = given_as_maps(1, classes, bins=bins)
    with pytest.raises(AmbiguousModelError, match=f"--num-classes {classes} or {classes // bins}"):
        insert(model)
    for count in (classes, classes // bins):
        image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
        raw = run(model, heads, image)
        (found,) = run(insert(model, Options(output_dtype="f32", num_classes=count)).model, ["saliency_map"], image)
        np.testing.assert_allclose(found, definition(raw, [classes // count] * 2, count), atol=1e-5)


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
