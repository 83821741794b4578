"""Export the models of the zoo that give vectors: image and text in one file, embeddings, two images.

Run ``python -m model_zoo_fixtures.export.vectors [NAME...]`` with the extra ``export`` installed, and transformers.
They are small configurations of the original code, with random weights and a free batch; those of two images have a
head of our own.
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn

from model_zoo_fixtures.archives import kilobytes
from model_zoo_fixtures.export import (
    exporters,
    manifest,
    shims,  # noqa: F401 - must come before torchvision
)
from model_zoo_fixtures.export.segmenters import fill
from model_zoo_fixtures.export.strip import keep, strip

_EXPORTER = "legacydyn"
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 16,
}
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 96,
    "patch_size": 16,
}


class _Chosen(nn.Module):
    """Returns some of a network's outputs."""

    def __init__(self, network: nn.Module, *names: str) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, image: torch.Tensor, ids: torch.Tensor | None = None) -> Any:
        given = {"pixel_values": image} | ({} if ids is None else {"input_ids": ids})
        found = self.network(**given)
        return tuple(getattr(found, name) for name in self.names)


def clip() -> nn.Module:
    """CLIP: class token, scale."""
    text = {**_TEXT, "bos_token_id": 0, "eos_token_id": 63}
    config = transformers.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=32)
    return _Chosen(transformers.CLIPModel(config), "logits_per_image", "logits_per_text")


def siglip() -> nn.Module:
    """SigLIP: attention pool, scale and bias."""
    config = transformers.SiglipConfig(text_config={**_TEXT, "projection_size": 64}, vision_config=_VISION)
    return _Chosen(transformers.SiglipModel(config), "logits_per_image", "logits_per_text")


def dinov2() -> nn.Module:
    """DINOv2: the class token behind its norm."""
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=2, image_size=98, patch_size=14
    )
    return _Chosen(transformers.Dinov2Model(config), "pooler_output")


def dinov3() -> nn.Module:
    """DINOv3: four registers beside the class token, rotary positions."""
    config = transformers.DINOv3ViTConfig(**_VISION, num_register_tokens=4)
    return _Chosen(transformers.DINOv3ViTModel(config), "pooler_output")


class _Pair(nn.Module):
    """Whether two images show the same, by what one network sees in each; or what is there, by two networks."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        from torchvision.models import resnet18

        networks = [resnet18(num_classes=32) for _ in range(1 if shared else 2)]
        self.networks, self.shared = nn.ModuleList(networks), shared
        self.head = nn.Sequential(nn.Linear(32 if shared else 64, 16), nn.ReLU(), nn.Linear(16, 2 if shared else 5))

    def forward(self, image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        first, second = self.networks[0](image), self.networks[-1](other)
        joined = (first - second).abs() if self.shared else torch.cat([first, second], dim=1)
        scores: torch.Tensor = self.head(joined)
        return scores


def siamese() -> nn.Module:
    """Siamese ResNet: the same weights for both images."""
    return _Pair(shared=True)


def two_streams() -> nn.Module:
    """Late fusion of two ResNets: RGB-D, two cameras, two views."""
    return _Pair(shared=False)


class _Unit(nn.Module):
    """Brings a vector to length 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.network(image)[0], dim=-1)


def clip_image() -> nn.Module:
    """CLIP's image encoder alone, with its projection and norm."""
    network = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**_VISION, projection_dim=32))
    return _Unit(_Chosen(network, "image_embeds"))


MODELS: dict[str, tuple[Callable[[], nn.Module], str, int, dict[str, Any]]] = {
    "hf_clip_text": (clip, "image-text", 96, {"grid": [6, 6], "collapse": "class_token"}),
    "hf_siglip_text": (siglip, "image-text", 96, {"grid": [6, 6], "collapse": "attention_pool"}),
    "hf_clip_embedding": (clip_image, "embedding", 96, {"grid": [6, 6], "collapse": "class_token"}),
    "hf_dinov3_embedding": (dinov3, "embedding", 96, {"grid": [6, 6], "collapse": "class_token"}),
    "hf_dinov2_embedding": (dinov2, "embedding", 98, {"grid": [7, 7], "collapse": "class_token"}),
    "siamese_resnet18": (siamese, "image-pair", 96, {"grid": [3, 3], "collapse": "global_average"}),
    "two_stream_resnet18": (two_streams, "image-pair", 96, {"grid": [3, 3], "collapse": "global_average"}),
}


def _origin(task: str) -> dict[str, str]:
    """The package of an architecture, and the licence of its code."""
    if task == "image-pair":
        return {"package": f"torchvision {version('torchvision')}", "licence": "BSD-3-Clause"}
    return {"package": f"transformers {version('transformers')}", "licence": "Apache-2.0"}


def main(names: list[str]) -> None:
    """Export the models named, or all."""
    exporters.quiet()
    for name in names or MODELS:
        build, task, side, expected = MODELS[name]
        torch.manual_seed(0)
        network = build().eval()
        fill(network)
        more = {"image-text": torch.randint(0, 60, (3, 8)), "image-pair": torch.randn(2, 3, side, side)}
        example = (torch.randn(2, 3, side, side), *([more[task]] if task in more else []))
        inputs = ["image", "other" if task == "image-pair" else "ids"][: len(example)]
        with TemporaryDirectory() as folder:
            source = Path(folder, f"{name}.onnx")
            torch.onnx.export(
                network,
                example,
                str(source),
                dynamo=False,
                opset_version=exporters.LEGACY_OPSET,
                input_names=inputs,
                dynamic_axes={"image": {0: "batch"}, "ids": {0: "prompts"}, "other": {0: "batch"}},
            )
            skeleton = strip(source, f"{name}.{_EXPORTER}")
        keep(skeleton, f"{name}.{_EXPORTER}")
        print(f"{name}.{_EXPORTER}: {kilobytes(skeleton)} KB", flush=True)
        result = {
            "exporter": _EXPORTER,
            "task": task,
            **_origin(task),
            "size": [side, side],
            "expected": expected,
            "note": "",
        }
        manifest.add(SimpleNamespace(id=name), [result])  # type: ignore[arg-type]  # only the name is read


if __name__ == "__main__":
    main(sys.argv[1:])
