"""Detectors whose boxes, anchors or objectness could be taken for classes, or classes for them."""

import numpy as np
import pytest
from onnx import TensorProto

from model_zoo_fixtures.testbed.detection_oracle import definition
from model_zoo_fixtures.testbed.small_detectors import GRID, SIDE, WIDTH, Small, require_map, run
from xai_insert import Options, insert
from xai_insert.errors import AmbiguousModelError, XaiInsertError


def test_one_class_is_not_its_gate():
    net = Small()
    tower = net.op("LeakyRelu", net.op("Conv", net.feature, net.weight(WIDTH, WIDTH, 1, 1)))
    box, gate = (net.op("Conv", tower, net.weight(count, WIDTH, 1, 1)) for count in (4, 1))
    net.boxes = net.op("Add", net.op("Exp", net.rows(box)), net.constant(net.centres()))
    head = net.head(1)
    scores = net.op("Mul", *(net.op("Sigmoid", net.rows(value)) for value in (head, gate)))
    model = net.model(net.op("Sqrt", scores))
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    made = insert(model, Options(output_dtype="f32")).model
    np.testing.assert_allclose(*run(made, ["saliency_map", head], image), atol=1e-5)


def test_another_score_of_each_box_is_named():
    """Of one class: which of two scores is its own, and which an objectness or a centre-ness, nothing tells."""
    net = Small()
    heads = [net.head(1), net.head(1)]
    report = insert(net.model(*(net.op("Sigmoid", net.rows(head)) for head in heads))).report
    assert f"{heads[1]!r} scores each box too" in report.text()


def test_a_class_of_its_own_layer_is_no_objectness():
    """Beside other classes, where no box stands before it; joined behind what flattens, it is refused."""
    net = Small()
    parts = [net.op("Sigmoid", net.rows(net.head(width))) for width in (1, 4)]
    with pytest.raises(AmbiguousModelError, match="two heads could hold the class scores"):
        insert(net.model(net.op("Concat", *parts, axis=2)), Options())


def test_an_objectness_stands_between_box_and_classes():
    net = Small()
    parts = [net.head(1), net.head(4)]
    net.boxes = net.op("Concat", net.boxes, *(net.op("Sigmoid", net.rows(part)) for part in parts), axis=2)
    model = net.model(net.op("Identity", net.boxes))
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    made = insert(model, Options(output_dtype="f32")).model
    saliency, raw = run(made, ["saliency_map", parts[1]], image)
    np.testing.assert_allclose(saliency, np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("anchors", [1, 2])
def test_rows_of_a_location_and_a_class(anchors, by_class):
    """Each box stands there as often as there are classes: it is no anchor of its own."""
    net, classes, number = Small(), 3, anchors * GRID * GRID
    head, box = net.head(anchors * classes), net.boxes_of(anchors)
    scores = net.op("Reshape", net.op("Sigmoid", net.rows(head)), net.constant(np.array([1, -1, classes])))
    shape = [1, classes, number, 4] if by_class else [1, number, classes, 4]
    each = net.op("Expand", net.op("Unsqueeze", box, net.constant([1 if by_class else 2])), net.constant(shape))
    net.boxes = net.op("Reshape", each, net.constant(np.array([1, -1, 4])))
    scores = net.op("Transpose", scores, perm=[0, 2, 1]) if by_class else scores
    model = net.model(net.op("Reshape", scores, net.constant(np.array([1, -1]))))
    require_map(model, [head], [anchors], classes)


@pytest.mark.parametrize("width", [5, 8])
@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("are_joined", [False, True])
def test_boxes_of_more_than_four_numbers(are_joined, classes, width):
    """With an angle, or four corners: anchors of one class are no classes, nor are four classes a box."""
    net, anchors = Small(), 3
    head = net.head(anchors * classes)
    sides = net.op("Reshape", net.op("Tanh", net.rows(net.head(anchors * width))), net.constant([1, -1, width]))
    places = np.zeros((1, anchors * GRID * GRID, width), np.float32)
    places[..., :2] = np.repeat(net.centres()[..., :2], anchors, axis=1)
    boxes = net.op("Add", net.op("Mul", sides, net.constant(np.float32(1.5))), net.constant(places))
    scores = net.op("Sigmoid", net.op("Reshape", net.rows(head), net.constant([1, -1, classes])))
    net.boxes = net.op("Concat", boxes, scores, axis=2) if are_joined else boxes
    model = net.model(net.op("Identity", net.boxes if are_joined else scores))
    require_map(model, [head], [anchors], classes)


def picked_by_class(net, scores, *, class_first):
    """The model that picks scores `[1, boxes, classes]` by what a suppression of each class chose, of one column."""
    each = net.op("Transpose", scores, perm=[0, 2, 1])
    limits = net.constant(np.int64(20)), net.constant(np.float32(0.6)), net.constant(np.float32(0.3))
    chosen = net.op("NonMaxSuppression", net.boxes, each, *limits)
    label, box = (net.op("Gather", chosen, net.constant(np.int64(column)), axis=1) for column in (1, 2))
    net.types[label] = TensorProto.INT64
    slow, fast, flat = (label, box, each) if class_first else (box, label, scores)
    size = net.op("Gather", net.op("Shape", flat), net.constant(np.int64(2)))
    place = net.op("Add", fast, net.op("Mul", slow, size))
    kept = net.op("Gather", net.op("Flatten", flat, axis=3), place, axis=0)
    net.boxes = net.op("Gather", net.op("Flatten", net.boxes, axis=2), box, axis=0)
    return net.model(net.op("Reshape", kept, net.constant(np.array([-1]))), label)


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_of_a_class_and_a_box_in_one_column(classes):
    """As an indexing by what a suppression of each class chose is exported: no class is an anchor for that."""
    net = Small()
    head = net.head(classes)
    model = picked_by_class(net, net.op("Sigmoid", net.rows(head)), class_first=True)
    require_map(model, [head], [1], classes)


@pytest.mark.parametrize("class_first", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_classes_of_one_layer_with_the_boxes_in_one_column(classes, class_first):
    """They stand there as anchors of one class would."""
    net = Small()
    head = net.head(4 + classes)
    rows = net.rows(head)
    net.boxes = net.op("Add", net.op("Exp", net.pick(rows, range(4))), net.constant(net.centres()))
    scores = net.op("Sigmoid", net.pick(rows, range(4, 4 + classes)))
    model = picked_by_class(net, scores, class_first=class_first)
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    saliency, raw = run(insert(model, Options(output_dtype="f32")).model, ["saliency_map", head], image)
    np.testing.assert_allclose(saliency, definition([raw[:, 4:]], [1], classes), atol=1e-5)


def test_of_two_lists_of_boxes_the_output_chooses():
    """As a detector is exported that keeps the auxiliary heads of its training."""
    net = Small()
    heads, lists = [], []
    for _ in range(2):
        heads.append(net.head(3))
        boxes = net.op("Add", net.op("Exp", net.rows(net.head(4))), net.constant(net.centres()))
        lists.append(net.op("Concat", boxes, net.op("Sigmoid", net.rows(heads[-1])), axis=2))
    net.boxes = lists[0]
    model = net.model(lists[1])
    with pytest.raises(AmbiguousModelError, match="if they feed outputs of their own, with --output NAME"):
        insert(model)
    for head, output in zip(heads, lists, strict=True):
        require_map(model, [head], [1], 3, output=output)


def test_features_that_are_returned_are_no_boxes():
    """As some detectors are exported, with all that another model may read."""
    net, anchors, classes = Small(), 3, 5
    head, net.boxes = net.head(anchors * classes), net.boxes_of(anchors)
    scores = net.op("Sigmoid", net.op("Reshape", net.rows(head), net.constant([1, -1, classes])))
    again = net.op("Relu", net.op("Conv", net.feature, net.weight(12, WIDTH, 1, 1)))
    model = net.model(scores, again)
    require_map(model, [head], [anchors], classes)


def test_the_quality_of_a_box_is_no_class():
    """Read off the distribution of its sides, and multiplied to the only class, as in the second version of GFL."""
    net = Small()
    head, bins = net.head(1), net.head(16)
    sides = net.op("Softmax", net.op("Reshape", net.rows(bins), net.constant([1, -1, 4, 4])), axis=3)
    weights = net.constant(np.arange(4, dtype=np.float32).reshape(4, 1))
    lengths = net.op("Reshape", net.op("MatMul", sides, weights), net.constant([1, -1, 4]))
    net.boxes = net.op("Add", lengths, net.constant(net.centres()))
    quality = net.op("Conv", net.op("Relu", bins), net.weight(1, 16, 1, 1))
    model = net.model(net.op("Mul", *(net.op("Sigmoid", net.rows(part)) for part in (head, quality))))
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    (raw,) = run(model, [head], image)
    (saliency,) = run(insert(model, Options(output_dtype="f32")).model, ["saliency_map"], image)
    np.testing.assert_allclose(saliency, raw, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 5])
def test_four_bins_of_each_side_are_no_anchors(classes):
    """Of a list with the locations last, as YOLOv8 gives it: its four rows are sides."""
    net = Small()
    head, bins = net.head(classes), net.head(16)
    sides = net.op("Softmax", net.op("Reshape", bins, net.constant([1, 4, 4, -1])), axis=2)
    lengths = net.op("ReduceSum", net.op("Mul", sides, net.constant(np.arange(4, dtype=np.float32).reshape(4, 1))),
                     net.constant([2]), keepdims=0)  # fmt: skip
    boxes = net.op("Add", lengths, net.constant(net.centres().transpose(0, 2, 1)))
    scores = net.op("Sigmoid", net.op("Reshape", head, net.constant([1, classes, -1])))
    net.boxes = net.op("Concat", boxes, scores, axis=1)
    model = net.model(net.op("Identity", net.boxes))
    require_map(model, [head], [1], classes)


@pytest.mark.parametrize("is_softmax", [False, True])
@pytest.mark.parametrize("anchors", [1, 2, 3])
def test_a_share_and_its_rest_are_one_class(anchors, is_softmax):
    """What one channel moves twice excludes no other channel: these are anchors."""
    net = Small()
    head, net.boxes = net.head(anchors), net.boxes_of(anchors)
    logits = net.op("Reshape", net.rows(head), net.constant([1, -1, 1]))
    if is_softmax:
        scores = net.op("Softmax", net.op("Concat", net.op("Neg", logits), logits, axis=2), axis=2)
    else:
        share = net.op("Sigmoid", logits)
        scores = net.op("Concat", net.op("Sub", net.constant(np.float32(1)), share), share, axis=2)
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    model = net.model(scores)
    (raw,) = run(model, [head], image)
    made = insert(model, Options(output_dtype="f32")).model
    (saliency,) = run(made, ["saliency_map"], image)
    np.testing.assert_allclose(saliency, raw.max(axis=1, keepdims=True), atol=1e-5)


def test_one_class_and_its_objectness_for_each_level_apart():
    """As YuNet gives faces: of each level a class, an objectness and a box, each an output."""
    net = Small()
    heads, outputs = [], []
    for grid in (GRID, GRID // 2):
        if grid != GRID:
            net.coarser()
        box = net.op("Add", net.op("Exp", net.rows(net.head(4))), net.constant(net.centres(grid)))
        heads.append([net.head(1), net.head(1)])
        outputs.append([*(net.op("Sigmoid", net.rows(head)) for head in heads[-1]), box])
    (net.boxes, *classes), *others = zip(*outputs, strict=True)
    model = net.model(*classes, *(name for level in others for name in level))
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    raw = run(model, [head for head, _ in heads], image)
    (saliency,) = run(insert(model, Options(output_dtype="f32")).model, ["saliency_map"], image)
    np.testing.assert_allclose(saliency, definition(raw, [1, 1], 1), atol=1e-5)


def test_boxes_and_scores_squashed_together():
    """Heads cut off before decoding with their sigmoid, as for processors of cameras; the number of classes tells."""
    net, classes, anchors = Small(), 2, 3
    heads = [net.head(anchors * (5 + classes))]
    net.coarser()
    heads.append(net.head(anchors * (5 + classes)))
    net.boxes, scores = (net.op("Sigmoid", head) for head in heads)
    model = net.model(scores)
    with pytest.raises(XaiInsertError, match="--num-classes"):
        insert(model, Options())
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    raw = [head.reshape(1, anchors, 5 + classes, *head.shape[2:])[:, :, 5:] for head in run(model, heads, image)]
    made = insert(model, Options(num_classes=classes, output_dtype="f32")).model
    (saliency,) = run(made, ["saliency_map"], image)
    flat = [head.reshape(1, anchors * classes, *head.shape[3:]) for head in raw]
    np.testing.assert_allclose(saliency, definition(flat, [anchors] * 2, classes), atol=1e-5)
