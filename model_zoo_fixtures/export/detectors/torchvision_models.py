"""Detectors of torchvision."""

from typing import Any

import torch
from torch import nn

from model_zoo_fixtures.export import vision_ops
from model_zoo_fixtures.export.detectors.base import Detector, Levels

_PACKAGE, _LICENCE = "torchvision", "BSD-3-Clause"
_THRESHOLD = 0.05


class _Lists(nn.Module):
    """Takes a batch and gives boxes, scores and labels of its first image, as torchvision's own exports do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answers = self.network(list(images.unbind(0)))
        return tuple(answers[0][key] for key in ("boxes", "scores", "labels") if key in answers[0])


def _build(name: str, size: tuple[int, int], **options: Any) -> nn.Module:
    vision_ops.install()
    from torchvision.models import get_model

    network = get_model(name, weights=None, weights_backbone=None, **options)
    return network.eval()


def _fields(name: str, network: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": name,
        "model": _Lists(network),
        "size": size,
        "package": _PACKAGE,
        "licence": _LICENCE,
        "outputs": ("boxes", "scores", "labels"),
        "batch": False,
        "exporters": ("legacy", "ptir", "onnxir"),
    }


def ssd(name: str, classes: int = 21, size: tuple[int, int] = (300, 300)) -> Detector:
    """SSD300 or SSDLite: background is class 0, labels are 1-based."""
    network: Any = _build(name, size, num_classes=classes, score_thresh=_THRESHOLD, topk_candidates=50)
    network.detections_per_img = 30
    head = network.head
    scores = [_last(branch) for branch in head.classification_head.module_list]
    boxes = [(_last(branch), 0.7) for branch in head.regression_head.module_list]
    anchors = list(network.anchor_generator.num_anchors_per_location())
    return Detector(
        score_heads=scores,
        box_heads=boxes,
        classes=classes,
        anchors=anchors,
        background=0,
        activation="softmax",
        score_mean=0.0,
        score_deviation=1.6,
        **_fields(name, network, size),
    )


def _last(branch: nn.Module) -> nn.Module:
    return branch if isinstance(branch, nn.Conv2d) else _last(list(branch.children())[-1])


def retinanet(
    name: str = "retinanet_resnet50_fpn_v2", classes: int = 91, size: tuple[int, int] = (256, 256)
) -> Detector:
    """RetinaNet: nine anchors, no background used, weights shared over five levels."""
    network: Any = _build(
        name, size, num_classes=classes, min_size=min(size), max_size=max(size), score_thresh=0.3, topk_candidates=50
    )
    network.detections_per_img = 30
    return Detector(
        score_heads=[network.head.classification_head.cls_logits],
        box_heads=[(network.head.regression_head.bbox_reg, 0.3)],
        classes=classes,
        anchors=[9] * 5,
        score_mean=-3.0,
        score_deviation=1.0,
        **_fields(name, network, size),
    )


def fcos(classes: int = 91, size: tuple[int, int] = (256, 256)) -> Detector:
    """FCOS: one location per cell, class times centerness."""
    network: Any = _build(
        "fcos_resnet50_fpn",
        size,
        num_classes=classes,
        min_size=min(size),
        max_size=max(size),
        score_thresh=0.3,
        topk_candidates=50,
    )
    network.detections_per_img = 30
    head = network.head
    return Detector(
        score_heads=[head.classification_head.cls_logits],
        box_heads=[(head.regression_head.bbox_reg, 1.0), (head.regression_head.bbox_ctrness, 1.0)],
        classes=classes,
        anchors=[1] * 5,
        score_mean=-2.0,
        **_fields("fcos_resnet50_fpn", network, size),
    )


def faster_rcnn(name: str, classes: int = 91, size: tuple[int, int] = (256, 256)) -> Detector:
    """Faster R-CNN: the maps that feed the region head are what counts."""
    network: Any = _build(
        name,
        size,
        num_classes=classes,
        min_size=min(size),
        max_size=max(size),
        box_score_thresh=0.05,
        box_detections_per_img=20,
        rpn_post_nms_top_n_test=50,
        rpn_pre_nms_top_n_test=100,
    )
    pooler = network.roi_heads.box_roi_pool
    names = pooler.featmap_names

    def pick(outputs: list[Any]) -> Levels:
        return [value for key, value in outputs[0].items() if key in names]

    return Detector(
        score_heads=[network.roi_heads.box_predictor.cls_score],
        box_heads=[
            (network.roi_heads.box_predictor.bbox_pred, 1.0),
            (network.rpn.head.bbox_pred, 0.3),
            (network.rpn.head.cls_logits, 1.0),
        ],
        levels=lambda outputs: [],
        features=[network.backbone],
        feature_maps=pick,
        kind="two_stage",
        classes=classes,
        anchors=[],
        background=0,
        activation="softmax",
        score_mean=0.0,
        score_deviation=2.0,
        **_fields(name, network, size),
    )
