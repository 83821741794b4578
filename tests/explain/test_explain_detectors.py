"""`xai-explain` on detectors and segmenters: boxes and outlines against known scenes."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from onnx import TensorProto, helper

import xai_insert
from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, HELD_OUT_SEED, multi_object_scene, overlapping_scene
from model_zoo_fixtures.testbed.detector_models import found_objects, reporting_detector
from model_zoo_fixtures.testbed.explaining import SHAPES, call, fine, on_page, records
from model_zoo_fixtures.testbed.region_models import HEIGHT, WIDTH, Net
from xai_insert.explain.detect import Finder
from xai_insert.explain.explained import Instance, ScoreMeaning
from xai_insert.explain.feed import Feeder
from xai_insert.explain.marks import draw_marks
from xai_insert.explain.outputs import Outputs
from xai_insert.explain.preprocessing import Preprocessing
from xai_insert.explain.shown import ImageInput
from xai_insert.layouts.boxes import overlap
from xai_insert.layouts.record import Layout

# Drawing


def test_marks_are_seen_on_any_colour():
    box, hole = (0.25, 0.5, 0.75, 0.9), np.array([[0.4, 0.6], [0.6, 0.6], [0.5, 0.8]])
    for colour in (0, 128, 255):
        image = np.full((200, 300, 3), colour, np.uint8)
        drawn = draw_marks(image, [Instance(1, "cat", 0.5, box)])
        assert drawn.shape == image.shape
        assert (image == colour).all()
        edge = drawn[120:160, 70:80].astype(int)
        assert edge.min() < 40
        assert edge.max() > 215
        assert (drawn[110:170, 90:210] == colour).all()
        assert (drawn[70:98, 75:100] != colour).any(), "no name above the box"
        outlined = draw_marks(image, [Instance(1, "cat", 0.5, box, (hole,))])
        assert (outlined[130:160, 60:110] == colour).all(), "a box where there is an outline"
        assert outlined[115:125, 140:160].min() < 40
    assert draw_marks(image, []) is image


@pytest.mark.parametrize("top", [0.0, 0.4, 0.9])
def test_names_of_objects_in_one_place_do_not_hide_each_other(top):
    image = np.full((200, 300, 3), 128, np.uint8)
    box = (0.3, top, 0.8, min(top + 0.4, 1.0))

    def strips(count):
        names = [Instance(1, name, 0.5, box) for name in ("cat", "dog", "cow", "hen")[:count]]
        return (draw_marks(image, names) == (20, 20, 24)).all(axis=2).sum()

    rim = (draw_marks(image, [Instance(1, "", 0.5, box)]) == (20, 20, 24)).all(axis=2).sum()
    assert strips(2) > strips(1) + 400 > rim
    assert draw_marks(image, [Instance(1, "x" * 99, 0.5, box)]).shape == image.shape


# The command, on trained models


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    found = [multi_object_scene(HELD_OUT_SEED + seed) for seed in range(24)]
    for index, scene in enumerate(found):
        cv2.imwrite(str(folder / f"{index:02}.png"), scene.image[..., ::-1])
    return folder, found


def agreement(record, scene, move=lambda box: np.array(box, float)):
    """How many of a scene's objects are among the predictions, of how many, and how many predictions there are."""
    hits = 0
    for item in scene.objects:
        same = [other for other in record["predictions"] if other["class_id"] == item.class_id]
        boxes = np.array([move(other["box"]) for other in same]).reshape(-1, 4)
        hits += bool(len(boxes) and overlap(boxes, np.array(item.box, float)).max() > 0.5)
    return hits, len(scene.objects), len(record["predictions"])


@pytest.mark.parametrize("model", ["detector.xml", "detector.onnx", "segmenter.xml", "segmenter.onnx"])
def test_boxes_are_those_of_the_scenes(model, scenes, tmp_path):
    folder, known = scenes
    fine(SHAPES / f"shapes_{model}", folder, "-o", tmp_path)
    found = records(tmp_path)
    hits, objects, predicted = np.sum([agreement(*pair) for pair in zip(found, known, strict=True)], axis=0)
    assert hits >= 0.9 * objects
    assert predicted <= 1.1 * objects
    for record in found:
        labels = dict.fromkeys(item["label"] for item in record["predictions"])
        assert [item["label"] for item in record["maps"]] == list(labels), "one overlay for each detected class"
        for item in record["maps"]:
            assert item["label"] == CLASS_NAMES[item["class_id"]]
            own = [other["score"] for other in record["predictions"] if other["class_id"] == item["class_id"]]
            assert item["score"] == max(own)
            assert (tmp_path / item["raw"]).is_file()
    assert [record["maps"] for record in on_page(tmp_path)] == [record["maps"] for record in found]


def test_overlay_shows_the_box(scenes, tmp_path):
    folder, _ = scenes
    fine(SHAPES / "shapes_detector.xml", folder / "01.png", "-o", tmp_path, "--opacity", "0")
    (record,) = records(tmp_path)
    image = cv2.imread(str(tmp_path / record["image"])).astype(int)
    for item in record["maps"]:
        (own,) = [other for other in record["predictions"] if other["class_id"] == item["class_id"]]
        overlay = cv2.imread(str(tmp_path / item["overlay"])).astype(int)[: len(image)]
        changed = np.abs(overlay - image).max(axis=2) > 60
        x0, _, x1, y1 = (round(side * 2) for side in own["box"])
        assert changed[y1 - 20 : y1 - 5, x0 - 2 : x0 + 3].any(axis=1).all(), "left edge"
        assert changed[y1 - 20 : y1 - 5, x1 - 2 : x1 + 3].any(axis=1).all(), "right edge"
        assert changed.mean() < 0.12, "more than a box and a name"


def test_letterboxed_boxes_lie_on_the_image(scenes, tmp_path):
    _, known = scenes
    image = np.full((128, 152, 3), 90, np.uint8)
    image[:, 12:140] = known[1].image
    large = cv2.resize(image, (152 * 4, 512), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "wide.png"), large[..., ::-1])
    for resize in ("letterbox", "corner", "crop"):
        fine(SHAPES / "shapes_detector.xml", tmp_path / "wide.png", "-o", tmp_path / resize, "--resize", resize)
        (record,) = records(tmp_path / resize)
        hits, objects, _ = agreement(record, known[1], lambda box: np.array(box) / 4 - [12, 0, 12, 0])
        assert hits == objects, resize


def test_classes_and_threshold(scenes, tmp_path):
    folder, known = scenes
    wanted = {item.class_id for item in known[1].objects}
    absent = min(set(range(8)) - wanted)
    model = SHAPES / "shapes_detector.xml"
    fine(model, folder / "01.png", "-o", tmp_path / "a", "--classes", f"{absent}")
    (drawn,) = records(tmp_path / "a")[0]["maps"]
    assert (drawn["class_id"], drawn["score"] < 0.3) == (absent, True)
    fine(model, folder / "01.png", "-o", tmp_path / "b", "--classes", "top2")
    assert {item["class_id"] for item in records(tmp_path / "b")[0]["maps"]} == wanted
    fine(model, folder / "01.png", "-o", tmp_path / "c", "--threshold", "0.999")
    assert records(tmp_path / "c")[0]["maps"] == []
    assert "nothing found" in (tmp_path / "c" / "index.html").read_text()
    assert "there is no class 8" in call(model, folder / "01.png", "-o", tmp_path / "d", "--classes", "8").stderr


def test_one_map_for_all_classes_has_all_boxes(scenes, tmp_path):
    folder, known = scenes
    options = xai_insert.Options(method="activation-map", check=False)
    xai_insert.insert_file(SHAPES / "shapes_detector.onnx", tmp_path / "agnostic.onnx", options)
    fine(tmp_path / "agnostic.onnx", folder / "01.png", "-o", tmp_path / "out")
    (record,) = records(tmp_path / "out")
    hits, objects, _ = agreement(record, known[1])
    assert hits == objects == 2
    assert [item["overlay"] for item in record["maps"]] == ["overlays/01.all.jpg"]


def test_outlines_follow_the_masks(scenes, tmp_path):
    """Filled, the white line of each overlay covers the object."""
    folder, known = scenes
    fine(SHAPES / "shapes_segmenter.xml", folder, "-o", tmp_path, "--opacity", "0")
    shares = []
    for record, scene in zip(records(tmp_path), known, strict=True):
        image = cv2.imread(str(tmp_path / record["image"])).astype(int)
        for item in record["maps"]:
            objects = [other for other in scene.objects if other.class_id == item["class_id"]]
            if len(objects) != 1:
                continue
            overlay = cv2.imread(str(tmp_path / item["overlay"])).astype(int)[: len(image)]
            changed = (np.abs(overlay - image).max(axis=2) > 40).astype(np.uint8)
            mask = cv2.resize(objects[0].mask.astype(np.uint8), (256, 256), interpolation=cv2.INTER_NEAREST)
            rim = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
            near = cv2.dilate(changed, np.ones((7, 7), np.uint8)) > 0
            shares.append((rim & near).sum() / rim.sum())
    assert len(shares) > 30
    assert np.mean(np.array(shares) > 0.8) > 0.9


# Maps of boxes


@pytest.fixture(scope="module", params=["xml", "onnx"])
def with_box_maps(request, tmp_path_factory):
    """The shape detector that reports its boxes, with a map of each."""
    folder = tmp_path_factory.mktemp("box_maps")
    onnx.save(reporting_detector(), folder / "plain.onnx")
    path = folder / f"xai.{request.param}"
    xai_insert.insert_file(folder / "plain.onnx", path, xai_insert.Options(per_box=True, check=False))
    return path


def runner(path):
    """A call that runs a model as it is, in the runtime's default precision."""
    if path.suffix == ".onnx":
        session = ort.InferenceSession(path)
        return lambda image: session.run(None, {session.get_inputs()[0].name: image})
    compiled = ov.Core().compile_model(path, "CPU")
    return lambda image: [value.copy() for value in compiled(image).values()]


def test_each_box_has_its_own_map(with_box_maps, tmp_path):
    """Two objects of one class that overlap: a picture and a raw map of each, with its own box alone."""
    run = runner(with_box_maps)
    scenes = []
    for seed in range(30):
        scene = overlapping_scene(seed)
        boxes, _, labels, _, maps = run(scene.model_input())
        chosen = found_objects(scene, boxes, labels)
        if chosen is not None:
            cv2.imwrite(str(tmp_path / f"{seed:02}.png"), scene.image[..., ::-1])
            scenes.append((scene, boxes, maps[0], chosen))
    assert len(scenes) >= 8
    out = tmp_path / "out"
    fine(with_box_maps, tmp_path, "-o", out, "--raw", "npy", "--opacity", "0")
    shown = [item["overlay"] for record in on_page(out) for item in record["maps"]]
    for record, (scene, boxes, maps, chosen) in zip(records(out), scenes, strict=True):
        image = cv2.imread(str(out / record["image"])).astype(int)
        drawn = [item for item in record["maps"] if "box" in item]
        assert len(drawn) == len(record["predictions"])
        assert [item["class_id"] for item in record["maps"] if "box" not in item].count(scene.objects[0].class_id) == 1
        for row in chosen:
            (item,) = [one for one in drawn if np.abs(np.array(one["box"]) - boxes[row].clip(0, 128)).max() < 1]
            np.testing.assert_allclose(np.load(out / item["raw"]).astype(int), maps[row], atol=2)
            assert item["overlay"] in shown
            overlay = cv2.imread(str(out / item["overlay"])).astype(int)[: len(image)]
            changed = np.abs(overlay - image).max(axis=2) > 60
            x0, _, x1, y1 = (round(side * 2) for side in item["box"])  # the image is shown at twice its size
            assert changed[y1 - 12 : y1 - 2, max(x0 - 2, 0) : x0 + 3].any(axis=1).all(), "left edge"
            assert changed[y1 - 12 : y1 - 2, x1 - 2 : x1 + 3].any(axis=1).all(), "right edge"
            assert changed.mean() < 0.1, "more than one box and its name"


def test_box_maps_follow_the_chosen_classes(with_box_maps, tmp_path):
    scene = overlapping_scene(0)
    cv2.imwrite(str(tmp_path / "scene.png"), scene.image[..., ::-1])
    wanted = scene.objects[0].class_id
    for number in (wanted, (wanted + 1) % 8):
        fine(with_box_maps, tmp_path / "scene.png", "-o", tmp_path / "out", "--classes", f"{number}")
        (record,) = records(tmp_path / "out")
        own = [item for item in record["predictions"] if item["class_id"] == number]
        assert [item["score"] for item in record["maps"] if "box" in item] == [item["score"] for item in own]
        assert len(record["maps"]) == 1 + len(own)
        assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == sorted(
            Path(item["overlay"]).name for item in record["maps"]
        ), "pictures of the other class are left behind"


@pytest.mark.parametrize("report", ["rows", "masks"])
def test_boxes_of_two_stages_have_their_maps(report, tmp_path):
    """Beside one map for all classes, or beside the masks of a segmenter."""
    net = Net("scattered", "flatten", report)
    onnx.save(net.model, tmp_path / "plain.onnx")
    xai_insert.insert_file(
        tmp_path / "plain.onnx", tmp_path / "xai.onnx", xai_insert.Options(per_box=True, check=False)
    )
    noise = np.random.default_rng(0).normal(128, 40, (HEIGHT, WIDTH, 3)).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), noise)
    prepared = ("--mean", "128", "--scale", "40", "--channels", "bgr", "--threshold", "0", "--raw", "npy")
    fine(tmp_path / "xai.onnx", tmp_path / "noise.png", "-o", tmp_path / "out", *prepared)
    (record,) = records(tmp_path / "out")
    drawn = [item for item in record["maps"] if "box" in item]
    assert len(drawn) == len(record["predictions"]) > 2
    assert len({item["overlay"] for item in record["maps"]}) == len(record["maps"])
    feed = ((noise.astype(np.float32) - 128) / 40).transpose(2, 0, 1)[None]
    session = ort.InferenceSession(tmp_path / "xai.onnx")
    names = [item.name for item in session.get_outputs()]
    maps = dict(zip(names, session.run(None, {"image": feed}), strict=True))["saliency_map_per_box"][0]
    for item in drawn:
        raw = np.load(tmp_path / "out" / item["raw"]).astype(int)
        assert np.abs(maps - raw).max(axis=(1, 2)).min() <= 1, "no map of the model's is the one that was written"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_maps_of_other_boxes_are_not_taken(count):
    """Two boxes: three maps may be theirs, with one that pads the report; one map cannot."""
    rows = np.array([[[4, 4, 20, 20, 0.9, 1], [10, 8, 30, 28, 0.8, 1]]], np.float32)

    class Engine:
        about = {"task": "detection"}  # noqa: RUF012
        layout = Layout()

        def infer(self, feed):
            maps = np.arange(count, dtype=np.uint8)[None, :, None, None] * np.ones((1, 1, 2, 2), np.uint8)
            return Outputs({"rows": rows}, np.zeros((1, 3, 2, 2), np.uint8), saliency_map_per_box=maps)

    feeder = Feeder.of(ImageInput("x", (1, 3, 32, 32), "float32"), Preprocessing())
    found = Finder(Engine(), feeder, ScoreMeaning()).explain(np.zeros((32, 32, 3), np.uint8))
    if count < 2:
        assert "there are 1 maps of boxes, but 2 boxes" in found.note
        assert not found.instances
    else:
        assert [int(item.saliency_map[0, 0]) for item in found.instances] == [0, 1]


def raw_detector():
    """The shape detector with its boxes written as distances, so that nobody can read them."""
    model = onnx.load(SHAPES / "shapes_detector.onnx")
    graph = model.graph
    name = graph.output[0].name
    graph.node.append(helper.make_node("Transpose", [name], ["distances"], perm=[0, 2, 1]))
    graph.output.append(helper.make_tensor_value_info("distances", TensorProto.FLOAT, ["N", 4, 336]))
    del graph.output[0]
    return model


def test_unknown_layout_is_told_once_and_not_guessed(scenes, tmp_path):
    folder, _ = scenes
    onnx.save(raw_detector(), tmp_path / "raw.onnx")
    options = xai_insert.Options(method="det-class-probability-map", check=False)
    xai_insert.insert_file(tmp_path / "raw.onnx", tmp_path / "xai.onnx", options)
    for classes, overlays, maps in (("predictions", 0, 8), ("3,5", 2, 2)):
        out = tmp_path / f"out_{overlays}"
        for _ in range(2):  # the second draws nothing and says it again
            result = fine(tmp_path / "xai.onnx", folder / "00.png", folder / "01.png", "-o", out, "--classes", classes)
            assert result.stderr.count("note: no boxes can be read from the outputs scores [1, 336, 8]") == 1
        for record in records(out):
            assert record["predictions"] == []
            assert len(record["maps"]) == maps
            assert sum(item["overlay"] is not None for item in record["maps"]) == overlays
            assert all("score" not in item for item in record["maps"])
        assert all("no boxes can be read" in record["note"] for record in on_page(out))
