"""A classifier with the maps that are compared, and held-out images of shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from model_zoo_fixtures.shapes.dataset import HELD_OUT_SEED, Scene, classification_scene
from model_zoo_fixtures.testbed.oracle import Parts
from xai_insert import Options, insert
from xai_insert.evaluate.measure import GAUSSIAN, RANDOM, blind_map
from xai_insert.evaluate.metrics import Array

SHAPES = Path(__file__).parents[1] / "shapes"
_STEP = 1e-2  # of central differences, relative to the feature's largest element
TITLES = {
    "recipro-cam": "Recipro-CAM",
    "vit-recipro-cam": "ViT Recipro-CAM",
    "point": "ViT Recipro-CAM, one patch",
    "activation-map": "Activation Map",
    "grad-cam": "Grad-CAM",
    "hirescam": "HiResCAM",
    "layercam-2": "LayerCAM, one stage before",
    "layercam-3": "LayerCAM, two stages before",
    "fused": "LayerCAM, three stages fused",
    "legrad": "LeGrad",
    "gaussian": GAUSSIAN,
    "random": RANDOM,
}
_DERIVATIVES: dict[str, dict[str, Any]] = {
    "hirescam": {"method": "hirescam"},
    "layercam-2": {"method": "layercam", "target_layer": "-2"},
    "layercam-3": {"method": "layercam", "target_layer": "-3"},
    "fused": {"method": "layercam", "target_layer": "-3", "fuse": True},
    "legrad": {"method": "legrad"},
}
"""Options of the maps that are derivatives of one class each."""


@dataclass(frozen=True)
class Sample:
    """One image: the model's input `[1, C, H, W]`, the picture to draw on, and the scene, where it is drawn by us."""

    name: str
    image: Array
    picture: np.ndarray
    scene: Scene | None = None
    is_free: bool = True


class Model:
    """A plain model and its inserted variants."""

    def __init__(self, path: Path) -> None:
        self._plain = onnx.load(path)
        self._session = _session(self._plain)
        self._input = self._session.get_inputs()[0].name
        self._inserted: dict[str, ort.InferenceSession] = {}
        self._report = insert(self._plain).report
        self._parts = Parts(self._plain, self._report.target["name"], self._report.logits["name"])
        self._rng = np.random.default_rng(0)

    def probabilities(self, images: Array) -> Array:
        """`[N, K]`, from the logits."""
        name = self._report.logits["output"]
        logits = self._session.run([name], {self._input: images})[0].astype(np.float64)
        if np.allclose(logits.sum(1), 1, atol=1e-3) and logits.min() >= 0:
            return np.asarray(logits, np.float32)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)

    def raw_map(self, method: str, image: Array, class_id: int) -> Array:
        """`[h, w]` of one class."""
        height, width = self._report.target["grid"]
        if method in ("gaussian", "random"):
            return blind_map(TITLES[method], (height, width), self._rng)
        if method == "grad-cam":
            return self._grad_cam(image, class_id)
        if method in _DERIVATIVES:
            key = f"{method} of {class_id}"
            if key not in self._inserted:
                options = Options(output_dtype="f32", classes=(class_id,), **_DERIVATIVES[method])
                self._inserted[key] = _session(insert(self._plain, options).model)
            return np.asarray(self._inserted[key].run(["saliency_map"], {self._input: image})[0][0, 0], np.float32)
        if method not in self._inserted:
            options = Options(method="auto", output_dtype="f32")
            if method == "point":
                options = Options(kernel="point", output_dtype="f32")
            elif method == "activation-map":
                options = Options(method="activation-map", output_dtype="f32")
            self._inserted[method] = _session(insert(self._plain, options).model)
        found = self._inserted[method].run(["saliency_map"], {self._input: image})[0][0]
        return np.asarray(found if found.ndim == 2 else found[class_id], np.float32)

    def _grad_cam(self, image: Array, class_id: int) -> Array:
        """Grad-CAM (Selvaraju et al., 2017) without a framework that differentiates.

        Its weight of a channel is the derivative of the score along that channel, all positions together: taken by
        central differences of the model's own head, which is exact for a linear one.
        """
        feature = self._parts.feature(image)
        axes = self._report.target["grid_axes"]
        grid = self._report.target["grid"]
        channel_axis = next(axis for axis in range(1, feature.ndim) if axis not in axes)
        size, count = _STEP * np.abs(feature).max(), feature.shape[channel_axis]
        positions = [1] * feature.ndim
        for axis in axes:
            positions[axis] = feature.shape[axis]
        patches = np.ones(positions, np.float32)
        prefix = patches.size - grid[0] * grid[1]
        patches.reshape(-1)[:prefix] = 0  # the class token is no place in the image
        weights = np.zeros(count, np.float64)
        for channel in range(count):
            along = np.moveaxis(np.zeros_like(feature), channel_axis, 0)
            along[channel] = size
            step = np.moveaxis(along, 0, channel_axis) * patches
            both = [self._parts.head(image, feature + sign * step)[0, class_id] for sign in (1, -1)]
            weights[channel] = (float(both[0]) - float(both[1])) / (2 * size)
        summed = np.tensordot(np.moveaxis(feature, channel_axis, -1), weights, 1)[0]
        return np.maximum(summed.reshape(-1)[prefix:].reshape(grid), 0).astype(np.float32)


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def shape_samples(count: int) -> list[Sample]:
    """Held-out shape images."""
    scenes = [classification_scene(HELD_OUT_SEED + index) for index in range(count)]
    return [Sample(f"shape{index}", scene.model_input(), scene.image, scene) for index, scene in enumerate(scenes)]
