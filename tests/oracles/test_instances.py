"""Instance masks in every layout of export and both formats, against their definition in NumPy."""

from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from model_zoo_fixtures.shapes.dataset import DETECTOR_SIZE, multi_object_scene
from model_zoo_fixtures.testbed import instance_models as models
from model_zoo_fixtures.testbed import instance_oracle as definition
from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.instance_oracle import opened
from xai_insert import Options, errors, insert
from xai_insert.layouts.boxes import are_shares

IMAGE = (models.HEIGHT, models.WIDTH)
GRID = (models.HEIGHT // 4, models.WIDTH // 4)
LEVELS = [0.0, *np.geomspace(0.05, 3.0, 30)]
FORMATS = ["onnx", "ir"]
SHAPES = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes"


def expected_list(classes):
    def compute(outputs, grid, threshold):
        boxes, labels, masks = outputs["boxes"], outputs["labels"].reshape(-1), outputs["masks"]
        boxes = boxes.reshape(-1, boxes.shape[-1])
        scores = outputs["scores"] if "scores" in outputs else boxes[:, 4]
        chosen = scores >= threshold
        masks = masks.reshape(-1, *masks.shape[-2:])[chosen]
        raw = definition.listed(boxes[chosen, :4], labels[chosen], scores[chosen], masks, IMAGE, grid, classes)
        return raw, int(chosen.sum())

    return compute


def expected_locations(outputs, grid, threshold):
    columns, prototypes = outputs["predictions"][0], outputs["prototypes"][0]
    raw = definition.yolo_locations(columns, prototypes, IMAGE, grid, threshold or 0.25)
    return raw, int((columns[4 : 4 + models.CLASSES].max(axis=0) > (threshold or 0.25)).sum())


def expected_rows(outputs, grid, threshold):
    rows = outputs["rows"][0]
    raw = definition.yolo_rows(rows, outputs["prototypes"][0], IMAGE, grid, models.CLASSES, threshold)
    return raw, int(((rows[:, 4] > 0) & (rows[:, 4] >= threshold)).sum())


def expected_queries(outputs, grid, threshold):
    assert not threshold
    logits = outputs["logits"][0]
    return definition.queries(logits, outputs["masks"][0], grid), int((logits.argmax(1) < models.CLASSES).sum())


LAYOUTS = {
    "pasted": (lambda: models.listed("pasted"), expected_list(models.CLASSES + 1)),
    "boxes": (lambda: models.listed("boxes"), expected_list(models.CLASSES + 1)),
    "background-last": (lambda: models.listed("background-last"), expected_list(models.CLASSES)),
    "sigmoid": (lambda: models.listed("sigmoid"), expected_list(models.CLASSES)),
    "locations": (lambda: models.yolo("locations"), expected_locations),
    "rows": (lambda: models.yolo("rows"), expected_rows),
    "queries": (models.queries, expected_queries),
}


def both(build, kind, **options):
    """A plain and an inserted model, opened, and the names of the plain one's outputs."""
    model = build()
    native = models.as_format(model, kind)
    result = insert(native, Options(**options))
    assert result.report.method == "instance-masks"
    assert result.report.output_difference == 0
    return opened(native), opened(result.model), [output.name for output in model.graph.output]


def check(plain, inserted, names, expected, brightness, grid=GRID, threshold=0.0):
    """Compare one image; gives the number of instances."""
    picture = models.image(brightness)
    values, after = plain(picture), inserted(picture)
    for value, same in zip(values, after, strict=False):
        np.testing.assert_array_equal(same, value)
    before = dict(zip(names, values, strict=True))
    raw, count = expected(before, grid, threshold)
    actual = after[-1]
    assert actual.shape == (1, *raw.shape)
    assert actual.dtype == np.uint8
    levels = np.abs(actual[0].astype(int) - oracle.scaled(raw.astype(np.float32)))
    assert (levels <= 1).mean() >= 0.999
    if not count:
        assert not actual.any()
    return count


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_map_equals_its_definition(layout, kind):
    build, expected = LAYOUTS[layout]
    opened_both = both(build, kind)
    counts = [check(*opened_both, expected, level) for level in LEVELS]
    assert 0 in counts
    assert 1 in counts
    assert max(counts) > 4


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("boxes", {"score_threshold": 0.9}),
        ("sigmoid", {"score_threshold": 0.9, "saliency_size": (13, 21)}),
        ("locations", {"score_threshold": 0.6, "saliency_size": (20, 9)}),
        ("rows", {"score_threshold": 0.6, "saliency_size": (7, 7)}),
        ("queries", {"saliency_size": IMAGE}),
    ],
)
def test_options_for_threshold_and_size(layout, options, kind):
    build, expected = LAYOUTS[layout]
    opened_both = both(build, kind, **options)
    size, threshold = options.get("saliency_size", GRID), options.get("score_threshold", 0.0)
    counts = [check(*opened_both, expected, level, size, threshold) for level in LEVELS[::4]]
    assert max(counts) > 1


def test_scores_may_be_rounded_past_one():
    assert are_shares(np.float32([0.0, np.nextafter(np.float32(1), np.float32(2))]))
    assert not are_shares(np.float32([0.0, 1.01]))
    assert not are_shares(np.float32([-0.01, 1.0]))


def test_raw_map_is_a_mean():
    model = models.listed("pasted")
    raw = oracle.run(insert(model, Options(output_dtype="f32")).model, models.image(2.0))["saliency_map"][0]
    expected, count = LAYOUTS["pasted"][1](oracle.run(model, models.image(2.0)), GRID, 0.0)
    assert count > 4
    np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "build", [lambda: models.yolo("locations", None), lambda: models.yolo("rows", None), lambda: models.queries(None)]
)
def test_images_of_a_batch_do_not_meet(build, kind):
    _, inserted, _ = both(build, kind, output_dtype="f32")
    pictures = [models.image(level, seed) for seed, level in enumerate((0.0, 0.8, 2.5))]
    together = inserted(np.concatenate(pictures))[-1]
    apart = [inserted(picture)[-1] for picture in pictures]
    assert apart[1].any()
    assert apart[2].any()
    np.testing.assert_allclose(together, np.concatenate(apart), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_empty_after_full_leaves_nothing_behind(kind):
    _, inserted, _ = both(lambda: models.listed("boxes"), kind)
    maps = [inserted(models.image(level))[-1] for level in (3.0, 0.0)]
    assert maps[0].any()
    assert not maps[1].any()


TURNED_BACK = {
    "image mirrored": lambda masks: masks[..., ::-1],
    "image upside down": lambda masks: masks[..., ::-1, :],
    "image transposed": lambda masks: masks.swapaxes(-1, -2),
    "pixels mirrored": lambda masks: masks[..., ::-1],
    "pixels rolled": lambda masks: np.roll(masks, 3, -1),
    "masks mirrored": lambda masks: masks[..., ::-1],
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("moved", TURNED_BACK)
def test_masks_are_turned_back(moved, kind):
    """They lie in the frame of the image, whatever the model does with its cells before and behind its layers."""

    def expected(outputs, grid, threshold):
        masks = TURNED_BACK[moved](outputs["masks"])
        return expected_queries({**outputs, "masks": masks}, grid, threshold)

    opened_both = both(lambda: models.queries(moved=moved), kind)
    assert max(check(*opened_both, expected, level) for level in LEVELS[::4]) > 1


@pytest.mark.parametrize("kind", FORMATS)
def test_masks_whose_place_is_lost_are_refused(kind):
    with pytest.raises(errors.MisplacedMapError, match=r"MatMul.* puts the cells of the masks"):
        insert(models.as_format(models.queries(moved="pixels mixed"), kind))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("layout", ["locations", "rows"])
def test_masks_of_a_mirrored_image_that_boxes_cut_are_refused(layout, kind):
    with pytest.raises(errors.MisplacedMapError, match=r"turned by .*Slice"):
        insert(models.as_format(models.yolo(layout, is_mirrored=True), kind))


def test_number_of_classes_can_be_given():
    report = insert(models.listed("pasted"), Options(num_classes=9)).report
    assert report.saliency_map["shape"] == (1, 9, *GRID)


def test_scores_without_a_class_head_need_the_number_of_classes():
    model = models.yolo("rows")
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type = "Softsign"  # what it is fed is far above zero where it counts
    with pytest.raises(errors.XaiInsertError, match="--num-classes"):
        insert(model)


def test_a_row_per_location_may_begin_with_an_objectness():
    model = models.yolo("locations")
    swapped = onnx.helper.make_node("Transpose", [model.graph.node[-2].input[0]], ["swapped"], perm=[0, 2, 1])
    model.graph.node.insert(len(model.graph.node) - 2, swapped)
    model.graph.node[-2].input[0] = "swapped"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = models.LOCATIONS
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 4 + models.CLASSES + models.DEPTH
    with pytest.raises(errors.UnsupportedTaskError, match="--num-classes"):
        insert(model)
    plain, given = insert(models.yolo("locations")), insert(model, Options(num_classes=models.CLASSES))
    maps = [oracle.run(result.model, models.image(2.0))["saliency_map"] for result in (plain, given)]
    np.testing.assert_array_equal(*maps)


def test_a_model_without_masks_is_told_so():
    model = models.queries()
    del model.graph.output[2]
    with pytest.raises(errors.UnsupportedTaskError, match="masks"):
        insert(model, Options(method="instance-masks"))


def test_a_map_that_follows_the_input_needs_a_size():
    model = models.yolo("locations", None)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
        model.graph.output[1].type.tensor_type.shape.dim[axis].dim_param = f"cells{axis}"
    with pytest.raises(errors.ShapeUnknownError, match="--saliency-size"):
        insert(model)
    inserted = insert(model, Options(saliency_size=GRID, output_dtype="f32")).model
    fixed = insert(models.yolo("locations"), Options(output_dtype="f32")).model
    maps = [oracle.run(chosen, models.image(2.0))["saliency_map"] for chosen in (inserted, fixed)]
    np.testing.assert_allclose(*maps, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_trained_segmenter_peaks_inside_the_right_instance(suffix):
    path = SHAPES / f"shapes_segmenter{suffix}"
    model = insert(onnx.load(path) if suffix == ".onnx" else ov.Core().read_model(path)).model
    scenes = [multi_object_scene(1_000_000 + index, DETECTOR_SIZE) for index in range(60)]
    inside = total = 0
    maps = oracle.run(model, np.concatenate([scene.model_input() for scene in scenes]))["saliency_map"]
    for scene, per_class in zip(scenes, maps, strict=True):
        for label in {shape.class_id for shape in scene.objects}:
            if not per_class[label].any():
                continue  # not detected
            row, column = np.unravel_index(per_class[label].argmax(), per_class[label].shape)
            y, x = (int((n + 0.5) * DETECTOR_SIZE / per_class.shape[1]) for n in (row, column))
            inside += any(shape.mask[y, x] for shape in scene.objects if shape.class_id == label)
            total += 1
    assert total > 80
    assert inside / total >= 0.95
