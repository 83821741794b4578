"""Train and export the small instance segmenter ``shapes_segmenter``.

Run from the repository root: ``python -m model_zoo_fixtures.shapes.train_segmenter``.

``shapes_detector`` with masks: each cell of each level also has coefficients, and one more branch makes prototype masks
at a quarter of the image's size. The mask of an object is the sigmoid of its prototypes' weighted sum. Non-maximum
suppression is not part of the graph. The detector's weights are taken from its file and stay as they are.
"""

from __future__ import annotations

from multiprocessing import Pool
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from model_zoo_fixtures.shapes import training
from model_zoo_fixtures.shapes.dataset import DETECTOR_SIZE, multi_object_scene
from model_zoo_fixtures.shapes.train_cnn import ResidualBlock
from model_zoo_fixtures.shapes.train_detector import (
    MAX_OBJECTS,
    ShapesDetector,
    assign,
    augment,
)

PROTOTYPES = 12
MASK_STRIDE = 4
# Masks of this many cells are learned in a step; more would cost time and bring little.
MASKS_PER_STEP = 256


class ShapesSegmenter(ShapesDetector):
    """Single-stage instance segmenter for 128x128 images, with prototypes of 32x32 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficient_convs = nn.ModuleList(
            nn.Conv2d(conv.in_channels, PROTOTYPES, 3, padding=1) for conv in self.class_convs
        )
        self.prototypes = nn.Sequential(ResidualBlock(32 + 48, 48, 1), nn.Conv2d(48, PROTOTYPES, 1))
        self.learned = (self.coefficient_convs, self.prototypes)
        for parameter in self.parameters():
            parameter.requires_grad_(any(parameter is own for part in self.learned for own in part.parameters()))

    def train(self, mode: bool = True) -> ShapesSegmenter:
        """Put the new layers into training mode; the detector's statistics stay as they are."""
        super().train(False)
        self.training = mode
        for part in self.learned:
            part.train(mode)
        return self

    def load_detector(self, path: Path) -> None:
        """Take the detector's weights from its ONNX file, where normalisation is part of the convolutions."""
        graph = onnx.load(str(path)).graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        stored = iter(node for node in graph.node if node.op_type == "Conv")
        hooks = []

        def fill(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(module, nn.Conv2d):
                node = next(stored)
                weight, self._bias = (torch.tensor(numpy_helper.to_array(tensors[name])) for name in node.input[1:])
                module.weight.copy_(weight)
                if module.bias is not None:
                    module.bias.copy_(self._bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.fill_((1.0 + module.eps) ** 0.5)
                module.bias.copy_(self._bias)

        new = {layer for part in self.learned for layer in part.modules()}
        for module in self.modules():
            if module not in new:
                hooks.append(module.register_forward_pre_hook(fill))
        with torch.no_grad():
            self.eval()(torch.zeros(1, 3, DETECTOR_SIZE, DETECTOR_SIZE))
        for hook in hooks:
            hook.remove()

    def everything(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map float32 RGB ``[N, 3, 128, 128]`` (0..255) to all raw outputs.

        Returns:
            Class logits ``[N, A, K]``, box outputs ``[N, A, 4]``, coefficients ``[N, A, P]``, prototypes
            ``[N, P, 32, 32]``.
        """
        fine = features = self.stem(self.normalise(image))
        maps: tuple[list[Tensor], ...] = ([], [], [])
        coarse = None
        heads = zip(self.levels, self.class_convs, self.box_convs, self.coefficient_convs, strict=True)
        for level, *convs in heads:
            features = level(features)
            coarse = features if coarse is None else coarse
            for collected, conv in zip(maps, convs, strict=True):
                collected.append(conv(features).flatten(2))
        assert coarse is not None
        joined = torch.cat([fine, functional.interpolate(coarse, scale_factor=2.0, mode="nearest")], dim=1)
        logits, outputs, coefficients = (torch.cat(collected, 2).transpose(1, 2) for collected in maps)
        return logits, outputs, coefficients, self.prototypes(joined)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map float32 RGB ``[N, 3, 128, 128]`` (0..255) to predictions and prototypes.

        Returns:
            Predictions ``[N, 4 + K + P, A]``: centre, width and height of the box in pixels, scores in 0..1,
            coefficients, for each of the 336 cells; and prototypes ``[N, P, 32, 32]``.
        """
        logits, outputs, coefficients, prototypes = self.everything(image)
        corners = self.decode(outputs)
        centre, sides = (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]
        return torch.cat([centre, sides, logits.sigmoid(), coefficients], dim=-1).transpose(1, 2), prototypes


def load_chunk(seeds: range) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64], NDArray[np.uint8]]:
    """Generate images ``[N, 3, S, S]``, boxes ``[N, 4, 4]``, classes ``[N, 4]`` and object numbers ``[N, 1, S, S]``.

    Boxes and classes are padded with -1. A pixel's object number counts from 1; 0 is background.
    """
    scenes = [multi_object_scene(seed, DETECTOR_SIZE, MAX_OBJECTS) for seed in seeds]
    images = np.stack([scene.image.transpose(2, 0, 1) for scene in scenes])
    boxes = np.full((len(scenes), MAX_OBJECTS, 4), -1.0, dtype=np.float32)
    classes = np.full((len(scenes), MAX_OBJECTS), -1, dtype=np.int64)
    numbers = np.zeros((len(scenes), 1, DETECTOR_SIZE, DETECTOR_SIZE), dtype=np.uint8)
    for index, scene in enumerate(scenes):
        for slot, shape in enumerate(scene.objects):
            boxes[index, slot] = shape.box
            classes[index, slot] = shape.class_id
            numbers[index, 0][shape.mask] = slot + 1
    return images, boxes, classes, numbers


def load(start: int, count: int, workers: int = 2) -> training.Batch:
    """Run :func:`load_chunk` on ``count`` seeds (a multiple of 64) in parallel."""
    with Pool(workers) as pool:
        parts = pool.map(load_chunk, [range(first, first + 64) for first in range(start, start + count, 64)])
    return tuple(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True))


def mask_loss(coefficients: Tensor, prototypes: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean cross entropy of masks inside their boxes.

    Args:
        coefficients: ``[M, P]``.
        prototypes: ``[M, P, s, s]``, of each mask's image.
        boxes: ``[M, 4]`` in pixels.
        wanted: ``[M, s, s]``, share of each cell that the object covers.
    """
    logits = torch.einsum("mp,mpyx->myx", coefficients, prototypes)
    centres = (torch.arange(logits.shape[-1]) + 0.5) * MASK_STRIDE
    x_min, y_min, x_max, y_max = boxes[:, :, None].unbind(1)
    # A cell's width of margin lets the mask learn to end before its box does.
    across = (centres > x_min - MASK_STRIDE) & (centres < x_max + MASK_STRIDE)
    down = (centres > y_min - MASK_STRIDE) & (centres < y_max + MASK_STRIDE)
    inside = (down[:, :, None] & across[:, None]).float()
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return ((entropy * inside).sum((1, 2)) / inside.sum((1, 2))).mean()


def loss_of(model: nn.Module, batch: training.Batch) -> Tensor:
    """Cross entropy of the masks of the cells that are responsible for an object, on one augmented batch."""
    assert isinstance(model, ShapesSegmenter)
    images, boxes, classes, numbers = batch
    stacked = torch.cat([training.augment_colours(images.float()), numbers.float()], dim=1)
    stacked, boxes = augment(stacked, boxes)
    images, numbers = stacked[:, :3], stacked[:, 3]
    _, _, coefficients, prototypes = model.everything(images)
    owner = assign(boxes, classes, model.centres, model.strides)
    positive = owner >= 0
    image_index = torch.arange(len(images))[:, None].expand_as(owner)[positive]
    slots = owner[positive]
    chosen = torch.randperm(len(slots))[:MASKS_PER_STEP]
    image_index, slots = image_index[chosen], slots[chosen]
    wanted = (numbers[image_index] == slots[:, None, None] + 1).float()
    wanted = functional.avg_pool2d(wanted[:, None], MASK_STRIDE)[:, 0]
    return mask_loss(coefficients[positive][chosen], prototypes[image_index], boxes[image_index, slots], wanted)


def main(argv: list[str] | None = None) -> None:
    """Run the command line interface."""
    options = training.begin(training.command_line("shapes_segmenter", epochs=3, images=2048), argv)

    data = load(0, options.images)
    model = ShapesSegmenter()
    model.load_detector(training.FOLDER / "shapes_detector.onnx")
    print(sum(parameter.numel() for parameter in model.parameters()), "parameters", flush=True)
    training.optimise(model, data, loss_of, epochs=options.epochs, learning_rate=3e-3, batch_size=32)
    training.export(
        model,
        "shapes_segmenter",
        outputs=("predictions", "prototypes"),
        size=DETECTOR_SIZE,
        model_type="InstanceSegmentation",
        folder=options.out,
    )


if __name__ == "__main__":
    main()
