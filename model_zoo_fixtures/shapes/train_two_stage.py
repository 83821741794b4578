"""Train and export the small two-stage detector ``shapes_two_stage``.

Run from the repository root: ``python -m model_zoo_fixtures.shapes.train_two_stage``.

torchvision's Faster R-CNN with a backbone and heads of our own size: one feature map of stride 8, two anchors a cell,
regions pooled to 7x7. Selection and suppression are part of the graph. Half of the training images are those of
``shapes_detector``, half show two overlapping shapes of one class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_zoo_fixtures.export import vision_ops  # before torchvision
from model_zoo_fixtures.shapes import training
from model_zoo_fixtures.shapes.dataset import (
    CLASS_NAMES,
    DETECTOR_SIZE,
    HELD_OUT_SEED,
    multi_object_scene,
    overlapping_scene,
)
from model_zoo_fixtures.shapes.train_cnn import ResidualBlock
from model_zoo_fixtures.shapes.train_detector import augment, load

from torchvision.models.detection import FasterRCNN  # isort: skip
from torchvision.models.detection.anchor_utils import AnchorGenerator  # isort: skip
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead  # isort: skip
from torchvision.ops import MultiScaleRoIAlign  # isort: skip

STRIDE = 8
CHANNELS = 24
POOLED = 7
SAMPLES = 2
WIDTH = 64
ANCHOR_SIDES = (32, 56)


class Backbone(nn.Sequential):
    """Map float32 ``[N, 3, H, W]`` to features ``[N, 24, H / 8, W / 8]``."""

    out_channels = CHANNELS

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            ResidualBlock(16, 32, 2),
            ResidualBlock(32, 48, 2),
            ResidualBlock(48, CHANNELS),
        )


def shares(low: Tensor, high: Tensor, size: int) -> Tensor:
    """Return how much each of ``size`` cells counts in each of the 7 positions between ``low`` and ``high``.

    Regions end at the border of the image, as those of the first stage do.

    Args:
        low: ``[R]`` in cells.
        high: Likewise.
        size: Cells in a row or column of the feature map.

    Returns:
        ``[R, 7, size]``.
    """
    places = (torch.arange(POOLED * SAMPLES) + 0.5) / (POOLED * SAMPLES)
    points = low[:, None] + (high - low).clamp(min=1.0)[:, None] * places
    apart = (points.clamp(0.0, size - 1.0)[..., None] - torch.arange(size)).abs()
    return (1.0 - apart).clamp(min=0.0).unflatten(1, (POOLED, SAMPLES)).mean(2)


class RegionPool(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign; in training as two products of matrices with the same result, which is quick and has a gradient."""

    def __init__(self) -> None:
        super().__init__(["0"], POOLED, SAMPLES)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool ``[R, C, 7, 7]`` from features ``[N, C, h, w]`` and boxes ``[R_n, 4]`` in pixels for each image."""
        if not self.training:
            return super().forward(x, boxes, image_shapes)
        pooled = []
        for features, regions in zip(x["0"], boxes, strict=True):
            left, top, right, bottom = (regions.detach() / STRIDE).unbind(1)
            down = shares(top, bottom, features.shape[1])[:, None]
            across = shares(left, right, features.shape[2])[:, None]
            pooled.append(down @ features @ across.transpose(2, 3))
        return torch.cat(pooled)


class ShapesTwoStage(nn.Module):
    """Faster R-CNN for one 128x128 image; class 0 is background."""

    def __init__(self) -> None:
        super().__init__()
        self.network = FasterRCNN(
            Backbone(),
            rpn_anchor_generator=AnchorGenerator((ANCHOR_SIDES,), ((1.0,),)),
            box_roi_pool=RegionPool(),
            box_head=TwoMLPHead(CHANNELS * POOLED**2, WIDTH),
            box_predictor=FastRCNNPredictor(WIDTH, 1 + len(CLASS_NAMES)),
            # Images come at this size, so that nothing is resized.
            min_size=DETECTOR_SIZE,
            max_size=DETECTOR_SIZE,
            image_mean=[127.5] * 3,
            image_std=[127.5] * 3,
            rpn_pre_nms_top_n_train=100,
            rpn_post_nms_top_n_train=50,
            rpn_pre_nms_top_n_test=100,
            rpn_post_nms_top_n_test=30,
            rpn_batch_size_per_image=64,
            box_batch_size_per_image=32,
            box_score_thresh=0.5,
            box_detections_per_img=10,
        )

    def losses(self, images: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """Sum of the four losses of images ``[N, 3, S, S]``, boxes ``[N, M, 4]`` and classes ``[N, M]``, -1 padded."""
        targets = [
            {"boxes": own[label >= 0], "labels": label[label >= 0] + 1}
            for own, label in zip(boxes, classes, strict=True)
        ]
        return torch.stack(list(self.network(list(images), targets).values())).sum()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map float32 RGB ``[1, 3, 128, 128]`` (0..255) to boxes ``[M, 4]`` in pixels, scores and labels ``[M]``."""
        (found,) = self.network([image[0]])
        return found["boxes"], found["scores"], found["labels"]


def loss_of(model: nn.Module, batch: training.Batch) -> Tensor:
    """Losses of both stages on one augmented batch."""
    assert isinstance(model, ShapesTwoStage)
    images, boxes, classes = batch
    images, boxes = augment(training.augment_colours(images.float()), boxes)
    return model.losses(images, boxes, classes)


def main(argv: list[str] | None = None) -> None:
    """Run the command line interface."""
    options = training.begin(training.command_line("shapes_two_stage", epochs=12, images=8192), argv)
    vision_ops.install()

    kinds = [load(0, options.images // 2, draw=draw) for draw in (multi_object_scene, overlapping_scene)]
    data = tuple(torch.cat(parts) for parts in zip(*kinds, strict=True))
    model = ShapesTwoStage()
    print(sum(parameter.numel() for parameter in model.parameters()), "parameters", flush=True)
    training.optimise(model, data, loss_of, epochs=options.epochs, learning_rate=3e-3, batch_size=16)
    training.export(
        model,
        "shapes_two_stage",
        outputs=("boxes", "scores", "labels"),
        size=DETECTOR_SIZE,
        model_type="Detection",
        folder=options.out,
        labels=("background", *CLASS_NAMES),
        single=torch.from_numpy(multi_object_scene(HELD_OUT_SEED).model_input()),
    )


if __name__ == "__main__":
    main()
