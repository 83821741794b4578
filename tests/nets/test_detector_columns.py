"""Detectors whose class scores are turned about, taken together or added up behind their heads."""

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest
from onnx import TensorProto

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.detection_oracle import definition
from model_zoo_fixtures.testbed.small_detectors import GRID, SIDE, WIDTH, Small, run
from xai_insert import Options, insert
from xai_insert.errors import AmbiguousModelError, XaiInsertError


def reversed_classes(net):
    head = net.head(5)
    return net.pick(net.op("Sigmoid", net.rows(head)), [4, 3, 2, 1, 0]), {head: 1.0}, [4, 3, 2, 1, 0]


def some_classes(net):
    head = net.head(8)
    return net.pick(net.op("Sigmoid", net.rows(head)), [5, 1, 7]), {head: 1.0}, [5, 1, 7]


def background_moved_to_the_end(net):
    head = net.head(5)
    return net.pick(net.op("Softmax", net.rows(head), axis=2), [1, 2, 3, 4, 0]), {head: 1.0}, [1, 2, 3, 4, 0]


def reversed_before_locations_are_flattened(net):
    head = net.head(5)
    return net.op("Sigmoid", net.rows(net.pick(head, [4, 3, 2, 1, 0], axis=1))), {head: 1.0}, [4, 3, 2, 1, 0]


def logarithms_of_shares(net):
    head = net.head(5)
    return net.op("LogSoftmax", net.rows(head), axis=2), {head: 1.0}, range(5)


def shares_of_two_groups(net):
    """Of a softmax each, as the type and the colour of a car."""
    head = net.head(6)
    types, colours = net.op("Split", net.rows(head), net.constant(np.array([2, 4])), axis=2), f"colours{len(net.nodes)}"
    net.nodes[-1].output.append(colours)
    return (
        net.op("Concat", *(net.op("Softmax", part, axis=2) for part in (colours, types)), axis=2),
        {head: 1.0},
        [2, 3, 4, 5, 0, 1],
    )


def in_per_cent(net, full=100):
    head = net.head(5)
    return net.op("Mul", net.op("Sigmoid", net.rows(head)), net.constant(np.float32(full))), {head: 1.0}, range(5)


def in_bytes(net):
    scores, heads, labels = in_per_cent(net, 255)
    counted = net.op("Cast", scores, to=TensorProto.UINT8)
    net.types[counted] = TensorProto.UINT8
    return counted, heads, labels


def quantised(net):
    head = net.head(5)
    scale = net.constant(np.float32(1 / 255)), net.constant(np.int8(-128))
    scores = net.op("QuantizeLinear", net.op("Sigmoid", net.rows(head)), *scale)
    net.types[scores] = TensorProto.INT8
    return scores, {head: 1.0}, range(5)


def mean_of_heads(net):
    one, other = net.head(5), net.head(5)
    mean = net.op("Div", net.op("Add", one, other), net.constant(np.float32(2)))
    return net.op("Sigmoid", net.rows(mean)), {one: 0.5, other: 0.5}, range(5)


def scores_of_two_heads(net):
    one, other = (net.op("Sigmoid", net.rows(net.head(5))) for _ in range(2))
    return net.op("Mul", net.op("Add", one, other), net.constant(np.float32(0.5)))


def shares_of_groups(net):
    shares = net.op("Softmax", net.rows(net.head(8)), axis=2)
    apart = net.op("Reshape", shares, net.constant(np.array([0, 0, 4, 2])))
    return net.op("ReduceSum", apart, net.constant(np.array([3])), keepdims=0)


def best_of_parts(net):
    scores = net.op("Sigmoid", net.rows(net.head(8)))
    apart = net.op("Reshape", scores, net.constant(np.array([0, 0, 4, 2])))
    return net.op("ReduceMax", apart, axes=[3], keepdims=0)


def mean_of_members(net):
    apart = net.op("Reshape", net.rows(net.head(8)), net.constant(np.array([0, 0, 2, 4])))
    return net.op("Sigmoid", net.op("ReduceMean", apart, axes=[2], keepdims=0))


def muted(*classes):
    """Scores of some classes are multiplied by 0, as people do who want no trains: the others keep their labels."""

    def muted_classes(net):
        head = net.head(5)
        kept = np.isin(np.arange(5), classes, invert=True).astype(np.float32)
        return net.op("Mul", net.op("Sigmoid", net.rows(head)), net.constant(kept)), {head: 1.0}, range(5)

    return muted_classes


PICKED = [
    muted(1, 2),
    muted(1, 4),
    muted(0, 3),
    reversed_classes,
    some_classes,
    background_moved_to_the_end,
    reversed_before_locations_are_flattened,
    logarithms_of_shares,
    shares_of_two_groups,
    in_per_cent,
    in_bytes,
    quantised,
    mean_of_heads,
]
SHARED = [scores_of_two_heads, shares_of_groups, best_of_parts, mean_of_members]


def require_definition(model, head, anchors, classes, **options):
    """That the map of a detector of one level is made of the scores of `head`."""
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    (raw,) = run(model, [head], image)
    (saliency,) = run(insert(model, Options(output_dtype="f32", **options)).model, ["saliency_map"], image)
    np.testing.assert_allclose(saliency, definition([raw], [anchors], classes), atol=1e-5)


@pytest.mark.parametrize("kind", PICKED, ids=lambda kind: kind.__name__)
def test_maps_lie_in_the_order_of_the_scores(kind):
    net = Small()
    scores, heads, labels = kind(net)
    model = net.model(scores)
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    raw = sum(run(model, [head], image)[0] * share for head, share in heads.items())[:, list(labels)]
    wanted = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    made = insert(model, Options(output_dtype="f32")).model
    (saliency,) = run(made, ["saliency_map"], image)
    np.testing.assert_allclose(saliency, wanted, atol=1e-5)


SCALES = {
    "temperature": ([0.1], [0.0]),
    "of a sharp level": ([30.0], [-2.0]),
    "of each class": ([1, 2, 3, 0.5, 0.1], [0, 1, -1, 0, 0.5]),
}


@pytest.mark.parametrize("activation", ["Sigmoid", "Softmax"])
@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("case", SCALES)
def test_scores_are_scaled_before_they_are_squashed(case, is_flat, activation):
    net = Small()
    head = net.head(5)
    raw = net.rows(head) if is_flat else head
    for kind, numbers in zip(("Mul", "Add"), SCALES[case], strict=True):
        raw = net.op(kind, raw, net.constant(np.float32(numbers).reshape((1, 1, -1) if is_flat else (1, -1, 1, 1))))
    rows = raw if is_flat else net.rows(raw)
    model = net.model(net.op(activation, rows) if activation == "Sigmoid" else net.op(activation, rows, axis=2))
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    scale, shift = (np.float32(numbers).reshape(1, -1, 1, 1) for numbers in SCALES[case])
    wanted = np.exp(run(model, [head], image)[0] * scale + shift)
    made = insert(model, Options(output_dtype="f32")).model
    (saliency,) = run(made, ["saliency_map"], image)
    np.testing.assert_allclose(saliency, wanted / wanted.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("kind", SHARED, ids=lambda kind: kind.__name__)
def test_scores_of_several_channels_have_no_map(kind):
    net = Small()
    with pytest.raises(XaiInsertError, match=r"several (layers or )?channels"):
        insert(net.model(kind(net)), Options())


@pytest.mark.parametrize("is_exclusive", [False, True])
def test_a_hierarchy_of_classes_is_refused(is_exclusive):
    """Two scores, each multiplied to the shares of two others: neither four classes nor the last two."""
    net = Small()
    head = net.head(6)
    parts = [net.pick(net.rows(head), [first, first + 1]) for first in (0, 2, 4)]
    roots = net.op("Softmax", parts[0], axis=2) if is_exclusive else net.op("Sigmoid", parts[0])
    leaves = [net.op("Mul", net.op("Softmax", part, axis=2), net.pick(roots, [k])) for k, part in enumerate(parts[1:])]
    with pytest.raises(XaiInsertError, match="as in a hierarchy of classes"):
        insert(net.model(net.op("Concat", roots, *leaves, axis=2)), Options())


def test_a_class_that_stands_twice_is_refused():
    """It moves two scores, as an objectness does."""
    net = Small()
    scores = net.pick(net.op("Sigmoid", net.rows(net.head(5))), [0, 1, 2, 2, 3, 4])
    with pytest.raises(AmbiguousModelError, match="any of which may be the classes"):
        insert(net.model(scores), Options())


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


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("widths", [(1, 3), (3, 1), (2, 3), (1, 2, 1)])
def test_classes_of_layers_side_by_side(widths, is_gated):
    net = Small()
    heads = [net.head(width) for width in widths]
    scores = net.op("Sigmoid", net.rows(net.op("Concat", *heads, axis=1)))
    if is_gated:
        scores = net.op("Mul", scores, net.op("Sigmoid", net.rows(net.head(1))))
    model = net.model(scores)
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    raw = np.exp(np.concatenate(run(model, heads, image), axis=1))
    made = insert(model, Options(output_dtype="f32")).model
    (saliency,) = run(made, ["saliency_map"], image)
    np.testing.assert_allclose(saliency, raw / raw.sum(axis=1, keepdims=True), atol=1e-5)


def test_rows_with_the_best_score_and_its_label():
    """Nothing is suppressed: a class moves the best of the scores, if it is that, and the label by any number."""
    net, classes = Small(), 5
    head = net.head(5 + classes)
    box, objectness, scores = (
        net.op("Slice", net.rows(head), *map(net.constant, ([first], [last], [2])))
        for first, last in ((0, 4), (4, 5), (5, 5 + classes))
    )
    scores = net.op("Mul", *(net.op("Sigmoid", part) for part in (scores, objectness)))
    best = net.op("ReduceMax", scores, axes=[2])
    label = net.op("Cast", net.op("ArgMax", scores, axis=2), to=TensorProto.FLOAT)
    net.boxes = net.op("Concat", net.op("Add", net.op("Exp", box), net.constant(net.centres())), best, label, axis=2)
    model = net.model(net.op("Identity", net.boxes))
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    made = insert(model, Options(output_dtype="f32")).model
    saliency, raw = run(made, ["saliency_map", head], image)
    raw = np.exp(raw[:, 5:])
    np.testing.assert_allclose(saliency, raw / raw.sum(axis=1, keepdims=True), atol=1e-5)


def seen(model, head):
    """The map, and the definition of the raw scores of one head."""
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    saliency, raw = run(insert(model, Options(output_dtype="f32")).model, ["saliency_map", head], image)
    return saliency, np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)


def test_rows_that_are_chosen_by_a_mask():
    """As boolean indices are exported: no list of as many images, and no scores of an image."""
    net = Small()
    head = net.head(5)
    scores = net.op("Sigmoid", net.rows(head))
    best = net.op("Squeeze", net.op("ReduceMax", scores, axes=[2], keepdims=0), net.constant([0]))
    kept = net.op(
        "Squeeze", net.op("NonZero", net.op("Greater", best, net.constant(np.float32(0.5)))), net.constant([0])
    )
    net.boxes, scores = (
        net.op("Gather", net.op("Squeeze", value, net.constant([0])), kept, axis=0) for value in (net.boxes, scores)
    )
    np.testing.assert_allclose(*seen(net.model(scores), head), atol=1e-5)


def test_a_vector_of_each_place_beside_undecoded_sizes_is_no_box():
    """A detector that tracks: heat maps, sizes, a vector of length one, offsets."""
    net = Small()
    head, net.boxes, vector, offset = (net.head(channels) for channels in (5, 2, 16, 2))
    length = net.op("ReduceL2", vector, axes=[1])
    model = net.model(net.op("Sigmoid", head), net.op("Div", vector, length), net.op("Identity", offset))
    np.testing.assert_allclose(*seen(model, head), atol=1e-5)


def test_another_score_of_each_box_is_named():
    """Of one class: which of two scores is its own, and which an objectness or a centre-ness, nothing tells."""
    net = Small()
    heads = [net.head(1), net.head(1)]
    report = insert(net.model(*(net.op("Sigmoid", net.rows(head)) for head in heads))).report
    assert f"{heads[1]!r} scores each box too" in report.text()


@pytest.mark.parametrize("table", [[3, 17, 44, 62, 90], [3, 0, 4, 1, 2]])
def test_labels_of_a_table_are_written(table):
    """As where a data set leaves numbers out; a map is that of a class, whatever it is called."""
    net = Small()
    scores = net.op("Sigmoid", net.rows(net.head(5)))
    label = net.op("ArgMax", scores, axis=2, keepdims=0)
    named = net.op("Gather", net.constant(np.array(table)), label)
    net.types[named] = TensorProto.INT64
    made = insert(net.model(net.op("ReduceMax", scores, axes=[2], keepdims=0), named)).model
    about = {entry.key: entry.value for entry in made.metadata_props}
    assert about["xai_insert.labels"] == " ".join(map(str, table))
    assert "xai_insert.first_label" not in about


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


@pytest.mark.parametrize("background", [0, 2])
@pytest.mark.parametrize("classes", [1, 2])
def test_a_background_cut_off_beside_boxes_of_one_layer(classes, background):
    """It takes part in the softmax, though no output has it."""
    net, background = Small(), min(background, classes)
    head = net.head(4 + classes + 1)
    rows = net.rows(head)
    net.boxes = net.op("Add", net.op("Exp", net.pick(rows, range(4))), net.constant(net.centres()))
    shares = net.op("Softmax", net.pick(rows, range(4, 5 + classes)), axis=2)
    model = net.model(net.pick(shares, [label for label in range(classes + 1) if label != background]))
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    made = insert(model, Options(output_dtype="f32"))
    saliency, raw = run(made.model, ["saliency_map", head], image)
    powers = np.exp(raw[:, 4:])
    np.testing.assert_allclose(saliency, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    assert made.report.background == background


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
    require_definition(model, head, anchors, classes)


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
    require_definition(model, head, anchors, classes)


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
    require_definition(model, head, 1, classes)


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
        require_definition(model, head, 1, 3, output=output)


def test_features_that_are_returned_are_no_boxes():
    """As some detectors are exported, with all that another model may read."""
    net, anchors, classes = Small(), 3, 5
    head, net.boxes = net.head(anchors * classes), net.boxes_of(anchors)
    scores = net.op("Sigmoid", net.op("Reshape", net.rows(head), net.constant([1, -1, classes])))
    again = net.op("Relu", net.op("Conv", net.feature, net.weight(12, WIDTH, 1, 1)))
    model = net.model(scores, again)
    require_definition(model, head, anchors, classes)


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
    require_definition(model, head, 1, classes)


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


def test_a_background_of_which_the_runtime_reports_nothing():
    """MatrixNms of OpenVINO breaks off where no box is left, as with a background raised at every place."""
    net = Small()
    plain = models.as_format(net.model(net.op("Softmax", net.rows(net.head(4)), axis=2)), "openvino")
    boxes, shares = (result.input_value(0) for result in plain.get_results())
    chosen = opset.matrix_nms(
        boxes, opset.transpose(shares, [0, 2, 1]), nms_top_k=50, keep_top_k=20, score_threshold=0.05, background_class=0
    )
    results = [opset.result(output) for output in chosen.outputs()]
    report = insert(ov.Model(results, plain.get_parameters())).report
    assert (report.background, report.heads[0]["classes"]) == (0, 4)
