"""An anomaly detector of shape scenes: how far features are from those of the background, after PaDiM.

Shapes are the anomalies, the background with its distractors is normal. Nothing is stored: mean and covariance of the
features are computed from a few training scenes when the model is built (a second or two).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from model_zoo_fixtures.shapes.dataset import multi_object_scene
from model_zoo_fixtures.shapes.semantic import BACKGROUND, GRID, SIDE, labels, pixels, with_features

_HALF = {"coordinate_transformation_mode": "half_pixel"}
_SCENES, _NORMAL, _DECAY = 40, 0.97, 1e-2


def shape_inspector() -> onnx.ModelProto:
    """`score [N]`, `label [N]`, `map [N, 1, 128, 128]` and `mask`: Mahalanobis distances, resized from 32x32.

    The threshold is one that 97 of 100 places of the background are under.
    """
    model = with_features()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scenes = [multi_object_scene(seed) for seed in range(_SCENES)]
    features = session.run(None, {session.get_inputs()[0].name: pixels(scenes)})[0]
    rows = features.transpose(0, 2, 3, 1).reshape(-1, features.shape[1])
    normal = rows[np.concatenate([labels(scene, GRID).reshape(-1) for scene in scenes]) == BACKGROUND]
    mean = normal.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(normal - mean, rowvar=False) + _DECAY * np.eye(len(mean)))
    whitening = (vectors / np.sqrt(values)).T.astype(np.float32)
    distances = np.linalg.norm((normal - mean) @ whitening.T, axis=1)
    stored = {
        "whitening": whitening[:, :, None, None],
        "shift": (-whitening @ mean).astype(np.float32),
        "scales": np.array([1, 1, 4, 4], np.float32),
        "threshold": np.float32(np.quantile(distances, _NORMAL)),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), key) for key, array in stored.items())
    model.graph.node.extend(
        [
            helper.make_node("Conv", ["joined", "whitening", "shift"], ["apart"]),
            helper.make_node("ReduceL2", ["apart"], ["distance"], axes=[1], keepdims=1),
            helper.make_node(
                "Resize",
                ["distance", "", "scales"],
                ["map"],
                mode="linear",
                coordinate_transformation_mode="half_pixel",
            ),
            helper.make_node("ReduceMax", ["map"], ["score"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Greater", ["score", "threshold"], ["label"]),
            helper.make_node("Greater", ["map", "threshold"], ["mask"]),
        ]
    )
    del model.graph.output[:]
    kinds = {"score": TensorProto.FLOAT, "label": TensorProto.BOOL, "map": TensorProto.FLOAT, "mask": TensorProto.BOOL}
    for name, kind in kinds.items():
        sizes = ["N"] if name in ("score", "label") else ["N", 1, SIDE, SIDE]
        model.graph.output.append(helper.make_tensor_value_info(name, kind, sizes))
    onnx.checker.check_model(model)
    return model
