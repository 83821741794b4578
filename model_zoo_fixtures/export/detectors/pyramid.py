"""A small convolutional pyramid under heads that are written here."""

import torch
from torch import nn

WIDTHS = (32, 48, 64)


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and SiLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class Pyramid(nn.Module):
    """Three levels at strides 8, 16 and 32 from a backbone and a top-down path."""

    def __init__(self, widths: tuple[int, int, int] = WIDTHS, uniform: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 16, stride=2), block(16, 24, stride=2))
        self.stages = nn.ModuleList(
            nn.Sequential(block(before, after, stride=2), block(after, after))
            for before, after in zip((24, *widths[:2]), widths, strict=True)
        )
        outputs = (widths[0],) * 3 if uniform else widths
        self.widths = outputs
        self.up = nn.Upsample(scale_factor=2)
        self.middle = block(widths[1] + widths[2], outputs[1])
        self.fine = block(widths[0] + outputs[1], outputs[0])
        self.coarse = block(widths[2], outputs[2])

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        fine, middle, coarse = self._stages(images)
        middle = self.middle(torch.cat((self.up(coarse), middle), 1))
        fine = self.fine(torch.cat((self.up(middle), fine), 1))
        return [fine, middle, self.coarse(coarse)]

    def _stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        features, outputs = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            outputs.append(features)
        return outputs


def centres(feature: torch.Tensor) -> torch.Tensor:
    """Cell indices ``[1, h * w, 2]``, x first."""
    rows, columns = feature.shape[2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack((x, y), -1).reshape(1, -1, 2).to(feature.dtype)
