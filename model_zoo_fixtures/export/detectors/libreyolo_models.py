"""Detectors of libreyolo (MIT): ports of many families with their original structure."""

from typing import Any

import torch
from torch import nn

from model_zoo_fixtures.export import vision_ops
from model_zoo_fixtures.export.detectors.base import Detector, Levels
from model_zoo_fixtures.export.detectors.transformer_levels import encoder_scores, grids_of

_FACTS: dict[str, Any] = {"package": "libreyolo", "licence": "MIT"}


class Tensors(nn.Module):
    """Flattens what a network gives into a tuple of tensors."""

    def __init__(self, network: nn.Module, keys: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network = network
        self.keys = keys

    def forward(self, images: torch.Tensor) -> Any:
        answer = self.network(images)
        if self.keys:
            return tuple(answer[key] for key in self.keys)
        found = tuple(_tensors(answer))
        return found if len(found) > 1 else found[0]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in _tensors(item)]


def yolox(letter: str = "n", classes: int = 80, decoded: bool = True, size: tuple[int, int] = (256, 320)) -> Detector:
    """YOLOX: box, objectness and classes of each location side by side; decoded, or one raw map a level."""
    from libreyolo.models.yolox.nn import LibreYOLOXModel

    network = LibreYOLOXModel(letter, classes)
    head: Any = network.head
    head.export = decoded
    name = f"yolox_{letter}" + ("" if classes == 80 else f"_nc{classes}") + ("" if decoded else "_raw")
    return Detector(
        id=name,
        model=Tensors(network),
        score_heads=list(head.cls_preds),
        box_heads=[(layer, 0.7) for layer in head.reg_preds] + [(layer, 1.0) for layer in head.obj_preds],
        size=size,
        classes=classes,
        anchors=[1] * 3,
        unit_images=False,
        **_FACTS,
    )


def rtmdet(letter: str = "t", classes: int = 80, decoded: bool = True, size: tuple[int, int] = (256, 320)) -> Detector:
    """RTMDet: decoded, or class maps followed by box maps."""
    from libreyolo.models.rtmdet.nn import LibreRTMDetModel

    network = LibreRTMDetModel(letter, classes)
    head: Any = network.head
    head.export = decoded
    return Detector(
        id=f"rtmdet_{letter}" + ("" if classes == 80 else f"_nc{classes}") + ("" if decoded else "_raw"),
        model=Tensors(network),
        score_heads=list(head.rtm_cls),
        box_heads=[(layer, 1.0) for layer in head.rtm_reg],
        size=size,
        classes=classes,
        anchors=[1] * 3,
        unit_images=False,
        **_FACTS,
    )


def picodet(classes: int = 80, decoded: bool = True, size: tuple[int, int] = (256, 320)) -> Detector:
    """PicoDet: class scores and box distributions in one convolution, four levels."""
    from libreyolo.models.picodet.nn import LibrePICODETModel

    network = LibrePICODETModel("s", classes)
    head: Any = network.head
    head.export = decoded
    return Detector(
        id="picodet_s" + ("" if classes == 80 else f"_nc{classes}") + ("" if decoded else "_raw"),
        model=Tensors(network),
        score_heads=list(head.gfl_cls),
        levels=lambda outputs: [output[:, :classes] for output in outputs],
        size=size,
        classes=classes,
        anchors=[1] * 4,
        unit_images=False,
        score_mean=-1.0,
        **_FACTS,
    )


def ppyoloe(classes: int = 80, size: tuple[int, int] = (256, 320)) -> Detector:
    """PP-YOLOE+: levels are concatenated from coarse to fine."""
    from libreyolo.models.ppyoloe.nn import LibrePPYOLOEModel

    network: Any = LibrePPYOLOEModel("s", classes)
    head = network.head
    detector = Detector(
        id="ppyoloe_s",
        model=_FirstPair(network),
        score_heads=list(head.pred_cls),
        box_heads=[(layer, 1.0) for layer in head.pred_reg],
        levels=lambda outputs: outputs[::-1],
        size=size,
        classes=classes,
        anchors=[1] * 3,
        unit_images=False,
        kept=lambda name: "proj_conv" in name,
        note="levels are written here from fine to coarse; the graph concatenates them from coarse to fine",
        **_FACTS,
    )
    detector.finish = network.fuse_reparam
    return detector


class _FirstPair(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> Any:
        answer = self.network(images)
        if isinstance(answer, tuple) and isinstance(answer[0], tuple):
            return answer[0]
        return answer


def yolonas(classes: int = 80, size: tuple[int, int] = (256, 320)) -> Detector:
    """YOLO-NAS: boxes and scores as two outputs."""
    from libreyolo.models.yolonas.nn import LibreYOLONASModel

    network: Any = LibreYOLONASModel("s", classes)
    heads = [network.heads.head1, network.heads.head2, network.heads.head3]
    return Detector(
        id="yolonas_s",
        model=_FirstPair(network),
        score_heads=[head.cls_pred for head in heads],
        box_heads=[(head.reg_pred, 1.0) for head in heads],
        size=size,
        classes=classes,
        anchors=[1] * 3,
        kept=lambda name: "proj_conv" in name,
        **_FACTS,
    )


def yolo9(classes: int = 80, nms: bool = False, size: tuple[int, int] = (256, 320)) -> Detector:
    """YOLOv9 in its MIT port; box and class maps are concatenated before the levels are."""
    from libreyolo.models.yolo9.nn import LibreYOLO9Model

    network: Any = LibreYOLO9Model("t", nb_classes=classes)
    head = network.head
    head.export = True
    model: nn.Module = _First(network)
    if nms:
        vision_ops.install()
        from libreyolo.export.nms import EmbeddedNMSDetector

        model = EmbeddedNMSDetector(model, conf=0.3, iou=0.5, max_det=30)
    return Detector(
        id="libreyolo9_t" + ("" if classes == 80 else f"_nc{classes}") + ("_nms" if nms else ""),
        model=model,
        score_heads=[tower[-1] for tower in head.cv3],
        box_heads=[(tower[-1], 1.0) for tower in head.cv2],
        size=size,
        classes=classes,
        anchors=[1] * 3,
        kept=lambda name: ".dfl." in name,
        score_mean=-4.5 if nms else -1.5,
        batch=not nms,
        **_FACTS,
    )


class _First(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> Any:
        answer = self.network(images)
        while not isinstance(answer, torch.Tensor):
            answer = next(iter(answer.values())) if isinstance(answer, dict) else answer[0]
        return answer


def efficientdet(classes: int = 90, raw: bool = False, size: tuple[int, int] = (512, 512)) -> Detector:
    """EfficientDet-D0: separable heads shared over five levels with their own norms, nine anchors."""
    from libreyolo.models.efficientdet.nn import EfficientDetExportWrapper, LibreEfficientDetModel

    network: Any = LibreEfficientDetModel("d0", classes)
    model = (
        Tensors(network) if raw else EfficientDetExportWrapper(network, size[0], max_candidates=500, sparse_coco=False)
    )
    return Detector(
        id="efficientdet_d0" + ("_raw" if raw else ""),
        model=model,
        score_heads=[_last_convolution(network.class_net)],
        box_heads=[(_last_convolution(network.box_net), 0.3)],
        size=size,
        classes=classes,
        anchors=[9] * 5,
        unit_images=False,
        score_mean=-3.0,
        score_deviation=1.0,
        kept=lambda name: "anchors" in name or "class_map" in name,
        **_FACTS,
    )


def _last_convolution(module: nn.Module) -> nn.Module:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)][-1]


def darknet(config: str, classes: int = 80, raw: bool = False, size: tuple[int, int] = (256, 320)) -> Detector:
    """YOLOv2, v3 and v4 from Darknet's configuration files: fused anchor heads, raw or decoded."""
    from libreyolo.models.darknet.cfg import load_bundled_cfg
    from libreyolo.models.darknet.export import DarknetExportWrapper
    from libreyolo.models.darknet.family import _DarknetHolder
    from libreyolo.models.darknet.net import DarknetNet

    network: Any = DarknetNet(*load_bundled_cfg(config), num_classes=classes)
    model: nn.Module = Tensors(network) if raw else DarknetExportWrapper(_DarknetHolder("darknet", network))
    specs = network.detection_specs()
    anchors = [len(spec.anchors) for spec in specs]
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    heads = [
        layer for layer in convolutions if layer.out_channels == anchors[0] * (5 + classes) and layer.bias is not None
    ]
    coarse_first = len(specs) > 1 and specs[0].stride > specs[-1].stride

    def pick(outputs: list[Any]) -> Levels:
        levels = [split_anchor_head(output, count, classes) for output, count in zip(outputs, anchors, strict=True)]
        return levels[::-1] if coarse_first else levels

    return Detector(
        id=f"{config.replace('-', '_')}" + ("_raw" if raw else ""),
        model=model,
        score_heads=heads,
        levels=pick,
        size=size,
        classes=classes,
        anchors=anchors,
        activation="softmax" if specs[0].kind == "region" else "sigmoid",
        kept=lambda name: "anchors_" in name,
        score_mean=-0.7,
        **_FACTS,
    )


def split_anchor_head(output: torch.Tensor, anchors: int, classes: int) -> torch.Tensor:
    """Take the class rows of a fused head ``[N, A * (5 + K), h, w]``."""
    rows = output.reshape(output.shape[0], anchors, 5 + classes, *output.shape[2:])
    return rows[:, :, 5:].flatten(1, 2)


def encoder_detector(family: str, classes: int = 80, size: tuple[int, int] = (256, 320)) -> Detector:
    """RT-DETR, RT-DETRv2, D-FINE and DEIM: scores of every encoder token choose the queries."""
    strides = (8, 16, 32)
    network: Any
    if family == "rtdetr":
        from libreyolo.models.rtdetr.nn import RTDETRModel

        network = RTDETRModel(
            num_classes=classes,
            num_queries=50,
            num_decoder_layers=2,
            dim_feedforward=256,
            num_denoising=0,
            eval_spatial_size=size,
        )
    elif family == "rtdetrv2":
        from libreyolo.models.rtdetrv2.nn import RTDETRv2Model

        network = RTDETRv2Model(
            num_classes=classes,
            num_queries=50,
            num_decoder_layers=2,
            dim_feedforward=256,
            num_denoising=0,
            eval_spatial_size=size,
        )
    elif family == "dfine":
        from libreyolo.models.dfine.nn import LibreDFINEModel

        network = LibreDFINEModel("n", classes, eval_spatial_size=size)
        strides = (16, 32)
    else:
        from libreyolo.models.deim.nn import LibreDEIMModel

        network = LibreDEIMModel("s", classes, eval_spatial_size=size)
    head = network.decoder.enc_score_head
    detector = Detector(
        id=f"libre_{family}",
        model=Tensors(network, ("pred_logits", "pred_boxes")),
        score_heads=[head],
        levels=encoder_scores(grids_of(size, strides)),
        size=size,
        classes=classes,
        anchors=[1] * len(strides),
        kind="encoder_scores",
        kept=lambda name: "anchors" in name or "valid_mask" in name or ".project" in name,
        **_FACTS,
    )
    if family in ("dfine", "deim"):
        detector.finish = network.deploy
    return detector


def rfdetr(letter: str = "n", classes: int = 91) -> Detector:
    """RF-DETR: one level of DINOv2 tokens, scored by the encoder's own head."""
    from libreyolo.models.rfdetr.nn import LibreRFDETRModel, RFDETRExportWrapper

    outer: Any = LibreRFDETRModel(letter, nb_classes=classes)
    resolution = outer.resolution
    size = (resolution, resolution)
    network = outer.model
    step = resolution // outer.patch_size
    head = network.transformer.enc_out_class_embed[0]
    detector = Detector(
        id=f"rfdetr_{letter}",
        model=Tensors(network),
        score_heads=[head],
        levels=encoder_scores([(step, step)]),
        size=size,
        classes=head.out_features,
        anchors=[1],
        kind="encoder_scores",
        unit_images=False,
        **_FACTS,
    )

    def finish() -> None:
        detector.model = RFDETRExportWrapper(outer)

    detector.finish = finish
    return detector


def lwdetr(letter: str = "t", classes: int = 91, size: tuple[int, int] = (256, 256)) -> Detector:
    """LW-DETR: one level, scored by the encoder's own head."""
    from libreyolo.models.lwdetr.nn import LibreLWDETRModel, LWDETRExportWrapper

    network: Any = LibreLWDETRModel(letter, classes)
    return Detector(
        id=f"lwdetr_{letter}",
        model=LWDETRExportWrapper(network),
        score_heads=[network.transformer.enc_out_class_embed[0]],
        levels=encoder_scores([(size[0] // 16, size[1] // 16)]),
        size=size,
        classes=classes,
        anchors=[1],
        kind="encoder_scores",
        unit_images=False,
        **_FACTS,
    )
