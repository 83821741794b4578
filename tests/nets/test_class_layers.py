"""Class layers of unusual make: grouped, transposed, dilated, one for each class; sides apart; vectors beside maps."""

from dataclasses import replace

import numpy as np
import pytest

from model_zoo_fixtures.testbed.detection_oracle import definition
from model_zoo_fixtures.testbed.small_detectors import GRID, SIDE, Small, require_map, run
from xai_insert import Options, insert, plan_insertion
from xai_insert.check_place import places_of
from xai_insert.errors import AmbiguousModelError, MisplacedMapError
from xai_insert.formats.backend import load
from xai_insert.locate.inputs import image_inputs
from xai_insert.probe.classes import find_class_levels

IMAGE = np.random.default_rng(2).random((1, 3, SIDE, SIDE), np.float32)


def levels_beside_a_vector(net, squash, *, with_boxes=True):
    """Maps of scores on two grids, and of boxes if these are wanted, beside a vector of length one; the heads."""
    scores, boxes = [], []
    for level in range(2):
        if level:
            net.coarser()
        scores.append(net.head(5))
        boxes.append(net.head(4))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.feature))
    vector = net.op("MatMul", pooled, net.weight(8, 16))
    unit = net.op("Div", vector, net.op("ReduceL2", vector, axes=[1]))
    net.boxes = unit
    return net.model(*(net.op(squash, head) for head in scores), *(boxes if with_boxes else [])), scores, unit


def test_levels_of_boxes_beside_an_embedding_are_a_detector():
    model, heads, vector = levels_beside_a_vector(Small(), "Sigmoid")
    require_map(model, heads, [1, 1], 5)
    assert plan_insertion(model, Options(output=vector)).task == "embedding"


def test_undecoded_levels_beside_an_embedding_are_left_to_the_user():
    model, heads, vector = levels_beside_a_vector(Small(), "Identity")
    with pytest.raises(AmbiguousModelError, match=f"--num-classes; --output {vector} explains that vector"):
        insert(model)
    require_map(model, heads, [1, 1], 5, num_classes=5)


def test_an_embedding_says_which_maps_beside_it_are_not_explained():
    model, *_ = levels_beside_a_vector(Small(), "Sigmoid", with_boxes=False)
    plan = plan_insertion(model)
    assert plan.task == "embedding"
    assert "alone, not 'sigmoid" in plan.logits["note"]


@pytest.mark.parametrize("options", [{}, {"num_classes": 1}])
def test_heads_of_one_class_and_of_unequal_anchors_share_a_grid(options):
    net, counts = Small(), (1, 2, 3)
    heads = [net.head(anchors) for anchors in counts]
    net.boxes = net.op("Concat", *map(net.boxes_of, counts), axis=1)
    rows = [net.op("Reshape", net.rows(head), net.constant([1, -1, 1])) for head in heads]
    model = net.model(net.op("Sigmoid", net.op("Concat", *rows, axis=1)))
    wanted = np.concatenate(run(model, heads, IMAGE), axis=1)
    made = insert(model, Options(output_dtype="f32", **options))
    (found,) = run(made.model, ["saliency_map"], IMAGE)
    np.testing.assert_allclose(found, definition([wanted], [6], 1), atol=1e-5)


@pytest.mark.parametrize("anchors", [1, 2])
@pytest.mark.parametrize("make", ["groups", "transposed"])
def test_scores_of_a_layer_of_groups_or_a_transposed_one(make, anchors):
    net, classes = Small(), 4

    def last(channels):
        if make == "groups":
            return net.op("Conv", net.feature, net.weight(channels, 2, 1, 1), group=4)
        return net.op("ConvTranspose", net.feature, net.weight(8, channels, 2, 2), strides=[2, 2])

    head = last(anchors * classes)
    grid = GRID if make == "groups" else 2 * GRID
    sides = net.op("Reshape", net.op("Exp", net.rows(last(4 * anchors))), net.constant([1, -1, 4]))
    net.boxes = net.op("Add", sides, net.constant(np.repeat(net.centres(grid), anchors, axis=1)))
    scores = net.op("Reshape", net.rows(head), net.constant([1, -1, classes]))
    require_map(net.model(net.op("Sigmoid", scores)), [head], [anchors], classes)


@pytest.mark.parametrize(("classes", "options"), [(4, {}), (2, {"num_classes": 2})])
def test_each_class_has_a_layer(classes, options):
    net = Small()
    head = net.op("Concat", *(net.head(1) for _ in range(classes)), axis=1)
    report = require_map(net.model(net.op("Sigmoid", net.rows(head))), [head], [1], classes, **options)
    assert f"each of the {classes} layers" in report.reason


def test_of_two_layers_of_one_channel_one_may_be_an_objectness():
    net = Small()
    head = net.op("Concat", net.head(1), net.head(1), axis=1)
    with pytest.raises(AmbiguousModelError, match="two heads could hold the class scores"):
        insert(net.model(net.op("Sigmoid", net.rows(head))))


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("classes", [3, 4])
def test_sides_of_boxes_are_outputs_of_their_own(classes, is_split):
    """Of one layer, or of one for each side, as four branches have them."""
    net = Small()
    head = net.head(classes)
    sides = (
        [net.rows(net.head(1)) for _ in range(4)] if is_split else [net.pick(net.boxes, [side]) for side in range(4)]
    )
    if is_split:
        sides = [
            net.op("Add", net.op("Exp", side), net.constant(net.centres()[..., [at]])) for at, side in enumerate(sides)
        ]
    net.boxes = sides[0]
    model = net.model(net.op("Sigmoid", net.rows(head)), *sides[1:])
    require_map(model, [head], [1], classes)


def dilated(seed):
    """A detector whose last layers look at cells three away, and its class head."""
    net = Small()
    net.rng = np.random.default_rng(seed)

    def last(channels):
        tower = net.op("LeakyRelu", net.op("Conv", net.feature, net.weight(8, 8, 3, 3), pads=[1] * 4))
        return net.op("Conv", tower, net.weight(channels, 8, 3, 3), pads=[3] * 4, dilations=[3, 3])

    head = last(4)
    net.boxes = net.op("Add", net.op("Exp", net.rows(last(4))), net.constant(net.centres()))
    return net.model(net.op("Sigmoid", net.rows(head))), head


@pytest.mark.parametrize("seed", [7, 18, 20])
def test_a_dilated_layer_is_proved_by_what_it_reads(seed):
    """A block changes other cells most by chance."""
    model, head = dilated(seed)
    require_map(model, [head], [1], 4)


def test_a_fault_before_a_dilated_layer_is_refused():
    loaded = load(dilated(7)[0], {})
    graph = loaded.view()
    feature = next(item.feature for item in find_class_levels(loaded, graph, None).levels)
    (stride, offset), columns = feature.frame.lines
    lines = (-stride, offset + stride * (GRID - 1)), columns
    wrong = replace(feature, frame=replace(feature.frame, lines=lines))
    with pytest.raises(MisplacedMapError, match="do not lie where its axes say"):
        places_of([wrong], loaded, image_inputs(graph)[0])


def rows_of(net, head, width, anchors, *, classes_first):
    """Rows of each box, `[1, L * A, width]`, of a layer that gives them class by class or box by box."""
    sizes = [1, width, anchors, -1] if classes_first else [1, anchors, width, -1]
    perm = [0, 3, 2, 1] if classes_first else [0, 3, 1, 2]
    apart = net.op("Transpose", net.op("Reshape", head, net.constant(sizes)), perm=perm)
    return net.op("Reshape", apart, net.constant([1, -1, width]))


@pytest.mark.parametrize("classes_first", [False, True])
def test_undecoded_rows_of_nine_boxes_tell_their_order(classes_first):
    net, classes, anchors = Small(), 5, 9
    head = net.head(anchors * (5 + classes))
    net.boxes = rows_of(net, head, 5 + classes, anchors, classes_first=classes_first)
    model = net.model(net.op("Neg", net.boxes))
    del model.graph.output[1]
    made = insert(model, Options(output_dtype="f32", num_classes=classes))
    (raw,), (found,) = run(model, [head], IMAGE), run(made.model, ["saliency_map"], IMAGE)
    sizes = (1, 5 + classes, anchors, GRID, GRID) if classes_first else (1, anchors, 5 + classes, GRID, GRID)
    parts = raw.reshape(sizes) if classes_first else raw.reshape(sizes).swapaxes(1, 2)
    wanted = parts[:, 5:].swapaxes(1, 2).reshape(1, -1, GRID, GRID)
    np.testing.assert_allclose(found, definition([wanted], [anchors], classes), atol=1e-5)


@pytest.mark.parametrize("counts", [(3, 1), (1, 3)])
def test_a_level_of_several_boxes_tells_what_one_of_a_single_box_leaves_open(counts):
    """Whether the first of four scores is an objectness is open where a place has one box, and by custom where more."""
    net, width, heads, rows = Small(), 8, [], []
    for level, anchors in enumerate(counts):
        if level:
            net.coarser()
        heads.append(net.head(anchors * width))
        parts = rows_of(net, heads[-1], width, anchors, classes_first=False)
        centres = net.constant(np.repeat(net.centres(GRID >> level), anchors, axis=1))
        boxes = net.op("Add", net.op("Exp", net.pick(parts, range(4))), centres)
        rows.append(net.op("Concat", boxes, net.op("Sigmoid", net.pick(parts, range(4, width))), axis=2))
    net.boxes = net.op("Concat", *rows, axis=1)
    model = net.model(net.op("Neg", net.boxes))
    del model.graph.output[1]
    made = insert(model, Options(output_dtype="f32"))
    assert "the first is taken for objectness" in made.report.reason
    raw = run(model, heads, IMAGE)
    wanted = [
        part.reshape(1, anchors, width, *part.shape[2:])[:, :, 5:].reshape(1, -1, *part.shape[2:])
        for part, anchors in zip(raw, counts, strict=True)
    ]
    (found,) = run(made.model, ["saliency_map"], IMAGE)
    np.testing.assert_allclose(found, definition(wanted, counts, width - 5), atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("anchors", [1, 2])
@pytest.mark.parametrize("is_listed", [False, True])
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_class_layer_of_rows_of_all_images(kind, is_listed, anchors, alpha):
    """A linear layer of `[N h w, C]`, as optimisers write those of each location; OpenVINO writes its alpha out."""
    net, classes = Small(), 3
    wide = anchors * classes
    cells = net.op("Reshape", net.op("Transpose", net.feature, perm=[0, 2, 3, 1]), net.constant([-1, 8]))
    scores = net.op("Gemm", net.op("LeakyRelu", cells), net.weight(wide, 8), net.weight(wide), transB=1, alpha=alpha)
    sizes = [1, GRID * GRID, wide] if is_listed else [1, GRID, GRID, wide]
    scores = net.op("Reshape", scores, net.constant(sizes))
    squashed = net.op("Sigmoid", net.op("Reshape", scores, net.constant([1, -1, classes])))
    head = net.op("Transpose", net.op("Reshape", scores, net.constant([1, GRID, GRID, wide])), perm=[0, 3, 1, 2])
    net.boxes = net.boxes_of(anchors)
    require_map(net.model(squashed), [head], [anchors], classes, kind)


@pytest.mark.parametrize("classes", [1, 4, 6])
@pytest.mark.parametrize("features", [2, 4])
def test_a_class_layer_of_few_features(features, classes):
    """No matrix that turns boxes into others, though it reads as few numbers as a box has."""
    net = Small()
    tower = net.op("LeakyRelu", net.op("Conv", net.feature, net.weight(features, 8, 3, 3), pads=[1] * 4))
    head = net.op("Conv", tower, net.weight(classes, features, 1, 1))
    require_map(net.model(net.op("Sigmoid", net.rows(head))), [head], [1], classes)


@pytest.mark.parametrize("classes", [1, 3])
def test_scores_as_they_are_beside_key_points_that_may_be_hidden(classes):
    """Whether a point is seen is the only score between 0 and 1, and no class."""
    net = Small()
    head, points = net.head(classes), net.rows(net.head(6))
    parts = [net.op("Mul", net.pick(points, [at]), net.constant(np.float32(8))) for at in range(6)]
    for seen in (2, 5):
        parts[seen] = net.op("Sigmoid", net.pick(points, [seen]))
    rows = net.op("Concat", net.boxes, net.rows(head), *parts, axis=2)
    net.boxes = rows
    model = net.model(rows)
    del model.graph.output[1:]
    require_map(model, [head], [1], classes)
