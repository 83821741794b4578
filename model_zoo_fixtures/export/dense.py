"""Export the pose models, anomaly detectors and semantic segmenters of the zoo and write their fixtures.

Run ``python -m model_zoo_fixtures.export.dense [NAME...]`` with the extra ``export`` installed, transformers and
anomalib for the models that come from there. Weights are random; banks and statistics of anomaly detectors are those of
random images, and their thresholds lie in the middle of what they say of others.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from model_zoo_fixtures.archives import kilobytes
from model_zoo_fixtures.export import exporters, init, manifest, vision_ops
from model_zoo_fixtures.export.strip import check_alive, keep, strip

_JOINTS = 17
_CLASSES = 6
_UPRIGHT = (256, 192)
_WIDE = (96, 128)


@dataclass(frozen=True)
class Dense:
    """One model of the zoo.

    Attributes:
        build: Makes the network and two images ``[2, 3, H, W]``.
        task: ``keypoints``, ``anomaly`` or ``segmentation``.
        package: Where the architecture comes from.
        licence: SPDX identifier of its code.
        expected: What must be found.
        exporters: Exporters to use.
    """

    build: Callable[[], tuple[nn.Module, torch.Tensor]]
    task: str
    package: str
    licence: str
    expected: dict[str, Any]
    exporters: tuple[str, ...] = ("legacy", "ptir")


class _HeatMaps(nn.Module):
    """A backbone's finest map under one layer, as HRNet's pose model has it."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.last = nn.Conv2d(backbone.feature_info.channels()[0], _JOINTS, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.backbone(images)[0])


class _VitPose(nn.Module):
    """Heat maps of transformers' ViTPose."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=images).heatmaps


class _Enlarged(nn.Module):
    """A backbone's last map under transposed convolutions, as SimpleBaseline's pose model has it."""

    def __init__(self, backbone: Any, width: int = 32) -> None:
        super().__init__()
        self.backbone = backbone
        widths = [backbone.feature_info.channels()[-1], width, width, width]
        self.steps = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.last = nn.Conv2d(width, _JOINTS, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.backbone(images)[-1]
        for step in self.steps:
            x = step(x).relu()
        return self.last(x)


class _Logits(nn.Module):
    """A semantic segmenter's class scores alone."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(images)[self.name]
        return found


class _GatedAttention(nn.Module):
    """RTMPose's gated attention unit over the joints."""

    def __init__(self, width: int = 64, inner: int = 128, key: int = 32) -> None:
        super().__init__()
        self.inner, self.key = inner, key
        self.norm, self.mixed = nn.LayerNorm(width), nn.Linear(width, 2 * inner + key, bias=False)
        self.gamma, self.beta = nn.Parameter(torch.rand(2, key)), nn.Parameter(torch.rand(2, key))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, v, base = nn.functional.silu(self.mixed(self.norm(x))).split([self.inner, self.inner, self.key], dim=2)
        query, key = (base.unsqueeze(2) * self.gamma + self.beta).unbind(2)
        kernel = (query @ key.transpose(1, 2) / self.key**0.5).relu().square()
        return x + self.out(u * (kernel @ v))


class _SimCC(nn.Module):
    """RTMPose's head on a backbone's last map: bins along columns and rows, two for a pixel."""

    def __init__(self, backbone: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        rows, columns = (side // 32 for side in size)
        self.last = nn.Conv2d(backbone.feature_info.channels()[-1], _JOINTS, 7, padding=3)
        self.tokens = nn.Sequential(nn.LayerNorm(rows * columns), nn.Linear(rows * columns, 64, bias=False))
        self.attention = _GatedAttention()
        self.columns = nn.Linear(64, 2 * size[1], bias=False)
        self.rows = nn.Linear(64, 2 * size[0], bias=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.attention(self.tokens(self.last(self.backbone(images)[-1]).flatten(2)))
        return self.columns(x), self.rows(x)


def _backbone(name: str, **more: Any) -> Any:
    import timm

    return timm.create_model(name, pretrained=False, features_only=True, **more)


def _lively(network: nn.Module, name: str, size: tuple[int, int] = _UPRIGHT) -> tuple[nn.Module, torch.Tensor]:
    init.reinitialise(network, name, size)
    return network.eval(), init.random_images(2, size, 5)


def hrnet() -> tuple[nn.Module, torch.Tensor]:
    """Build a small HRNet with heat maps at stride 4."""
    return _lively(_HeatMaps(_backbone("hrnet_w18_small", out_indices=(1,), feature_location="")), "hrnet_pose")


def vitpose() -> tuple[nn.Module, torch.Tensor]:
    """Build a small ViTPose whose decoder has transposed convolutions."""
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

    backbone = VitPoseBackboneConfig(
        image_size=list(_UPRIGHT), hidden_size=48, num_hidden_layers=2, num_attention_heads=3, out_features=["stage2"]
    )
    config = VitPoseConfig(backbone_config=backbone, num_labels=_JOINTS, use_simple_decoder=False)
    return _lively(_VitPose(VitPoseForPoseEstimation(config)), "vitpose")


def rtmpose() -> tuple[nn.Module, torch.Tensor]:
    """Build a small RTMPose."""
    return _lively(_SimCC(_backbone("cspnext_tiny"), _UPRIGHT), "rtmpose")


def simple_pose() -> tuple[nn.Module, torch.Tensor]:
    """Build SimpleBaseline's pose model on ResNet-18."""
    return _lively(_Enlarged(_backbone("resnet18")), "simple_pose")


def segformer() -> tuple[nn.Module, torch.Tensor]:
    """Build a small SegFormer, which gives its scores at stride 4."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    widths = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
    network = SegformerForSemanticSegmentation(SegformerConfig(**widths, decoder_hidden_size=32, num_labels=_CLASSES))
    return _lively(_Logits(network, "logits"), "segformer", _WIDE)


def upernet() -> tuple[nn.Module, torch.Tensor]:
    """Build a small UPerNet on ConvNeXt, which enlarges its scores to the image."""
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    backbone = ConvNextConfig(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], out_features=stages)
    sizes = {"hidden_size": 24, "num_labels": _CLASSES, "use_auxiliary_head": False, "pool_scales": [1, 2, 4]}
    network = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **sizes))
    return _lively(_Logits(network, "logits"), "upernet", (128, 128))


def dpt() -> tuple[nn.Module, torch.Tensor]:
    """Build a small DPT, which enlarges its scores twice."""
    from transformers import DPTConfig, DPTForSemanticSegmentation

    vit = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    neck = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16}
    sizes = {"image_size": 128, "patch_size": 16, "num_labels": _CLASSES, "use_auxiliary_head": False}
    network = DPTForSemanticSegmentation(DPTConfig(**vit, **neck, **sizes))
    return _lively(_Logits(network, "logits"), "dpt", (128, 128))


def lraspp() -> tuple[nn.Module, torch.Tensor]:
    """Build LR-ASPP on MobileNetV3, which adds the scores of two maps and enlarges them to the image."""
    vision_ops.install()
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=_CLASSES)
    return _lively(_Logits(network, "out"), "lraspp", _WIDE)


class _Raw(nn.Module):
    """An anomaly detector of anomalib without its post-processor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.network(images)
        return found.pred_score, found.anomaly_map


class _Inspected(nn.Module):
    """An anomaly detector of anomalib with its post-processor, as its exporter joins them."""

    def __init__(self, network: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.network, self.after = network, after

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.after(self.network(images))
        return found.pred_score, found.pred_label, found.anomaly_map, found.pred_mask


def _inspected(network: Any, images: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    from anomalib.post_processing import PostProcessor

    after = PostProcessor().eval()
    with torch.no_grad():
        found = network.eval()(images)
        for name, values in (("image", found.pred_score), ("pixel", found.anomaly_map)):
            low, high = float(values.min()), float(values.max())
            margin = max(high - low, 0.1 * abs(high))
            ends = {f"{name}_min": low - margin, f"{name}_max": high + margin, f"_{name}_threshold": (low + high) / 2}
            for key, value in ends.items():
                getattr(after, key).fill_(value)
    return _Inspected(network, after).eval(), images


def _on_resnet(network: Any, size: tuple[int, int] = _WIDE) -> torch.Tensor:
    extractor = getattr(network, "feature_extractor", None) or network.teacher_model
    init.reinitialise(extractor, "anomaly", size)
    return init.random_images(2, size, 5)


def _anomalib() -> None:
    vision_ops.install()
    import timm

    create = timm.create_model
    if not getattr(create, "is_random", False):

        def random_model(*names: Any, **options: Any) -> Any:
            return create(*names, **{**options, "pretrained": False})

        random_model.is_random = True  # type: ignore[attr-defined]
        timm.create_model = random_model


def padim() -> tuple[nn.Module, torch.Tensor]:
    """Build PaDiM on ResNet-18: a Gaussian of 16 features at each place."""
    _anomalib()
    from anomalib.models.image.padim.torch_model import PadimModel

    network = PadimModel(backbone="resnet18", layers=["layer1", "layer2"], pre_trained=False, n_features=16)
    images = _on_resnet(network)
    with torch.no_grad():
        features = network.train()(init.random_images(40, _WIDE, 7))
        network.gaussian.fit(features if isinstance(features, torch.Tensor) else torch.cat(network.memory_bank))
    return _inspected(network, images)


def patchcore() -> tuple[nn.Module, torch.Tensor]:
    """Build PatchCore on ResNet-18 with a bank of 50 patches, which says how far, and of no threshold."""
    _anomalib()
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    network = PatchcoreModel(layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False)
    images = _on_resnet(network)
    with torch.no_grad():
        features = network.train()(init.random_images(4, _WIDE, 7))
        bank = features if isinstance(features, torch.Tensor) else torch.cat(network.embedding_store)
        network.memory_bank = bank.reshape(-1, bank.shape[-1])[:: max(len(bank) // 50, 1)][:50].clone()
    return _Raw(network.eval()), images


def stfpm() -> tuple[nn.Module, torch.Tensor]:
    """Build STFPM on ResNet-18: a student beside its teacher at three scales."""
    _anomalib()
    from anomalib.models.image.stfpm.torch_model import STFPMModel

    network = STFPMModel(layers=["layer1", "layer2", "layer3"], backbone="resnet18")
    images = _on_resnet(network)
    init.reinitialise(network.student_model, "student", _WIDE)
    return _inspected(network, images)


_OWN, _ANOMALIB = ("torch", "Apache-2.0"), ("anomalib", "Apache-2.0")
_MAPS = {"joints": _JOINTS, "grid": [64, 48], "layout": "maps"}
_SCORES = {"classes": _CLASSES}
_FINE = _SCORES | {"grid": [64, 64], "resize": "corners"}
_NORMAL = {"grid": list(_WIDE), "map": 2}
MODELS = {
    "hrnet_w18_small_pose": Dense(hrnet, "keypoints", "timm", "Apache-2.0", _MAPS),
    "hf_vitpose": Dense(vitpose, "keypoints", "transformers", "Apache-2.0", _MAPS),
    "rtmpose_cspnext_tiny": Dense(rtmpose, "keypoints", *_OWN, _MAPS | {"layout": "bins"}),
    "simple_pose_resnet18": Dense(simple_pose, "keypoints", "timm", "Apache-2.0", _MAPS),
    "hf_segformer_semantic": Dense(
        segformer, "segmentation", "transformers", "Apache-2.0", _SCORES | {"grid": [24, 32]}
    ),
    "hf_upernet_convnext": Dense(upernet, "segmentation", "transformers", "Apache-2.0", _SCORES | {"grid": [32, 32]}),
    "hf_dpt": Dense(
        dpt, "segmentation", "transformers", "Apache-2.0", _SCORES | {"grid": [64, 64], "resize": "corners"}
    ),
    "lraspp_mobilenet_v3_large": Dense(
        lraspp, "segmentation", "torchvision", "BSD-3-Clause", _SCORES | {"grid": [12, 16]}
    ),
    "padim_resnet18": Dense(padim, "anomaly", *_ANOMALIB, _NORMAL),
    "patchcore_resnet18": Dense(patchcore, "anomaly", *_ANOMALIB, _NORMAL | {"map": 1}),
    "stfpm_resnet18": Dense(stfpm, "anomaly", *_ANOMALIB, _NORMAL),
}


def main(names: list[str]) -> None:
    """Export the models named, or all."""
    exporters.quiet()
    for name in names or MODELS:
        chosen = MODELS[name]
        network, images = chosen.build()
        results: list[dict[str, Any]] = []
        for exporter in chosen.exporters:
            with TemporaryDirectory() as folder:
                source = exporters.EXPORTERS[exporter](network, images[:1], Path(folder, f"{name}.{exporter}"))
                skeleton = strip(source, f"{name}.{exporter}")
            check_alive(skeleton, images.numpy())
            keep(skeleton, f"{name}.{exporter}")
            results.append(
                {
                    "exporter": exporter,
                    "task": chosen.task,
                    "package": f"{chosen.package} {version(chosen.package).partition('+')[0]}",
                    "licence": chosen.licence,
                    "size": list(images.shape[2:]),
                    "expected": chosen.expected,
                    "note": "",
                }
            )
            print(f"{name}.{exporter}: {kilobytes(skeleton)} KB", flush=True)
        manifest.add(SimpleNamespace(id=name), results)  # type: ignore[arg-type]  # only the name is read


if __name__ == "__main__":
    main(sys.argv[1:])
