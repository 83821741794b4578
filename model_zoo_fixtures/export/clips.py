"""Export small models of clips, with random weights, and write their fixtures.

Run ``python -m model_zoo_fixtures.export.clips [ID ...]``.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from model_zoo_fixtures.archives import kilobytes
from model_zoo_fixtures.export import shims  # noqa: F401 - must come before torchvision
from model_zoo_fixtures.export.exporters import EXPORTERS, quiet
from model_zoo_fixtures.export.manifest import add
from model_zoo_fixtures.export.strip import check_alive, keep, run, strip

import torch  # isort: skip - after the shims
from torch import nn

_CLASSES, _SIDE, _FRAMES = 20, 64, 8
_FACTS = {"torchvision": "BSD-3-Clause", "transformers": "Apache-2.0"}
_SMALL: dict[str, Any] = {
    "image_size": _SIDE,
    "num_frames": _FRAMES,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_labels": _CLASSES,
}


class _Scores(nn.Module):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        import transformers

        kind = getattr(transformers, name)
        self.network = kind(kind.config_class(**_SMALL, **options))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Classify clips ``[N, T, 3, H, W]``: ``[N, K]``."""
        scores: torch.Tensor = self.network(pixel_values=clips).logits
        return scores


class _Consensus(nn.Module):
    """A network of images that sees the frames in its batch, and the mean of their scores."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.network = resnet18(weights=None, num_classes=_CLASSES)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Classify clips ``[N, T, 3, H, W]``: ``[N, K]``."""
        scores: torch.Tensor = self.network(clips.flatten(0, 1))
        return scores.view(len(clips), -1, _CLASSES).mean(1)


def _r3d() -> nn.Module:
    from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet

    return VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem, num_classes=_CLASSES)


@dataclass(frozen=True)
class _Model:
    """What to export: how to build it, its input for one clip, and what must be found in it."""

    id: str
    package: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    expected: dict[str, Any]


_TOKENS = {"grid": [4, 4, 4], "method": "recipro-cam"}
_CLIP = (1, _FRAMES, 3, _SIDE, _SIDE)
_MODELS = [
    _Model("clip_r3d", "torchvision", _r3d, (1, 3, 16, _SIDE, _SIDE), {"grid": [2, 4, 4], "method": "recipro-cam"}),
    _Model("clip_tsn", "torchvision", _Consensus, _CLIP, {"grid": [_FRAMES, 2, 2], "method": "recipro-cam"}),
    _Model("clip_videomae", "transformers", lambda: _Scores("VideoMAEForVideoClassification"), _CLIP, _TOKENS),
    _Model(
        "clip_vivit", "transformers", lambda: _Scores("VivitForVideoClassification", tubelet_size=[2, 16, 16]), _CLIP,
        _TOKENS | {"method": "vit-recipro-cam"},
    ),
    _Model(
        "clip_timesformer", "transformers", lambda: _Scores("TimesformerForVideoClassification", patch_size=16), _CLIP,
        _TOKENS | {"grid": [_FRAMES, 4, 4]},
    ),
]  # fmt: skip


def main(chosen: list[str]) -> None:
    """Export the models that are named, or all."""
    quiet()
    for item in _MODELS:
        if not chosen or item.id in chosen:
            results = list(_export(item))
            print(item.id, [result.get("failure") or result["kilobytes"] for result in results])
            add(item, results)  # type: ignore[arg-type]  # nothing but its id is read


def _export(item: _Model) -> Any:
    torch.manual_seed(0)
    model = item.build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # every bias matters
            if parameter.ndim == 1 and name.endswith("bias"):
                parameter.normal_(0, 0.1)
    clips = torch.randn(2, *item.shape[1:])
    with torch.no_grad():
        answer = model(clips[:1]).numpy()
    facts = {
        "task": "video-classification",
        "package": f"{item.package} {version(item.package).partition('+')[0]}",
        "licence": _FACTS[item.package],
        "size": [_SIDE, _SIDE],
        "input": list(item.shape),
        "expected": {"classes": _CLASSES, **item.expected},
    }
    with TemporaryDirectory() as folder:
        for exporter in ("legacy", "ptir"):
            result: dict[str, Any] = {"exporter": exporter}
            try:
                with torch.no_grad():
                    path = EXPORTERS[exporter](model, clips[:1], Path(folder) / f"{item.id}.{exporter}")
                np.testing.assert_allclose(run(path, clips[:1].numpy())[0], answer, atol=1e-3)
                skeleton = strip(path, f"{item.id}.{exporter}")
                check_alive(skeleton, clips.numpy())
                keep(skeleton, f"{item.id}.{exporter}")
                result |= facts | {"kilobytes": kilobytes(skeleton), "note": ""}
            except Exception as error:
                result["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:140]
            yield result


if __name__ == "__main__":
    main(sys.argv[1:])
