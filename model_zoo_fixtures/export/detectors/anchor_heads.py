"""Heads over anchors, written after the structure of YOLOv5, RetinaNet and SSD as they are exported."""

from typing import Any

import torch
from torch import nn

from model_zoo_fixtures.export.detectors.base import Detector, Levels
from model_zoo_fixtures.export.detectors.pyramid import Pyramid, block

FACTS: dict[str, Any] = {"package": "own", "licence": "Apache-2.0"}
_STRIDES = (8, 16, 32)
_ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))


class _Yolov5(nn.Module):
    """YOLOv5's head: one convolution of ``A * (5 + K)`` channels a level."""

    def __init__(self, classes: int, style: str) -> None:
        super().__init__()
        self.style, self.width = style, 5 + classes
        self.pyramid = Pyramid()
        self.m = nn.ModuleList(nn.Conv2d(width, 3 * self.width, 1) for width in self.pyramid.widths)
        self.register_buffer("anchors", torch.tensor(_ANCHORS, dtype=torch.float32).view(3, 1, 3, 1, 1, 2))

    def forward(self, images: torch.Tensor) -> Any:
        features = self.pyramid(images)
        raw = [layer(feature) for layer, feature in zip(self.m, features, strict=True)]
        if self.style == "conv":
            return tuple(raw)
        views = []
        for map_ in raw:
            batch, _, rows, columns = map_.shape
            views.append(map_.view(batch, 3, self.width, rows, columns).permute(0, 1, 3, 4, 2).contiguous())
        if self.style == "raw":
            return tuple(views)
        return torch.cat([self._decode(view, level) for level, view in enumerate(views)], 1)

    def _decode(self, view: torch.Tensor, level: int) -> torch.Tensor:
        batch, anchors, rows, columns, width = view.shape
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        grid = torch.stack((x, y), 2).expand(1, anchors, rows, columns, 2).float() - 0.5
        xy, wh, confidence = view.sigmoid().split((2, 2, width - 4), 4)
        xy = (xy * 2 + grid) * _STRIDES[level]
        wh = (wh * 2) ** 2 * self.anchors[level]
        return torch.cat((xy, wh, confidence), 4).view(batch, anchors * rows * columns, width)


def yolov5(style: str = "decoded", classes: int = 80, size: tuple[int, int] = (256, 320)) -> Detector:
    """YOLOv5 and v7: decoded to [B, L, 5 + K], raw as [B, 3, h, w, 5 + K], or the convolutions themselves."""
    network = _Yolov5(classes, style)

    def pick(outputs: list[Any]) -> Levels:
        return [fused_classes(output, 3, classes) for output in outputs]

    return Detector(
        id="yolov5_anchor" + ("" if classes == 80 else f"_nc{classes}") + ("" if style == "decoded" else f"_{style}"),
        model=network,
        score_heads=list(network.m),
        levels=pick,
        size=size,
        classes=classes,
        anchors=[3] * 3,
        score_mean=-0.7,
        kept=lambda name: name.endswith("anchors"),
        note="own pyramid under YOLOv5's head",
        **FACTS,
    )


def fused_classes(output: torch.Tensor, anchors: int, classes: int) -> torch.Tensor:
    """Take the class rows ``[N, A * K, h, w]`` of a fused head ``[N, A * (5 + K), h, w]``."""
    rows = output.reshape(output.shape[0], anchors, 5 + classes, *output.shape[2:])
    return rows[:, :, 5:].flatten(1, 2)


class _Retina(nn.Module):
    """Class and box maps of each level as outputs, heads shared over the levels."""

    def __init__(self, classes: int, anchors: int, concatenated: bool) -> None:
        super().__init__()
        self.classes, self.concatenated, self.channels_last = classes, concatenated, False
        self.pyramid = Pyramid(uniform=True)
        width = self.pyramid.widths[0]
        self.class_tower, self.box_tower = block(width, width), block(width, width)
        self.class_head = nn.Conv2d(width, anchors * classes, 3, padding=1)
        self.box_head = nn.Conv2d(width, anchors * 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> Any:
        if self.channels_last:
            images = images.permute(0, 3, 1, 2)
        features = self.pyramid(images)
        scores = [self.class_head(self.class_tower(feature)) for feature in features]
        boxes = [self.box_head(self.box_tower(feature)) for feature in features]
        if not self.concatenated:
            return (*scores, *boxes)
        rows = [
            torch.cat([map_.permute(0, 2, 3, 1).reshape(map_.shape[0], -1, width) for map_ in maps], 1)
            for maps, width in ((scores, self.classes), (boxes, 4))
        ]
        return rows[0].sigmoid(), rows[1]


def retina(
    classes: int = 7,
    anchors: int = 9,
    concatenated: bool = False,
    channels_last: bool = False,
    size: tuple[int, int] = (256, 320),
) -> Detector:
    """RetinaNet as a raw network: one class and one box map a level, or concatenated [B, L, K] and [B, L, 4]."""
    network = _Retina(classes, anchors, concatenated)
    name = "retina" + ("_dense" if concatenated else "_raw") + (f"_nc{classes}_a{anchors}")
    return Detector(
        id=name + ("_nhwc" if channels_last else ""),
        model=network,
        score_heads=[network.class_head],
        box_heads=[(network.box_head, 0.5)],
        size=size,
        classes=classes,
        anchors=[anchors] * 3,
        channels_last=channels_last,
        finish=lambda: setattr(network, "channels_last", channels_last),
        note="own pyramid under RetinaNet's heads",
        **FACTS,
    )


class _Ssd(nn.Module):
    """SSD with its own head a level; softmax, with or without the background, at the first or the last place."""

    def __init__(self, classes: int, anchors: tuple[int, ...], output: str) -> None:
        super().__init__()
        self.classes, self.output, self.channels_last = classes, output, False
        self.pyramid = Pyramid()
        pairs = list(zip(self.pyramid.widths, anchors, strict=True))
        self.class_heads = nn.ModuleList(nn.Conv2d(width, count * classes, 3, padding=1) for width, count in pairs)
        self.box_heads = nn.ModuleList(nn.Conv2d(width, count * 4, 3, padding=1) for width, count in pairs)

    def forward(self, images: torch.Tensor) -> Any:
        if self.channels_last:
            images = images.permute(0, 3, 1, 2)
        features = self.pyramid(images)
        scores, boxes = (
            torch.cat(
                [
                    head(feature).permute(0, 2, 3, 1).reshape(feature.shape[0], -1, width)
                    for head, feature in zip(heads, features, strict=True)
                ],
                1,
            )
            for heads, width in ((self.class_heads, self.classes), (self.box_heads, 4))
        )
        probabilities = scores.softmax(-1)
        if self.output == "drop_first":
            probabilities = probabilities[..., 1:]
        return probabilities, boxes


def ssd(
    classes: int = 11, output: str = "all", channels_last: bool = False, size: tuple[int, int] = (256, 256)
) -> Detector:
    """SSD as a dense network: probabilities [B, L, K] and boxes [B, L, 4]; background is channel 0."""
    anchors = (4, 6, 6)
    network = _Ssd(classes, anchors, output)
    return Detector(
        id=f"ssd_dense_{output}" + ("_nhwc" if channels_last else ""),
        model=network,
        score_heads=list(network.class_heads),
        box_heads=[(head, 0.7) for head in network.box_heads],
        size=size,
        classes=classes,
        anchors=list(anchors),
        background=0,
        activation="softmax",
        score_mean=0.0,
        score_deviation=1.6,
        label_offset=-1 if output == "drop_first" else 0,
        channels_last=channels_last,
        finish=lambda: setattr(network, "channels_last", channels_last),
        note="own pyramid under SSD's heads",
        **FACTS,
    )
