"""Inserted classifiers in Model API, the client of OTX and Geti models: the real package, where it is installed.

What it asks of a classifier: `model_info` in the metadata (`model_type` Classification, `labels`), and the extra
outputs named exactly `saliency_map` and `feature_vector`. What it does with the map is for the app to know:

- Its results hold views of the request's memory, so the next inference overwrites them: copy what you keep. With
  asynchronous requests that means inside the callback.
- Its visualizer lays `result.saliency_map` over the image as a picture, so replace the maps by the overlay of one
  class.
"""

from pathlib import Path

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest

import xai_insert
from xai_insert.explain.classify import Classifier
from xai_insert.explain.explained import ScoreMeaning, Selection
from xai_insert.explain.feed import Feeder
from xai_insert.explain.files import read_image
from xai_insert.explain.preprocessing import from_metadata
from xai_insert.explain.runtime import load_engine

pytest.importorskip("model_api", reason="pip install openvino-model-api")

from model_api.adapters import OpenvinoAdapter, create_core
from model_api.models import ClassificationModel, Model
from model_api.visualizer import Visualizer
from model_api.visualizer.defaults import DEFAULT_OPACITY
from PIL import Image

SHAPES = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes"
IMAGES = [cv2.imread(str(path)) for path in sorted((SHAPES / "images").glob("shape_*.png"))]
LABELS = ["circle", "square", "triangle", "star", "cross", "ring", "crescent", "arrow"]
SETTINGS = {"topk": 8, "output_raw_scores": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The plain classifier, with a map, and with map and feature vector."""
    folder = tmp_path_factory.mktemp("model_api")
    xai_insert.insert_file(SHAPES / "shapes_cnn.xml", folder / "map.xml")
    options = xai_insert.Options(feature_vector=True)
    xai_insert.insert_file(SHAPES / "shapes_cnn.xml", folder / "both.xml", options)
    return {"plain": SHAPES / "shapes_cnn.xml", "map": folder / "map.xml", "both": folder / "both.xml"}


def load(path, precision=None):
    config = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    adapter = OpenvinoAdapter(create_core(), str(path), device="CPU", plugin_config=config, max_num_requests=2)
    return ClassificationModel.create_model(adapter, configuration=SETTINGS)


def top(result):
    return [(label.id, label.name, label.confidence) for label in result.top_labels]


def test_loads_and_returns_map_and_vector(files):
    inserted = load(files["both"], "f32")
    assert inserted.params.labels == LABELS
    own = ov.Core().compile_model(files["both"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for image in IMAGES:
        result = inserted(image)
        expected = own(image[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32))
        assert (result.saliency_map.shape, result.saliency_map.dtype) == ((1, 8, 12, 12), np.uint8)
        np.testing.assert_allclose(result.saliency_map, expected["saliency_map"].astype(int), atol=1)
        np.testing.assert_allclose(result.feature_vector, expected["feature_vector"], rtol=1e-5, atol=1e-5)
        assert result.feature_vector.shape == (1, 64)


def test_one_call_as_in_its_readme(files):
    model = Model.create_model(str(files["both"]), device="CPU")
    assert isinstance(model, ClassificationModel), "model_info chooses the wrapper"
    result = model(IMAGES[0])
    assert (result.top_labels[0].name, result.saliency_map.shape) == ("circle", (1, 8, 12, 12))


@pytest.mark.parametrize(("kind", "precision"), [("map", None), ("map", "f32"), ("both", "f32")])
def test_predictions_are_those_of_the_plain_model(files, kind, precision):
    plain, inserted = load(files["plain"], precision), load(files[kind], precision)
    for index, image in enumerate(IMAGES):
        before, after = plain(image), inserted(image)
        assert top(before) == top(after)
        assert after.top_labels[0].name == LABELS[index]
        np.testing.assert_array_equal(before.raw_scores, after.raw_scores)
        assert not before.saliency_map.size


def test_asynchronous_requests_give_the_same(files):
    model, found = load(files["map"]), {}
    model.set_callback(lambda result, index: found.update({index: (top(result), result.saliency_map.copy())}))
    for index, image in enumerate(IMAGES * 4):
        while not model.is_ready():
            model.await_any()
        model.infer_async(image, index)
    model.await_all()
    for index, image in enumerate(IMAGES * 4):
        reference = model(image)
        assert found[index][0] == top(reference)
        np.testing.assert_array_equal(found[index][1], reference.saliency_map)


@pytest.mark.parametrize("wide", [True, False], ids=["wide", "tall"])
@pytest.mark.parametrize("resize", ["standard", "fit_to_window", "fit_to_window_letterbox", "crop"])
def test_xai_explain_prepares_images_as_it_does(files, tmp_path, resize, wide):
    """Same metadata, same image of another size and aspect: the same scores, up to the rounding of the resize."""
    model = ov.Core().read_model(files["map"])
    info = {"resize_type": resize, "mean_values": "10 20 30", "scale_values": "1.1 0.9 1.2", "pad_value": "114"}
    for key, text in {**info, "reverse_input_channels": "False"}.items():
        model.set_rt_info(text, ["model_info", key])
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    image = cv2.resize(cv2.copyMakeBorder(IMAGES[1], 0, 0, 30, 40, cv2.BORDER_REFLECT), (300, 200))
    image = np.ascontiguousarray(image if wide else image.transpose(1, 0, 2))
    cv2.imwrite(str(tmp_path / "image.png"), image)

    expected = load(tmp_path / "model.xml", "f32")(image)
    engine = load_engine(tmp_path / "model.xml")
    feeder = Feeder.of(engine.image_input, from_metadata(engine.info, engine.by_model_api, {}))
    meaning = ScoreMeaning.from_metadata(engine.info)
    found = Classifier(engine, feeder, meaning, Selection.parse("all")).explain(read_image(tmp_path / "image.png"))
    scores = {item.label: item.score for item in found.chosen}
    for label in expected.top_labels:
        assert scores[label.name] == pytest.approx(label.confidence, abs=0.03)
    assert found.predictions[0].label == expected.top_labels[0].name


@pytest.mark.parametrize("sizes", [[1, 3, 144, 64], [1, 3, 192, 192]], ids=str)
def test_its_reshape_takes_the_map_along(files, tmp_path, sizes):
    def reshaped(path, sizes):
        adapter = OpenvinoAdapter(create_core(), str(path), plugin_config={"INFERENCE_PRECISION_HINT": "f32"})
        adapter.reshape_model(dict.fromkeys(adapter.get_input_layers(), sizes))
        return ClassificationModel(adapter, SETTINGS, preload=True)

    plain = ov.Core().read_model(files["plain"])
    plain.reshape(sizes)
    ov.save_model(xai_insert.insert(plain).model, tmp_path / "afresh.xml", compress_to_fp16=False)
    found, wanted = (reshaped(path, sizes)(IMAGES[0]) for path in (files["map"], tmp_path / "afresh.xml"))
    assert found.saliency_map.shape == (1, 8, sizes[2] // 8, sizes[3] // 8)
    np.testing.assert_array_equal(found.saliency_map, wanted.saliency_map)
    np.testing.assert_array_equal(found.raw_scores, wanted.raw_scores)


def test_its_visualizer_draws_our_overlay(files):
    result = load(files["map"])(IMAGES[0])
    best = result.top_labels[0].id
    picture = Image.fromarray(np.ascontiguousarray(IMAGES[0][..., ::-1]))
    result.top_labels = []
    colours = xai_insert.overlay(np.asarray(picture), result.saliency_map[0, best], opacity=1, blend="even")
    result.saliency_map = cv2.cvtColor(colours, cv2.COLOR_RGB2BGR)
    drawn = np.asarray(Visualizer().render(picture, result))
    expected = Image.blend(picture, Image.fromarray(colours), DEFAULT_OPACITY)
    np.testing.assert_array_equal(drawn, np.asarray(expected))


def test_onnx_with_its_metadata(tmp_path):
    pytest.importorskip("sympy", reason="pip install openvino-model-api[onnx]")
    from model_api.adapters import ONNXRuntimeAdapter

    model = onnx.load(SHAPES / "shapes_cnn.onnx")
    info = {"model_type": "Classification", "labels": " ".join(LABELS), "reverse_input_channels": "True"}
    onnx.helper.set_model_props(model, {f"model_info {key}": text for key, text in info.items()})
    onnx.save(model, tmp_path / "plain.onnx")
    xai_insert.insert_file(tmp_path / "plain.onnx", tmp_path / "xai.onnx", xai_insert.Options(feature_vector=True))
    plain, inserted = (
        ClassificationModel(ONNXRuntimeAdapter(str(tmp_path / name)), SETTINGS, preload=True)
        for name in ("plain.onnx", "xai.onnx")
    )
    for image in IMAGES:
        before, after = plain(image), inserted(image)
        assert top(before) == top(after)
        assert (after.saliency_map.shape, after.saliency_map.dtype) == ((1, 8, 12, 12), np.uint8)
        assert after.feature_vector.shape == (1, 64)
