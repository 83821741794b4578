"""Kinds of heads and outputs that are easily mistaken: the right class scores, in NumPy, or a refusal."""

import numpy as np
import onnx
import openvino as ov
import openvino.opset8 as opset
import pytest
from onnxruntime import quantization

from model_zoo_fixtures.testbed import detection_oracle, models, oracle, vector_models
from model_zoo_fixtures.testbed.detector_models import CLASSES, SIDE, Net
from model_zoo_fixtures.testbed.models import Builder
from xai_insert import Options, errors, insert
from xai_insert.explain.detections import Facts
from xai_insert.explain.errors import UnknownLayoutError
from xai_insert.explain.layouts import detections
from xai_insert.layouts.record import Layout

GRID = 8


def small(**options):
    return Builder(batch=1, size=(2 * GRID, 2 * GRID), **options)


def conv(b, x, width):
    return b.node("Conv", x, b.weight(width, 6, 1, 1), b.weight(width))


def flat(b, x, width):
    """`[1, A * width, h, w]` to rows `[1, h * w * A, width]`."""
    return b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.const(np.array([1, -1, width], np.int64)))


def image():
    return np.random.default_rng(3).standard_normal((1, 3, 2 * GRID, 2 * GRID), dtype=np.float32)


def watched(model, names):
    """Values of the plain model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    outputs = oracle.run(copy, image())
    return [outputs[name] for name in names]


def maps(model, **options):
    return oracle.run(insert(model, Options(output_dtype="f32", **options)).model, image())["saliency_map"]


def dense(kind):
    """Networks that give something for every place."""
    b = small()
    x = conv(b, b.backbone(), 5 if kind.startswith("argmax") else 1)
    axis = b.const(np.array([1], np.int64))
    if kind == "depth":
        return b.model(b.node("Squeeze", b.node("Relu", x), axis))
    if kind == "mask":
        return b.model(b.node("Squeeze", b.node("Sigmoid", x), axis))
    if kind == "mask_map":
        return b.model(b.node("Sigmoid", x))
    return b.model(b.node("Cast", b.node("ArgMax", x, axis=1, keepdims=0), to=onnx.TensorProto.FLOAT))


@pytest.mark.parametrize(("kind", "said"), [("depth", "depth"), ("mask", "mask"), ("mask_map", "mask")])
def test_values_for_every_place_are_no_detections(kind, said):
    with pytest.raises(errors.UnsupportedTaskError, match=said):
        insert(dense(kind))


def test_an_argmax_of_every_place_is_no_detection():
    assert insert(dense("argmax_float")).report.task == "semantic segmentation"


def maps_beside_each_other(kind):
    """Two or three values for every place, some of them in 0..1: none has room for a box."""
    b = small()
    x = b.backbone()
    depth, confidence = b.node("Relu", conv(b, x, 1)), b.node("Sigmoid", conv(b, x, 1))
    axis = b.const(np.array([1], np.int64))
    if kind == "confidence":
        return b.model(*(b.node("Squeeze", value, axis) for value in (depth, confidence)))
    if kind == "confidence_map":
        return b.model(confidence, depth)
    if kind == "classes":
        return b.model(b.node("Squeeze", depth, axis), b.node("Softmax", conv(b, x, 5), axis=1))
    if kind == "flow":
        return b.model(confidence, conv(b, x, 2))
    if kind == "flows":
        coarse = b.node("Conv", x, b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2])
        return b.model(confidence, *(conv(b, feature, 2) for feature in (x, coarse)))
    return b.model(depth, conv(b, x, 3), confidence)


@pytest.mark.parametrize("kind", ["confidence", "confidence_map", "classes", "flow", "flows", "normals"])
@pytest.mark.parametrize("options", [{}, {"num_classes": 1}, {"num_classes": 5}])
def test_scores_beside_a_depth_or_a_flow_are_no_detections(kind, options):
    with pytest.raises(errors.UnsupportedTaskError, match="every place of the image"):
        insert(maps_beside_each_other(kind), Options(**options))


def test_scores_beside_sizes_and_offsets_are_detections():
    """Objects as points (CenterNet): scores, and a box in two heads of two channels."""
    b = small()
    x = b.backbone()
    classes, size, offset = (conv(b, x, width) for width in (3, 2, 2))
    model = b.model(b.node("Sigmoid", classes), b.node("Exp", size), offset)
    (scores,) = watched(model, [classes])
    np.testing.assert_allclose(maps(model), detection_oracle.definition([scores], [1], 3), atol=1e-6)


@pytest.mark.parametrize(("width", "said"), [(3, "key points"), (4, "as of attributes"), (40, "text")])
def test_rows_without_classes_are_no_detections(width, said):
    b = small()
    x = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), 6, 7 * width)
    with pytest.raises(errors.UnsupportedTaskError, match=said):
        insert(b.model(b.node("Reshape", x, b.const(np.array([1, 7, width], np.int64)))))


def decoded(b, x):
    """Boxes around their locations."""
    return b.node("Exp", x)


def attributes(*, wide=7):
    """One level, three classes beside sigmoids of another width or of the same: `[1, 4 + 3 + wide, 64]`."""
    b = small()
    x = b.backbone()
    heads = [conv(b, x, width) for width in (4, 3, wide)]
    parts = [decoded(b, heads[0]), *(b.node("Sigmoid", head) for head in heads[1:])]
    joined = b.node("Concat", *parts, axis=1)
    output = b.node("Reshape", joined, b.const(np.array([1, 7 + wide, GRID * GRID], np.int64)))
    return b.model(output), heads[1:]


@pytest.mark.parametrize("number", [0, 1])
def test_num_classes_tells_classes_from_attributes(number):
    model, heads = attributes()
    (scores,) = watched(model, [heads[number]])
    wanted = detection_oracle.definition([scores], [1], scores.shape[1])
    np.testing.assert_allclose(maps(model, num_classes=(3, 7)[number]), wanted, atol=1e-6)


@pytest.mark.parametrize("wide", [7, 3])
def test_two_heads_that_fit_are_refused_with_both_names(wide):
    model, heads = attributes(wide=wide)
    with pytest.raises(errors.AmbiguousModelError) as refusal:
        insert(model)
    assert all(name in str(refusal.value) for name in heads)


def test_a_number_of_classes_that_no_head_has_is_refused():
    with pytest.raises(errors.TargetNotFoundError, match=r"--num-classes 5.*3 classes.*7 classes"):
        insert(attributes()[0], Options(num_classes=5))


def test_classes_go_before_visibilities_of_key_points():
    """A pose detector: 2 classes beside 3 key points of place and visibility."""
    b = small()
    x = b.backbone()
    boxes, classes, points = (conv(b, x, width) for width in (4, 2, 9))
    split = b.node("Reshape", points, b.const(np.array([1, 3, 3, GRID, GRID], np.int64)))
    places, seen = (
        b.node("Slice", split, *(b.const(np.array([v], np.int64)) for v in (start, end, 2)))
        for start, end in ((0, 2), (2, 3))
    )
    places = b.node("Mul", places, b.const(np.array(2, np.float32)))
    points = b.node("Concat", places, b.node("Sigmoid", seen), axis=2)
    points = b.node("Reshape", points, b.const(np.array([1, 9, GRID, GRID], np.int64)))
    joined = b.node("Concat", decoded(b, boxes), b.node("Sigmoid", classes), points, axis=1)
    model = b.model(b.node("Reshape", joined, b.const(np.array([1, 15, GRID * GRID], np.int64))))
    (scores,) = watched(model, [classes])
    np.testing.assert_allclose(maps(model), detection_oracle.definition([scores], [1], 2), atol=1e-6)


@pytest.mark.parametrize("order", ["anchors", "flat"])
def test_heads_doubled_on_a_level_are_more_anchors(order):
    """Single-shot detectors with two kinds of anchors on one feature, each with heads of its own."""
    b = small()
    x = b.backbone()
    classes, boxes = [conv(b, x, 2 * 3) for _ in range(2)], [conv(b, x, 2 * 4) for _ in range(2)]
    if order == "anchors":
        joined = b.node("Concat", *(flat(b, head, 3) for head in classes), axis=1)
    else:
        joined = b.node("Concat", *(flat(b, head, 2 * 3 * GRID * GRID) for head in classes), axis=1)
        joined = b.node("Reshape", joined, b.const(np.array([1, -1, 3], np.int64)))
    scores = b.node("Softmax", joined, axis=2)
    model = b.model(scores, decoded(b, b.node("Concat", *(flat(b, head, 4) for head in boxes), axis=1)))
    both = np.concatenate(watched(model, classes), axis=1)
    np.testing.assert_allclose(maps(model), detection_oracle.definition([both], [4], 3), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}])
@pytest.mark.parametrize("anchors", [(1, 2), (2, 1), (2, 3), (2, 4)])
def test_heads_of_a_level_may_differ_in_anchors(anchors, options):
    b = small()
    x = b.backbone()
    classes, boxes = ([conv(b, x, count * width) for count in anchors] for width in (3, 4))
    scores = b.node("Softmax", b.node("Concat", *(flat(b, head, 3) for head in classes), axis=1), axis=2)
    model = b.model(scores, decoded(b, b.node("Concat", *(flat(b, head, 4) for head in boxes), axis=1)))
    both = np.concatenate(watched(model, classes), axis=1)
    wanted = detection_oracle.definition([both], [sum(anchors)], 3)
    np.testing.assert_allclose(maps(model, **options), wanted, atol=1e-6)


def tokens_of_boxes(classes):
    """Per token a box by sigmoid, and scores by products with normalised embeddings, scaled and moved."""
    b = small()
    x = b.node("Reshape", b.backbone(), b.const(np.array([1, 6, GRID * GRID], np.int64)))
    x = b.node("Transpose", x, perm=[0, 2, 1])
    embedded = b.node("MatMul", x, b.weight(6, 8))
    length = b.node("ReduceL2", embedded, axes=[2], keepdims=1)
    products = b.node("MatMul", b.node("Div", embedded, length), b.weight(8, classes))
    scores = b.node("Mul", products, b.node("Exp", b.node("MatMul", x, b.weight(6, 1))))
    scores = b.node("Add", scores, b.node("MatMul", x, b.weight(6, 1)))
    hidden = b.node("Relu", b.node("MatMul", x, b.weight(6, 6)))
    return b.model(scores, b.node("Sigmoid", b.node("MatMul", hidden, b.weight(6, 4)))), scores


@pytest.mark.parametrize("classes", [1, 2, 5, 8])
def test_boxes_by_sigmoid_are_no_classes(classes):
    model, scores = tokens_of_boxes(classes)
    (logits,) = watched(model, [scores])
    wanted = detection_oracle.definition([logits.transpose(0, 2, 1).reshape(1, classes, GRID, GRID)], [1], classes)
    np.testing.assert_allclose(maps(model), wanted, atol=1e-6)


def test_four_classes_beside_boxes_by_sigmoid_are_refused():
    with pytest.raises(errors.AmbiguousModelError, match="both four wide"):
        insert(tokens_of_boxes(4)[0])


def single_shot(classes, drop, *, turned=False):
    """Two levels of 3 anchors, a softmax over `classes`, of which `drop` is left out: boxes and scores of the rest."""
    b = small()
    fine = b.backbone()
    coarse = b.node("Relu", b.node("Conv", fine, b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2]))
    heads = [conv(b, x, 3 * classes) for x in (fine, coarse)]
    boxes = b.node("Concat", *(flat(b, conv(b, x, 12), 4) for x in (fine, coarse)), axis=1)
    scores = b.node("Softmax", b.node("Concat", *(flat(b, head, classes) for head in heads), axis=1), axis=2)
    first = 1 if drop == 0 else 0
    ends = [b.const(np.array([v], np.int64)) for v in (first, first + classes - 1, 2)]
    kept = b.node("Slice", scores, *ends)
    if turned:
        kept = b.node("Transpose", kept, perm=[0, 2, 1])
    return b.model(decoded(b, boxes), kept), heads


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("classes", "drop"), [(2, 0), (2, 1), (4, 0), (4, 3)])
def test_classes_beside_a_background_that_is_dropped(classes, drop, turned):
    model, heads = single_shot(classes, drop, turned=turned)
    result = insert(model, Options(output_dtype="f32"))
    assert result.report.background == drop
    wanted = detection_oracle.definition(watched(model, heads), [3, 3], classes)
    np.testing.assert_allclose(oracle.run(result.model, image())["saliency_map"], wanted, atol=1e-6)


@pytest.mark.parametrize(("report", "label"), [("nms", 1), ("rows", 0)])
def test_first_label_is_measured_and_honoured(report, label, tmp_path):
    net = Net(anchors_first=False, exclusive=False, decoded="xyxy", reported="xyxy", report=report)
    inserted = insert(net.model).model
    about = {item.key.removeprefix("xai_insert."): item.value for item in inserted.metadata_props}
    assert about["first_label"] == str(label)
    facts = Facts.of(Layout.read(about, outputs=9), (SIDE, SIDE), CLASSES, 0)
    pixels = np.random.default_rng(5).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
    outputs = oracle.run(net.model, pixels)
    arrays = list(outputs.values())
    labels = arrays[1] if report == "nms" else arrays[0][0, :, 5]
    found = detections(arrays, facts)
    np.testing.assert_array_equal(found.classes, labels.reshape(-1).astype(int) - label)


def test_a_label_below_the_first_is_not_guessed():
    arrays = [np.float32([[0.1, 0.1, 0.5, 0.5]]), np.array([0]), np.float32([0.9])]
    with pytest.raises(UnknownLayoutError, match="label below 1"):
        detections(arrays, Facts((64, 64), 5, first_label=1))


def test_background_of_a_detection_output_is_named():
    op, rng = opset, np.random.default_rng(0)

    def constant(array):
        return op.constant(np.asarray(array, np.float32))

    def conv_of(x, read, width, stride=1):
        weights = constant(rng.normal(0, 0.2, (width, read, 3, 3)))
        return op.convolution(x, weights, [stride] * 2, [1, 1], [1, 1], [1, 1])

    def row(x):
        return op.reshape(op.transpose(x, [0, 2, 3, 1]), np.array([1, -1]), special_zero=False)

    data = op.parameter([1, 3, 32, 32], np.float32, name="data")
    feature = op.relu(conv_of(data, 3, 8, 2))
    settings = {"min_size": [8.0], "max_size": [], "aspect_ratio": [2.0], "flip": False, "clip": False, "step": 0.0}
    settings |= {"offset": 0.5, "variance": [0.1, 0.1, 0.2, 0.2], "scale_all_sizes": True, "fixed_ratio": []}
    settings |= {"fixed_size": [], "density": []}
    priors = op.prior_box(op.constant(np.array([16, 16])), np.array([32, 32]), settings)
    classes = conv_of(feature, 8, 2 * 3)
    scores = op.softmax(op.reshape(row(classes), np.array([1, -1, 3]), special_zero=False), 2)
    settings = {"background_label_id": 0, "top_k": 40, "keep_top_k": [20], "nms_threshold": 0.45}
    settings |= {"code_type": "caffe.PriorBoxParameter.CENTER_SIZE", "confidence_threshold": 0.01, "normalized": True}
    flattened = op.reshape(scores, np.array([1, -1]), special_zero=False)
    found = op.detection_output(row(conv_of(feature, 8, 8)), flattened, op.unsqueeze(priors, np.array([0])), settings)
    result = insert(ov.Model([op.result(found)], [data], "ssd"))
    assert result.report.background == 0


def test_dynamic_quantisation_keeps_the_class_scores(tmp_path):
    model, _ = single_shot(4, 0)
    onnx.save(model, tmp_path / "float.onnx")
    quantization.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "dynamic.onnx")
    quantised = onnx.load(tmp_path / "dynamic.onnx")
    assert any(node.op_type == "ConvInteger" for node in quantised.graph.node)
    result = insert(quantised, Options(output_dtype="f32"))
    scores = watched(quantised, [head["name"] for head in result.report.heads])
    assert [array.dtype for array in scores] == [np.float32, np.float32]
    assert [array.shape[1] for array in scores] == [12, 12]
    wanted = detection_oracle.definition(scores, [3, 3], 4)
    np.testing.assert_allclose(oracle.run(result.model, image())["saliency_map"], wanted, atol=1e-6)


def test_boxes_of_classes_want_the_number_of_classes():
    """Boxes `[1, L, 3, 4]` beside scores `[1, L, 3]`: of each class, or anchors of one class."""
    b = small()
    x = b.backbone()
    classes = conv(b, x, 3)
    boxes = b.node("Reshape", flat(b, conv(b, x, 12), 12), b.const(np.array([1, -1, 3, 4], np.int64)))
    model = b.model(b.node("Sigmoid", flat(b, classes, 3)), decoded(b, boxes))
    with pytest.raises(errors.AmbiguousModelError, match="--num-classes"):
        insert(model)
    (scores,) = watched(model, [classes])
    wanted = detection_oracle.definition([scores], [1], 3)
    np.testing.assert_allclose(maps(model, num_classes=3), wanted, atol=1e-6)
    np.testing.assert_allclose(maps(model, num_classes=1), scores.max(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("classes", [5, 4])
def test_classes_before_bins_of_boxes(classes):
    """Classes and 32 bins in one head, undecoded: 4 + 32 channels may be 4 anchors of 5 + 4 as well."""
    b = small()
    head = conv(b, b.backbone(), classes + 32)
    rows = b.node("Reshape", head, b.const(np.array([1, classes + 32, -1], np.int64)))
    model = b.model(b.node("Transpose", rows, perm=[0, 2, 1]))
    for options in ({}, {"num_classes": 4}) if classes == 4 else ({},):
        with pytest.raises(errors.AmbiguousModelError, match=r"undecoded, and .* not tell"):
            insert(model, Options(**options))
    if classes == 5:
        (scores,) = watched(model, [head])
        wanted = detection_oracle.definition([scores[:, :5]], [1], 5)
        np.testing.assert_allclose(maps(model, num_classes=5), wanted, atol=1e-6)


@pytest.mark.parametrize(("classes", "nothing"), [(2, 0), (2, 1), (4, 0), (4, 3), (4, 1), (2, None)])
def test_background_is_named_where_all_columns_are_given(classes, nothing):
    """Two levels and a softmax whose every column is an output: an image of nothing tells which class stands back."""
    b = small()
    fine = b.backbone()
    coarse = b.node("Relu", b.node("Conv", fine, b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2]))
    heads = [conv(b, x, 3 * classes) for x in (fine, coarse)]
    boxes = b.node("Concat", *(flat(b, conv(b, x, 12), 4) for x in (fine, coarse)), axis=1)
    rows = [flat(b, head, classes) for head in heads]
    scores = b.node("Softmax", b.node("Concat", *rows, axis=1), axis=2)
    model = b.model(scores, decoded(b, boxes))
    biases = {node.output[0]: node.input[2] for node in model.graph.node if node.op_type == "Conv" and node.input[2:]}
    for tensor in model.graph.initializer:
        if nothing is not None and tensor.name in {biases[head] for head in heads}:
            raised = onnx.numpy_helper.to_array(tensor).reshape(3, classes) + 100 * np.eye(classes)[nothing]
            tensor.CopyFrom(onnx.numpy_helper.from_array(raised.reshape(-1).astype(np.float32), tensor.name))
    result = insert(model, Options(output_dtype="f32"))
    assert result.report.background == (nothing if nothing in (0, classes - 1) else None)
    wanted = detection_oracle.definition(watched(model, heads), [3, 3], classes)
    np.testing.assert_allclose(oracle.run(result.model, image())["saliency_map"], wanted, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("classes", [1, 5])
def test_embeddings_of_classes_may_stand_before_the_tokens(classes, levels):
    """Scores by products `[K, D] x [D, L]` of stored texts with an embedding layer, which is no class head itself."""
    b = small()
    features = [b.backbone()]
    if levels == 2:
        down = b.node("Conv", features[0], b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2])
        features.append(b.node("Relu", down))
    scores, rows = [], []
    for index, x in enumerate(features):
        cells = (GRID >> index) ** 2
        tokens = b.node("Reshape", conv(b, x, 8), b.const(np.array([1, 8, cells], np.int64)))
        scores.append(b.node("MatMul", b.weight(1, classes, 8), tokens))
        scaled = b.node("Sigmoid", b.node("Mul", scores[-1], b.const(np.float32(1.3))))
        boxes = b.node("Reshape", decoded(b, conv(b, x, 4)), b.const(np.array([1, 4, cells], np.int64)))
        rows.append(b.node("Concat", boxes, scaled, axis=1))
    model = b.model(b.node("Concat", *rows, axis=2) if levels == 2 else rows[0])
    found = [1.3 * array.reshape(1, classes, GRID >> index, -1) for index, array in enumerate(watched(model, scores))]
    wanted = detection_oracle.definition(found, [1] * levels, classes)
    np.testing.assert_allclose(maps(model), wanted, atol=1e-6)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_a_pose_beside_a_depth_map_is_no_detection(first, rank):
    b = small()
    x = b.backbone()
    depth = b.node("Sigmoid", conv(b, x, 1))
    pose = b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 6, 6)
    if rank == 3:
        pose = b.node("Reshape", pose, b.const(np.array([1, 1, 6], np.int64)))
    report = insert(b.model(pose, depth) if first else b.model(depth, pose)).report
    assert (report.task, report.logits["classes"], report.target["grid"]) == ("classification", 6, (8, 8))


def test_raw_scores_of_every_place_are_semantic_segmentation():
    b = small()
    model = b.model(conv(b, b.backbone(), 21))
    assert insert(model).report.task == "semantic segmentation"
    with pytest.raises(errors.XaiInsertError, match="semantic segmentation"):
        insert(model, Options(num_classes=21))


def turned_detector(kind):
    """One level whose features are mirrored, or turned by a transpose, before the heads."""
    b = small()
    x = b.backbone()
    if kind == "transposed":
        x = b.node("Transpose", x, perm=[0, 1, 3, 2])
    else:
        ends = [b.const(np.array([value], np.int64)) for value in (-1, -GRID - 1, 3, -1)]
        x = b.node("Slice", x, *ends)
    classes, boxes = conv(b, x, 3), conv(b, x, 4)
    joined = b.node("Concat", decoded(b, boxes), b.node("Sigmoid", classes), axis=1)
    return b.model(b.node("Reshape", joined, b.const(np.array([1, 7, GRID * GRID], np.int64)))), classes


@pytest.mark.parametrize("kind", ["transposed", "mirrored"])
def test_maps_of_turned_levels_stand_as_the_image_does(kind):
    model, classes = turned_detector(kind)
    result = insert(model, Options(output_dtype="f32"))
    assert result.report.place == "blocks"
    (scores,) = watched(model, [classes])
    upright = scores.swapaxes(2, 3) if kind == "transposed" else scores[..., ::-1]
    wanted = detection_oracle.definition([upright], [1], 3)
    np.testing.assert_allclose(oracle.run(result.model, image())["saliency_map"], wanted, atol=1e-6)


def by_length(b, x):
    return b.node("Div", x, b.node("ReduceL2", x, axes=[-1], keepdims=1))


def open_vocabulary():
    """OWL-ViT: cosines of each place with texts, by an Einsum, shifted and scaled by what the place says."""
    b = small()
    tokens = b.node("Transpose", b.node("Reshape", b.backbone(), b.const(np.array([1, 6, GRID**2]))), perm=[0, 2, 1])
    words = b.node("Gather", b.weight(11, 8, scale=1), "ids", axis=0)
    texts = by_length(b, b.node("ReduceMean", words, axes=[1], keepdims=0))
    texts = b.node("Unsqueeze", texts, b.const(np.array([0])))
    places = by_length(b, b.node("MatMul", tokens, b.weight(6, 8)))
    scores = b.node("Einsum", places, texts, equation="...pd,...qd->...pq")
    scores = b.node("Add", scores, b.node("MatMul", tokens, b.weight(6, 1)))
    scores = b.node("Mul", scores, b.node("Exp", b.node("MatMul", tokens, b.weight(6, 1, scale=0.05))))
    boxes = b.node("Sigmoid", b.node("Add", b.node("MatMul", tokens, b.weight(6, 4)), b.weight(GRID**2, 4)))
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 2 * GRID, 2 * GRID])
    ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [3, 4])
    return b.model(scores, boxes, inputs=[image, ids])


@pytest.mark.parametrize("kind", models.FORMATS)
def test_classes_that_are_texts_have_the_map_of_their_scores(kind):
    """Of texts that are alike, as the check feeds them, the maps are one: no reason to refuse."""
    plain = open_vocabulary()
    result = insert(models.as_format(plain, kind), Options(output_dtype="f32"))
    ids = np.random.default_rng(4).integers(0, 11, (3, 4))
    scores, _ = vector_models.run(plain, image(), ids=ids).values()
    wanted = np.exp(scores) / np.exp(scores).sum(2, keepdims=True)
    found = vector_models.run(result.model, image(), ids=ids)["saliency_map"]
    np.testing.assert_allclose(found, np.moveaxis(wanted, 2, 1).reshape(1, 3, GRID, GRID), atol=1e-6)


def read_text(b):
    """Scores `[T, 1, K]` of the characters along the columns, as CRNN gives them."""
    x = b.node("ReduceMean", b.backbone(), axes=[2], keepdims=0)
    return b.model(b.node("MatMul", b.node("Transpose", x, perm=[2, 0, 1]), b.weight(6, 37)))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_scores_of_several_steps_are_no_classes(kind):
    with pytest.raises(errors.UnsupportedTaskError, match="looks like text"):
        insert(models.as_format(read_text(small()), kind))


def test_a_size_of_the_image_is_no_row_of_places():
    """A depth whose rows and columns are lost on the way to it."""
    b = small()
    lost = b.node("Gemm", b.node("Flatten", b.backbone()), b.weight(6 * GRID * GRID, 4 * GRID * GRID))
    with pytest.raises(errors.UnsupportedTaskError, match="depth"):
        insert(b.model(b.node("Reshape", lost, b.const(np.array([1, 2 * GRID, 2 * GRID])))))


def test_heads_of_equal_width_stay_open_with_a_number_of_classes():
    b = small()
    x = b.backbone()
    coarse = b.node("Conv", x, b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2])
    heads = [conv(b, feature, 12) for feature in (x, coarse, x, coarse)]
    with pytest.raises(errors.AmbiguousModelError, match="--num-classes 3 does not tell"):
        insert(b.model(*heads), Options(num_classes=3))


def undecoded_rows(classes, *, order=(0, 1), middle=False):
    """Boxes `[1, L, 4]` and raw scores `[1, L, K]` of three levels, of 3, 6 and 6 anchors, the last of one cell."""
    b = small()
    fine = b.backbone()
    coarse = b.node("Relu", b.node("Conv", fine, b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[4, 4]))
    levels = (fine, coarse, b.node("Relu", b.node("Conv", coarse, b.weight(6, 6, 2, 2))))
    pairs = [(conv(b, x, 4 * count), conv(b, x, classes * count)) for x, count in zip(levels, (3, 6, 6), strict=True)]
    joined = [
        b.node("Concat", *(flat(b, head, width) for head in heads), axis=1)
        for heads, width in zip(zip(*pairs, strict=True), (4, classes), strict=True)
    ]
    if middle:
        joined[0] = b.node("Unsqueeze", joined[0], b.const(np.array([2], np.int64)))
    return b.model(*(joined[i] for i in order)), [scores for _, scores in pairs]


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize(
    ("classes", "options", "form"),
    [
        (24, {}, {}),
        (24, {"num_classes": 24}, {"order": (1, 0)}),
        (12, {}, {"middle": True}),
        (2, {}, {}),
    ],
)
def test_outputs_tell_boxes_from_scores_where_widths_do_not(classes, options, form, kind):
    """As the TensorFlow detection API exports an SSD: six boxes of a place are as wide as 24 classes."""
    model, heads = undecoded_rows(classes, **form)
    result = insert(models.as_format(model, kind), Options(output_dtype="f32", **options))
    assert [head["anchors"] for head in result.report.heads] == [3, 6, 6]
    wanted = detection_oracle.definition(watched(model, heads), [3, 6, 6], classes)
    found = oracle.run(result.model, image())["saliency_map"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_outputs_of_boxes_and_of_four_classes_stay_open():
    model, _ = undecoded_rows(4)
    with pytest.raises(errors.AmbiguousModelError, match="do not tell classes from boxes"):
        insert(model)


@pytest.mark.parametrize("size", [("H", "W"), (16, 16)])
def test_an_order_that_open_sizes_hide_is_refused_with_the_option_that_gives_them(size):
    """A head of one cell alone, at the size with which open sides are tried."""
    b = Builder(batch=1, size=size)
    x = b.node("Conv", b.backbone(), b.weight(6, 6, 8, 8), strides=[128, 128])
    boxes, scores = (flat(b, conv(b, x, 3 * width), width) for width in (4, 3))
    with pytest.raises(errors.TargetNotFoundError, match="order of classes and anchors") as refused:
        insert(b.model(decoded(b, boxes), b.node("Softmax", scores, axis=2)))
    assert ("--input-shape image:1,3,224,224" in str(refused.value)) == ("H" in size)


@pytest.mark.parametrize("kind", models.FORMATS)
@pytest.mark.parametrize("counted", [100, 255])
def test_scores_beside_boxes_may_be_per_cent_or_bytes(counted, kind):
    b = small()
    x = b.backbone()
    heads = [conv(b, x, width) for width in (4, 5)]
    scores = b.node("Mul", b.node("Sigmoid", flat(b, heads[1], 5)), b.const(np.float32(counted)))
    scores = b.node("Floor", scores) if counted == 255 else scores
    model = b.model(b.node("Concat", decoded(b, flat(b, heads[0], 4)), scores, axis=2))
    wanted = detection_oracle.definition(watched(model, heads[1:]), [1], 5)
    np.testing.assert_allclose(maps(models.as_format(model, kind)), wanted, atol=1e-6)


def test_scores_that_do_not_fall_to_nothing_are_named():
    b = small()
    x = b.backbone()
    scores = b.node("Exp", flat(b, conv(b, x, 5), 5))
    with pytest.raises(errors.UnsupportedTaskError, match=r"no shares of one .*an exponential.*--num-classes"):
        insert(b.model(b.node("Concat", decoded(b, flat(b, conv(b, x, 4), 4)), scores, axis=2)))


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_convolution_of_width_one_may_read_the_tokens_of_all_levels(kind):
    b = small()
    features = [b.backbone()]
    down = b.node("Conv", features[0], b.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2])
    features.append(b.node("Relu", down))
    rows = [
        b.node("Reshape", x, b.const(np.array([1, 6, (GRID >> index) ** 2], np.int64)))
        for index, x in enumerate(features)
    ]
    joined = b.node("Concat", *rows, axis=2)
    scores, boxes = (b.node("Conv", joined, b.weight(width, 6, 1), b.weight(width)) for width in (5, 4))
    model = b.model(b.node("Concat", decoded(b, boxes), b.node("Sigmoid", scores), axis=1))
    (logits,) = watched(model, [scores])
    levels = np.split(logits, [GRID * GRID], axis=2)
    found = [level.reshape(1, 5, GRID >> index, -1) for index, level in enumerate(levels)]
    np.testing.assert_allclose(
        maps(models.as_format(model, kind)), detection_oracle.definition(found, [1, 1], 5), atol=1e-6
    )


@pytest.mark.parametrize("kind", models.FORMATS)
def test_scores_may_be_of_coarser_places_than_the_boxes(kind):
    b = small()
    x = b.backbone()
    coarse = conv(b, b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 5)
    fine = b.node("Resize", coarse, "", b.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    boxes, scores = decoded(b, flat(b, conv(b, x, 4), 4)), b.node("Sigmoid", flat(b, fine, 5))
    model = b.model(b.node("Concat", boxes, scores, axis=2))
    wanted = detection_oracle.definition(watched(model, [fine]), [1], 5)
    np.testing.assert_allclose(maps(models.as_format(model, kind)), wanted, atol=1e-6)
