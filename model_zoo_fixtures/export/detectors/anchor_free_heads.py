"""Anchor-free heads, written after the structure of NanoDet and CenterNet as they are exported."""

from typing import Any

import torch
from torch import nn

from model_zoo_fixtures.export import vision_ops
from model_zoo_fixtures.export.detectors.anchor_heads import FACTS
from model_zoo_fixtures.export.detectors.base import Detector
from model_zoo_fixtures.export.detectors.pyramid import Pyramid, block, centres

_STRIDES = (8, 16, 32)


class _NanoDet(nn.Module):
    """One convolution of ``K + 4 * (reg_max + 1)`` channels a level, scores through a sigmoid, all side by side."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.pyramid = Pyramid()
        self.gfl_cls = nn.ModuleList(nn.Conv2d(width, classes + 32, 1) for width in self.pyramid.widths)

    def forward(self, images: torch.Tensor) -> Any:
        outputs = []
        for layer, feature in zip(self.gfl_cls, self.pyramid(images), strict=True):
            scores, boxes = layer(feature).split([self.classes, 32], dim=1)
            outputs.append(torch.cat((scores.sigmoid(), boxes), 1).flatten(start_dim=2))
        return torch.cat(outputs, dim=2).permute(0, 2, 1)


def nanodet(classes: int = 80, size: tuple[int, int] = (256, 320)) -> Detector:
    """NanoDet-plus: [B, L, K + 32], scores first, box distributions left to the caller."""
    network = _NanoDet(classes)
    return Detector(
        id="nanodet" + ("" if classes == 80 else f"_nc{classes}"),
        model=network,
        score_heads=list(network.gfl_cls),
        levels=lambda outputs: [output[:, :classes] for output in outputs],
        size=size,
        classes=classes,
        anchors=[1] * 3,
        unit_images=False,
        note="own pyramid under NanoDet's head",
        **FACTS,
    )


class _CenterNet(nn.Module):
    """Heatmap, size and offset at stride 4; raw, or peaks by max-pooling and TopK."""

    def __init__(self, classes: int, raw: bool) -> None:
        super().__init__()
        self.classes, self.raw = classes, raw
        self.pyramid = Pyramid()
        width = self.pyramid.widths[0]
        self.up = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.hm, self.wh, self.reg = (
            nn.Sequential(block(width, width), nn.Conv2d(width, outputs, 1)) for outputs in (classes, 2, 2)
        )

    def forward(self, images: torch.Tensor) -> Any:
        feature = self.up(self.pyramid(images)[0]).relu()
        heat, extent, offset = self.hm(feature).sigmoid(), self.wh(feature), self.reg(feature)
        if self.raw:
            return heat, extent, offset
        peaks = heat * (nn.functional.max_pool2d(heat, 3, 1, 1) == heat).float()
        batch, _, rows, columns = heat.shape
        scores, places = peaks.view(batch, -1).topk(40)
        labels, cells = places // (rows * columns), places % (rows * columns)
        boxes = torch.cat((offset, extent), 1).flatten(2).transpose(1, 2)
        boxes = boxes.gather(1, cells.unsqueeze(2).expand(-1, -1, 4))
        x, y = (cells % columns).float() + boxes[..., 0], (cells // columns).float() + boxes[..., 1]
        half = boxes[..., 2:].abs() / 2
        corners = torch.stack((x - half[..., 0], y - half[..., 1], x + half[..., 0], y + half[..., 1]), 2) * 4
        return torch.cat((corners, scores.unsqueeze(2), labels.unsqueeze(2).float()), 2)


def centernet(classes: int = 20, raw: bool = False, size: tuple[int, int] = (256, 320)) -> Detector:
    """CenterNet: one level."""
    network = _CenterNet(classes, raw)
    return Detector(
        id="centernet" + ("_raw" if raw else ""),
        model=network,
        score_heads=[network.hm[-1]],
        box_heads=[(network.wh[-1], 3.0), (network.reg[-1], 0.5)],
        size=size,
        classes=classes,
        anchors=[1],
        unit_images=False,
        note="own pyramid under CenterNet's heads",
        **FACTS,
    )


class _Fcos(nn.Module):
    """FCOS or ATSS: class times centerness, suppression for each class in the graph."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.pyramid = Pyramid(uniform=True)
        width = self.pyramid.widths[0]
        self.tower = block(width, width)
        self.class_head = nn.Conv2d(width, classes, 3, padding=1)
        self.box_head = nn.Conv2d(width, 4, 3, padding=1)
        self.centre_head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from torchvision.ops import batched_nms

        scores, boxes = [], []
        for stride, level in zip(_STRIDES, self.pyramid(images), strict=True):
            feature = self.tower(level)
            centre = self.centre_head(feature).sigmoid()
            score = self.class_head(feature).sigmoid() * centre
            sides = self.box_head(feature).relu().flatten(2).transpose(1, 2) * stride
            middle = (centres(feature) + 0.5) * stride
            boxes.append(torch.cat((middle - sides[..., :2], middle + sides[..., 2:]), -1))
            scores.append(score.flatten(2).transpose(1, 2))
        best, labels = torch.cat(scores, 1)[0].max(-1)
        best, places = best.topk(200)
        labels, corners = labels[places], torch.cat(boxes, 1)[0][places]
        kept = batched_nms(corners, best, labels, 0.6)[:30]
        return torch.cat((corners[kept], best[kept].unsqueeze(1)), 1).unsqueeze(0), labels[kept].unsqueeze(0)


def fcos(classes: int = 6, size: tuple[int, int] = (256, 320)) -> Detector:
    """ATSS and FCOS in the layout of OTX: boxes with scores [1, M, 5] and 0-based labels [1, M]."""
    vision_ops.install()
    network = _Fcos(classes)
    return Detector(
        id="fcos_model_api",
        model=network,
        score_heads=[network.class_head],
        box_heads=[(network.box_head, 1.5), (network.centre_head, 1.0)],
        size=size,
        classes=classes,
        anchors=[1] * 3,
        unit_images=False,
        outputs=("boxes", "labels"),
        exporters=("legacy", "ptir", "onnxir"),
        batch=False,
        note="own pyramid under ATSS's heads",
        **FACTS,
    )
