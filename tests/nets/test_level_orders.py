"""Detectors whose levels have their classes, anchors or background in orders of their own."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.detection_oracle import definition
from model_zoo_fixtures.testbed.models import as_format
from model_zoo_fixtures.testbed.nets import detectors
from model_zoo_fixtures.testbed.nets.detector_oracle import judge
from model_zoo_fixtures.testbed.small_detectors import GRID, SIDE, Small, run
from xai_insert import Options, insert, plan_insertion
from xai_insert.errors import AmbiguousModelError, UnsupportedTaskError

IMAGE = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
CLASSES = 5
FORMATS = pytest.mark.parametrize("kind", ["onnx", "openvino"])


def levels_of(net, count, make, anchors=1):
    """The results of `make` for levels of half the sides each; their boxes are joined."""
    found, boxes = [], []
    for level in range(count):
        if level:
            net.coarser()
        boxes.append(net.boxes_of(anchors, GRID >> level))
        found.append(make(level))
    net.boxes = net.op("Concat", *boxes, axis=1) if count > 1 else boxes[0]
    return found


def joined(net, rows, squash="Sigmoid"):
    scores = net.op("Concat", *rows, axis=1)
    return net.op(squash, scores, **({"axis": 2} if squash == "Softmax" else {}))


def require_map(model, kind, levels, classes=CLASSES, anchors=1):
    """Compare the map with the definition of raw scores `[1, anchors * classes, h, w]` of each level; the report."""
    made = insert(as_format(model, kind), Options(output_dtype="f32"))
    found = oracle.run(made.model, IMAGE)["saliency_map"]
    np.testing.assert_allclose(found, definition(levels, [anchors] * len(levels), classes), atol=1e-5)
    return made.report


BACK = [4, 3, 2, 1, 0]
ORDERS = {
    "the first": [BACK, None],
    "the second": [None, BACK],
    "two that change places in the middle": [None, [1, 0, 2, 3, 4], None],
    "each its own": [[1, 2, 3, 4, 0], [1, 0, 2, 3, 4], BACK],
    "all alike": [BACK, BACK],
}


@pytest.mark.parametrize("squash", ["Sigmoid", "Softmax"])
@pytest.mark.parametrize("case", ORDERS)
@FORMATS
def test_each_level_has_its_own_order_of_classes(case, squash, kind):
    net, orders, heads = Small(), ORDERS[case], []

    def rows(level):
        heads.append(net.head(CLASSES))
        return net.rows(net.pick(heads[-1], orders[level], axis=1) if orders[level] else heads[-1])

    model = net.model(joined(net, levels_of(net, len(orders), rows), squash))
    raw = run(model, heads, IMAGE)
    require_map(model, kind, [z[:, o] if o else z for z, o in zip(raw, orders, strict=True)])


@FORMATS
def test_levels_that_are_outputs_of_their_own(kind):
    net, heads = Small(), []

    def scores(level):
        heads.append(net.head(CLASSES))
        return net.op("Sigmoid", net.pick(net.rows(heads[-1]), BACK) if level else net.rows(heads[-1]))

    model = net.model(*levels_of(net, 2, scores))
    first, second = run(model, heads, IMAGE)
    require_map(model, kind, [first, second[:, BACK]])


@pytest.mark.parametrize("order", [None, BACK, [1, 0, 2, 3, 4]])
@FORMATS
def test_a_gain_of_each_class_is_no_other_order(kind, order):
    """And it is that of the class of the outputs, where a Gather stands before it."""
    net, scaled = Small(), []

    def rows(level):
        head = net.head(CLASSES)
        head = net.pick(head, order, axis=1) if order else head
        gain = net.constant(np.float32([3, 1, 0.2, 1, 2]).reshape(1, -1, 1, 1))
        scaled.append(net.op("Mul", head, gain) if level else head)
        return net.rows(scaled[-1])

    model = net.model(joined(net, levels_of(net, 2, rows)))
    require_map(model, kind, run(model, scaled, IMAGE))


def apart(net, head, anchors, grid, *, classes_first):
    """Rows of each anchor, of a head with the channels `[anchor, class]` or `[class, anchor]`."""
    sizes = [CLASSES, anchors] if classes_first else [anchors, CLASSES]
    parts = net.op("Reshape", head, net.constant(np.array([1, *sizes, grid, grid])))
    turned = net.op("Transpose", parts, perm=[0, 3, 4, 2, 1] if classes_first else [0, 3, 4, 1, 2])
    return net.op("Reshape", turned, net.constant(np.array([1, -1, CLASSES])))


@pytest.mark.parametrize("slower", [[False, True], [True, False], [True, True]])
@FORMATS
def test_each_level_has_its_own_layout_of_anchors(slower, kind):
    net, anchors, heads = Small(), 3, []

    def rows(level):
        heads.append(net.head(anchors * CLASSES))
        return apart(net, heads[-1], anchors, GRID >> level, classes_first=slower[level])

    model = net.model(joined(net, levels_of(net, 2, rows, anchors)))

    def anchors_first(raw, is_turned):
        *_, height, width = raw.shape
        return raw.reshape(1, CLASSES, anchors, height, width).swapaxes(1, 2).reshape(raw.shape) if is_turned else raw

    raw = run(model, heads, IMAGE)
    require_map(model, kind, list(map(anchors_first, raw, slower)), anchors=anchors)


@pytest.mark.parametrize(
    "orders", [(None, [1, 0, 2]), ([1, 0, 2], None), ([1, 2, 0], [1, 2, 0]), ([2, 1, 0], [0, 2, 1])]
)
@FORMATS
def test_as_many_anchors_as_classes_in_orders_of_their_own(orders, kind):
    """Along the anchors the channels look like classes that are slower."""
    net, count, heads = Small(), 3, []

    def rows(level):
        heads.append(net.head(count * count))
        grid = GRID >> level
        parts = net.op("Reshape", heads[-1], net.constant(np.array([1, count, count, grid, grid])))
        parts = net.pick(parts, orders[level], axis=2) if orders[level] else parts
        turned = net.op("Transpose", parts, perm=[0, 3, 4, 1, 2])
        return net.op("Reshape", turned, net.constant(np.array([1, -1, count])))

    model = net.model(joined(net, levels_of(net, 2, rows, count)))
    raw = []
    for z, order in zip(run(model, heads, IMAGE), orders, strict=True):
        parts = z.reshape(1, count, count, *z.shape[2:])
        raw.append((parts[:, :, order] if order else parts).reshape(z.shape))
    require_map(model, kind, raw, count, count)


@pytest.mark.parametrize("places", [(0, 5), (5, 0), (5, 5)])
@FORMATS
def test_each_level_has_its_own_background(places, kind):
    """The maps have the background where the first level has it."""
    net, heads = Small(), []

    def rows(level):
        heads.append(net.head(CLASSES + 1))
        kept = [label for label in range(CLASSES + 1) if label != places[level]]
        return net.pick(net.op("Softmax", net.rows(heads[-1]), axis=2), kept)

    model = net.model(net.op("Concat", *levels_of(net, 2, rows), axis=1))
    raw = run(model, heads, IMAGE)
    others = [[label for label in range(CLASSES + 1) if label != place] for place in places]
    turned = [
        z[:, [place, *rest] if places[0] == 0 else [*rest, place]]
        for z, place, rest in zip(raw, places, others, strict=True)
    ]
    assert require_map(model, kind, turned, CLASSES + 1).background == places[0]


@FORMATS
def test_a_level_that_lacks_a_class_of_another_order_is_refused(kind):
    net = Small()

    def rows(level):
        scores = net.op("Sigmoid", net.rows(net.head(CLASSES)))
        if not level:
            return scores
        nothing = net.constant(np.zeros((1, 16, 1), np.float32))
        return net.op("Concat", net.pick(scores, [1, 0, 2]), nothing, net.pick(scores, [4]), axis=2)

    model = net.model(net.op("Concat", *levels_of(net, 2, rows), axis=1))
    with pytest.raises(UnsupportedTaskError, match="arrive in another order than those of"):
        plan_insertion(as_format(model, kind))


@pytest.mark.parametrize("is_read_in_vain", [False, True])
@FORMATS
def test_a_gain_and_a_shift_behind_the_join_of_levels(is_read_in_vain, kind):
    """What leads to no output does not read: ONNX files keep it, IRs do not."""
    net, heads = Small(), []
    gain, shift = np.float32([3, 1, 0.2, 1, 2]), np.float32([1, -1, 2, 0, 0])

    def rows(level):
        heads.append(net.head(CLASSES))
        if is_read_in_vain:
            net.op("Relu", net.op("Mul", heads[-1], net.constant(np.float32(2))))
        return net.rows(heads[-1])

    joint = net.op("Concat", *levels_of(net, 2, rows), axis=1)
    scaled = net.op("Add", net.op("Mul", joint, net.constant(gain)), net.constant(shift))
    model = net.model(net.op("Sigmoid", scaled))
    raw = run(model, heads, IMAGE)
    require_map(model, kind, [z * gain.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1) for z in raw])


def test_levels_of_other_numbers_of_classes_are_refused():
    """One of them is misread, and their maps could not be averaged: onnxruntime did not load the model."""
    sample = detectors.generate(90251)
    with pytest.raises(UnsupportedTaskError, match=r"\(4 classes\).*\(3 classes\) do not tell one number"):
        insert(sample.model)


@FORMATS
def test_levels_of_one_size_with_outputs_of_their_own_are_both_explained(kind):
    """Of one class, whose one head reads what its boxes read: the other was taken for the only scores."""
    verdict = judge(detectors.generate(120044), lambda model: as_format(model, kind))
    assert verdict.judgement == "right", verdict.reason


def test_two_undecoded_heads_beside_decoded_boxes_want_the_number_of_classes():
    """Four raw classes were taken for boxes, and what stands beside them for the classes."""
    sample = detectors.generate(130803)
    with pytest.raises(AmbiguousModelError, match="give the number of classes, --num-classes"):
        insert(sample.model)
    assert insert(sample.model, Options(num_classes=4)).report.saliency_map["shape"][1] == 4
