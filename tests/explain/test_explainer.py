"""Explaining from Python: `Explainer` and `Explanation`, saving a result, strings as paths."""

import json
import pickle
import subprocess
import sys

import cv2
import numpy as np
import onnx
import onnx_ir
import openvino as ov
import PIL.Image
import pytest

import xai_insert
from model_zoo_fixtures.testbed import models
from model_zoo_fixtures.testbed.explaining import IMAGES, LABELS, SHAPES, expected
from xai_insert import Explainer, Options, errors, insert, insert_file
from xai_insert.explain import Look
from xai_insert.explain.draw import overlay

PICTURES = [np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]) for path in IMAGES]


SHAPE = "[?, 5, 6, 6]"


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "shapes.onnx"
    insert_file(str(SHAPES / "shapes_cnn.onnx"), str(path), Options(check=False))
    return path


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_give_what_single_images_give(inserted_shapes, suffix, batch_size):
    found = Explainer(inserted_shapes / f"shapes.{suffix}", batch_size=batch_size).explain(PICTURES)
    assert len(found) == 5
    for image, path, explanation in zip(PICTURES, IMAGES, found, strict=True):
        scores, maps = expected(inserted_shapes / "shapes.xml", path)
        best = explanation.predictions[0]
        assert (best.class_id, best.label) == (int(scores.argmax()), LABELS[int(scores.argmax())])
        assert best.score == pytest.approx(scores.max(), abs=0.02)
        np.testing.assert_allclose(explanation.raw_map(), maps[best.class_id].astype(int), atol=3)
        np.testing.assert_array_equal(explanation.image, image)


@pytest.mark.parametrize("name", ["shapes_vit_weights", "shapes_vit", "shapes_cnn", "shapes_cnn_tflite"])
def test_quantised_models_predict_what_they_predict_elsewhere(name):
    """OpenVINO 2026.4.1 gives other predictions for compressed weights as soon as it runs several streams."""
    path = SHAPES / "int8" / f"{name}.xml"
    compiled = ov.Core().compile_model(path, "CPU", {"NUM_STREAMS": "1"})
    for picture, found in zip(PICTURES, Explainer(path).explain(PICTURES), strict=True):
        feed = picture[None] if "tflite" in name else picture.transpose(2, 0, 1)[None]
        logits = compiled(np.ascontiguousarray(feed, np.float32))[0][0]
        assert found.predictions[0].class_id == logits.argmax()


def test_a_stream_takes_images_as_it_gives_them(onnx_model):
    taken = []

    def images():
        for number in range(200):
            taken.append(number)
            yield IMAGES[number % len(IMAGES)]

    explainer = Explainer(onnx_model, batch_size=2)
    stream = explainer.stream(images())
    first = next(stream)
    assert len(taken) < 100
    assert first.to_dict() == explainer.explain(IMAGES[:1])[0].to_dict()
    assert sum(1 for _ in stream) == 199
    with pytest.raises(ValueError, match="put a single one into a list"):
        explainer.stream(IMAGES[0])


def test_all_kinds_of_images(onnx_model):
    given = [PICTURES[0], IMAGES[0], str(IMAGES[0]), PIL.Image.fromarray(PICTURES[0])]
    found = Explainer(str(onnx_model)).explain(iter(given))
    assert len({json.dumps(item.to_dict()) for item in found}) == 1
    assert Explainer(onnx_model).explain([]) == []
    stacked = Explainer(onnx_model).explain(np.stack(PICTURES))
    assert [item.predictions[0].label for item in stacked] == LABELS[:5]


@pytest.mark.parametrize("given", [PICTURES[0], "photo.png", [PICTURES[0].astype(float)], [PICTURES[0][..., 0]], [3]])
def test_other_things_are_refused(onnx_model, given):
    with pytest.raises(ValueError, match=r"put a single one into a list|must be uint8 RGB"):
        Explainer(onnx_model).explain(given)


def test_heatmap_by_number_name_and_prediction(onnx_model):
    (found,) = Explainer(onnx_model).explain(PICTURES[:1])
    for which in (None, 0, "circle", found.predictions[0]):
        heat = found.heatmap(which)
        assert (heat.dtype, heat.shape) == (np.float32, PICTURES[0].shape[:2])
        assert (heat.min(), heat.max()) == (0, 1)
        np.testing.assert_array_equal(heat, found.heatmap())
    assert not np.array_equal(found.heatmap("star"), found.heatmap())
    with pytest.raises(ValueError, match=r"no map of class 'cat': there are those of 0 \(circle\), .* and 3 more"):
        found.heatmap("cat")
    with pytest.raises(ValueError, match="no map of class 8"):
        found.raw_map(8)
    twice = Explainer(onnx_model, labels=["a"] * 8).explain(PICTURES[:1])[0]
    with pytest.raises(ValueError, match="several classes are called 'a': 0, 1,"):
        twice.heatmap("a")


@pytest.mark.parametrize("resize", ["fit", "letterbox", "corner", "crop"])
def test_heatmap_lies_on_the_image(onnx_model, resize):
    """The square of a wide image is where it is, whatever of the image the model saw; elsewhere there is nothing."""
    wide = np.full((96, 192, 3), PICTURES[1][0, 0], np.uint8)
    wide[:, 48:144] = PICTURES[1]
    (found,) = Explainer(onnx_model, resize=resize).explain([wide])
    heat = found.heatmap("square")
    assert heat.shape == (96, 192)
    if resize == "crop":
        assert not heat[:, :48].any()
        np.testing.assert_allclose(heat[:, 48:144], Explainer(onnx_model).explain([PICTURES[1]])[0].heatmap("square"))


def test_overlay(onnx_model):
    (found,) = Explainer(onnx_model).explain(PICTURES[:1])
    np.testing.assert_array_equal(found.overlay(), overlay(PICTURES[0], found.raw_map()))
    gray = found.overlay(look=Look(background="gray", colormap="jet"))
    np.testing.assert_array_equal(gray, overlay(PICTURES[0], found.raw_map(), colormap="jet", background="gray"))
    faint, alone = (
        np.abs(found.overlay(3, scale=scale).astype(int) - PICTURES[0]).mean() for scale in ("shared", "each")
    )
    assert faint < 0.4 * alone, "a class of score 0"
    with pytest.raises(ValueError, match="scale must be one of shared, each"):
        found.overlay(scale="none")


def test_detector_and_boxes():
    (found,) = Explainer(SHAPES / "shapes_detector.onnx").explain(PICTURES[:1])
    (best,) = found.predictions
    assert (best.label, round(best.score, 1)) == ("circle", 0.9)
    record = found.to_dict()["predictions"][0]
    assert len(record["box"]) == 4
    assert found.raw_map(best).shape == found.raw_map("circle").shape
    left, top, right, bottom = (round(edge) for edge in record["box"])
    heat = found.heatmap(best)
    assert heat[top:bottom, left:right].mean() > 4 * heat.mean()
    assert np.abs(found.overlay().astype(int) - PICTURES[0]).max() > 100, "the box is drawn"
    assert len(Explainer(SHAPES / "shapes_detector.onnx", threshold=1).explain(PICTURES[:1])[0].predictions) == 0


def test_map_for_all_classes(tmp_path):
    insert_file(SHAPES / "shapes_cnn.onnx", tmp_path / "am.onnx", Options(method="activation-map", check=False))
    (found,) = Explainer(tmp_path / "am.onnx").explain(PICTURES[:1])
    assert found.raw_map().ndim == 2
    np.testing.assert_array_equal(found.raw_map("star"), found.raw_map())
    assert found.overlay().shape == PICTURES[0].shape


def test_pickled_it_opens_where_it_runs(onnx_model, tmp_path):
    explainer = Explainer(onnx_model, labels=LABELS)
    before = [item.to_dict() for item in explainer.explain(PICTURES)]
    (tmp_path / "explainer").write_bytes(pickle.dumps(explainer))
    code = (
        "import json, pickle, sys; explainer = pickle.load(open(sys.argv[1], 'rb'));"
        "print(json.dumps([item.to_dict() for item in explainer.explain(sys.argv[2:])]))"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "explainer"), *map(str, IMAGES)]
    assert json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout) == before


def test_what_a_notebook_shows(onnx_model):
    (found,) = Explainer(onnx_model, labels=["<b>&"] * 8).explain(PICTURES[:1])
    html = found._repr_html_()
    assert html.startswith('<img src="data:image/jpeg;base64,')
    assert "&lt;b&gt;&amp;" in html
    assert "<b>" not in html
    assert repr(found).startswith("Explanation(<b>& 0.97, ")
    assert "shapes.onnx" in repr(Explainer(onnx_model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "torch"}, "runtime must be one of openvino, onnxruntime, not 'torch'"),
        ({"channels": "gbr"}, "channels must be one of rgb, bgr"),
        ({"layout": "CHWN"}, "layout must be one of NCHW, NHWC"),
        ({"resize": "half"}, "resize must be one of fit, letterbox"),
        ({"device": None}, "device must be the name of a device"),
        ({"batch_size": 0}, "batch_size must count images, from 1, not 0"),
        ({"batch_size": 2.5}, "batch_size must count images"),
        ({"threshold": 2}, r"threshold must lie in 0\.\.1"),
        ({"threshold": "high"}, r"threshold must lie in 0\.\.1, not 'high'"),
        ({"labels": "names.txt"}, "labels must be a sequence of names"),
        ({"labels": [1, 2]}, "labels must be a sequence of names"),
        ({"mean": "1,2,3"}, "mean must be a number, or one for each channel, not '1,2,3'"),
        ({"mean": [float("nan")]}, "mean must be a number"),
        ({"scale": 0}, "it cannot be 0"),
        ({"input_size": 224}, "input_size must be height and width, not 224"),
        ({"fed": {"ids": "ids.npy"}}, "fed must be arrays by the names of inputs"),
        ({"scale": [0]}, "it cannot be 0"),
        ({"input_size": (0, 3)}, "input_size must be height and width"),
    ],
)
def test_wrong_options_are_told_at_once(onnx_model, options, message):
    with pytest.raises(ValueError, match=message):
        Explainer(onnx_model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opacity": 7}, r"opacity must lie in 0\.\.1, not 7"),
        ({"opacity": "half"}, r"opacity must lie in 0\.\.1, not 'half'"),
        ({"colormap": "rainbow"}, "colormap must be one of jet, turbo"),
        ({"background": "none"}, "background must be one of photo, gray"),
        ({"blend": "all"}, "blend must be one of value, even"),
    ],
)
def test_wrong_looks_are_told_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Look(**options)
    with pytest.raises(ValueError, match=message):
        overlay(PICTURES[0], np.zeros((2, 2), np.uint8), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, np.zeros((2, 2))), "image must be uint8"),
        ((np.zeros((0, 4, 3), np.uint8), np.zeros((2, 2))), "image must be uint8"),
        ((PICTURES[0], [[0, 1]]), "saliency_map must be uint8 or float .*, not list"),
        ((PICTURES[0], np.zeros((0, 2))), "saliency_map must be uint8 or float"),
    ],
)
def test_what_cannot_be_drawn(arguments, message):
    with pytest.raises(ValueError, match=message):
        overlay(*arguments)
    with pytest.raises(ValueError, match="span must be two values, the lower one first"):
        overlay(PICTURES[0], np.zeros((2, 2)), span=(1, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": "three"}, "top_k counts maps, not 'three'"),
        ({"classes": "cat"}, "classes are different numbers from 0 on, not 'cat'"),
        ({"saliency_size": 7}, "saliency_size must be height and width, positive, not 7"),
        ({"saliency_size": (7,)}, "saliency_size must be height and width"),
        ({"score_threshold": "low"}, "score_threshold must lie in"),
        ({"per_box": "no"}, "per_box must be True or False, not 'no'"),
    ],
)
def test_options_of_a_wrong_kind_are_told_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)
    with pytest.raises(ValueError, match="options must be Options"):
        insert(SHAPES / "shapes_cnn.onnx", options)


def test_wrong_models_are_told_at_once(inserted_shapes, tmp_path):
    with pytest.raises(errors.ModelFileError, match="no such file"):
        Explainer(tmp_path / "gone.onnx")
    with pytest.raises(ValueError, match="onnxruntime cannot run an OpenVINO IR"):
        Explainer(inserted_shapes / "shapes.xml", runtime="onnxruntime")
    with pytest.raises(ValueError, match="model must be a path, not a ModelProto"):
        Explainer(onnx.ModelProto())


@pytest.mark.parametrize("image", [np.zeros((0, 4, 3), np.uint8), PIL.Image.new("RGB", (0, 4))])
def test_an_empty_image_is_refused(onnx_model, image):
    with pytest.raises(ValueError, match=r"an image must be uint8 RGB .* not uint8 \["):
        Explainer(onnx_model).explain([image])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_bits_are_not_cut_off(onnx_model, dtype):
    deep = PIL.Image.fromarray(np.full((4, 4), 5000, dtype))
    with pytest.raises(ValueError, match="more than 8 bits: give its path"):
        Explainer(onnx_model).explain([deep])


# Results of an insertion


@pytest.mark.parametrize("kind", ["path", "proto", "onnx_ir", "ov"])
def test_save(tmp_path, kind):
    proto = models.classifier(models.CLOSED["mean"])
    onnx.save(proto, tmp_path / "plain.onnx")
    source = {
        "path": lambda: str(tmp_path / "plain.onnx"),
        "proto": lambda: proto,
        "onnx_ir": lambda: onnx_ir.load(tmp_path / "plain.onnx"),
        "ov": lambda: ov.Core().read_model(tmp_path / "plain.onnx"),
    }[kind]()
    result = insert(source)
    suffix = "xml" if kind == "ov" else "onnx"
    files = result.save(str(tmp_path / f"saved.{suffix}"))
    assert files[-1] == tmp_path / f"saved.{suffix}"
    compiled = ov.Core().compile_model(files[-1], "CPU")
    assert any("saliency_map" in output.get_names() for output in compiled.outputs)
    kinds = {"path": "Model", "proto": "ModelProto", "onnx_ir": "Model", "ov": "Model"}
    assert repr(result) == f"InsertResult({kinds[kind]}, recipro-cam: saliency_map {SHAPE} u8)"
    with pytest.raises(errors.ModelFileError, match="give an output that ends in"):
        result.save(tmp_path / ("saved.onnx" if kind == "ov" else "saved.xml"))
    with pytest.raises(errors.ModelFileError, match="the output folder does not exist"):
        result.save(tmp_path / "gone" / f"saved.{suffix}")


def test_saved_is_what_insert_file_writes(tmp_path):
    xai_insert.insert_file(str(SHAPES / "shapes_cnn.onnx"), str(tmp_path / "a.onnx"))
    insert(SHAPES / "shapes_cnn.onnx").save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert xai_insert.plan_insertion(str(SHAPES / "shapes_cnn.onnx"), output=str(tmp_path / "c.xml")).task


def test_notebook(tmp_path, monkeypatch):
    """Its cells run one after the other, and the pictures that it ends cells with can be shown."""
    notebook = json.loads((SHAPES.parents[1] / "docs" / "explain.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(SHAPES.parents[1])
    names = {"OUTPUT": str(tmp_path)}
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "it is kept without outputs"
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace('"/tmp"', "OUTPUT"), names)
    assert names["found"][0]._repr_html_().startswith("<img")
