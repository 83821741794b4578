"""Compare saliency maps by how faithful they are to the model, and write a page with tables and pictures.

Run from the repository root: ``python -m benchmarks.faithfulness.compare --real FOLDER``, where FOLDER is what
``python -m benchmarks.lib.real_models`` wrote; without it only the bundled shape models are measured. Photographs are
those of the folder (inputs of the model) and those of scikit-image that anyone may use; pictures are made of the
latter and of our shape images only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.lib.photos import FREE_PHOTOS
from benchmarks.lib.tables import Setting, markdown_table
from model_zoo_fixtures.testbed.faithful_models import SHAPES, TITLES, Model, Sample, shape_samples
from xai_insert import overlay
from xai_insert.evaluate import metrics
from xai_insert.evaluate.measure import MEASURES, faithfulness, localisation
from xai_insert.evaluate.metrics import Array

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Setup:
    """A model with its images.

    Attributes:
        name: of the model.
        path: its plain ONNX file.
        samples: the images.
        black: a black pixel as the model sees it.
        methods: names of maps, as in `TITLES`.
    """

    name: str
    path: Path
    samples: list[Sample]
    black: float
    methods: tuple[str, ...]


def measure(setup: Setup, steps: int) -> tuple[list[dict[str, str]], dict[str, dict[str, Array]]]:
    """The table of a model, and the maps of its images by name and method."""
    model = Model(setup.path)
    found: dict[str, list[dict[str, float]]] = {method: [] for method in setup.methods}
    maps: dict[str, dict[str, Array]] = {}
    for sample in setup.samples:
        class_id = int(model.probabilities(sample.image)[0].argmax())
        size = (sample.image.shape[2], sample.image.shape[3])
        for method in setup.methods:

            def explain(image: Array, method: str = method, class_id: int = class_id) -> Array:
                return metrics.scaled(model.raw_map(method, image, class_id), size)  # noqa: B023 - used at once

            def score(images: Array, class_id: int = class_id) -> Array:
                return np.asarray(model.probabilities(images)[:, class_id])

            saliency = explain(sample.image)
            maps.setdefault(sample.name, {})[method] = saliency
            figures = faithfulness(sample.image, saliency, score, explain, setup.black, steps)
            if sample.scene is not None:
                target = sample.scene.target
                of_target = metrics.scaled(model.raw_map(method, sample.image, target.class_id), size)
                figures |= localisation(of_target, [target.box])
            found[method].append(figures)
    rows = []
    for method, results in found.items():
        row = {"map": TITLES[method]}
        for key in dict.fromkeys(key for result in results for key in result):
            values = np.array([result[key] for result in results if key in result])
            spread = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else 0
            row[MEASURES[key].title] = f"{values.mean():.3f} ± {spread:.3f}"
        rows.append(row)
    return rows, maps


def photo_samples(folder: Path) -> Iterator[Sample]:
    """Photographs of scikit-image, and those of `folder` that are not among them."""
    from skimage import data  # noqa: PLC0415 - for photographs only

    for name in FREE_PHOTOS:
        photo = getattr(data, name)()
        side = min(photo.shape[:2])
        top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
        crop = cv2.resize(photo[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
        image = ((crop.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
        yield Sample(name, image, crop)
    for path in sorted(folder.glob("*.npy")):
        if path.stem not in FREE_PHOTOS:
            picture = cv2.cvtColor(cv2.imread(str(path.with_suffix(".png"))), cv2.COLOR_BGR2RGB)
            yield Sample(path.stem, np.load(path, allow_pickle=False), picture, is_free=False)


def sheet(setup: Setup, maps: dict[str, dict[str, Array]], rows: int = 4, side: int = 128) -> np.ndarray:
    """Overlays, an image a row and a method a column; only of images that anyone may use."""
    lines = []
    for sample in [sample for sample in setup.samples if sample.is_free][:rows]:
        picture = cv2.resize(sample.picture, (side, side), interpolation=cv2.INTER_AREA)
        cells = [picture]
        for method in setup.methods:
            levels = np.round(255 * maps[sample.name][method]).astype(np.uint8)
            cells.append(overlay(picture, levels))
        lines.append(np.concatenate(cells, axis=1))
    header = np.full((20, lines[0].shape[1], 3), 255, np.uint8)
    for index, title in enumerate(["image", *(TITLES[method] for method in setup.methods)]):
        text = title.replace("ViT Recipro-CAM, one patch", "one patch").replace("LayerCAM, ", "")
        cv2.putText(header, text, (index * side + 3, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([header, *lines])


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description="Measure how faithful saliency maps are.")
    parser.add_argument("--real", type=Path, help="folder that benchmarks.lib.real_models wrote")
    parser.add_argument("--images", type=int, default=100, help="shape images (default: 100)")
    parser.add_argument("--steps", type=int, default=32, help="steps of insertion and deletion (default: 32)")
    parser.add_argument("--only", nargs="+", help="names of models to measure (default: all)")
    parser.add_argument("--docs", type=Path, help="folder for faithfulness.md and images/")
    args = parser.parse_args(argv)
    rest = ("grad-cam", "activation-map", "gaussian", "random")
    pooled = ("recipro-cam", "hirescam", "layercam-2", "layercam-3", "fused", *rest)
    tokens = ("vit-recipro-cam", "point", "hirescam", "legrad", *rest)
    shapes = shape_samples(args.images)
    setups: dict[str, Callable[[str], Setup]] = {
        "shapes_cnn": lambda name: Setup(name, SHAPES / f"{name}.onnx", shapes, 0.0, pooled),
        "shapes_vit": lambda name: Setup(name, SHAPES / f"{name}.onnx", shapes, 0.0, tokens),
    }
    if args.real:
        path = args.real / "efficientnet_lite0.legacy.onnx"
        setups[path.name.partition(".")[0]] = lambda name: Setup(
            name, path, list(photo_samples(args.real)), -127 / 128, pooled
        )
    sections = []
    for name in args.only or setups:
        setup = setups[name](name)
        rows, maps = measure(setup, args.steps)
        table = markdown_table(rows)
        print(setup.name, table, sep="\n", flush=True)
        sections.append(_section(setup, table))
        if args.docs:
            picture = cv2.cvtColor(sheet(setup, maps), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(args.docs / "images" / f"faithfulness_{setup.name}.png"), picture)
    if args.docs:
        setting = Setting.here("benchmarks.faithfulness.compare", argv)
        page = [_INTRODUCTION, *sections, f"```text\n{setting.text()}\n```"]
        (args.docs / "faithfulness.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    return 0


def _section(setup: Setup, table: str) -> str:
    names = [sample.name for sample in setup.samples if sample.scene is None]
    of = f"photographs {', '.join(names)}" if names else f"{len(setup.samples)} held-out shape images"
    picture = f"![Maps of {setup.name}](images/faithfulness_{setup.name}.png)"
    return f"## {setup.name}, {of}\n\n{table}\n\n{picture}"


_INTRODUCTION = """# How faithful the maps are

This page is written by `python -m benchmarks.faithfulness.compare`; nothing in it is typed by hand. Each map explains
the class that the model predicts; the figures are means over the images with the standard error.

* **Insertion, deletion**: area under the class's probability while the pixels that the map ranks highest appear in a
  blurred image, or vanish from the image in its mean colour (RISE).
* **Average drop**: share of the probability lost when only what the map shows is left. **Coherency**: whether the map
  of that is the same map. **Complexity**: mean of the map. **ADCC**: harmonic mean of the three.
* **ROAD**: how much lower the probability is without the pixels that the map ranks highest than without the lowest,
  halved; removed pixels are filled in from their neighbours. **ARCC**: ADCC with it in place of the average drop.
* **Pointing**: how often the peak of the map of the labelled class lies in the box of its shape; **energy in box**: how
  much of that map does. [evaluate.md](evaluate.md) has the formulas and the papers.

The centred Gaussian and the random map know nothing of the model. A Gaussian is perfectly coherent, since it is the
same for every image, and photographs show their subject in the middle: what it scores is what a map has to beat.
Grad-CAM's gradients are central differences of the model's own head, exact for a linear head. With a linear head
behind a mean, Grad-CAM is Recipro-CAM without the negative part, up to a constant: the two differ by that alone.

Which to take, by what was measured here: for a CNN, Recipro-CAM or HiResCAM at the last map (the same map) for where
the evidence is, LayerCAM one stage before for a finer outline of it, fused over three stages where the peak must lie on
the object. Further back a map shows edges. For a ViT, ViT Recipro-CAM: HiResCAM peaks at the object as well, but most
of what it shows lies beside it, and LeGrad was hardly better than a centred Gaussian (a ViT of four blocks)."""


if __name__ == "__main__":
    sys.exit(main())
