"""Inserted detectors and segmenters in Model API: the real package, where it is installed.

Its SSD wrapper takes OTX's detectors (boxes with scores, labels) and RT-DETR (`bboxes`, `labels`, `scores`) and returns
the map; its wrappers of instances return none of its outputs' maps, but load. Wrappers that count outputs refuse any
model with one more; so does SSD's for a single `DetectionOutput`.
"""

from copy import deepcopy

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper, numpy_helper

import xai_insert
from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, HELD_OUT_SEED, multi_object_scene
from model_zoo_fixtures.testbed import anomaly_models, instance_models, keypoint_models, models, vector_models
from model_zoo_fixtures.testbed.detector_models import reporting_detector

pytest.importorskip("model_api", reason="pip install openvino-model-api")

from model_api.adapters import OpenvinoAdapter, create_core
from model_api.models import SSD, Model
from model_api.models.model import WrapperError
from model_api.models.parameters import ParameterRegistry

SCENES = [multi_object_scene(HELD_OUT_SEED + seed) for seed in range(12)]


def extended(model, constants, nodes, outputs):
    """The model with more nodes and with other outputs."""
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model.graph.node.extend(helper.make_node(op, inputs, [out], name=out, **more) for op, inputs, out, more in nodes)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(*output) for output in outputs)
    return model


def otx_detector():
    """Boxes with scores `[1, M, 5]` in pixels and labels `[1, M]`, as OTX's SSD, ATSS and RTMDet have them."""
    return extended(
        reporting_detector(),
        {"column": np.array([-1, 1]), "rows of five": np.array([1, -1, 5]), "row": np.array([1, -1])},
        [
            ("Reshape", ["sure", "column"], "scores column", {}),
            ("Concat", ["found", "scores column"], "fives", {"axis": 1}),
            ("Reshape", ["fives", "rows of five"], "boxes_out", {}),
            ("Reshape", ["label", "row"], "labels_out", {}),
        ],
        [("boxes_out", TensorProto.FLOAT, [1, "M", 5]), ("labels_out", TensorProto.INT64, [1, "M"])],
    )


def rt_detr_like():
    """Boxes `[1, M, 4]` in shares, labels and scores `[1, M]`, by the names that the wrapper looks for."""
    return extended(
        reporting_detector(),
        {"side": np.float32([128]), "rows of four": np.array([1, -1, 4]), "row": np.array([1, -1])},
        [
            ("Div", ["found", "side"], "shares", {}),
            ("Reshape", ["shares", "rows of four"], "bboxes", {}),
            ("Reshape", ["label", "row"], "labels_out", {}),
            ("Reshape", ["sure", "row"], "scores_out", {}),
        ],
        [
            ("bboxes", TensorProto.FLOAT, [1, "M", 4]),
            ("labels_out", TensorProto.INT64, [1, "M"]),
            ("scores_out", TensorProto.FLOAT, [1, "M"]),
        ],
    )


def detection_output():
    """One output `[1, 1, M, 7]`: image, label, score, corners in shares."""
    return extended(
        reporting_detector(),
        {"side": np.float32([128]), "column": np.array([-1, 1]), "rows of seven": np.array([1, 1, -1, 7])},
        [
            ("Div", ["found", "side"], "shares", {}),
            ("Reshape", ["sure", "column"], "score column", {}),
            ("Reshape", ["label", "column"], "label numbers", {}),
            ("Cast", ["label numbers"], "label column", {"to": TensorProto.FLOAT}),
            ("Sub", ["score column", "score column"], "image column", {}),
            ("Concat", ["image column", "label column", "score column", "shares"], "sevens", {"axis": 1}),
            ("Reshape", ["sevens", "rows of seven"], "detection_out", {}),
        ],
        [("detection_out", TensorProto.FLOAT, [1, 1, "M", 7])],
    )


def as_ir(model, folder, **info):
    """Write an IR with the metadata of Model API."""
    onnx.save(model, folder / "plain.onnx")
    ir = ov.Core().read_model(folder / "plain.onnx")
    for key, text in info.items():
        ir.set_rt_info(text, ["model_info", key])
    ov.save_model(ir, folder / "plain.xml", compress_to_fp16=False)
    return folder / "plain.xml"


def load(path):
    return Model.create_model(OpenvinoAdapter(create_core(), str(path), device="CPU"))


@pytest.mark.parametrize("per_box", [False, True], ids=["classes", "per box"])
@pytest.mark.parametrize("build", [otx_detector, rt_detr_like])
def test_ssd_wrapper_returns_the_map(tmp_path, build, per_box):
    names = " ".join(CLASS_NAMES)
    plain = as_ir(build(), tmp_path, model_type="SSD", labels=names, reverse_input_channels="True")
    xai_insert.insert_file(plain, tmp_path / "xai.xml", xai_insert.Options(per_box=per_box, feature_vector=True))
    before, after = load(plain), load(tmp_path / "xai.xml")
    assert isinstance(after, SSD), "model_info chooses the wrapper"
    own = ov.Core().compile_model(tmp_path / "xai.xml", "CPU")
    objects = inside = 0
    for scene in SCENES:
        image = np.ascontiguousarray(scene.image[..., ::-1])
        expected, found = before(image), after(image)
        for field in ("bboxes", "labels", "scores", "label_names"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        assert not expected.saliency_map.size
        outputs = own(scene.model_input())
        maps, vector = outputs["saliency_map"], outputs["feature_vector"]
        np.testing.assert_allclose(found.feature_vector.reshape(-1), vector[0], rtol=0.02, atol=0.02 * vector.max())
        assert (found.saliency_map.shape, found.saliency_map.dtype) == ((1, 8, 8, 8), np.uint8)
        np.testing.assert_allclose(found.saliency_map.astype(int), maps.astype(int), atol=2)
        for label in set(found.labels.tolist()):
            row, column = np.unravel_index(found.saliency_map[0, label].argmax(), (8, 8))
            boxes = found.bboxes[found.labels == label]
            objects += 1
            x, y = (column + 0.5) * 16, (row + 0.5) * 16
            inside += any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in boxes)
    assert objects > 12
    assert inside >= 0.9 * objects


@pytest.mark.parametrize("wrapper", ["MaskRCNN", "DETRInstSeg"])
def test_wrappers_of_instances_load(wrapper, tmp_path):
    labels = " ".join(["none", *CLASS_NAMES[: instance_models.CLASSES]])
    plain = as_ir(
        instance_models.listed("background-last"), tmp_path, model_type=wrapper, labels=labels, scale_values="255"
    )
    xai_insert.insert_file(plain, tmp_path / "xai.xml")
    before, after = load(plain), load(tmp_path / "xai.xml")
    assert after.__model__ == wrapper
    most = 0
    for brightness in (0.2, 0.4, 0.6):
        image = (instance_models.image(brightness)[0].transpose(1, 2, 0) * 255).clip(0, 255).astype(np.uint8)
        expected, found = before(image), after(image)
        for field in ("bboxes", "labels", "scores", "masks"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        most = max(most, len(found.labels))
    assert most > 2


def test_one_output_more_than_detection_output_is_refused(tmp_path):
    """A limit of the client, which the documentation states; as the next one."""
    plain = as_ir(detection_output(), tmp_path, model_type="SSD", labels=" ".join(CLASS_NAMES))
    assert isinstance(load(plain), SSD)
    xai_insert.insert_file(plain, tmp_path / "xai.xml")
    with pytest.raises(ValueError, match="Unsupported model outputs"):
        load(tmp_path / "xai.xml")


def test_wrappers_that_count_outputs_refuse(tmp_path, monkeypatch):
    for group in ("IMAGE_PREPROCESSING", "IMAGE_RESIZE"):  # whose defaults YOLO's wrapper changes for all others
        monkeypatch.setattr(ParameterRegistry, group, deepcopy(getattr(ParameterRegistry, group)))
    plain = as_ir(instance_models.yolo("locations"), tmp_path, model_type="YOLO-seg", scale_values="255")
    xai_insert.insert_file(plain, tmp_path / "xai.xml", xai_insert.Options(num_classes=instance_models.CLASSES))
    with pytest.raises(WrapperError, match="Expected 2 output"):
        load(tmp_path / "xai.xml")


def segmenter():
    """Scores of five classes, enlarged to the image."""
    b = models.Builder(batch=1, size=(32, 48))
    x = b.node("Conv", b.backbone(), b.weight(5, models.CHANNELS, 1, 1), b.weight(5))
    scales = b.const(np.array([1, 1, 2, 2], np.float32))
    return b.model(b.node("Resize", x, "", scales, mode="linear"))


def bins():
    """Scores of bins along columns and rows, as RTMPose has them."""
    b = models.Builder(batch=1, size=(64, 48))
    return b.model(*keypoint_models.simcc(b)[1])


@pytest.mark.parametrize(
    ("build", "wrapper"),
    [
        (segmenter, "Segmentation"),
        (lambda: anomaly_models.build("patchcore", batch=1)[0], "AnomalyDetection"),
        (bins, "keypoint_detection"),
    ],
    ids=["segmenter", "anomalies", "key points"],
)
def test_wrappers_of_dense_tasks_refuse_a_map(build, wrapper, tmp_path):
    plain = as_ir(build(), tmp_path, model_type=wrapper, labels=" ".join(CLASS_NAMES[:5]))
    xai_insert.insert_file(plain, tmp_path / "map.xml", xai_insert.Options())
    with pytest.raises(WrapperError, match="output"):
        load(tmp_path / "map.xml")


def test_segmentation_wrapper_takes_the_vector_alone(tmp_path):
    plain = as_ir(segmenter(), tmp_path, model_type="Segmentation", labels=" ".join(CLASS_NAMES[:5]))
    xai_insert.insert_file(plain, tmp_path / "xai.xml", xai_insert.Options(method="none", feature_vector=True))
    before, after = load(plain), load(tmp_path / "xai.xml")
    image = SCENES[0].image[:32, :48]
    expected, found = before(image), after(image)
    np.testing.assert_array_equal(found.resultImage, expected.resultImage)
    np.testing.assert_array_equal(found.soft_prediction, expected.soft_prediction)
    assert not expected.feature_vector.size
    b = models.Builder(batch=1, size=(32, 48))
    feature = b.backbone()
    fed = image.transpose(2, 0, 1)[None].astype(np.float32)
    (mean,) = vector_models.run(b.model(feature), fed).values()
    np.testing.assert_allclose(found.feature_vector.reshape(-1), mean.mean((0, 2, 3)), rtol=0.05)


def test_models_of_several_clips_at_once_have_no_image_input(tmp_path):
    """As the Action Classification wrapper wants them; the documentation says so."""
    b = models.Builder(batch=1)
    clips = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 3, 4, 16, 16])
    x = b.node("Reshape", "image", b.const(np.array([1, 3, 4, 16, 16])))
    x = b.node("ReduceMean", b.node("Conv", x, b.weight(4, 3, 1, 3, 3)), axes=[2, 3, 4], keepdims=0)
    with pytest.raises(xai_insert.errors.NotVisionModelError, match="no image input"):
        xai_insert.insert(b.model(b.linear(x, 4), inputs=[clips]))
