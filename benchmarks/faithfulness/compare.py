"""Compare saliency maps by how faithful they are to the model, and write a page with tables and pictures.

Run from the repository root: ``python -m benchmarks.faithfulness.compare --real FOLDER``, where FOLDER is what
``python -m benchmarks.lib.real_models`` wrote, and ``--vit FOLDER``, which ``python -m benchmarks.faithfulness.dinov2``
wrote; without them only the bundled shape models are measured. Photographs are those of the folder (inputs of the
model) and those of scikit-image that anyone may use; pictures are made of the latter and of our shape images only.
With ``--docs`` the sections of the models that were measured are written into the page; those of others stay.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from benchmarks.lib.fitted_head import SIZE, normalised, photographs
from benchmarks.lib.photos import FREE_PHOTOS
from benchmarks.lib.real_models import centre_crop
from benchmarks.lib.tables import Setting, markdown_table
from model_zoo_fixtures.testbed.faithful_models import SHAPES, TITLES, Model, Sample, shape_samples
from xai_insert import overlay
from xai_insert.evaluate import metrics
from xai_insert.evaluate.measure import MEASURES, faithfulness, localisation
from xai_insert.evaluate.metrics import Array, Rectangle

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Placed:
    """An image `[1, C, H, W]` with the box, in pixels, of what shows a class."""

    image: Array
    class_id: int
    box: Rectangle


@dataclass(frozen=True)
class Setup:
    """A model with its images.

    Attributes:
        name: of the model.
        path: its plain ONNX file.
        samples: the images.
        black: a black image as the model sees it, or its one value.
        methods: names of maps, as in `TITLES`.
        placed: images in which it is known where a class is.
    """

    name: str
    path: Path
    samples: list[Sample]
    black: Array | float
    methods: tuple[str, ...]
    placed: Callable[[Model], Iterable[Placed]]


def measure(setup: Setup, steps: int) -> tuple[list[dict[str, str]], dict[str, dict[str, Array]]]:
    """The table of a model, and the maps of its images by name and method."""
    model = Model(setup.path)
    found: dict[str, list[dict[str, float]]] = {method: [] for method in setup.methods}
    maps: dict[str, dict[str, Array]] = {}
    grids: dict[str, str] = {}
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
            found[method].append(faithfulness(sample.image, saliency, score, explain, setup.black, steps))
    for placed in setup.placed(model):
        for method in setup.methods:
            raw = model.raw_map(method, placed.image, placed.class_id)
            grids[method] = "x".join(map(str, raw.shape))
            scaled = metrics.scaled(raw, (placed.image.shape[2], placed.image.shape[3]))
            found[method].append(localisation(scaled, [placed.box]))
    rows = []
    for method, results in found.items():
        row = {"map": TITLES[method], "grid": grids[method]}
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
        crop = centre_crop(getattr(data, name)())
        image = ((crop.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
        yield Sample(name, image, crop)
    for path in sorted(folder.glob("*.npy")):
        if path.stem not in FREE_PHOTOS:
            picture = cv2.cvtColor(cv2.imread(str(path.with_suffix(".png"))), cv2.COLOR_BGR2RGB)
            yield Sample(path.stem, np.load(path, allow_pickle=False), picture, is_free=False)


def vit_samples() -> Iterator[Sample]:
    """The photographs to which the head of DINOv2 was fitted, whole."""
    free = {"cat", "person", "coffee", "rocket"}  # those of `FREE_PHOTOS`
    for name, photo in photographs().items():
        crop = centre_crop(photo, SIZE)
        yield Sample(name, normalised([crop]), crop, is_free=name in free)


def shape_places(samples: list[Sample]) -> list[Placed]:
    """The labelled shape of each image."""
    targets = [(sample.image, sample.scene.target) for sample in samples if sample.scene is not None]
    return [Placed(image, target.class_id, target.box) for image, target in targets]


def collages(groups: Iterable[Sequence[str]], samples: list[Sample], model: Model) -> Iterator[Placed]:
    """Four photographs each: a class belongs to a quarter.

    The class of a photograph is what the model says of it alone (Arias-Duarte et al., "Focus! Rating XAI methods and
    finding biases", 2022, https://arxiv.org/abs/2109.15035, who had the labels of a data set).
    """
    images = {sample.name: sample.image for sample in samples}
    classes = {name: int(model.probabilities(image)[0].argmax()) for name, image in images.items()}
    for names in groups:
        height, width = (size // 2 for size in images[names[0]].shape[2:])
        quarters = [
            cv2.resize(images[name][0].transpose(1, 2, 0), (width, height), interpolation=cv2.INTER_AREA)
            for name in names
        ]
        whole = np.concatenate([np.concatenate(quarters[:2], axis=1), np.concatenate(quarters[2:], axis=1)])
        image = np.ascontiguousarray(whole.transpose(2, 0, 1)[None])
        for place, name in enumerate(names):
            top, left = place // 2 * height, place % 2 * width
            yield Placed(image, classes[name], (left, top, left + width, top + height))


def one_cat_each(samples: list[Sample]) -> list[Sequence[str]]:
    """Every cat with the three photographs that show none, in four orders."""
    cat, *others = FREE_PHOTOS
    cats = [cat, *(sample.name for sample in samples if sample.name not in FREE_PHOTOS)]
    return [np.roll([name, *others], turn).tolist() for name in cats for turn in range(4)]


def any_four(samples: list[Sample]) -> list[Sequence[str]]:
    """Every four photographs, in an order by chance."""
    rng = np.random.default_rng(0)
    return [rng.permutation(names).tolist() for names in combinations([sample.name for sample in samples], 4)]


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
    parser.add_argument("--vit", type=Path, help="folder that benchmarks.faithfulness.dinov2 wrote")
    parser.add_argument("--images", type=int, default=100, help="shape images (default: 100)")
    parser.add_argument("--steps", type=int, default=32, help="steps of insertion and deletion (default: 32)")
    parser.add_argument("--only", nargs="+", help="names of models to measure (default: all)")
    parser.add_argument("--methods", nargs="+", help="names of maps to measure (default: all; grad-cam takes longest)")
    parser.add_argument("--docs", type=Path, help="folder for faithfulness.md and images/")
    args = parser.parse_args(argv)
    rest = ("grad-cam", "activation-map", "gaussian", "random")
    pooled = ("recipro-cam", "hirescam", "layercam-2", "layercam-3", "fused", *rest)
    tokens = ("vit-recipro-cam", "point", "hirescam", "legrad", *rest)
    shapes = shape_samples(args.images)
    kinds = {"shapes_cnn": pooled, "shapes_vit": tokens}
    setups = [
        Setup(name, SHAPES / f"{name}.onnx", shapes, 0.0, methods, lambda _: shape_places(shapes))
        for name, methods in kinds.items()
    ]
    if args.real:
        path, photos = args.real / "efficientnet_lite0.legacy.onnx", list(photo_samples(args.real))
        places = partial(collages, one_cat_each(photos), photos)
        setups.append(Setup(path.name.partition(".")[0], path, photos, -127 / 128, pooled, places))
    if args.vit:
        photos = list(vit_samples())
        places = partial(collages, any_four(photos), photos)
        black = normalised([np.zeros((SIZE, SIZE, 3), np.uint8)])
        setups.append(Setup("dinov2", args.vit / "dinov2.onnx", photos, black, tokens, places))
    if args.docs:
        (args.docs / "images").mkdir(parents=True, exist_ok=True)
    setting = Setting.here("benchmarks.faithfulness.compare", argv)
    for setup in setups:
        if args.only and setup.name not in args.only:
            continue
        asked = replace(setup, methods=tuple(name for name in setup.methods if name in (args.methods or setup.methods)))
        rows, maps = measure(asked, args.steps)
        table = markdown_table(rows)
        print(setup.name, table, sep="\n", flush=True)
        if args.docs:
            picture = cv2.cvtColor(sheet(asked, maps), cv2.COLOR_RGB2BGR)
            path = args.docs / "images" / f"faithfulness_{setup.name}.jpg"
            cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
            write_section(args.docs / "faithfulness.md", setup.name, _section(setup, table, setting))
    return 0


def write_section(page: Path, name: str, section: str) -> None:
    """Put the section of a model into the page, in the place of an older one."""
    older = page.read_text(encoding="utf-8").split("\n## ")[1:] if page.exists() else []
    sections = {text.partition(",")[0]: f"## {text.rstrip()}" for text in older} | {name: section}
    page.write_text("\n\n".join([_INTRODUCTION, *sections.values()]) + "\n", encoding="utf-8")


def _section(setup: Setup, table: str, setting: Setting) -> str:
    names = [sample.name for sample in setup.samples if sample.scene is None]
    of = f"photographs {', '.join(names)}" if names else f"{len(setup.samples)} held-out shape images"
    picture = f"![Maps of {setup.name}](images/faithfulness_{setup.name}.jpg)"
    return f"## {setup.name}, {of}\n\n{table}\n\n{picture}\n\n```text\n{setting.text()}\n```"


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
  much of that map does. Of photographs: of every class in collages of four, and the box is the quarter of the
  photograph of which the model says that class when it sees it alone. A map that is the same everywhere has 0.25.
  [evaluate.md](evaluate.md) has the formulas and the papers.

The centred Gaussian and the random map know nothing of the model. A Gaussian is perfectly coherent, since it is the
same for every image, and photographs show their subject in the middle: what it scores is what a map has to beat.
Grad-CAM's gradients are central differences of the model's own head, exact for a linear head. With a linear head
behind a mean, Grad-CAM is Recipro-CAM without the negative part, up to a constant: the two differ by that alone.

Which to take, by what was measured here:

* **For where the evidence of a class is: Recipro-CAM**, or HiResCAM at the last map (the same map in a CNN with a
  linear head). Where several things are in the picture it is the one to trust: in collages of photographs its peak was
  in the right quarter in 99 %, that of finer maps in 70 to 95 %.
* **For the outline of the one thing in a picture: LayerCAM one stage before** the last (14x14 where the last map has
  7x7). Deletion, ROAD and ADCC were better on photographs, insertion and energy in the box on shapes; it shows less of
  the thing, so what it shows alone is not enough for the model, and it lights up what else is in the picture.
* **LayerCAM fused over three stages** kept most of the probability and never missed the shape, but told the photographs
  of a collage apart worst. **Two stages before** the last a map shows edges.
* **For a ViT: ViT Recipro-CAM, or LeGrad.** On DINOv2 LeGrad told the photographs of a collage apart as often and
  showed more of the right one; on the small shapes_vit of four blocks it was hardly better than a centred Gaussian.
  HiResCAM shows much beside the object. Insertion, deletion and ROAD tell nothing of DINOv2, whose head was fitted to
  seven photographs and knows them from little: a random map scores as high.
* Energy in the box is higher for maps that cut off what speaks against the class (Grad-CAM) than for those whose
  background is grey for it (Recipro-CAM, HiResCAM), though the peaks are the same."""


if __name__ == "__main__":
    sys.exit(main())
