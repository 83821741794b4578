"""Train and export the small convolutional classifier ``shapes_cnn``.

Run from the repository root: ``python -m model_zoo_fixtures.shapes.train_cnn``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo_fixtures.shapes import training
from model_zoo_fixtures.shapes.dataset import CLASS_NAMES, HELD_OUT_SEED


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut.

    Args:
        channels_in: Input channels.
        channels_out: Output channels.
        stride: Stride of the first convolution; other than 1, the shortcut is a strided 1x1 convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[N, channels_in, H, W]`` to ``[N, channels_out, H / stride, W / stride]``."""
        residual = functional.relu(self.norm1(self.conv1(features)))
        return functional.relu(self.norm2(self.conv2(residual)) + self.shortcut(features))


class ShapesCnn(nn.Module):
    """Residual network with stride 8: a 96x96 image gives a 12x12 grid, then average pooling and a linear head."""

    def __init__(self, n_classes: int = len(CLASS_NAMES)) -> None:
        super().__init__()
        self.normalise = training.Normalise()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.Sequential(
            ResidualBlock(16, 32, 2),
            ResidualBlock(32, 32),
            ResidualBlock(32, 64, 2),
            ResidualBlock(64, 64),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, n_classes)

    def features(self, image: Tensor) -> Tensor:
        """Map float32 RGB ``[N, 3, H, W]`` (0..255) to non-negative features ``[N, 64, H / 8, W / 8]``."""
        features: Tensor = self.stages(self.stem(self.normalise(image)))
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Map float32 RGB ``[N, 3, H, W]`` (0..255) to logits ``[N, n_classes]``."""
        logits: Tensor = self.head(torch.flatten(self.pool(self.features(image)), 1))
        return logits


def loss_of(model: nn.Module, batch: training.Batch) -> Tensor:
    """Cross-entropy of one augmented batch."""
    images, labels = batch
    (images,) = training.augment_dihedral(training.augment_colours(images.float()))
    return functional.cross_entropy(model(images), labels, label_smoothing=0.05)


def main(argv: list[str] | None = None) -> None:
    """Run the command line interface."""
    options = training.begin(training.command_line("shapes_cnn", epochs=16, images=16384), argv)

    data = training.load_classification(0, options.images)
    held_out = training.load_classification(HELD_OUT_SEED, 1024)
    model = ShapesCnn()
    print(sum(parameter.numel() for parameter in model.parameters()), "parameters")
    training.optimise(
        model,
        data,
        loss_of,
        epochs=options.epochs,
        learning_rate=3e-3,
        batch_size=32,
        after_epoch=lambda: f"held-out accuracy {training.accuracy(model, held_out):.3f}",
    )
    training.export(model, "shapes_cnn", folder=options.out)


if __name__ == "__main__":
    main()
