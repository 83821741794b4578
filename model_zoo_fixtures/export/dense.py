"""Export the models of key points and the anomaly detectors of the zoo and write their fixtures.

Run ``python -m model_zoo_fixtures.export.dense [NAME...]`` with the extra ``export`` installed, transformers and
anomalib for the models that come from there. Weights are random; banks and statistics of anomaly detectors are those of
random images, and their thresholds lie in the middle of what they say of others.
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
from model_zoo_fixtures.export.strip import check_alive, keep, strip

_JOINTS = 17
_UPRIGHT = (256, 192)
_WIDE = (96, 128)


@dataclass(frozen=True)
class Dense:
    """One model of the zoo.

    Attributes:
        build: Makes the network and two images ``[2, 3, H, W]``.
        task: ``keypoints`` or ``anomaly``.
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
_NORMAL = {"grid": list(_WIDE), "map": 2}
MODELS = {
    "hrnet_w18_small_pose": Dense(hrnet, "keypoints", "timm", "Apache-2.0", _MAPS),
    "hf_vitpose": Dense(vitpose, "keypoints", "transformers", "Apache-2.0", _MAPS),
    "rtmpose_cspnext_tiny": Dense(rtmpose, "keypoints", *_OWN, _MAPS | {"layout": "bins"}),
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
