"""A model of key points of shape scenes: for each of the eight shapes, a heat map of its middle.

A linear layer on features of the bundled instance segmenter. It is stored; this fits it anew (about a minute):

    python -m model_zoo_fixtures.shapes.keypoints
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, Scene, multi_object_scene
from model_zoo_fixtures.shapes.semantic import GRID, SIDE, pixels, with_features

HEAD = Path(__file__).with_name("keypoint_head.npz")
JOINTS = len(CLASS_NAMES)
_SCENES, _AT_ONCE, _SPREAD, _DECAY, _WEIGHT = 400, 20, 1.5, 1e-3, 20.0


def heat_maps(scene: Scene) -> np.ndarray:
    """What is wanted, `[J, 32, 32]`: a bell at the middle of the box of each shape."""
    cells = (np.arange(GRID) + 0.5) * SIDE / GRID
    maps = np.zeros((JOINTS, GRID, GRID), np.float32)
    for item in scene.objects:
        left, top, right, bottom = item.box
        across, down = ((cells - (low + high) / 2) * GRID / SIDE for low, high in ((left, right), (top, bottom)))
        bell = np.exp(-(down[:, None] ** 2 + across[None, :] ** 2) / (2 * _SPREAD**2))
        maps[item.class_id] = np.maximum(maps[item.class_id], bell)
    return maps


def fit() -> None:
    """Fit the layer on training scenes by weighted least squares, and store it."""
    session = ort.InferenceSession(with_features().SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    gram, goal = 0.0, 0.0
    for first in range(0, _SCENES, _AT_ONCE):
        scenes = [multi_object_scene(seed) for seed in range(first, first + _AT_ONCE)]
        features = session.run(None, {name: pixels(scenes)})[0].transpose(0, 2, 3, 1)
        rows = features.reshape(-1, features.shape[-1])
        rows = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
        wanted = np.stack([heat_maps(scene) for scene in scenes]).transpose(0, 2, 3, 1).reshape(-1, JOINTS)
        weight = 1 + _WEIGHT * wanted.max(axis=1, keepdims=True)
        gram, goal = gram + rows.T @ (weight * rows), goal + rows.T @ (weight * wanted)
    gram /= np.float64(_SCENES * GRID * GRID)
    goal /= np.float64(_SCENES * GRID * GRID)
    layer = np.linalg.solve(gram + _DECAY * np.eye(len(gram)) * np.diag(gram).mean(), goal).astype(np.float32)
    np.savez(HEAD, weight=layer[:-1].T, bias=layer[-1])


def shape_keypoints() -> onnx.ModelProto:
    """Heat maps `[N, 8, 32, 32]`; of a square image, so that nothing but the user tells them from class scores."""
    model, head = with_features(), np.load(HEAD)
    model.graph.initializer.append(numpy_helper.from_array(head["weight"][:, :, None, None], "weight"))
    model.graph.initializer.append(numpy_helper.from_array(head["bias"], "bias"))
    model.graph.node.append(helper.make_node("Conv", ["joined", "weight", "bias"], ["heatmaps"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, ["N", JOINTS, GRID, GRID]))
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    fit()
