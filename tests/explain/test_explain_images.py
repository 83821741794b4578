"""Explaining: overlays, reading outputs, and preparing images."""

from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest

import xai_insert
from model_zoo_fixtures.testbed.explaining import SHAPES
from xai_insert import Options, insert_file
from xai_insert.errors import ModelFileError
from xai_insert.explain import read_outputs
from xai_insert.explain.class_names import class_names
from xai_insert.explain.classify import probabilities
from xai_insert.explain.draw import COLORMAPS, palette, to_bytes
from xai_insert.explain.errors import PreprocessingError
from xai_insert.explain.explained import Explained, Instance, ScoreMeaning, Selection
from xai_insert.explain.feed import Feeder
from xai_insert.explain.files import decode, encode_jpeg
from xai_insert.explain.marks import draw_marks
from xai_insert.explain.picture import Look, canvas, caption, draw, legend
from xai_insert.explain.preprocessing import RESIZES, Preprocessing, View, from_metadata, prepare
from xai_insert.explain.scale import Scaled, raw_values, scaled
from xai_insert.explain.shown import ImageInput

# The overlay


def test_overlay_blends_as_told():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    saliency = np.full((4, 5), 255, np.uint8)
    np.testing.assert_array_equal(xai_insert.overlay(image, saliency, opacity=0), image)
    jet = xai_insert.overlay(image, saliency, opacity=1, colormap="jet")
    np.testing.assert_array_equal(np.unique(jet), [0, 128])  # its dark red
    half = xai_insert.overlay(image, saliency, opacity=0.5, colormap="gray")
    np.testing.assert_allclose(half, image * 0.5 + 127.5, atol=1)


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_colours_follow_the_map(colormap):
    image = np.zeros((2, 256, 3), np.uint8)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 2, axis=0)
    reference = cv2.cvtColor(ramp, cv2.COLOR_GRAY2RGB)
    if colormap != "gray":
        reference = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{colormap.upper()}"))[..., ::-1]
    even = xai_insert.overlay(image, ramp, opacity=1, colormap=colormap, blend="even")
    np.testing.assert_array_equal(even, reference)


def test_the_image_is_seen_where_the_map_is_low():
    """The weight of the colours follows the map: none at 0, half of `opacity` in the middle, all of it at the top."""
    image = np.full((2, 256, 3), 200, np.uint8)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 2, axis=0)
    drawn = xai_insert.overlay(image, ramp, opacity=0.8, colormap="gray")[0, :, 0].astype(float)
    values = np.arange(256)
    np.testing.assert_allclose(drawn, 200 + 0.8 * values / 255 * (values - 200), atol=1.5)
    assert drawn[0] == 200


def test_overlay_of_raw_scores():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    scores = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(xai_insert.overlay(image, scores), xai_insert.overlay(image, to_bytes(scores)))
    half = xai_insert.overlay(image, np.full((4, 5), 0.5), span=(0, 1), opacity=1, colormap="gray", blend="even")
    np.testing.assert_array_equal(np.unique(half), [127])


def test_gray_background():
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    drawn = xai_insert.overlay(image, np.zeros((2, 2), np.uint8), background="gray")
    np.testing.assert_array_equal(np.unique(drawn), [60])  # 0.299 of the red


# One scale for the maps of an image


def test_shared_scale_of_raw_scores():
    """The same colour is the same difference; a class with a narrow range stays pale, one with a low score faint."""
    strong, weak = np.array([[-1.0, 3.0]], np.float32), np.array([[5.0, 6.0]], np.float32)
    first, second = scaled([strong, weak], [0.8, 0.4], "shared")
    np.testing.assert_array_equal(to_bytes(first.values, first.span), [[0, 255]])
    np.testing.assert_array_equal(to_bytes(second.values, second.span), [[0, 63]])
    assert (first.fade, second.fade) == (1, 0.5)
    assert second.ends == ("5", "9")
    assert second.text == "one scale, fainter by score"
    for alone in scaled([strong, weak], [0.8, 0.4], "each"):
        np.testing.assert_array_equal(to_bytes(alone.values, alone.span), [[0, 255]])
        assert (alone.fade, alone.text) == (1, "own scale")


def test_shared_scale_of_bytes_goes_by_the_score():
    maps = [np.array([[0, 255]], np.uint8)] * 3
    assert [item.fade for item in scaled(maps, [0.9, 0.45, 0.0], "shared")] == [1, 0.5, 0.2]
    assert [item.fade for item in scaled(maps, [None] * 3, "shared")] == [1, 1, 1]
    assert [item.fade for item in scaled(maps, [float("nan"), 0.9, float("inf")], "shared")] == [0.2, 1, 0.2]
    assert {item.ends for item in scaled(maps, [0.9, 0.45, 0.0], "shared")} == {("least", "most")}


def test_a_range_turns_bytes_into_raw_scores():
    maps = np.array([[[0, 255]], [[0, 51]]], np.uint8)
    ranges = np.array([[-1, 3], [0, 5]], np.float32)
    np.testing.assert_allclose(raw_values(maps, ranges), [[[-1, 3]], [[0, 1]]], atol=1e-6)
    assert raw_values(maps, None) is maps
    found = Explained([], [], maps, View(), ranges=ranges)
    np.testing.assert_allclose(found.values_of(1), [[0, 1]], atol=1e-6)
    np.testing.assert_array_equal(found.map_of(1), [[0, 51]])
    outputs = read_outputs({"logits": np.zeros((1, 2)), "saliency_map": maps[None], "saliency_range": ranges[None]})
    assert list(outputs.predictions) == ["logits"]
    np.testing.assert_array_equal(outputs.saliency_range, ranges[None])


@pytest.mark.parametrize("width", [64, 170, 256, 640, 1024])
def test_legend_shows_the_colours(width):
    scale = scaled([np.array([[0.0, 1.0]])], [None], "shared")[0]
    strip = legend(width, scale, Look(opacity=1))
    assert strip.shape[1] == width
    flat = strip.reshape(-1, 3).astype(int)
    for colour, what in (([128] * 3, "lowest value"), ([channel[255] for channel in palette("turbo")], "highest")):
        assert np.abs(flat - colour).sum(axis=1).min() <= 6, what


@pytest.mark.parametrize("side", [200, 4000])
def test_boxes_are_readable_at_any_size(side):
    """Lines and letters grow with the image, so that they are the same once it is shown as large as a window."""
    drawn = draw_marks(np.zeros((side, side, 3), np.uint8), [Instance(0, "cat", 0.5, (0.25, 0.25, 0.75, 0.75))])
    white = (drawn > 150).all(axis=2)
    rows = np.flatnonzero(white[:, side * 7 // 10])
    assert len(rows) >= max(2, side // 250), "the box's two edges"
    label = white[: side // 4, side // 4 : side // 2]
    height = np.ptp(np.flatnonzero(label.any(axis=1))) + 1
    assert height >= max(8, side / 80)


@pytest.mark.parametrize(
    ("image", "saliency", "options", "message"),
    [
        ((4, 4), (2, 2), {}, r"image must be uint8 \[H, W, 3\]"),
        ((4, 4, 3), (1, 2, 2), {}, "pick one image and one class"),
        ((4, 4, 3), (2, 2), {"opacity": 2}, "opacity must lie in 0..1"),
        ((4, 4, 3), (2, 2), {"colormap": "rainbow"}, "colormap must be one of jet"),
        ((4, 4, 3), (2, 2), {"blend": "half"}, "blend must be one of value, even"),
        ((4, 4, 3), (2, 2), {"background": "blue"}, "background must be one of photo, gray"),
    ],
)
def test_overlay_refuses(image, saliency, options, message):
    with pytest.raises(ValueError, match=message):
        xai_insert.overlay(np.zeros(image, np.uint8), np.zeros(saliency, np.uint8), **options)


def test_scores_become_bytes():
    scores = np.array([[-1.0, 0.0], [1.0, 3.0]], np.float32)
    np.testing.assert_array_equal(to_bytes(scores), [[0, 63], [127, 255]])
    assert not to_bytes(np.full((3, 3), 7.0)).any()


def test_caption_is_cut_to_fit():
    strip = caption(256, "a very long label " * 20, "0.50")
    assert strip.shape[1:] == (256, 3)
    assert strip[:, -40:].max() > 150, "the score is not drawn"


@pytest.mark.parametrize("title", ["x" * 100_000, "x " * 50_000])
def test_a_name_of_any_length_is_cut_at_once(title):
    assert np.array_equal(caption(200, title, "0.50"), caption(200, title[:600], "0.50"))


def test_a_number_below_all_names_is_no_name():
    assert ScoreMeaning(("a", "b")).label(-1) == "class -1"


def test_a_picture_is_encoded_from_its_parts_in_their_order():
    red, blue = (
        np.full((height, 64, 3), colour, np.uint8) for height, colour in ((32, (250, 0, 0)), (16, (0, 0, 250)))
    )
    image = decode(Path("x.jpg"), encode_jpeg(red, blue))
    assert image.shape == (48, 64, 3)
    np.testing.assert_allclose(image[4, 4], red[0, 0], atol=8)
    np.testing.assert_allclose(image[44, 4], blue[0, 0], atol=8)


# Reading outputs


@pytest.mark.parametrize("kind", ["xml", "onnx"])
def test_outputs_say_what_the_insertion_found_of_them(kind, tmp_path):
    insert_file(SHAPES / f"shapes_segmenter.{kind}", tmp_path / f"a.{kind}", Options(check=False))
    feed = np.zeros((1, 3, 128, 128), np.float32)
    if kind == "xml":
        model = ov.Core().read_model(tmp_path / "a.xml")
        about = model.get_rt_info(["xai_insert"]).value
        outputs = read_outputs(ov.Core().compile_model(model, "CPU")(feed), metadata=about)
    else:
        session = ort.InferenceSession(tmp_path / "a.onnx")
        entries = {"classes": "no number", **session.get_modelmeta().custom_metadata_map}  # of another tool
        names = [item.name for item in session.get_outputs()]
        outputs = read_outputs(session.run(None, {session.get_inputs()[0].name: feed}), names, entries)
    assert outputs.layout.classes == outputs.saliency_map.shape[1] == 8
    assert (outputs.layout.box_format, outputs.layout.masks) == ("centres-pixels", "suppressed")


def test_metadata_that_name_another_output(inserted_shapes):
    with pytest.raises(ModelFileError, match="'map_at' is '3'"):
        read_outputs({"logits": np.zeros((1, 2))}, metadata={"map_at": "3"})


def test_outputs_by_name_from_each_runtime(inserted_shapes):
    feed = np.zeros((1, 3, 96, 96), np.float32)
    session = ort.InferenceSession(inserted_shapes / "shapes.onnx")
    names = [item.name for item in session.get_outputs()]
    for outputs in (
        read_outputs(ov.Core().compile_model(inserted_shapes / "shapes.xml", "CPU")(feed)),
        read_outputs(session.run(None, {"image": feed}), names),
        read_outputs(dict(zip(names, session.run(None, {"image": feed}), strict=True))),
    ):
        assert list(outputs.predictions) == ["logits"]
        assert outputs.saliency_map.shape == (1, 8, 12, 12)
        assert outputs.feature_vector is None
    with pytest.raises(ValueError, match="pass names"):
        read_outputs([feed])


@pytest.mark.parametrize(
    ("logits", "multilabel", "scores", "independent"),
    [
        ([0.0, np.log(3)], False, [0.25, 0.75], False),
        ([0.2, 0.8], False, [0.2, 0.8], False),
        ([0.9, 0.8, 0.1], False, [0.9, 0.8, 0.1], True),
        ([0.0, -np.log(3)], True, [0.5, 0.25], True),
        ([1e4, -1e4], True, [1, 0], True),
        ([1e4, 0], False, [1, 0], False),
    ],
)
def test_probabilities(logits, multilabel, scores, independent):
    found, kind = probabilities(np.array(logits, np.float32), multilabel)
    np.testing.assert_allclose(found, scores, atol=1e-6)
    assert kind is independent


def test_class_selection():
    scores = np.array([0.1, 0.6, 0.2, 0.1])
    names = ["cat", "dog", "fire, truck", "7"]
    texts = ("predictions", "all", "top2", "3,0", "dog,0", "fire, truck", "7")
    chosen = {text: list(Selection.parse(text, names).choose(scores, [1], names)) for text in texts}
    assert chosen == {
        "predictions": [1], "all": [0, 1, 2, 3], "top2": [1, 2], "3,0": [3, 0], "dog,0": [1, 0], "fire, truck": [2],
        "7": [3],
    }  # fmt: skip
    assert list(Selection.parse("2").choose(scores, [1], names, first=1)) == [1], "labels that begin with 1"
    for text in ("top0", "best", "1,", ""):
        with pytest.raises(ValueError, match="is not predictions"):
            Selection.parse(text)


# Preparing images


def test_metadata_of_model_api():
    info = {
        "mean_values": "123.675 116.28 103.53", "scale_values": "58.395, 57.12, 57.375",
        "reverse_input_channels": "YES", "resize_type": "fit_to_window_letterbox", "pad_value": "114",
    }  # fmt: skip
    how = from_metadata(info, True, {"scale": None})
    assert (how.mean, how.scale) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert (how.bgr, how.resize, how.pad_value, how.interpolation) == (False, "letterbox", 114, cv2.INTER_LINEAR)
    assert from_metadata({}, True, {}).bgr, "Model API feeds BGR unless told otherwise"
    assert not from_metadata({}, False, {}).bgr
    assert from_metadata(info, True, {"mean": (1.0,), "resize": "crop"}).resize == "crop"
    with pytest.raises(PreprocessingError, match="resize_type 'warp'"):
        from_metadata({"resize_type": "warp"}, True, {})
    with pytest.raises(PreprocessingError, match="wanted numbers"):
        from_metadata({"mean_values": "a b"}, True, {})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{0: 'person', 1: 'traffic light'}", ("person", "traffic light")),
        ("""{1: "farmer's \\"hat\\"", 0: 'caf\\xe9, {a: 1}',}""", ("café, {a: 1}", 'farmer\'s "hat"')),
        ("['cat', 'dog',]", ("cat", "dog")),
        (r"{0: 'two\nlines', 1: '\ud800'}", ("two lines", "?")),
        ("{0: 'a', 2: 'c'}", ()),
        ("{0: 'a', 0: 'b'}", ()),
        ("{0: 'a' 1: 'b'}", ()),
        ("{0: 'a', 'b'}", ()),
        ("{0: 1}", ()),
        ("{0: f'{1}'}", ()),
        ("{0: __import__('os').getcwd()}", ()),
        (r"{0: '\N{no such name}'}", ()),
        ("{0: 'a'", ()),
        ("{}", ()),
        ("", ()),
    ],
)
def test_names_of_ultralytics(text, names):
    assert class_names({"names": text}) == names
    assert class_names({"names": text, "labels": "Model API"}) == ("Model", "API")
    assert class_names({"names": text, "labels": "otx_empty_lbl Model API"}) == ("Model", "API")


HOSTILE_NAMES = {
    "nested": "{0: " + "[" * 100_000 + "]" * 100_000 + "}",
    "signs": "{0: " + "-" * 100_000 + "1}",
    "long": "{0: '" + "a" * 100_000 + "'}",
    "many": "[" + "'a'," * 1_000_000 + "]",
    "empty": "[" + " " * 1_000_000 + "]",
}


@pytest.mark.parametrize("kind", HOSTILE_NAMES)
def test_names_that_would_choke_the_parser(kind):
    assert class_names({"names": HOSTILE_NAMES[kind]}) == ()


def test_as_many_names_as_imagenet_has():
    names = {index: f"class, {index} 'quoted'" for index in range(21_843)}
    assert class_names({"names": str(names)}) == tuple(names.values())


def test_normalisation_and_channels():
    image = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    pixels, _ = prepare(image, Preprocessing(mean=(1, 2, 3), scale=(2,), bgr=True), (4, 4), 3)
    np.testing.assert_allclose(pixels[0, 0], [(30 - 1) / 2, (20 - 2) / 2, (10 - 3) / 2])
    feeder = Feeder.of(ImageInput("x", (2, 1, 4, 4), "float16"), Preprocessing())
    feed, _ = feeder.feed(image)
    assert feed.shape == (2, 1, 4, 4)
    assert feed.dtype == np.float16
    assert Feeder.of(ImageInput("x", (None, 4, 4, 3), "uint8"), Preprocessing()).feed(image)[0].shape == (1, 4, 4, 3)


def whole(pixels):
    return Scaled(np.ascontiguousarray(pixels), (0, 255))


@pytest.mark.parametrize("size", [(60, 160), (160, 60), (128, 128), (40, 40)])
@pytest.mark.parametrize("resize", RESIZES)
def test_map_lies_on_what_the_model_saw(resize, size):
    """A dot of the image, found again in the input, marks a map; the drawn map must have its peak at the dot."""
    image = np.zeros((*size, 3), np.uint8)
    y, x = round(size[0] * 0.56), round(size[1] * 0.47)
    cv2.circle(image, (x, y), 4, (255, 255, 255), -1)
    pixels, view = prepare(image, Preprocessing(resize=resize), (64, 96), 3)
    shown = canvas(image)
    drawn = draw(shown, whole(pixels[..., 0]), view, Look(1.0, "gray", blend="even"))[..., 0].astype(float)
    assert drawn.shape == shown.shape[:2]
    rows, columns = np.indices(drawn.shape)
    weight = np.where(drawn > 100, drawn, 0)
    scale = shown.shape[0] / size[0]
    found = ((rows * weight).sum() / weight.sum() / scale, (columns * weight).sum() / weight.sum() / scale)
    np.testing.assert_allclose(found, (y, x), atol=1)


def test_what_the_model_did_not_see_is_dimmed():
    image = np.full((100, 300, 3), 200, np.uint8)
    _, view = prepare(image, Preprocessing(resize="crop"), (50, 50), 3)
    drawn = draw(image, whole(np.zeros((5, 5), np.uint8)), view, Look(0.0, "jet"))
    assert (drawn[:, 100:200] == 200).all()
    assert (drawn[:, :100] == 70).all()
