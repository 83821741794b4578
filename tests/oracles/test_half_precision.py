"""Each method in half precision: the inserted ONNX file converted to float16, on the trained bundled models.

Not measured are the maps of the two-stage detector, box votes, ODAM and query attention: onnxruntime's converter writes
a file that does not load of the plain two-stage model too, and no trained model here reports boxes that it decodes at
every location, or has queries.
"""

import numpy as np
import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_zoo_fixtures.shapes import anomalies, keypoints, likeness, semantic
from model_zoo_fixtures.shapes.dataset import HELD_OUT_SEED, classification_scene, multi_object_scene
from model_zoo_fixtures.testbed import deployed, oracle
from xai_insert import Options, insert

METHODS = {
    "Recipro-CAM": ("shapes_cnn", {}),
    "Recipro-CAM by masked runs": ("shapes_cnn", {"target_layer": "/stages/stages.2/Relu_1"}),
    "Activation Map": ("shapes_cnn", {"method": "activation-map"}),
    "ViT Recipro-CAM": ("shapes_vit", {}),
    "ViT Recipro-CAM of patches": ("shapes_vit", {"kernel": "point"}),
    "ViT Recipro-CAM by masked runs": ("shapes_vit", {"block": 2}),
    "HiResCAM": ("shapes_cnn", {"method": "hirescam"}),
    "Grad-CAM": ("shapes_cnn", {"method": "grad-cam"}),
    "LayerCAM": ("shapes_cnn", {"method": "layercam"}),
    "input times gradient": ("shapes_cnn", {"method": "input-x-gradient"}),
    "HiResCAM of tokens": ("shapes_vit", {"method": "hirescam"}),
    "LeGrad": ("shapes_vit", {"method": "legrad"}),
    "DetClassProbabilityMap": ("shapes_detector", {}),
    "instance masks": ("shapes_segmenter", {}),
    "class score map": (semantic.shape_segmenter, {}),
    "Seg-Recipro-CAM": (semantic.shape_segmenter, {"method": "seg-recipro-cam"}),
    "keypoint map": (keypoints.shape_keypoints, {"method": "keypoint-map"}),
    "anomaly map": (anomalies.shape_inspector, {}),
    "likeness": (likeness.shape_embedding, {}),
}
IMAGES = 4


def images(name):
    of_one = ("shapes_cnn", "shapes_vit", likeness.shape_embedding)
    scene = classification_scene if name in of_one else multi_object_scene
    return [scene(HELD_OUT_SEED + index).model_input() for index in range(IMAGES)]


@pytest.mark.parametrize("method", METHODS)
def test_maps_stand_half_precision(method):
    name, chosen = METHODS[method]
    plain = onnx.load(deployed.SHAPES / f"{name}.onnx") if isinstance(name, str) else name()
    model = insert(plain, Options(output_dtype="f32", **chosen)).model
    half = convert_float_to_float16(onnx.ModelProto.FromString(model.SerializeToString()), keep_io_types=True)
    found = []
    for image in images(name):
        wanted, given = oracle.run(model, image), oracle.run(half, image)
        best = slice(None)
        if "logits" in wanted and wanted["saliency_map"].shape[1:2] == wanted["logits"].shape[1:2]:
            best = int(wanted["logits"][0].argmax())
        wanted, given = (item["saliency_map"][:, best] for item in (wanted, given))
        for a, b in zip(
            *(item.reshape(-1, *item.shape[-2:]).astype(np.float64) for item in (wanted, given)), strict=True
        ):
            # Why a background as large as the image has its region hardly differs between places.
            if np.ptp(a) > (1e-2 if method == "Seg-Recipro-CAM" else 1e-3) * np.abs(wanted).max():
                found.append(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert len(found) >= IMAGES // 2
    assert np.median(found) >= 0.99
    assert min(found) >= (0.95 if method == "instance masks" else 0.99)  # scores beside the threshold, rounded
