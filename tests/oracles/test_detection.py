"""Detectors: the order of channels read off what they move, options, and a trained model's maps on known boxes."""

from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.shapes.dataset import multi_object_scene
from model_zoo_fixtures.testbed import detection_oracle, oracle
from model_zoo_fixtures.testbed.detector_models import raw_detector, row_detector
from model_zoo_fixtures.testbed.models import Builder
from xai_insert import Options, errors, insert
from xai_insert.locate.detector import Channels
from xai_insert.probe.channels import raw_channels, resolve, resolve_raw, samples
from xai_insert.probe.joint import Joint, read_joint

DETECTOR = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes" / "shapes_detector"
HELD_OUT = 1_000_000


def moves(order, channels, row):
    """`{channel: (0, row, column)}` in a value `[N, locations * anchors, classes]`."""
    found = {}
    for channel in channels:
        anchor, column = divmod(channel - order.start, order.stride)
        if order.classes_first:
            column, anchor = divmod(channel, order.anchors)
        found[channel] = (0, row * order.anchors + anchor, column)
    return found


@pytest.mark.parametrize(
    "order", [Channels(0, 20, 1, 20), Channels(0, 21, 6, 21), Channels(0, 7, 9, 1, classes_first=True)]
)
def test_order_of_classes_and_anchors(order):
    chosen = samples(order.classes * order.anchors)
    found = resolve(moves(order, chosen, 30), moves(order, chosen, 31), order.classes * order.anchors)
    assert found == order


def test_no_order_where_locations_and_classes_share_an_axis():
    chosen = samples(18)
    flat = [{channel: (0, (row * 3 + channel // 6) * 6 + channel % 6) for channel in chosen} for row in (4, 5)]
    assert resolve(*flat, 18) is None


def joint(table, coordinates, columns=None):
    """What a head does whose channel `table[a][k]` arrives in row a and column k, in rows of one location."""
    here, there = (
        {channel: (0, row * len(table) + anchor, k) for anchor, line in enumerate(table) for k, channel in line.items()}
        for row in (7, 8)
    )
    boxes = {channel: [here.pop(channel)] for line in table for k, channel in line.items() if k in coordinates}
    there = {channel: element for channel, element in there.items() if channel in here}
    return Joint(
        here, there, {}, boxes, boxes, (), lambda channel: frozenset(() if columns is None else [columns(channel)])
    )


@pytest.mark.parametrize(("classes", "anchors"), [(80, 3), (1, 3), (4, 2)])
@pytest.mark.parametrize("inner", [False, True])
def test_order_of_heads_that_give_boxes_as_well(classes, anchors, inner):
    stride = 5 + classes
    steps = (1, anchors) if inner else (stride, 1)
    table = [{k: a * steps[0] + k * steps[1] for k in range(stride)} for a in range(anchors)]
    told = read_joint(joint(table, range(4)), anchors * stride)
    found = [[told.channels.channel(a, k) for k in range(classes)] for a in range(anchors)]
    assert found == [[row[5 + k] for k in range(classes)] for row in table]
    assert told.assumed == classes + 1
    named = read_joint(joint(table, range(4)), anchors * stride, classes + 1)  # no objectness, says the user
    assert [named.channels.channel(0, k) for k in (0, classes)] == [table[0][4], table[0][4 + classes]]


def test_classes_before_the_bins_of_a_box_have_no_objectness():
    bins = {10 + k: 10 + k for k in range(32)}
    assert read_joint(joint([{k: k for k in range(10)} | bins], bins), 42).channels == Channels(0, 10, 1, 42)


def test_scores_behind_one_box_may_be_objectness_and_classes():
    with pytest.raises(errors.AmbiguousModelError, match="--num-classes"):
        read_joint(joint([{k: k for k in range(9)}], range(4)), 9)
    told = read_joint(joint([{k: k for k in range(9)}], range(4), columns=lambda channel: channel > 4), 9)
    assert told.channels == Channels(5, 4, 1, 9)  # what is cut out alone is the objectness
    assert not told.assumed


def test_order_of_undecoded_heads_with_an_axis_for_anchors():
    # [N, anchors, h, w, 5 + classes], as YOLOv5 gives it before decoding
    here, there = ({c: (0, c // 85, 4, column, c % 85) for c in samples(255)} for column in (4, 5))
    assert resolve_raw(here, there, 255) == Channels(5, 80, 3, 85)
    joined = [{c: (0, c, 4, column) for c in samples(255)} for column in (4, 5)]
    assert resolve_raw(*joined, 255) is None


GRID = (8, 8)


@pytest.mark.parametrize(
    ("widths", "num_classes", "expected"),
    [
        ((720, 36), None, Channels(0, 80, 9, 80)),
        ((36, 720), None, None),
        ((80, 4, 1), None, Channels(0, 80, 1, 80)),
        ((1, 4, 80), None, None),
        ((1, 4), None, None),
        ((1, 4), 1, Channels(0, 1, 1, 1)),
        ((12, 12), None, None),
        ((255,), None, None),
        ((255,), 80, Channels(5, 80, 3, 85)),
        ((112,), 80, Channels(0, 80, 1, 112)),
        ((30,), 1, None),
        ((24,), 4, None),
        ((64, 64), 64, Channels(0, 64, 1, 64)),
        ((64, 4), None, None),  # 16 bins of each side of a box beside four classes, or 64 classes beside a box
        ((64, 4), 64, Channels(0, 64, 1, 64)),
        ((17, 4), None, None),  # likewise four bins and an objectness
        ((10, 8), None, None),  # five classes of two anchors, or two boxes with objectness beside four classes
    ],
)
def test_order_by_width_where_nothing_is_decoded(widths, num_classes, expected):
    assert raw_channels({i: (GRID, width) for i, width in enumerate(widths)}, 0, num_classes) == expected


def test_raw_heads_want_the_number_of_classes():
    model, heads = raw_detector()
    with pytest.raises(errors.AmbiguousModelError, match="--num-classes"):
        insert(model)
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    outputs = oracle.run(insert(model, Options(num_classes=4, output_dtype="f32")).model, image)
    scores = [outputs[head].reshape(2, 3, 9, *outputs[head].shape[2:])[:, :, 5:].max(1) for head in heads]
    # from 16x16 to 8x8 without smoothing: bilinear at the common corner of four cells
    halved = scores[0].reshape(2, 4, 8, 2, 8, 2).mean((3, 5))
    mean = np.exp((halved + scores[1]) / 2)
    np.testing.assert_allclose(outputs["saliency_map"], mean / mean.sum(1, keepdims=True), rtol=1e-5)


def equal_widths(*, are_rows):
    """Two levels of class heads and of box heads of three anchors, four channels each; rows of all levels, or maps."""
    b = Builder(size=(32, 32), batch=1)
    fine = b.backbone()
    coarse = b.node("MaxPool", fine, kernel_shape=[2, 2], strides=[2, 2])
    heads = [[b.node("Conv", x, b.weight(12, 6, 1, 1), b.weight(12)) for x in (fine, coarse)] for _ in range(2)]
    if not are_rows:
        return b.model(*heads[0], *heads[1]), heads[1], [",".join(names) for names in heads]
    outputs = []
    for levels in heads:
        turned = [b.node("Transpose", x, perm=[0, 2, 3, 1]) for x in levels]
        parts = [b.node("Reshape", x, b.const(np.array([1, -1, 4]))) for x in turned]
        outputs.append(b.node("Concat", *parts, axis=1))
    return b.model(*outputs), heads[1], outputs


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
@pytest.mark.parametrize("are_rows", [True, False])
def test_of_heads_of_one_width_the_user_names_the_classes(are_rows, suffix):
    model, heads, names = equal_widths(are_rows=are_rows)
    given = model if suffix == ".onnx" else ov.Core().read_model(model.SerializeToString())
    with pytest.raises(
        errors.AmbiguousModelError, match=r" or .* may be, and the other then holds the boxes; --output"
    ):
        insert(given, Options(num_classes=4))
    result = insert(given, Options(num_classes=4, output=names[1], output_dtype="f32"))
    assert "the others have the boxes" in result.report.reason
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    known = {item.name for item in whole.graph.output}
    whole.graph.output.extend([onnx.helper.make_empty_tensor_value_info(name) for name in heads if name not in known])
    outputs = oracle.run(whole, image)
    scores = [outputs[head].reshape(1, 3, 4, *outputs[head].shape[2:]).max(1) for head in heads]
    halved = scores[0].reshape(1, 4, 8, 2, 8, 2).mean((3, 5))
    mean = np.exp((halved + scores[1]) / 2)
    found = oracle.run(result.model, image)["saliency_map"]
    np.testing.assert_allclose(found, mean / mean.sum(1, keepdims=True), rtol=1e-5)


def test_the_classes_of_every_level_are_named():
    model, _, names = equal_widths(are_rows=False)
    first = names[1].split(",")[0]
    with pytest.raises(errors.AmbiguousModelError, match=r"name those of every level, with commas between: .* or "):
        insert(model, Options(num_classes=4, output=first))
    with pytest.raises(errors.UnknownNameError):
        insert(model, Options(num_classes=4, output=f"{first},nothing"))


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("num_classes", [None, 1])
def test_rows_of_one_score_are_no_classes_of_a_classifier(suffix, batched, num_classes):
    model, heads, headless = row_detector(batched=batched)
    given = model if suffix == ".onnx" else ov.Core().read_model(model.SerializeToString())
    result = insert(given, Options(output_dtype="f32", num_classes=num_classes))
    assert [(head["shape"], head["anchors"]) for head in result.report.heads] == [
        ((1, 2, 16, 16), 2),
        ((1, 12, 4, 4), 12),
    ]
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    scores = oracle.run(headless, image)
    fine, coarse = (scores[head].max(1) for head in heads)
    # from 16x16 to 4x4 without smoothing: the mean of the four cells in the middle of sixteen
    mean = (fine.reshape(1, 4, 4, 4, 4)[:, :, 1:3, :, 1:3].mean((2, 4)) + coarse) / 2
    np.testing.assert_allclose(oracle.run(result.model, image)["saliency_map"], mean[:, None], rtol=1e-5, atol=1e-6)


def listed(b, head, width):
    return b.node("Reshape", b.node("Transpose", head, perm=[2, 3, 0, 1]), b.const(np.array([-1, width])))


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_two_anchors_of_one_class_are_no_two_classes(suffix):
    """As in SCRFD: `[L, 1]` scores and `[L, 4]` boxes, undecoded, of two anchors."""
    b = Builder(size=(32, 32), batch=1)
    x = b.backbone()
    score, box = (b.node("Conv", x, b.weight(width, 6, 1, 1), b.weight(width)) for width in (2, 8))
    model = b.model(b.node("Sigmoid", listed(b, score, 1)), listed(b, box, 4))
    given = model if suffix == ".onnx" else ov.Core().read_model(model.SerializeToString())
    result = insert(given, Options(output_dtype="f32"))
    assert [(head["shape"], head["anchors"]) for head in result.report.heads] == [((1, 2, 16, 16), 2)]
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    expected = oracle.run(b.model(score), image)[score].max(1, keepdims=True)
    np.testing.assert_allclose(oracle.run(result.model, image)["saliency_map"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_objectness_and_score_of_one_class_in_outputs_of_their_own_the_first_is_taken(order):
    """As in YuNet: each reads a feature of its own, and either says where the one class is."""
    b = Builder(size=(32, 32), batch=1)
    x = b.backbone()
    hidden = [b.node("Relu", b.node("Conv", x, b.weight(6, 6, 1, 1))) for _ in range(3)]
    heads = [
        b.node("Conv", y, b.weight(width, 6, 1, 1), b.weight(width)) for y, width in zip(hidden, (1, 1, 4), strict=True)
    ]
    scores = [b.node("Sigmoid", listed(b, head, 1)) for head in heads[:2]]
    report = insert(b.model(*(scores[i] for i in order), listed(b, heads[2], 4))).report
    assert [head["name"] for head in report.heads] == [heads[order[0]]]


def test_a_head_without_a_single_cell_is_no_head():
    b = Builder(size=(32, 32), batch=1)
    head = b.node(
        "Conv", b.node("Slice", b.backbone(), *(b.const(np.array([n])) for n in (0, 0, 2))), b.weight(5, 6, 1, 1)
    )
    with pytest.raises(errors.UnsupportedTaskError):
        insert(b.model(b.node("Reshape", head, b.const(np.array([1, -1])))), Options(check=False))


def test_a_method_that_was_asked_for_is_not_exchanged():
    with pytest.raises(errors.TargetNotFoundError, match="leave --method to the tool"):
        insert(DETECTOR.with_name("shapes_cnn.onnx"), Options(method="det-class-probability-map"))


def test_a_single_class_is_told_from_the_objectness_beside_the_boxes():
    """As in YOLOX: boxes and objectness read one feature, the class another; boxes are not decoded."""
    b = Builder(size=(32, 32))
    x = b.backbone()
    apart, beside = (b.node("Relu", b.node("Conv", x, b.weight(6, 6, 3, 3), pads=[1] * 4)) for _ in range(2))
    boxes = b.node("Conv", beside, b.weight(4, 6, 1, 1), b.weight(4))
    heads = [b.node("Conv", x, b.weight(1, 6, 1, 1), b.weight(1)) for x in (beside, apart)]
    joined = b.node("Concat", boxes, *(b.node("Sigmoid", head) for head in heads), axis=1)
    rows = b.node("Reshape", joined, b.const(np.array([0, 6, -1])))
    found = insert(b.model(b.node("Transpose", rows, perm=[0, 2, 1]))).report
    assert [head["name"] for head in found.heads] == [heads[1]]


@pytest.mark.parametrize(("last", "given"), [("Sigmoid", {}), ("Softmax", {"axis": 1})])
def test_a_semantic_segmenter_is_no_detector(last, given):
    """Maps of classes without boxes, at the size of the head or enlarged by transposed convolutions."""
    for is_enlarged in (False, True):
        b = Builder(size=(32, 32))
        x = b.node("Conv", b.backbone(), b.weight(5, 6, 1, 1), b.weight(5))
        if is_enlarged:
            x = b.node("ConvTranspose", b.node("Relu", x), b.weight(5, 2, 2, 2), strides=[2, 2])
        model = b.model(b.node(last, x, **given))
        if is_enlarged and last == "Sigmoid":  # two values that nothing compares
            with pytest.raises(errors.UnsupportedTaskError, match="values for every place of the image"):
                insert(model)
        else:
            assert insert(model).report.task == "semantic segmentation"


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_the_peak_lies_in_a_box_of_the_class(suffix):
    path = DETECTOR.with_suffix(suffix)
    result = insert(onnx.load(path) if suffix == ".onnx" else ov.Core().read_model(path))
    assert [head["grid"] for head in result.report.heads] == [(16, 16), (8, 8), (4, 4)]
    scenes = [multi_object_scene(HELD_OUT + index) for index in range(100)]
    images = np.stack([scene.image.transpose(2, 0, 1) for scene in scenes]).astype(np.float32)
    maps = oracle.run(result.model, images)["saliency_map"]
    hits = [
        any(shape.contains(*peak(per_class[label], 128)) for shape in scene.objects if shape.class_id == label)
        for scene, per_class in zip(scenes, maps, strict=True)
        for label in {shape.class_id for shape in scene.objects}
    ]
    assert np.mean(hits) >= 0.95


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_feature_vector_is_the_mean_of_what_the_class_heads_read(suffix):
    path = DETECTOR.with_suffix(suffix)
    native = onnx.load(path) if suffix == ".onnx" else ov.Core().read_model(path)
    result = insert(native, Options(feature_vector=True))
    images = np.random.default_rng(1).uniform(0, 255, (2, 3, 128, 128)).astype(np.float32)
    names = [head["name"] for head in result.report.heads]
    if suffix == ".onnx":
        sources = [next(node.input[0] for node in native.graph.node if name in node.output) for name in names]
    else:
        layers = {node.get_friendly_name(): node for node in native.get_ordered_ops()}
        convolutions = [layers[name].input_value(0).get_node() for name in names]  # the head has a bias
        sources = [node.input_value(0).get_node().get_friendly_name() for node in convolutions]
    means = [maps.mean((2, 3)) for maps in detection_oracle.values(path, sources, images)]
    actual = oracle.run(result.model, images)["feature_vector"]
    np.testing.assert_allclose(actual, np.concatenate(means, axis=1), rtol=1e-5, atol=1e-6)


def peak(saliency_map, size):
    row, column = np.unravel_index(saliency_map.argmax(), saliency_map.shape)
    return (column + 0.5) * size / saliency_map.shape[1], (row + 0.5) * size / saliency_map.shape[0]


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
@pytest.mark.parametrize(("method", "lead"), [("auto", (2, 8)), ("activation-map", (2,))])
def test_size_and_method_are_options(suffix, method, lead):
    small = insert(DETECTOR.with_suffix(suffix), Options(method=method, output_dtype="f32"))
    large = insert(DETECTOR.with_suffix(suffix), Options(method=method, output_dtype="f32", saliency_size=(16, 24)))
    images = np.random.default_rng(1).uniform(0, 255, (2, 3, 128, 128)).astype(np.float32)
    before, after = (run_native(result.model, images) for result in (small, large))
    assert before.shape == (*lead, 8, 8)
    assert after.shape == (*lead, 16, 24)
    # Doubled rows lie a quarter on either side of the old ones, so pairs of them average to the old, but at the edges.
    pairs = after.reshape(*lead, 8, 2, 8, 3).mean((-3, -1))
    np.testing.assert_allclose(pairs[..., 1:-1, 1:-1], smooth(before)[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-6)


def smooth(maps):
    """What the mean over the new cells of an old one makes of linear interpolation by 2 and by 3."""
    rows = 0.75 * maps
    rows[..., 1:-1, :] += 0.125 * (maps[..., :-2, :] + maps[..., 2:, :])
    columns = rows * (7 / 9)
    columns[..., :, 1:-1] += (rows[..., :, :-2] + rows[..., :, 2:]) / 9
    return columns


def run_native(model, images):
    return oracle.run(model if isinstance(model, ov.Model) else onnx_proto(model), images)["saliency_map"]


def onnx_proto(model):
    import onnx_ir

    return onnx_ir.to_proto(model)
