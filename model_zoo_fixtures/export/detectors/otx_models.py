"""Detectors of OTX 2 (Apache-2.0), exported as OTX does: suppression inside, boxes [B, M, 5] and labels [B, M]."""

from typing import Any

import torch
from torch import nn

from model_zoo_fixtures.export import vision_ops
from model_zoo_fixtures.export.detectors import otx_packages
from model_zoo_fixtures.export.detectors.base import Detector

_FACTS: dict[str, Any] = {
    "package": "otx",
    "licence": "Apache-2.0",
    "exporters": ("legacy", "onnxir"),
    "outputs": ("boxes", "labels"),
    "dynamic_axes": {
        "image": {0: "batch"},
        "boxes": {0: "batch", 1: "num_dets"},
        "labels": {0: "batch", 1: "num_dets"},
    },
    "unit_images": False,
}
_SPREADS = {"target_means": (0.0, 0.0, 0.0, 0.0), "target_stds": (0.1, 0.1, 0.2, 0.2)}


class _Exported(nn.Module):
    def __init__(self, network: nn.Module, explain: bool) -> None:
        super().__init__()
        self.network = network
        self.explain = explain

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shape = (int(images.shape[2]), int(images.shape[3]))
        facts = {"pad_shape": shape, "batch_input_shape": shape, "img_shape": shape, "scale_factor": (1.0, 1.0)}
        network: Any = self.network
        answer = network.export(images, [facts] * len(images), explain_mode=self.explain)
        return tuple(answer.values()) if isinstance(answer, dict) else tuple(answer)


class _MobileNetV2(nn.Module):
    """Stands in for pytorchcv's, with the same widths."""

    def __init__(self, indices: tuple[int, ...]) -> None:
        super().__init__()
        import timm

        self.network = timm.create_model("mobilenetv2_100", features_only=True, out_indices=indices)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return list(self.network(images))


def _detector(name: str, network: Any, explain: bool, classes: int, **fields: Any) -> Detector:
    if explain:
        from otx.backend.native.tools.explain.explain_algo import DetClassProbabilityMap, feature_vector_fn

        network.feature_vector_fn = feature_vector_fn
        network.explain_fn = DetClassProbabilityMap(num_classes=classes, num_anchors=fields["anchors"]).func
        fields |= {"outputs": ("boxes", "labels", "feature_vector", "saliency_map"), "dynamic_axes": None}
        count = len(fields["anchors"])
        fields["levels"] = lambda outputs: outputs[:count]
    facts = _FACTS | fields
    return Detector(
        id=name + ("_explain" if explain else ""), model=_Exported(network, explain), classes=classes, **facts
    )


def ssd(classes: int = 5, explain: bool = False, size: tuple[int, int] = (320, 320)) -> Detector:
    """OTX SSD: two levels, four and five anchors, background is the last channel, labels are 0-based."""
    vision_ops.install()
    otx_packages.install()
    from otx.backend.native.models.common.utils.coders import DeltaXYWHBBoxCoder
    from otx.backend.native.models.detection.detectors import SingleStageDetector
    from otx.backend.native.models.detection.heads import SSDHead
    from otx.backend.native.models.detection.utils.prior_generators import SSDAnchorGeneratorClustered

    head: Any = SSDHead(
        model_name="ssd_mobilenetv2",
        num_classes=classes,
        anchor_generator=SSDAnchorGeneratorClustered(
            strides=[16, 32],
            widths=[[38.6, 92.5, 271.4, 141.5], [206.0, 386.7, 717.0, 453.8, 788.5]],
            heights=[[48.9, 147.7, 158.2, 324.1], [587.6, 381.6, 323.6, 702.7, 741.5]],
        ),
        bbox_coder=DeltaXYWHBBoxCoder(**_SPREADS),
        init_cfg={"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"},
        train_cfg=None,
        test_cfg={"nms": {"iou_threshold": 0.45}, "min_bbox_size": 0, "score_thr": 0.02, "max_per_img": 50},
    )
    network = SingleStageDetector(_MobileNetV2((3, 4)), head, nn.Identity(), test_cfg=None)
    return _detector(
        "otx_ssd_mobilenetv2",
        network,
        explain,
        classes + 1,
        score_heads=[_last(branch) for branch in head.cls_convs],
        box_heads=[(_last(branch), 0.7) for branch in head.reg_convs],
        size=size,
        anchors=[4, 5],
        background=classes,
        activation="softmax",
        score_mean=0.0,
        score_deviation=1.6,
    )


def _last(branch: nn.Module) -> nn.Module:
    return [layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)][-1]


def atss(classes: int = 5, explain: bool = False, size: tuple[int, int] = (320, 320)) -> Detector:
    """OTX ATSS with MobileNetV2: five levels, class times centerness."""
    vision_ops.install()
    otx_packages.install()
    from otx.backend.native.models.common.utils.coders import DeltaXYWHBBoxCoder
    from otx.backend.native.models.common.utils.prior_generators import AnchorGenerator
    from otx.backend.native.models.detection.detectors import SingleStageDetector
    from otx.backend.native.models.detection.heads import ATSSHead
    from otx.backend.native.models.detection.necks import FPN

    head: Any = ATSSHead(
        model_name="atss_mobilenetv2",
        num_classes=classes,
        anchor_generator=AnchorGenerator(
            ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]
        ),
        bbox_coder=DeltaXYWHBBoxCoder(**_SPREADS),
        train_cfg=None,
        test_cfg=_nms(0.6, 0.05, 100),
    )
    network = SingleStageDetector(
        _MobileNetV2((1, 2, 3, 4)), head, nn.Identity(), neck=FPN(model_name="atss_mobilenetv2"), test_cfg=None
    )
    return _detector(
        "otx_atss_mobilenetv2",
        network,
        explain,
        classes,
        score_heads=[head.atss_cls],
        box_heads=[(head.atss_reg, 0.7), (head.atss_centerness, 1.0)],
        size=size,
        anchors=[1] * 5,
        score_mean=-2.0,
    )


def _nms(overlap: float, score: float, most: int) -> dict[str, Any]:
    return {
        "nms": {"iou_threshold": overlap},
        "min_bbox_size": 0,
        "score_thr": score,
        "max_per_img": most,
        "nms_pre": 1000,
    }


def rtmdet(classes: int = 5, explain: bool = False, size: tuple[int, int] = (320, 320)) -> Detector:
    """OTX RTMDet-tiny."""
    vision_ops.install()
    otx_packages.install()
    from otx.backend.native.models.common.utils.coders import DistancePointBBoxCoder
    from otx.backend.native.models.common.utils.prior_generators import MlvlPointGenerator
    from otx.backend.native.models.detection.backbones.cspnext import CSPNeXt
    from otx.backend.native.models.detection.detectors import SingleStageDetector
    from otx.backend.native.models.detection.heads import RTMDetSepBNHead
    from otx.backend.native.models.detection.necks import CSPNeXtPAFPN

    head: Any = RTMDetSepBNHead(
        model_name="rtmdet_tiny",
        num_classes=classes,
        anchor_generator=MlvlPointGenerator(offset=0, strides=[8, 16, 32]),
        bbox_coder=DistancePointBBoxCoder(),
        train_cfg=None,
        test_cfg=_nms(0.65, 0.05, 100),
    )
    network = SingleStageDetector(
        CSPNeXt(model_name="rtmdet_tiny"), head, nn.Identity(), neck=CSPNeXtPAFPN(model_name="rtmdet_tiny")
    )
    return _detector(
        "otx_rtmdet_tiny",
        network,
        explain,
        classes,
        score_heads=list(head.rtm_cls),
        box_heads=[(layer, 1.0) for layer in head.rtm_reg],
        size=size,
        anchors=[1] * 3,
        score_mean=-2.0,
    )


def yolox(classes: int = 5, explain: bool = False, size: tuple[int, int] = (320, 320)) -> Detector:
    """OTX YOLOX-tiny."""
    vision_ops.install()
    otx_packages.install()
    from otx.backend.native.models.detection.backbones.csp_darknet import CSPDarknet
    from otx.backend.native.models.detection.detectors import SingleStageDetector
    from otx.backend.native.models.detection.heads import YOLOXHead
    from otx.backend.native.models.detection.necks import YOLOXPAFPN

    head: Any = YOLOXHead(model_name="yolox_tiny", num_classes=classes, train_cfg=None, test_cfg=_nms(0.65, 0.05, 100))
    network: Any = SingleStageDetector(
        CSPDarknet(model_name="yolox_tiny"), head, nn.Identity(), neck=YOLOXPAFPN(model_name="yolox_tiny")
    )
    network.backbone.stem.forward = network.backbone.stem.export
    return _detector(
        "otx_yolox_tiny",
        network,
        explain,
        classes,
        score_heads=list(head.multi_level_conv_cls),
        box_heads=[(layer, 0.7) for layer in head.multi_level_conv_reg]
        + [(layer, 1.0) for layer in head.multi_level_conv_obj],
        size=size,
        anchors=[1] * 3,
        score_mean=-1.0,
    )
