"""Measure the committed shape models on held-out images, without PyTorch.

Run from the repository root: ``python -m model_zoo_fixtures.shapes.evaluate``. For each model it prints

* the accuracy,
* the pointing-game score of Recipro-CAM: how often the highest cell of the map of the true class lies in the box of
  the target, next to the score of a random point.

For the detectors, it prints how many shapes are found and how many detections are right. For ``shapes_detector``, how
often the highest cell of a class-score map lies in the box of a shape of that class. For ``shapes_two_stage``, how
often the highest position of a found shape's own map lies in its box, and where the shape can be seen; in the same
scenes and in those with two overlapping shapes of one class.

The maps of classifiers and regions are computed from their definition, one masked forward pass of the rest of the
network per cell, and share no code with the package. They are therefore a slow but independent reference.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.utils import Extractor

from model_zoo_fixtures.shapes.dataset import (
    HELD_OUT_SEED,
    Scene,
    classification_scene,
    multi_object_scene,
    overlapping_scene,
)

FOLDER = Path(__file__).resolve().parent
FloatArray = NDArray[np.float32]
# Strides of the detector levels in pixels, in the order of its output cells.
DETECTOR_STRIDES = (8, 16, 32)
# Weights of the 3x3 neighbourhood around a cell that ViT Recipro-CAM keeps.
NEIGHBOURHOOD = np.outer([1.0, 2.0, 1.0], [1.0, 2.0, 1.0]).astype(np.float32) / 16.0


@dataclass(frozen=True)
class SplitModel:
    """A classifier cut in two in front of the layer that a map refers to.

    Attributes:
        front: Computes the tensors at the cut from ``image``.
        rest: Computes ``logits`` from the tensors at the cut.
        cut: Names of these tensors.
    """

    front: ort.InferenceSession
    rest: ort.InferenceSession
    cut: tuple[str, ...]

    def tensors_at_cut(self, image: FloatArray) -> list[FloatArray]:
        """Run the front part on ``[1, 3, H, W]``."""
        return [np.asarray(value) for value in self.front.run(list(self.cut), {"image": image})]

    def logits(self, tensors: Sequence[FloatArray]) -> FloatArray:
        """Run the rest on tensors ``[N, ...]``; returns logits ``[N, K]``."""
        return np.asarray(self.rest.run(["logits"], dict(zip(self.cut, tensors, strict=True)))[0])


def open_session(model: Path | onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    """Load a model file or proto for the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def split(path: Path, cut: tuple[str, ...]) -> SplitModel:
    """Cut the model in ``path`` at the named tensors."""
    extractor = Extractor(onnx.shape_inference.infer_shapes(onnx.load(str(path))))
    front = extractor.extract_model(["image"], list(cut))
    rest = extractor.extract_model(list(cut), ["logits"])
    return SplitModel(open_session(front), open_session(rest), cut)


def split_cnn(path: Path) -> SplitModel:
    """Cut in front of the global average pooling; the tensor there is ``[N, C, h, w]``."""
    graph = onnx.load(str(path)).graph
    pool = next(node for node in graph.node if node.op_type == "GlobalAveragePool")
    return split(path, (pool.input[0],))


def split_vit(path: Path) -> SplitModel:
    """Cut behind the first normalisation of the last block.

    Two tensors ``[N, 1 + h * w, D]`` cross there: the input of the block, on its way along the residual branch, and
    the normalised tokens on their way to attention.
    """
    graph = onnx.load(str(path)).graph
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    # Last in the graph come: both norms of the last block, then the one in front of the head.
    norm = norms[-3]
    return split(path, (norm.input[0], norm.output[0]))


def recipro_cam(model: SplitModel, image: FloatArray, class_id: int) -> FloatArray:
    """Score every cell of the last feature map alone.

    Args:
        model: A CNN split in front of its pooling.
        image: float32 ``[1, 3, H, W]``, 0..255.
        class_id: Class to explain.

    Returns:
        Logits ``[h, w]``: what remains of the score when all other cells are zero.
    """
    (features,) = model.tensors_at_cut(image)
    height, width = features.shape[2:]
    masks = np.eye(height * width, dtype=np.float32).reshape(-1, 1, height, width)
    return model.logits([features * masks])[:, class_id].reshape(height, width)


def vit_recipro_cam(model: SplitModel, image: FloatArray, class_id: int) -> FloatArray:
    """Score every neighbourhood of patch tokens together with the class token.

    Args:
        model: A vision transformer split in its last block.
        image: float32 ``[1, 3, H, H]``, 0..255.
        class_id: Class to explain.

    Returns:
        Logits ``[h, h]``: what remains of the score when the other patch tokens are zero in the last block.
    """
    tensors = model.tensors_at_cut(image)
    side = int(np.sqrt(tensors[0].shape[1] - 1))
    masks = np.zeros((side * side, 1 + side * side, 1), dtype=np.float32)
    masks[:, 0] = 1.0
    for index, (row, column) in enumerate(np.ndindex(side, side)):
        # The neighbourhood of a border cell is cut off, not renormalised.
        window = np.zeros((side + 2, side + 2), dtype=np.float32)
        window[row : row + 3, column : column + 3] = NEIGHBOURHOOD
        masks[index, 1:, 0] = window[1:-1, 1:-1].ravel()
    return model.logits([tensor * masks for tensor in tensors])[:, class_id].reshape(side, side)


def peak_in_box(saliency: FloatArray, scene: Scene) -> bool:
    """Tell whether the centre of the highest cell of ``saliency`` ``[h, w]`` lies in the box of the target."""
    row, column = np.unravel_index(int(saliency.argmax()), saliency.shape)
    height, width = scene.image.shape[:2]
    x = (float(column) + 0.5) * width / saliency.shape[1]
    y = (float(row) + 0.5) * height / saliency.shape[0]
    return scene.target.contains(x, y)


def predictions(path: Path, scenes: Sequence[Scene]) -> NDArray[np.int64]:
    """Return the predicted class of each of the N scenes, int64 ``[N]``."""
    session = open_session(path)
    return np.array([int(session.run(["logits"], {"image": s.model_input()})[0].argmax()) for s in scenes])


def random_point_score(scenes: Sequence[Scene]) -> float:
    """Return the pointing-game score (0..1) of a uniformly random point: the mean share of the box in the image."""
    shares = []
    for scene in scenes:
        x_min, y_min, x_max, y_max = scene.target.box
        shares.append((x_max - x_min) * (y_max - y_min) / scene.image[..., 0].size)
    return float(np.mean(shares))


def detector_cell_centres(size: int) -> NDArray[np.float64]:
    """Return the centre ``(x, y)`` in pixels of every cell of the detector, ``[A, 2]``, for a ``size``-pixel image."""
    levels = []
    for stride in DETECTOR_STRIDES:
        rows, columns = np.mgrid[0 : size // stride, 0 : size // stride]
        levels.append((np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5) * stride)
    return np.concatenate(levels)


def intersection_over_union(box: FloatArray, others: FloatArray) -> FloatArray:
    """Return the overlap (0..1) of ``box`` ``[4]`` with each of ``others`` ``[P, 4]``, all as corners in pixels."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    intersection = np.clip(sides, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return np.asarray(intersection / (areas - intersection))


def detections(
    boxes: FloatArray, scores: FloatArray, threshold: float = 0.4, max_overlap: float = 0.5
) -> list[tuple[int, FloatArray]]:
    """Select detections with a score threshold and greedy suppression, regardless of class.

    Args:
        boxes: Output of the detector for one image, ``[A, 4]``.
        scores: Likewise, ``[A, K]``, 0..1.
        threshold: Least score.
        max_overlap: Greatest overlap (0..1) with a better detection.

    Returns:
        Class and box ``[4]`` of each detection, best first.
    """
    kept: list[tuple[int, FloatArray]] = []
    for cell in np.argsort(-scores.max(axis=1)):
        if scores[cell].max() < threshold:
            break
        if kept and intersection_over_union(boxes[cell], np.stack([box for _, box in kept])).max() > max_overlap:
            continue
        kept.append((int(scores[cell].argmax()), boxes[cell]))
    return kept


def evaluate_detector(path: Path, scenes: Sequence[Scene]) -> dict[str, float]:
    """Measure the detector.

    Args:
        path: The ONNX file.
        scenes: Multi-object scenes.

    Returns:
        ``recall`` and ``precision`` at an overlap of 0.5 and ``pointing``, each 0..1.
    """
    session = open_session(path)
    found = wanted = proposed = hits = maps = 0
    for scene in scenes:
        boxes, scores = (value[0] for value in session.run(["boxes", "scores"], {"image": scene.model_input()}))
        proposals = detections(boxes, scores)
        proposed += len(proposals)
        wanted += len(scene.objects)
        for shape in scene.objects:
            own = [box for class_id, box in proposals if class_id == shape.class_id]
            truth = np.array(shape.box, dtype=np.float32)
            found += bool(own) and bool(intersection_over_union(truth, np.stack(own)).max() >= 0.5)
        centres = detector_cell_centres(scene.image.shape[0])
        for class_id in {shape.class_id for shape in scene.objects}:
            x, y = centres[scores[:, class_id].argmax()]
            hits += any(shape.contains(x, y) for shape in scene.objects if shape.class_id == class_id)
            maps += 1
    return {"recall": found / wanted, "precision": found / max(proposed, 1), "pointing": hits / maps}


@dataclass(frozen=True)
class RegionModel:
    """A two-stage detector and, cut out of it, what scores its regions.

    Attributes:
        whole: Gives all of ``names`` for ``image``.
        head: Gives logits ``[P, K]`` for what is pooled.
        names: boxes, scores, labels of M detections; what is pooled ``[P, C, m, n]``, regions and class scores of P.
    """

    whole: ort.InferenceSession
    head: ort.InferenceSession
    names: tuple[str, ...]

    def detect(self, image: FloatArray) -> list[NDArray[np.generic]]:
        """Run on ``[1, 3, H, W]``."""
        return [np.asarray(value) for value in self.whole.run(list(self.names), {"image": image})]

    def region_map(self, pooled: FloatArray, label: int) -> FloatArray:
        """Score every position of what is pooled from one region, ``[C, m, n]``, alone: logits ``[m, n]``."""
        height, width = pooled.shape[1:]
        masks = np.eye(height * width, dtype=np.float32).reshape(-1, 1, height, width)
        logits = np.asarray(self.head.run(None, {self.names[3]: pooled * masks})[0])
        return np.asarray(logits[:, label].reshape(height, width))


def split_two_stage(path: Path) -> RegionModel:
    """Cut the two-stage detector behind the pooling of its regions."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    pool, softmax = (next(n for n in model.graph.node if n.op_type == kind) for kind in ("RoiAlign", "Softmax"))
    cut = (pool.output[0], pool.input[1], softmax.output[0])
    head = Extractor(model).extract_model([cut[0]], [softmax.input[0]])
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in cut)
    return RegionModel(open_session(model), open_session(head), ("boxes", "scores", "labels", *cut))


def visible_masks(scene: Scene) -> list[NDArray[np.bool_]]:
    """Return the mask ``[H, W]`` of every shape without what later ones cover."""
    masks = [shape.mask for shape in scene.objects]
    return [mask & ~np.any([*masks[index + 1 :], np.zeros_like(mask)], axis=0) for index, mask in enumerate(masks)]


def evaluate_two_stage(model: RegionModel, scenes: Sequence[Scene]) -> dict[str, float]:
    """Measure the two-stage detector.

    Args:
        model: The detector.
        scenes: Multi-object or overlapping scenes.

    Returns:
        ``recall`` and ``precision`` at an overlap of 0.5; of the found shapes, ``pointing``, the share whose map is
        highest in their box, and ``on shape``, where their visible mask is; each 0..1.
    """
    found = wanted = proposed = hits = seen = 0
    for scene in scenes:
        boxes, scores, labels, pooled, regions, every = model.detect(scene.model_input())
        wanted += len(scene.objects)
        proposed += len(boxes)
        for shape, visible in zip(scene.objects, visible_masks(scene), strict=True):
            label = shape.class_id + 1  # behind the background
            own = np.flatnonzero(labels == label)
            overlaps = intersection_over_union(np.array(shape.box, dtype=np.float32), boxes[own])
            if overlaps.max(initial=0) < 0.5:
                continue
            found += 1
            best = own[overlaps.argmax()]
            # The score tells the region; of regions with the same score, it is the one near the box.
            same = np.flatnonzero(np.abs(every[:, label] - scores[best]) < 1e-6)
            region = same[intersection_over_union(boxes[best], regions[same]).argmax()]
            saliency = model.region_map(pooled[region], label)
            place = np.array(np.unravel_index(int(saliency.argmax()), saliency.shape))[::-1] + 0.5
            x, y = regions[region, :2] + place / saliency.shape[::-1] * (regions[region, 2:] - regions[region, :2])
            hits += shape.contains(x, y)
            seen += bool(visible[int(y), int(x)])
    return {
        "recall": found / wanted,
        "precision": found / max(proposed, 1),
        "pointing": hits / max(found, 1),
        "on shape": seen / max(found, 1),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description="Measure the shape models on held-out images.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder that holds the models")
    options = parser.parse_args(argv)
    scenes = [classification_scene(HELD_OUT_SEED + index) for index in range(options.images)]
    labels = np.array([scene.target.class_id for scene in scenes])
    chance = random_point_score(scenes)
    for name, splitter, explain in (
        ("shapes_cnn", split_cnn, recipro_cam),
        ("shapes_vit", split_vit, vit_recipro_cam),
    ):
        path = options.folder / f"{name}.onnx"
        if not path.exists():
            continue
        correct = predictions(path, scenes) == labels
        model = splitter(path)
        maps = [explain(model, scene.model_input(), scene.target.class_id) for scene in scenes]
        hits = np.array([peak_in_box(saliency, scene) for saliency, scene in zip(maps, scenes, strict=True)])
        print(
            f"{name}: accuracy {correct.mean():.3f}, pointing game {hits.mean():.3f} "
            f"({hits[correct].mean():.3f} where correct; random point {chance:.3f}), {len(scenes)} images"
        )
    scenes = [multi_object_scene(HELD_OUT_SEED + index) for index in range(options.images)]
    path = options.folder / "shapes_detector.onnx"
    if path.exists():
        show("shapes_detector", evaluate_detector(path, scenes), scenes)
    path = options.folder / "shapes_two_stage.onnx"
    if path.exists():
        regions = split_two_stage(path)
        show("shapes_two_stage", evaluate_two_stage(regions, scenes), scenes)
        scenes = [overlapping_scene(HELD_OUT_SEED + index) for index in range(options.images)]
        show("shapes_two_stage, overlapping", evaluate_two_stage(regions, scenes), scenes)


def show(name: str, figures: dict[str, float], scenes: Sequence[Scene]) -> None:
    """Print the figures of a detector."""
    listing = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
    print(f"{name}: {listing}, {len(scenes)} images")


if __name__ == "__main__":
    main()
