"""Train and export the small anchor-free detector ``shapes_detector``.

Run from the repository root: ``python -m model_zoo_fixtures.shapes.train_detector``.

Each of three feature levels has one convolution for class scores and one for the distances from a cell to the four
sides of a box. Decoding to pixels is part of the graph, non-maximum suppression is not.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import Pool

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model_zoo_fixtures.shapes import training
from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, DETECTOR_SIZE, Scene, multi_object_scene
from model_zoo_fixtures.shapes.train_cnn import ResidualBlock

STRIDES = (8, 16, 32)
# Boxes belong to the level whose range holds their longer side, in pixels; the ranges overlap, so that a box near a
# limit is learned by both levels.
SIDE_RANGES = ((0.0, 42.0), (36.0, 56.0), (50.0, 1e9))
MAX_OBJECTS = 4
N_CLASSES = len(CLASS_NAMES)


def cell_centres(size: int = DETECTOR_SIZE) -> tuple[Tensor, Tensor]:
    """Return the centre ``(x, y)`` in pixels of all cells of all levels, ``[A, 2]``, and their strides, ``[A, 1]``."""
    centres, strides = [], []
    for stride in STRIDES:
        positions = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(positions, positions, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()], dim=1))
        strides.append(torch.full((x.numel(), 1), float(stride)))
    return torch.cat(centres), torch.cat(strides)


class ShapesDetector(nn.Module):
    """Single-stage detector for 128x128 images with grids of 16x16, 8x8, and 4x4 cells."""

    centres: Tensor
    strides: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.normalise = training.Normalise()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), ResidualBlock(16, 32, 2)
        )
        widths = (48, 64, 64)
        self.levels = nn.ModuleList(
            ResidualBlock(before, after, 2) for before, after in zip((32, *widths), widths, strict=False)
        )
        self.class_convs = nn.ModuleList(nn.Conv2d(width, N_CLASSES, 3, padding=1) for width in widths)
        self.box_convs = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for width in widths)
        for name, parameter in self.class_convs.named_parameters():
            if name.endswith("bias"):
                # Start from a score of 1 %: nearly all cells are background.
                nn.init.constant_(parameter, -4.6)
        centres, strides = cell_centres()
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def raw(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map float32 RGB ``[N, 3, 128, 128]`` (0..255) to class logits ``[N, A, K]`` and box outputs ``[N, A, 4]``."""
        features = self.stem(self.normalise(image))
        class_maps, box_maps = [], []
        for level, class_conv, box_conv in zip(self.levels, self.class_convs, self.box_convs, strict=True):
            features = level(features)
            class_maps.append(class_conv(features).flatten(2))
            box_maps.append(box_conv(features).flatten(2))
        return torch.cat(class_maps, 2).transpose(1, 2), torch.cat(box_maps, 2).transpose(1, 2)

    def decode(self, outputs: Tensor) -> Tensor:
        """Turn ``[N, A, 4]`` (left, top, right, bottom, before scaling) into corners in pixels, ``[N, A, 4]``."""
        distances = functional.softplus(outputs) * self.strides
        return torch.cat([self.centres - distances[..., :2], self.centres + distances[..., 2:]], dim=-1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map float32 RGB ``[N, 3, 128, 128]`` (0..255) to boxes ``[N, A, 4]`` in pixels and scores ``[N, A, K]``.

        A is 336: the cells of the three levels, finest first, each in row-major order. Scores are in 0..1.
        """
        logits, outputs = self.raw(image)
        return self.decode(outputs), logits.sigmoid()


def load_chunk(
    seeds: range, draw: Callable[[int], Scene]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """Generate images ``[N, 3, 128, 128]``, boxes ``[N, 4, 4]`` in pixels, and classes ``[N, 4]``; -1 pads both."""
    scenes = [draw(seed) for seed in seeds]
    images = np.stack([scene.image.transpose(2, 0, 1) for scene in scenes])
    boxes = np.full((len(scenes), MAX_OBJECTS, 4), -1.0, dtype=np.float32)
    classes = np.full((len(scenes), MAX_OBJECTS), -1, dtype=np.int64)
    for index, scene in enumerate(scenes):
        for slot, shape in enumerate(scene.objects):
            boxes[index, slot] = shape.box
            classes[index, slot] = shape.class_id
    return images, boxes, classes


def load(start: int, count: int, workers: int = 2, draw: Callable[[int], Scene] = multi_object_scene) -> training.Batch:
    """Run :func:`load_chunk` on ``count`` seeds (a multiple of 64) in parallel."""
    chunks = [(range(first, first + 64), draw) for first in range(start, start + count, 64)]
    with Pool(workers) as pool:
        parts = pool.starmap(load_chunk, chunks)
    return tuple(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True))


def augment(images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Flip and transpose images ``[N, 3, S, S]`` and boxes ``[N, M, 4]`` at random; padding boxes become garbage."""
    size = images.shape[-1]
    for axis, dim in ((0, 3), (1, 2)):
        if torch.rand(()) < 0.5:
            images = images.flip(dim)
            boxes = boxes.clone()
            boxes[..., [axis, axis + 2]] = size - boxes[..., [axis + 2, axis]]
    if torch.rand(()) < 0.5:
        images, boxes = images.transpose(2, 3), boxes[..., [1, 0, 3, 2]]
    return images, boxes


def assign(boxes: Tensor, classes: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Decide which object each cell is responsible for.

    Args:
        boxes: ``[N, M, 4]`` in pixels.
        classes: ``[N, M]``, -1 for padding.
        centres: ``[A, 2]`` in pixels.
        strides: ``[A, 1]`` in pixels.

    Returns:
        Index of the object, ``[N, A]``, -1 for background: cells around the centre of a box of fitting size.
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    side = (boxes[..., 2:] - boxes[..., :2]).amax(-1)[:, None]
    offset = (centres[None, :, None] - middle[:, None]).abs().amax(-1)
    limits = torch.tensor(SIDE_RANGES)
    level = torch.tensor([STRIDES.index(int(stride)) for stride in strides[:, 0]])
    lower, upper = limits[level, 0, None], limits[level, 1, None]
    near = offset <= torch.maximum(strides * 0.75, torch.tensor(7.0))
    fits = near & (side >= lower) & (side < upper) & (classes[:, None] >= 0)
    nearest = torch.where(fits, offset, torch.inf).argmin(-1)
    return torch.where(fits.any(-1), nearest, -1)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalised intersection over union (-1..1) of boxes ``[P, 4]``, pair by pair, ``[P]``."""
    overlap = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    hull = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    intersection = overlap.clamp(min=0).prod(-1)
    union = (first[:, 2:] - first[:, :2]).prod(-1) + (second[:, 2:] - second[:, :2]).prod(-1) - intersection
    area = hull.prod(-1)
    return intersection / union - (area - union) / area


def loss_of(model: nn.Module, batch: training.Batch) -> Tensor:
    """Focal loss of the scores plus generalised-IoU loss of the boxes, on one augmented batch."""
    assert isinstance(model, ShapesDetector)
    images, boxes, classes = batch
    images, boxes = augment(training.augment_colours(images.float()), boxes)
    logits, outputs = model.raw(images)
    owner = assign(boxes, classes, model.centres, model.strides)
    positive = owner >= 0
    image_index = torch.arange(len(images))[:, None].expand_as(owner)[positive]
    targets = torch.zeros_like(logits)
    targets[positive] = functional.one_hot(classes[image_index, owner[positive]], N_CLASSES).float()

    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    confidence_error = (logits.sigmoid() - targets).abs()
    balance = torch.where(targets > 0, 0.25, 0.75)
    focal = (balance * confidence_error**2 * entropy).sum()
    predicted = model.decode(outputs)[positive]
    box_loss = (1.0 - generalised_iou(predicted, boxes[image_index, owner[positive]])).sum()
    return (4.0 * focal + box_loss) / positive.sum().clamp(min=1)


def main(argv: list[str] | None = None) -> None:
    """Run the command line interface."""
    options = training.begin(training.command_line("shapes_detector", epochs=16, images=12288), argv)

    data = load(0, options.images)
    model = ShapesDetector()
    print(sum(parameter.numel() for parameter in model.parameters()), "parameters", flush=True)
    training.optimise(model, data, loss_of, epochs=options.epochs, learning_rate=3e-3, batch_size=32)
    training.export(
        model,
        "shapes_detector",
        outputs=("boxes", "scores"),
        size=DETECTOR_SIZE,
        model_type="Detection",
        folder=options.out,
    )


if __name__ == "__main__":
    main()
