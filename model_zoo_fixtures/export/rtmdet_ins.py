"""A small RTMDet-Ins: shared heads over three levels, and a mask head whose kernels each location predicts.

Lyu et al., "RTMDet: An empirical study of designing real-time object detectors", 2022, https://arxiv.org/abs/2212.07784.
"""

import torch
from torch import nn
from torch.nn import functional

_WIDTH = 24
_MASK_CHANNELS = 8
_STRIDES = (8, 16, 32)
_LAYERS = ((_MASK_CHANNELS + 2, 8), (8, 8), (8, 1))  # input and output channels of the dynamic mask head


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.SiLU())


class RTMDetIns(nn.Module):
    """Instance segmenter with suppression and masks of the whole image in its graph.

    Args:
        classes: Number of classes.
        size: Height and width of the input.
    """

    def __init__(self, classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.classes = classes
        self.size = size
        self.stem = nn.Sequential(_block(3, 16, 2), _block(16, _WIDTH, 2))
        self.levels = nn.ModuleList(_block(_WIDTH, _WIDTH, 2) for _ in _STRIDES)
        self.towers = nn.ModuleList(_block(_WIDTH, _WIDTH) for _ in range(3))
        self.class_scores = nn.Conv2d(_WIDTH, classes, 1)
        self.distances = nn.Conv2d(_WIDTH, 4, 1)
        self.kernels = nn.Conv2d(_WIDTH, sum(before * after + after for before, after in _LAYERS), 1)
        self.mask_features = nn.Sequential(_block(_WIDTH, _WIDTH), nn.Conv2d(_WIDTH, _MASK_CHANNELS, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map one image to boxes with scores ``[1, M, 5]``, labels ``[1, M]`` and masks ``[1, M, H, W]`` in 0..1."""
        import torchvision

        features = self.stem(images)
        rows: list[list[torch.Tensor]] = [[], [], [], [], []]
        maps = []
        for stride, level in zip(_STRIDES, self.levels, strict=True):
            features = level(features)
            maps.append(features)
            heads = (self.class_scores, self.distances, self.kernels)
            found = [head(tower(features)) for tower, head in zip(self.towers, heads, strict=True)]
            scores, distances, kernels = (raw[0].flatten(1).T for raw in found)
            points = _points(features.shape[2:], stride)
            distances = functional.relu(distances) * stride
            boxes = torch.cat([points - distances[:, :2], points + distances[:, 2:]], 1)
            strides = torch.full((points.shape[0],), float(stride))
            for collected, part in zip(rows, (scores.sigmoid(), boxes, kernels, points, strides), strict=True):
                collected.append(part)
        scores, *rest = (torch.cat(parts) for parts in rows)
        best, labels = scores.max(1)
        sure = (best > 0.3).nonzero()[:, 0]
        best, labels, rest = best[sure], labels[sure], [part[sure] for part in rest]
        kept = torchvision.ops.nms(rest[0] + labels[:, None] * 4000.0, best, 0.6)[:100]
        best, labels, (boxes, kernels, points, strides) = best[kept], labels[kept], [part[kept] for part in rest]
        masks = self._masks(self.mask_features(maps[0]), kernels, points, strides)
        return torch.cat([boxes, best[:, None]], 1)[None], labels[None], masks

    def _masks(
        self, features: torch.Tensor, kernels: torch.Tensor, points: torch.Tensor, strides: torch.Tensor
    ) -> torch.Tensor:
        height, width = features.shape[2:]
        grid = _points((height, width), _STRIDES[0]).T
        relative = (points[:, :, None] - grid[None]) / (strides[:, None, None] * 8)
        shared = features.reshape(1, _MASK_CHANNELS, -1).expand(relative.shape[0], -1, -1)
        values = torch.cat([relative, shared], 1)
        start = 0
        for index, (before, after) in enumerate(_LAYERS):
            weight = kernels[:, start : start + before * after].reshape(-1, after, before)
            start += before * after
            bias = kernels[:, start : start + after].reshape(-1, after, 1)
            start += after
            values = torch.bmm(weight, values) + bias
            if index + 1 < len(_LAYERS):
                values = functional.relu(values)
        masks = values.reshape(1, -1, height, width)
        return functional.interpolate(masks, scale_factor=8.0, mode="bilinear", align_corners=False).sigmoid()


def _points(size: tuple[int, ...] | torch.Size, stride: int) -> torch.Tensor:
    """Corners of a level's cells in pixels, ``[h * w, 2]``."""
    rows, columns = (torch.arange(side, dtype=torch.float32) * stride for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)
