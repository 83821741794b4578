"""Kinds of class scores of detectors, their backgrounds, labels and levels: the right map, in NumPy, or a refusal."""

import numpy as np
import onnx
import openvino as ov
import openvino.opset8 as opset
import pytest
from onnxruntime import quantization

from model_zoo_fixtures.testbed import detection_oracle, models, oracle, vector_models
from model_zoo_fixtures.testbed.detector_models import CLASSES, SIDE, Net
from model_zoo_fixtures.testbed.grid_heads import GRID, conv, decoded, flat, image, maps, small, watched
from xai_insert import Options, errors, insert
from xai_insert.explain.detections import Facts
from xai_insert.explain.errors import UnknownLayoutError
from xai_insert.explain.layouts import detections
from xai_insert.layouts.record import Layout


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
