"""The pictures of `docs/methods`: held-out shape scenes with the maps of the bundled models.

    python -m benchmarks.faithfulness.method_pictures [docs/images/methods]

The scenes are drawn by our own generator, the models trained on it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx

from model_zoo_fixtures.shapes.anomalies import shape_inspector
from model_zoo_fixtures.shapes.dataset import (
    CLASS_NAMES,
    HELD_OUT_SEED,
    classification_scene,
    multi_object_scene,
    overlapping_scene,
)
from model_zoo_fixtures.shapes.keypoints import shape_keypoints
from model_zoo_fixtures.shapes.likeness import class_directions, shape_embedding, shape_prompts
from model_zoo_fixtures.shapes.semantic import shape_segmenter
from model_zoo_fixtures.testbed.detector_models import reporting_detector
from xai_insert import Options, insert_file
from xai_insert.explain.classify import Classifier
from xai_insert.explain.dense import READERS
from xai_insert.explain.detect import TASKS, Finder
from xai_insert.explain.draw import Image
from xai_insert.explain.explained import Explained, Instance, ScoreMeaning, Selection
from xai_insert.explain.feed import Feeder
from xai_insert.explain.files import encode_jpeg
from xai_insert.explain.marks import draw_marks
from xai_insert.explain.picture import Look, caption, draw
from xai_insert.explain.preprocessing import from_metadata
from xai_insert.explain.runtime import load_engine
from xai_insert.explain.scale import scaled

SHAPES = Path(__file__).parents[2] / "model_zoo_fixtures" / "shapes"
_SIDE, _GAP, _WHITE = 232, 8, 255


@dataclass(frozen=True)
class Panel:
    """A part of a picture: a map, or None for the image alone, with the objects on it and the words below it."""

    saliency: np.ndarray | None
    title: str
    value: str = ""
    instances: Sequence[Instance] = ()


def explained(
    model: Path, options: Options, image: Image, folder: Path, fed: Mapping[str, np.ndarray] | None = None
) -> Explained:
    """What a bundled model says about an image, and all its maps; `fed` are its other inputs."""
    path = folder / "xai.onnx"
    insert_file(model, path, options)
    engine = load_engine(path, fed=fed or {})
    feeder = Feeder.of(engine.image_input, from_metadata(engine.info, engine.by_model_api, {}))
    meaning, every = ScoreMeaning.from_metadata(engine.info), Selection("all")
    task = engine.about.get("task", "")
    kind = READERS.get(task) or (Finder if task in TASKS else Classifier)
    return kind(engine, feeder, meaning, every).explain(image)


def picture(image: Image, found: Explained, panels: Sequence[Panel]) -> Image:
    """The panels side by side."""
    large = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
    tiles: list[Image] = []
    for panel in panels:
        shown = large
        if panel.saliency is not None:
            (only,) = scaled([panel.saliency], [None], "each")
            shown = draw(large, only, found.view, Look())
        marked = draw_marks(shown, panel.instances)
        tile = np.vstack([marked, caption(marked.shape[1], panel.title, panel.value)])
        tiles += [np.full((len(tile), _GAP, 3), _WHITE, np.uint8), tile]
    return np.hstack(tiles[1:])


def class_panel(found: Explained, class_id: int, title: str = "") -> Panel:
    """The map of a class, with its objects."""
    (item,) = [item for item in found.chosen if item.class_id == class_id]
    own = [one for one in found.instances if one.class_id == class_id]
    return Panel(found.map_of(class_id), title or item.label, f"{item.score:.2f}", own)


def classifier(name: str, seed: int, folder: Path) -> Iterator[tuple[str, Image]]:
    """Recipro-CAM of the class and of an unlikely one, or ViT Recipro-CAM with both kernels."""
    image = classification_scene(HELD_OUT_SEED + seed).image
    model = SHAPES / f"shapes_{name}.onnx"
    found = explained(model, Options(), image, folder)
    best = found.predictions[0].class_id
    first = Panel(None, "scene")
    if name == "vit":
        point = explained(model, Options(kernel="point"), image, folder)
        panels = [first, class_panel(found, best, "3x3 patches"), class_panel(point, best, "one patch")]
        yield "vit_recipro_cam", picture(image, found, panels)
        panels = [first]
        for blocks, title in ((None, "all blocks"), (1, "the last block")):
            relevance = explained(model, Options(method="legrad", block=blocks), image, folder)
            panels.append(class_panel(relevance, best, title))
        yield "legrad", picture(image, relevance, panels)
        return
    worst = min(found.chosen, key=lambda item: item.score).class_id
    yield "recipro_cam", picture(image, found, [first, class_panel(found, best), class_panel(found, worst)])


def gradients(seed: int, folder: Path) -> Iterator[tuple[str, Image]]:
    """Each method that is made of derivatives, at the last map and a finer one."""
    image = classification_scene(HELD_OUT_SEED + seed).image
    model = SHAPES / "shapes_cnn.onnx"
    for method in ("hirescam", "grad-cam", "layercam", "input-x-gradient"):
        found = explained(model, Options(method=method), image, folder)
        best = found.predictions[0].class_id
        panels = [Panel(None, "scene"), class_panel(found, best)]
        if method != "input-x-gradient":
            finer = explained(model, Options(method=method, target_layer="-2"), image, folder)
            panels.append(class_panel(finer, best, "one stage before"))
        yield method.replace("-", "_"), picture(image, found, panels)


def finder(name: str, seed: int, folder: Path) -> Iterator[tuple[str, Image]]:
    """Maps of two classes that are found and, of a detector, of one that is not, and of all at once."""
    image = multi_object_scene(HELD_OUT_SEED + seed).image
    found = explained(SHAPES / f"shapes_{name}.onnx", Options(), image, folder)
    classes = list(dict.fromkeys(item.class_id for item in found.instances))[:2]
    panels = [Panel(None, "scene", "", found.instances), *(class_panel(found, number) for number in classes)]
    if name == "detector":
        absent = min((item for item in found.chosen if item.class_id not in classes), key=lambda item: item.score)
        panels.append(class_panel(found, absent.class_id, f"{absent.label}, none there"))
        active = explained(SHAPES / "shapes_detector.onnx", Options(method="activation-map"), image, folder)
        every = Panel(active.saliency_map, "Activation Map", "", active.instances)
        yield "activation_map", picture(image, found, [panels[0], every, panels[1]])
    yield ("det_class_probability_map" if name == "detector" else "instance_masks"), picture(image, found, panels)


def semantic(folder: Path) -> Iterator[tuple[str, Image]]:
    """What a semantic segmenter says of a class, and why it sees it."""
    scene = multi_object_scene(HELD_OUT_SEED + 1)
    onnx.save(shape_segmenter(), folder / "semantic.onnx")
    said = explained(folder / "semantic.onnx", Options(), scene.image, folder)
    why = explained(folder / "semantic.onnx", Options(method="seg-recipro-cam"), scene.image, folder)
    panels = [Panel(None, "scene")]
    for number in list(dict.fromkeys(item.class_id for item in scene.objects))[:2]:
        name = CLASS_NAMES[number]
        panels += [Panel(said.saliency_map[number], f"{name}, score"), Panel(why.saliency_map[number], f"{name}, why")]
    yield "class_score_map", picture(scene.image, said, [panels[0], *panels[1::2]])
    yield "seg_recipro_cam", picture(scene.image, why, [panels[0], *panels[2::2]])


def likeness(folder: Path) -> Iterator[tuple[str, Image]]:
    """What makes a scene like itself and like classes, and what each of two prompts finds in another."""
    scene = classification_scene(HELD_OUT_SEED + 3)
    onnx.save(shape_embedding(), folder / "embedding.onnx")
    np.save(folder / "classes.npy", class_directions())
    itself = explained(folder / "embedding.onnx", Options(), scene.image, folder)
    classes = Options(class_embeddings=str(folder / "classes.npy"))
    of_classes = explained(folder / "embedding.onnx", classes, scene.image, folder)
    number = scene.objects[0].class_id
    panels = [Panel(None, "scene"), Panel(itself.saliency_map[0], "like itself")]
    panels.append(Panel(of_classes.saliency_map[number], f"like a {CLASS_NAMES[number]}"))
    yield "embeddings", picture(scene.image, itself, panels)
    scene = multi_object_scene(HELD_OUT_SEED + 29, size=96, max_objects=2)
    words = [item.class_id for item in scene.objects]
    onnx.save(shape_prompts(), folder / "prompts.onnx")
    fed = {"words": np.array(words)[:, None]}
    said = explained(folder / "prompts.onnx", Options(), scene.image, folder, fed)
    panels = [Panel(said.saliency_map[index], CLASS_NAMES[word]) for index, word in enumerate(words)]
    yield "prompts", picture(scene.image, said, [Panel(None, "scene"), *panels])


def anomalies(folder: Path) -> Iterator[tuple[str, Image]]:
    """What a detector of anomalies says of shapes, which are none of the background."""
    scene = multi_object_scene(HELD_OUT_SEED + 2)
    onnx.save(shape_inspector(), folder / "anomalies.onnx")
    found = explained(folder / "anomalies.onnx", Options(), scene.image, folder)
    panels = [Panel(None, "scene"), Panel(found.saliency_map[0], "anomaly map", "", found.instances)]
    yield "anomaly_map", picture(scene.image, found, panels)


def keypoints(folder: Path) -> Iterator[tuple[str, Image]]:
    """Where a model of key points puts the middle of each shape."""
    scene = multi_object_scene(HELD_OUT_SEED + 1)
    onnx.save(shape_keypoints(), folder / "keypoints.onnx")
    found = explained(
        folder / "keypoints.onnx", Options(method="keypoint-map", output_dtype="f32"), scene.image, folder
    )
    shown = list(dict.fromkeys(item.class_id for item in scene.objects))[:2]
    absent = min((item for item in found.chosen if item.class_id not in shown), key=lambda item: item.score)
    panels = [Panel(None, "scene"), *(class_panel(found, number) for number in shown)]
    yield "keypoint_map", picture(scene.image, found, [*panels, class_panel(found, absent.class_id)])


def boxes(title: str, model: Path, seed: int, folder: Path, method: str = "auto") -> Iterator[tuple[str, Image]]:
    """The map of a class with two objects, or of all classes at once, and of each of them."""
    image = overlapping_scene(seed).image
    found = explained(model, Options(method=method, per_box=True), image, folder)
    one, other = found.instances[:2]
    if one.class_id != other.class_id:
        raise RuntimeError(f"scene {seed} does not show two objects of one class")
    if found.saliency_map.ndim == 3:
        whole = class_panel(found, one.class_id)
    else:
        whole = Panel(found.saliency_map, "Activation Map", "", found.instances)
    of_boxes = [
        Panel(item.saliency_map, f"{item.label}, box {number}", f"{item.score:.2f}", [item])
        for number, item in enumerate((one, other), start=1)
    ]
    yield title, picture(image, found, [Panel(None, "scene"), whole, *of_boxes])


def sampled_points(seed: int, folder: Path) -> Iterator[tuple[str, Image]]:
    """A drawing of deformable attention: made-up points of one box's query, and the map that they give."""
    image = overlapping_scene(seed).image.copy()
    found = explained(folder / "reporting.onnx", Options(per_box=True), image, folder)
    item, side, rng = found.instances[0], 16, np.random.default_rng(seed)
    low, high = np.array(item.box[:2]), np.array(item.box[2:])
    points = low + (high - low) * rng.uniform(-0.1, 1.1, (10, 2))
    weights = rng.dirichlet(np.ones(len(points)))
    cells = np.arange(side)
    near = [np.maximum(0, 1 - np.abs(points[:, axis, None] * side - 0.5 - cells)) for axis in (0, 1)]
    map_ = np.einsum("p,pi,pj->ij", weights, near[1], near[0])
    for (x, y), weight in zip(points * image.shape[0], weights, strict=True):
        cv2.circle(image, (int(x), int(y)), 1 + int(weight * 12), (255, 255, 255), -1)
    panels = [Panel(None, "ten points of a query", "", [item]), Panel(map_ / map_.max(), "their map", "", [item])]
    yield "query_attention", picture(image, found, panels)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, default=Path("docs/images/methods"))
    goal = parser.parse_args().output
    goal.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(reporting_detector(), folder / "reporting.onnx")
        made = [
            *classifier("cnn", 3, folder),
            *classifier("vit", 3, folder),
            *gradients(3, folder),
            *finder("detector", 1, folder),
            *finder("segmenter", 1, folder),
            *semantic(folder),
            *likeness(folder),
            *anomalies(folder),
            *keypoints(folder),
            *boxes("box_votes", folder / "reporting.onnx", 56, folder),
            *boxes("odam", folder / "reporting.onnx", 56, folder, "odam"),
            *sampled_points(56, folder),
            *boxes("region_maps", SHAPES / "shapes_two_stage.onnx", HELD_OUT_SEED + 6, folder),
        ]
    for title, image in made:
        (goal / f"{title}.jpg").write_bytes(encode_jpeg(image))


if __name__ == "__main__":
    main()
