"""`xai-explain` on the bundled classifier: what it writes, what it refuses, and runs that stop and go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import onnx
import PIL.Image
import pytest

import xai_insert
from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.explaining import (
    IMAGES,
    LABELS,
    SHAPES,
    call,
    calls,
    expected,
    fine,
    on_page,
    records,
    tree,
)
from xai_insert.explain.classify import Classifier, class_logits, probabilities
from xai_insert.explain.explained import ScoreMeaning
from xai_insert.explain.feed import Feeder
from xai_insert.explain.files import Source, find_images
from xai_insert.explain.journal import FOLDERS, Journal, Records
from xai_insert.explain.outputs import Outputs
from xai_insert.explain.preprocessing import Preprocessing
from xai_insert.explain.run import DrawOptions, FolderRun
from xai_insert.explain.shown import ImageInput
from xai_insert.layouts.record import Layout

# The command


@pytest.mark.parametrize("source", ["inserted", "plain"])
@pytest.mark.parametrize(
    ("suffix", "runtime"), [("xml", None), ("onnx", None), ("onnx", "openvino")], ids=["ir", "onnx", "onnx-openvino"]
)
def test_main_job(inserted_shapes, tmp_path, source, suffix, runtime):
    model = inserted_shapes / f"shapes.{suffix}" if source == "inserted" else SHAPES / f"shapes_cnn.{suffix}"
    fine(model, *IMAGES, "-o", tmp_path, "--raw", "npy", *(["--runtime", runtime] if runtime else []))
    for image, record in zip(IMAGES, records(tmp_path), strict=True):
        scores, maps = expected(inserted_shapes / "shapes.xml", image)
        best = int(scores.argmax())
        (drawn,) = record["maps"]
        assert (drawn["class_id"], drawn["label"]) == (best, LABELS[best])
        assert drawn["score"] == pytest.approx(scores[best], abs=0.01)
        assert f"{best}-{LABELS[best]}-{drawn['score']:.2f}.jpg" in drawn["overlay"]
        raw = np.load(tmp_path / drawn["raw"])
        assert raw.dtype == np.uint8
        np.testing.assert_allclose(raw, maps[best].astype(int), atol=2)
        overlay = cv2.imread(str(tmp_path / drawn["overlay"]))
        shown = cv2.imread(str(tmp_path / record["image"]))
        reference = xai_insert.overlay(np.ascontiguousarray(shown[..., ::-1]), raw)[..., ::-1]
        assert np.abs(overlay[: len(shown)].astype(int) - reference).mean() < 6, "JPEG loses less"


def test_page_needs_nothing_else(inserted_shapes, tmp_path):
    """It names no address outside the folder, and every file that it names is there."""
    odd = tmp_path / "in" / "a <b> & #1 ü.png"
    odd.parent.mkdir()
    odd.write_bytes(IMAGES[0].read_bytes())
    out = tmp_path / "out"
    fine(inserted_shapes / "shapes.xml", odd, IMAGES[1], "-o", out, "--classes", "top2", "--raw", "none")
    scripts = [out / "index.html", out / "run.js", out / "records.js", *(out / "data").iterdir()]
    assert not [path for path in scripts if re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text())]
    records = on_page(out)
    assert [record["file"] for record in records] == [odd.name, IMAGES[1].name]
    named = [name for record in records for name in (record["image"], record["data"], record["maps"][0]["overlay"])]
    assert len(named) == 6
    assert all((out / name).is_file() for name in named)
    for record in records:
        (data,) = calls(out / record["data"])
        grids = [[entry["w"], entry["h"]] for entry in data["maps"]]
        assert grids == [item["grid"] for item in record["maps"]], "the maps are there without --raw"


@pytest.mark.parametrize(("side", "is_copied"), [(300, True), (100, False), (1500, False)])
def test_moderate_jpeg_is_shown_as_it_is(inserted_shapes, tmp_path, side, is_copied):
    """Turned by its EXIF data, it lies beside overlays of the same proportions."""
    stored = cv2.resize(cv2.imread(str(IMAGES[0])), (side, side // 2))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    PIL.Image.fromarray(stored[..., ::-1]).save(tmp_path / "in.jpg", exif=exif)
    fine(inserted_shapes / "shapes.xml", tmp_path / "in.jpg", "-o", tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert record["size"] == [side // 2, side]
    copy = tmp_path / "out" / record["image"]
    assert (copy.read_bytes() == (tmp_path / "in.jpg").read_bytes()) is is_copied
    shown = cv2.imread(str(copy))
    overlay = cv2.imread(str(tmp_path / "out" / record["maps"][0]["overlay"]))
    assert overlay.shape[1] == shown.shape[1]
    assert shown.shape[0] == min(max(side, 256), 1024)


def test_raw_png_is_the_map(inserted_shapes, tmp_path):
    fine(inserted_shapes / "shapes.xml", IMAGES[0], "-o", tmp_path, "--classes", "all", "--colormap", "turbo")
    _, maps = expected(inserted_shapes / "shapes.xml", IMAGES[0])
    (record,) = records(tmp_path)
    assert [item["class_id"] for item in record["maps"]] == list(range(8))
    for item in record["maps"]:
        raw = cv2.imread(str(tmp_path / item["raw"]), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(raw, maps[item["class_id"]])


def test_map_without_classes_and_raw_scores(tmp_path):
    options = {
        "agnostic": xai_insert.Options(method="activation-map", check=False),
        "scores": xai_insert.Options(output_dtype="f32", check=False),
    }
    for name, choice in options.items():
        xai_insert.insert_file(SHAPES / "shapes_cnn.xml", tmp_path / f"{name}.xml", choice)
        fine(tmp_path / f"{name}.xml", IMAGES[0], "-o", tmp_path / name)
    (record,) = records(tmp_path / "agnostic")
    assert [item["overlay"] for item in record["maps"]] == ["overlays/shape_0.all.jpg"]
    assert record["predictions"][0]["label"] == "circle"
    (record,) = records(tmp_path / "scores")
    raw = cv2.imread(str(tmp_path / "scores" / record["maps"][0]["raw"]), cv2.IMREAD_UNCHANGED)
    assert (raw.min(), raw.max()) == (0, 255)


def test_labels_from_a_file_and_missing_labels(inserted_shapes, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["round thing", "square, thing", *LABELS[2:]]), encoding="utf-8")
    arguments = inserted_shapes / "shapes.xml", IMAGES[0], "-o", tmp_path / "out", "--labels", names, "--classes"
    for classes, expected_labels in {
        "0,5": ["round thing", "ring"],
        "round thing,star,5": ["round thing", "star", "ring"],
        "square, thing": ["square, thing"],
    }.items():
        fine(*arguments, classes)
        assert [item["label"] for item in records(tmp_path / "out")[0]["maps"]] == expected_labels
    plain = onnx.load(SHAPES / "shapes_cnn.onnx")
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / "plain.onnx")
    fine(tmp_path / "plain.onnx", IMAGES[0], "-o", tmp_path / "out", "--classes", "0,5")
    assert [item["label"] for item in records(tmp_path / "out")[0]["maps"]] == ["class 0", "class 5"]


@pytest.mark.parametrize("count", [2, 7, 9, 1001])
@pytest.mark.parametrize("model", ["shapes_cnn", "shapes_detector"])
def test_labels_of_another_number_are_refused(tmp_path, model, count):
    """One too many or too few would shift every name, whoever gives them."""
    names = tmp_path / "names.txt"
    names.write_text("x\n" * count)
    result = call(SHAPES / f"{model}.onnx", IMAGES[0], "-o", tmp_path / "out", "--labels", names)
    assert result.exit_code == 1
    assert f"there are {count} labels, but 8 classes" in result.stderr
    labelled = onnx.load(SHAPES / f"{model}.onnx")
    del labelled.metadata_props[:]
    labelled.metadata_props.add(key="labels", value="x " * count)
    onnx.save(labelled, tmp_path / "labelled.onnx")
    result = call(tmp_path / "labelled.onnx", IMAGES[0], "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"the model's metadata have {count} labels, but 8 classes" in result.stderr
    names.write_text("\n".join("abcdefgh"))
    fine(tmp_path / "labelled.onnx", IMAGES[0], "-o", tmp_path / "out", "--labels", names)


def test_classes_of_one_name_are_told_apart_by_number(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("x\n" * 8)
    arguments = SHAPES / "shapes_cnn.onnx", IMAGES[0], "-o", tmp_path / "out", "--labels", names, "--classes"
    result = call(*arguments, "x")
    assert result.exit_code == 1
    assert "classes called 'x': 0, 1, 2, 3, 4, 5, 6, 7; give the number of one" in result.stderr
    fine(*arguments, "3")


def test_classes_of_a_detector_by_name(tmp_path):
    fine(SHAPES / "shapes_detector.onnx", IMAGES[0], "-o", tmp_path, "--classes", "star,0")
    assert [item["label"] for item in records(tmp_path)[0]["maps"]] == ["star", "circle"]


def test_pictures_of_other_kinds_are_named(inserted_shapes, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "good.png").write_bytes(IMAGES[0].read_bytes())
    for name in ("a.gif", "b.AVIF", "deep/c.jp2", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"x")
    result = fine(inserted_shapes / "shapes.xml", tmp_path / "in", "-o", tmp_path / "out")
    folder = tmp_path / "in"
    listed = ", ".join(str(folder / name) for name in ("a.gif", "b.AVIF", "deep/c.jp2"))
    assert f"note: 3 pictures of kinds that are not read were left out: {listed}\n" in result.stderr


def test_interrupted_while_the_model_is_read(monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("xai_insert.explain.setup.load_settled", interrupt)
    result = call(SHAPES / "shapes_cnn.onnx", IMAGES[0], "-o", tmp_path)
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted\n"


def test_folders_and_equal_names(inserted_shapes, tmp_path):
    for folder in ("in/a", "in/b", "other"):
        (tmp_path / folder).mkdir(parents=True)
        for image in IMAGES[:2]:
            (tmp_path / folder / image.name).write_bytes(image.read_bytes())
    (tmp_path / "in" / "notes.txt").write_text("no image")
    fine(inserted_shapes / "shapes.xml", tmp_path / "in", tmp_path / "other", IMAGES[0], "-o", tmp_path / "in" / "out")
    names = [record["name"] for record in records(tmp_path / "in" / "out")]
    assert names[:4] == ["a_shape_0", "a_shape_1", "b_shape_0", "b_shape_1"]
    assert len(set(names)) == 7
    sources = [tmp_path / "in", tmp_path / "other", IMAGES[0]]
    results = [tmp_path / "in" / "out" / name for name in FOLDERS]
    assert [source.name for source in find_images(sources, results)] == names, "results taken as images"


def test_unreadable_images_are_skipped(inserted_shapes, tmp_path):
    (tmp_path / "broken.png").write_bytes(IMAGES[0].read_bytes()[:60])
    (tmp_path / "empty.jpg").touch()
    result = call(
        inserted_shapes / "shapes.xml", tmp_path / "broken.png", tmp_path / "gone.png", tmp_path / "empty.jpg",
        IMAGES[1], "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 1
    for name, reason in [("broken.png", "not an image"), ("gone.png", "No such file"), ("empty.jpg", "empty file")]:
        assert f"{name}: {reason}" in result.stderr
    assert "1 drawn, 3 not readable" in result.stdout
    assert [record["name"] for record in records(tmp_path / "out")] == ["shape_1"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone.xml", "{image}"], 1, "error: no such file: gone.xml"),
        (["{folder}/shapes.bin", "{image}"], 1, "wanted .xml (OpenVINO IR) or .onnx"),
        (["{model}", "{image}", "--runtime", "onnxruntime"], 1, "onnxruntime cannot run an OpenVINO IR"),
        (["{model}", "{image}", "--device", "NOPE"], 1, "OpenVINO cannot compile the model for NOPE"),
        (["{model}", "{image}", "--classes", "8"], 1, "there is no class 8: the model has the classes 0 to 7"),
        (["{model}", "{image}", "--labels", "gone.txt"], 1, "cannot read the labels gone.txt"),
        (["{model}", "{image}", "--layout", "NHWC"], 1, "found 96 in [None, 3, 96, 96] read as NHWC"),
        (["{model}", "{image}", "--mean", "1,2"], 1, "2 values of mean or scale do not fit 3 channels"),
        (["{model}", "{image}", "--input-size", "64x64"], 1, "leave out --input-size"),
        (["{model}", "{empty}"], 1, "no images in"),
        (["{model}", "{image}", "--classes", "some"], 2, "is not predictions, all, top5"),
        (["{model}", "{image}", "--scale", "0"], 2, "it cannot be 0"),
        (["{model}", "{image}", "--opacity", "2"], 2, "0<=x<=1"),
        (["{model}", "{image}", "--frames", "3"], 2, "--frames counts those of videos and cameras"),
        (["{model}"], 2, "Missing argument"),
    ],
)
def test_mistakes_are_told_in_one_line(inserted_shapes, tmp_path, arguments, code, message):
    (tmp_path / "empty").mkdir()
    known = {
        "image": IMAGES[0], "model": inserted_shapes / "shapes.xml", "folder": inserted_shapes,
        "empty": tmp_path / "empty",
    }  # fmt: skip
    result = call(*(argument.format(**known) for argument in arguments), "-o", tmp_path / "out")
    assert result.exit_code == code
    assert message in result.stderr
    assert code == 2 or len(result.stderr.splitlines()) == 1
    assert isinstance(result.exception, SystemExit)


def test_models_that_are_no_classifiers(tmp_path):
    result = call(SHAPES / "images", IMAGES[0], "-o", tmp_path / "out")
    assert result.exit_code == 1
    open_size = models.classifier(models.CLOSED["global average pool"], size=("H", "W"))
    onnx.save(open_size, tmp_path / "open.onnx")
    result = call(tmp_path / "open.onnx", IMAGES[0], "-o", tmp_path / "out")
    assert "has no fixed size: say at which size to run the model" in result.stderr
    fine(tmp_path / "open.onnx", IMAGES[0], "-o", tmp_path / "out", "--input-size", "24x36")
    assert records(tmp_path / "out")[0]["maps"][0]["grid"] == [18, 12]


@pytest.mark.parametrize("kind", ["onnx", "onnx in openvino", "ir"])
def test_names_reach_the_page(tmp_path, kind):
    names = {index: f"{label} <{index}>" for index, label in enumerate(LABELS)}
    model = onnx.load(SHAPES / "shapes_cnn.onnx")
    onnx.helper.set_model_props(model, {"names": str(names), "task": "classify", "stride": "1"})
    onnx.save(model, tmp_path / "plain.onnx")
    path = tmp_path / ("xai.xml" if kind == "ir" else "xai.onnx")
    xai_insert.insert_file(tmp_path / "plain.onnx", path, xai_insert.Options(check=False))
    runtime = ["--runtime", "openvino"] if kind == "onnx in openvino" else []
    fine(path, IMAGES[3], "-o", tmp_path / "out", *runtime)
    assert records(tmp_path / "out")[0]["maps"][0]["label"] == "star <3>"
    assert on_page(tmp_path / "out")[0]["maps"][0]["title"] == "star <3>"


# Runs that stop and go on


def test_second_run_draws_only_what_is_missing(inserted_shapes, tmp_path):
    arguments = (inserted_shapes / "shapes.xml", *IMAGES, "-o", tmp_path)
    fine(*arguments)
    before = tree(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "overlays").iterdir()}
    assert "0 drawn, 5 already there" in fine(*arguments).stdout
    gone = next((tmp_path / "overlays").glob("shape_2*"))
    gone.unlink()
    assert "1 drawn, 4 already there" in fine(*arguments).stdout
    assert tree(tmp_path) == before
    assert {path for path, stamp in times.items() if path.stat().st_mtime_ns != stamp} == {gone}
    assert "5 drawn" in fine(*arguments, "--overwrite").stdout
    assert tree(tmp_path) == before


def test_other_settings_draw_again_and_leave_nothing_behind(inserted_shapes, tmp_path):
    fine(inserted_shapes / "shapes.xml", *IMAGES, "-o", tmp_path / "a", "--classes", "all")
    assert "5 drawn" in fine(inserted_shapes / "shapes.xml", *IMAGES, "-o", tmp_path / "a", "--opacity", "0.7").stdout
    fine(inserted_shapes / "shapes.xml", *IMAGES, "-o", tmp_path / "b", "--opacity", "0.7")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_changed_image_is_drawn_again(inserted_shapes, tmp_path):
    image = tmp_path / "image.png"
    image.write_bytes(IMAGES[0].read_bytes())
    fine(inserted_shapes / "shapes.xml", image, "-o", tmp_path / "out")
    image.write_bytes(IMAGES[1].read_bytes())
    assert "1 drawn" in fine(inserted_shapes / "shapes.xml", image, "-o", tmp_path / "out").stdout
    assert [path.name[:14] for path in (tmp_path / "out" / "overlays").iterdir()] == ["image.1-square"]


def test_journal_survives_two_kills(tmp_path):
    path = tmp_path / "results.jsonl"
    facts = {"source": "", "image": "images/a.jpg", "data": "data/a.js", "size": [1, 1], "predictions": [], "maps": []}
    path.write_bytes(json.dumps({"name": "a", **facts}).encode() + b'\n{"na')
    journal = Journal(path, tmp_path)
    journal.__enter__()
    journal.append({"name": "b", **facts, "image": "images/b.jpg", "data": "data/b.js"})
    assert list(Records(path)) == ["a", "b"]


def test_killed_run_goes_on(inserted_shapes, tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(300):
        image = cv2.imread(str(IMAGES[index % 5]))
        cv2.imwrite(str(tmp_path / "in" / f"{index:03}.png"), np.roll(image, index, axis=1))
    arguments = [inserted_shapes / "shapes.xml", tmp_path / "in", "-o"]
    journal = tmp_path / "out" / "results.jsonl"
    command = [sys.executable, "-m", "xai_insert.cli.explain", *map(str, [*arguments, tmp_path / "out"])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    with journal.open("ab") as file:
        file.write(b'{"name": "29')  # as if the kill had come while a line was written
    kept = len(journal.read_bytes().splitlines()) - 1
    assert 20 <= kept < 300
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "overlays").iterdir()}
    finished = [
        tmp_path / "out" / item["maps"][0]["overlay"] for item in map(json.loads, journal.open().readlines()[:-1])
    ]
    assert f"{300 - kept} drawn, {kept} already there" in fine(*arguments, tmp_path / "out").stdout
    fine(*arguments, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == times[path] for path in finished), "a finished image was drawn again"


def test_memory_is_bounded(tmp_path):
    """However many images there are and however slow they are consumed, only a few are under way."""

    class Engine:
        parallel = 2
        about = {}  # noqa: RUF012 - a stand-in
        layout = Layout()

        def infer(self, feed):
            return Outputs({"scores": np.array([[0.1, 0.9]])}, np.zeros((1, 2, 3, 3), np.uint8))

    feeder = Feeder.of(ImageInput("x", (1, 3, 96, 96), "float32"), Preprocessing())
    explainer = FolderRun(Classifier(Engine(), feeder, ScoreMeaning()), tmp_path, DrawOptions(raw="none"))
    given, taken, most = 0, [], 0

    def sources():
        nonlocal given, most
        for index in range(100):
            given += 1
            most = max(most, given - len(taken))
            yield Source(IMAGES[0], f"copy{index}")

    explainer.run(sources(), taken.append)
    assert [outcome.source.name for outcome in taken] == [f"copy{index}" for index in range(100)]
    assert not any(outcome.error for outcome in taken)
    assert most <= 2 * (2 + os.cpu_count()) + 1


def test_bytes_of_a_quantised_classifier_are_scores():
    """255 for 1, as TFLite's classifiers have them; numbers of classes are no scores."""
    given = {"label": np.array([[1, 0, 2]], np.int64), "scores": np.array([[204, 51, 0]], np.uint8)}
    scores, independent = probabilities(class_logits(Outputs(given, np.zeros((1, 3, 2, 2), np.uint8))), False)
    np.testing.assert_allclose(scores, [0.8, 0.2, 0], atol=1e-6)
    assert not independent
