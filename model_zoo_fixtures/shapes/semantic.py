"""A semantic segmenter of shape scenes: features of the bundled instance segmenter under a linear layer.

The layer is stored; this fits it anew (about a minute):

    python -m model_zoo_fixtures.shapes.semantic
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, Scene, multi_object_scene

SEGMENTER = Path(__file__).with_name("shapes_segmenter.onnx")
HEAD = Path(__file__).with_name("semantic_head.npz")
SIDE, GRID = 128, 32
BACKGROUND = len(CLASS_NAMES)
_FINE = ("/Concat_9_output_0", "/prototypes/prototypes.0/Relu_1_output_0")
_COARSE = {"/levels.1/Relu_1_output_0": 4.0, "/levels.2/Relu_1_output_0": 8.0}
_SCENES, _STEPS, _DECAY, _KEPT = 120, 40, 1e-4, 5
"""One of so many places of the background is kept, with as much weight."""


def pixels(scenes: list[Scene]) -> np.ndarray:
    """`[B, 3, 128, 128]`."""
    return np.stack([scene.image.transpose(2, 0, 1) for scene in scenes]).astype(np.float32)


def labels(scene: Scene, side: int = SIDE) -> np.ndarray:
    """The class of each place `[side, side]`, read at the middle of its cell."""
    found = np.full((SIDE, SIDE), BACKGROUND)
    for item in scene.objects:
        found[item.mask] = item.class_id
    step = SIDE // side
    return found[step // 2 :: step, step // 2 :: step]


def with_features() -> onnx.ModelProto:
    """The features alone, `joined [N, C, 32, 32]`, at a quarter of the size of the image."""
    model = onnx.load(SEGMENTER)
    del model.graph.output[:]
    names = list(_FINE)
    for name, times in _COARSE.items():
        scales = numpy_helper.from_array(np.array([1, 1, times, times], np.float32), f"{name}/scales")
        model.graph.initializer.append(scales)
        model.graph.node.append(
            helper.make_node(
                "Resize",
                [name, "", scales.name],
                [f"{name}/wide"],
                mode="linear",
                coordinate_transformation_mode="half_pixel",
            )
        )
        names.append(f"{name}/wide")
    model.graph.node.append(helper.make_node("Concat", names, ["joined"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("joined", TensorProto.FLOAT, ["N", None, GRID, GRID]))
    return model


def _fit(rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression: ridge regression on one-hot labels, then Newton-like steps with the same matrix."""
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-3
    x = np.concatenate([(rows - mean) / spread, np.ones((len(rows), 1), np.float32)], axis=1)
    counts = np.where(wanted == BACKGROUND, _KEPT, 1)[:, None].astype(np.float32)
    total = counts.sum()
    goal = np.eye(BACKGROUND + 1, dtype=np.float32)[wanted]
    inverse = np.linalg.inv(x.T @ (counts * x) / total + _DECAY * np.eye(x.shape[1], dtype=np.float32))
    weight = np.zeros((x.shape[1], BACKGROUND + 1), np.float32)
    for _ in range(_STEPS):
        scores = x @ weight
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        weight += 2.0 * inverse @ (x.T @ (counts * (goal - shares)) / total)
    linear = weight[:-1] / spread[:, None]
    return linear.T, weight[-1] - mean @ linear


def fit() -> None:
    """Fit the layer on training scenes and store it."""
    session = ort.InferenceSession(with_features().SerializeToString(), providers=["CPUExecutionProvider"])
    scenes = [multi_object_scene(seed) for seed in range(_SCENES)]
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: pixels(scenes[first : first + 10])})[0] for first in range(0, _SCENES, 10)]
    rows = np.concatenate(parts).transpose(0, 2, 3, 1).reshape(-1, parts[0].shape[1])
    wanted = np.concatenate([labels(scene, GRID).reshape(-1) for scene in scenes])
    kept = (wanted != BACKGROUND) | (np.arange(len(wanted)) % _KEPT == 0)
    weight, bias = _fit(rows[kept], wanted[kept])
    np.savez(HEAD, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def shape_segmenter() -> onnx.ModelProto:
    """Scores `[N, 9, 128, 128]` of the eight shapes and the background, resized from 32x32."""
    model, head = with_features(), np.load(HEAD)
    stored = {
        "weight": head["weight"][:, :, None, None],
        "bias": head["bias"],
        "scales": np.array([1, 1, 4, 4], np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in stored.items())
    model.graph.node.append(helper.make_node("Conv", ["joined", "weight", "bias"], ["scores"]))
    model.graph.node.append(
        helper.make_node(
            "Resize", ["scores", "", "scales"], ["classes"], mode="linear", coordinate_transformation_mode="half_pixel"
        )
    )
    del model.graph.output[:]
    kind = helper.make_tensor_value_info("classes", TensorProto.FLOAT, ["N", BACKGROUND + 1, SIDE, SIDE])
    model.graph.output.append(kind)
    helper.set_model_props(model, {"labels": " ".join((*CLASS_NAMES, "background"))})
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    fit()
