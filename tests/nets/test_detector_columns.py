"""Detectors whose class scores are turned about, taken together or added up behind their heads."""

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest
from onnx import TensorProto

from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.small_detectors import SIDE, Small, run
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
