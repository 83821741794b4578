"""Export the instance segmenters of the zoo and write their fixtures.

Run ``python -m model_zoo_fixtures.export.segmenters [NAME...]`` with the extra ``export`` installed, ultralytics and
transformers for the models that come from there. Weights are random; class scores are set so that a few instances of
several classes are found.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from model_zoo_fixtures.archives import kilobytes
from model_zoo_fixtures.export import exporters, init, manifest, vision_ops
from model_zoo_fixtures.export.rtmdet_ins import RTMDetIns
from model_zoo_fixtures.export.strip import keep, strip

_CLASSES = 7


@dataclass(frozen=True)
class Segmenter:
    """One model of the zoo.

    Attributes:
        build: Makes the network and an image ``[1, 3, H, W]``.
        package: Where the architecture comes from.
        licence: SPDX identifier of its code.
        expected: What must be found.
        exporters: Exporters to use.
    """

    build: Callable[[], tuple[nn.Module, torch.Tensor]]
    package: str
    licence: str
    expected: dict[str, Any]
    exporters: tuple[str, ...] = ("legacy", "ptir")


def fill(network: nn.Module, kept: str = "") -> None:
    """Give every parameter a value that matters; those whose module's class is named ``kept`` stay."""
    generator = torch.Generator().manual_seed(3)
    fixed = {id(p) for m in network.modules() if type(m).__name__ == kept for p in m.parameters()}
    with torch.no_grad():
        for owner, key, parameter in init._parameters(network):
            if id(parameter) not in fixed:
                init._fill(parameter, key, owner, generator)


class _Batched(nn.Module):
    """Takes a batch as a list of images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> Any:
        return self.network(list(images))


class _MaskRCNN(nn.Module):
    """torchvision's Mask R-CNN with the outputs of one export layout."""

    def __init__(self, network: Any, layout: str) -> None:
        super().__init__()
        self.network = network
        self.layout = layout

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        network = self.network
        if self.layout == "image":
            found = network([images[0]])[0]
            return found["boxes"], found["labels"], found["scores"], found["masks"]
        prepared, _ = network.transform([images[0]], None)
        features = network.backbone(prepared.tensors)
        proposals, _ = network.rpn(prepared, features, None)
        found = network.roi_heads(features, proposals, prepared.image_sizes, None)[0][0]
        if self.layout == "box":
            return found["boxes"], found["labels"], found["scores"], found["masks"]
        boxes = torch.cat([found["boxes"], found["scores"][:, None]], 1)
        return boxes, found["labels"] - 1, found["masks"][:, 0]


def mask_rcnn(layout: str) -> tuple[nn.Module, torch.Tensor]:
    """Build Mask R-CNN with ResNet-18 and FPN; ``layout`` is ``image``, ``box`` or ``otx``."""
    vision_ops.install()
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    size = (320, 256)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    network = MaskRCNN(backbone, num_classes=12, min_size=min(size), max_size=max(size)).eval()
    images = init.random_images(2, size, 3) * 0.25 + 0.5
    fill(network)
    with torch.no_grad():
        init._measure_batch_statistics(_Batched(network), images, torch.Generator().manual_seed(7))
        predictor, rpn = network.roi_heads.box_predictor, network.rpn.head
        _scale(network, rpn.bbox_pred, images[:1], 0.3)
        _scale(network, predictor.bbox_pred, images[:1], 1.0)
        _scale(network, predictor.cls_score, images[:1], 2.0, centred=True)
        predictor.cls_score.bias[0] += 1.5
        _scale(network, network.roi_heads.mask_predictor.mask_fcn_logits, images[:1], 3.0)
    return _MaskRCNN(network, layout), images[:1]


def _scale(network: nn.Module, layer: Any, images: torch.Tensor, deviation: float, centred: bool = False) -> None:
    """Give a layer's outputs a deviation and, with ``centred``, each channel a mean of zero over regions."""
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    network(list(images))
    hook.remove()
    outputs = torch.cat([output.flatten() if not centred else output for output in seen])
    means = outputs.mean(0) if centred else torch.zeros(())
    gain = deviation / (outputs - means).std()
    layer.weight.mul_(gain)
    layer.bias.sub_(means).mul_(gain)


def rtmdet_ins() -> tuple[nn.Module, torch.Tensor]:
    """Build a small RTMDet-Ins."""
    vision_ops.install()
    network = RTMDetIns(classes=9, size=(256, 320)).eval()
    fill(network)
    images = init.random_images(1, (256, 320), 3)
    with torch.no_grad():
        init._measure_batch_statistics(network, images, torch.Generator().manual_seed(1))
        network.class_scores.bias.sub_(0.5)
        network.distances.bias.add_(1.5)
        network.kernels.weight.mul_(0.5)
    return network, images


class _Outputs(nn.Module):
    """Gives class scores and masks of queries, and with ``all_states`` what the model keeps beside them."""

    def __init__(self, network: nn.Module, all_states: bool = False) -> None:
        super().__init__()
        self.network = network
        self.all_states = all_states

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.network(pixel_values=images)
        found = (out.class_queries_logits, out.masks_queries_logits)
        if not self.all_states:
            return found
        states = (out.encoder_last_hidden_state, out.pixel_decoder_last_hidden_state)
        return (*found, *states, out.transformer_decoder_last_hidden_state)


def _query_model(network: Any, all_states: bool = False) -> tuple[nn.Module, torch.Tensor]:
    network.eval()
    images = init.random_images(1, (96, 128), 5)
    with torch.no_grad():
        scores = network(pixel_values=images).class_queries_logits
        gain, means = 2.5 / (scores - scores.mean((0, 1))).std(), scores.mean((0, 1))
        network.class_predictor.weight.mul_(gain)
        network.class_predictor.bias.copy_((network.class_predictor.bias - means) * gain)
        network.class_predictor.bias[-1] += 2.0  # many queries see no object
        gain = 4.0 / network(pixel_values=images).masks_queries_logits.std()
        for parameter in [p for name, p in network.named_parameters() if "mask_embedder" in name][-2:]:
            parameter.mul_(gain)
    return _Outputs(network, all_states), images


def _single_precision_grids() -> None:
    """Keep the sampling grids of deformable attention from becoming double in the legacy export."""
    functional: Any = torch.nn.functional
    if getattr(functional.grid_sample, "keeps_type", False):
        return
    original = functional.grid_sample

    def grid_sample(values: torch.Tensor, grid: torch.Tensor, **options: Any) -> torch.Tensor:
        return original(values, grid.to(values.dtype), **options)

    grid_sample.keeps_type = True  # type: ignore[attr-defined]
    functional.grid_sample = grid_sample


def mask2former(all_states: bool = False) -> tuple[nn.Module, torch.Tensor]:
    """Build a small Mask2Former with Swin; with ``all_states`` it gives its hidden states as well."""
    vision_ops.install()
    _single_precision_grids()
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    backbone = SwinConfig(
        image_size=64, embed_dim=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=stages
    )
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 4}
    sizes |= {"encoder_feedforward_dim": 64, "dim_feedforward": 64, "encoder_layers": 2, "decoder_layers": 3}
    config = Mask2FormerConfig(backbone_config=backbone, num_queries=20, num_labels=_CLASSES, **sizes)
    return _query_model(Mask2FormerForUniversalSegmentation(config), all_states)


def maskformer() -> tuple[nn.Module, torch.Tensor]:
    """Build a small MaskFormer with ResNet."""
    vision_ops.install()
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig

    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    widths = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 20, "num_labels": _CLASSES}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    decoder = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=ResNetConfig(), **sizes
    )
    config = MaskFormerConfig(
        backbone_config=ResNetConfig(out_features=stages, **widths),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=_CLASSES,
    )
    return _query_model(MaskFormerForInstanceSegmentation(config))


class _Pair(nn.Module):
    """Gives predictions and prototypes of a YOLO segmenter."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, prototypes = self.network(images)
        return predictions, prototypes


def yolo(config: str, nms: bool = False) -> tuple[nn.Module, torch.Tensor]:
    """Build a YOLO segmenter of ultralytics the way its own exporter prepares it."""
    vision_ops.install()
    from ultralytics.engine.exporter import NMSModel
    from ultralytics.nn.tasks import SegmentationModel

    size = (640, 640)
    network: Any = SegmentationModel(config, ch=3, nc=80, verbose=False)
    network.names, network.task = {index: str(index) for index in range(80)}, "segment"
    network.eval()
    images = init.random_images(2, size, 5) * 0.25 + 0.5
    fill(network, kept="DFL")
    head = network.model[-1]
    with torch.no_grad():
        init._measure_batch_statistics(network, images, torch.Generator().manual_seed(5))
        seen: list[torch.Tensor] = []
        last = [branch[-1] for branch in head.cv3]
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.flatten(2)))
            for layer in last
        ]
        network(images[:1])
        for hook in hooks:
            hook.remove()
        scores = torch.cat(seen, 2)
        deviation = scores.std()
        some = torch.quantile(scores.amax(1).flatten() / deviation, 0.96)
        for layer in last:
            layer.weight.div_(deviation)
            layer.bias.div_(deviation).sub_(some + 1.1)  # 4 % of the locations score above 0.25
    network.fuse(verbose=False)
    head.export, head.format, head.xyxy = True, "onnx", nms
    if not nms:
        return _Pair(network), images[:1]
    arguments = SimpleNamespace(
        format="onnx", dynamic=False, batch=1, max_det=300, conf=0.25, iou=0.7, agnostic_nms=False, opset=17
    )
    return _Pair(NMSModel(network, arguments)), images[:1]


_LISTED = ["boxes", "labels", "scores", "masks"]
_ULTRALYTICS = ("ultralytics", "AGPL-3.0-only")
_TORCHVISION = ("torchvision", "BSD-3-Clause")
_TRANSFORMERS = ("transformers", "Apache-2.0")
SEGMENTERS = {
    "yolov8n_seg": Segmenter(lambda: yolo("yolov8n-seg.yaml"), *_ULTRALYTICS, {"classes": 80, "layout": "locations"}),
    "yolov8n_seg_nms": Segmenter(
        lambda: yolo("yolov8n-seg.yaml", nms=True), *_ULTRALYTICS, {"classes": 80, "layout": "rows"}
    ),
    "yolo11n_seg": Segmenter(lambda: yolo("yolo11n-seg.yaml"), *_ULTRALYTICS, {"classes": 80, "layout": "locations"}),
    "maskrcnn_resnet18_fpn": Segmenter(
        lambda: mask_rcnn("image"), *_TORCHVISION, {"classes": 12, "layout": "list", "outputs": _LISTED}
    ),
    "maskrcnn_resnet18_fpn_boxes": Segmenter(
        lambda: mask_rcnn("box"), *_TORCHVISION, {"classes": 12, "layout": "list", "outputs": _LISTED}
    ),
    "maskrcnn_resnet18_fpn_otx": Segmenter(
        lambda: mask_rcnn("otx"),
        *_TORCHVISION,
        {"classes": 11, "layout": "list", "outputs": ["boxes", "labels", "masks"]},
    ),
    "rtmdet_ins": Segmenter(
        rtmdet_ins,
        "torch",
        "Apache-2.0",
        {"classes": 9, "layout": "list", "outputs": ["boxes", "labels", "masks"]},
    ),
    "mask2former_swin_states": Segmenter(
        lambda: mask2former(all_states=True),
        *_TRANSFORMERS,
        {"classes": _CLASSES, "layout": "queries"},
        ("legacy",),
    ),
    "mask2former_swin": Segmenter(mask2former, *_TRANSFORMERS, {"classes": _CLASSES, "layout": "queries"}),
    "maskformer_resnet": Segmenter(maskformer, *_TRANSFORMERS, {"classes": _CLASSES, "layout": "queries"}),
}


def main(names: list[str]) -> None:
    """Export the segmenters named, or all."""
    exporters.quiet()
    for name in names or SEGMENTERS:
        chosen = SEGMENTERS[name]
        network, images = chosen.build()
        results: list[dict[str, Any]] = []
        for exporter in chosen.exporters:
            with TemporaryDirectory() as folder:
                source = exporters.EXPORTERS[exporter](network, images, Path(folder, f"{name}.{exporter}"))
                skeleton = strip(source, f"{name}.{exporter}")
            keep(skeleton, f"{name}.{exporter}")
            results.append(result_of(chosen, exporter, images))
            print(f"{name}.{exporter}: {kilobytes(skeleton)} KB", flush=True)
        manifest.add(SimpleNamespace(id=name), results)  # type: ignore[arg-type]  # only the name is read


def result_of(chosen: Segmenter, exporter: str, images: torch.Tensor) -> dict[str, Any]:
    """What the manifest holds of an export."""
    return {
        "exporter": exporter,
        "task": "instance-segmentation",
        "package": f"{chosen.package} {version(chosen.package).partition('+')[0]}",
        "licence": chosen.licence,
        "size": list(images.shape[2:]),
        "expected": chosen.expected,
        "note": "",
    }


if __name__ == "__main__":
    main(sys.argv[1:])
