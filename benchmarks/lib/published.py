"""Export segmenters, embeddings and prompts of transformers in the sizes of published models, with random weights.

    python -m benchmarks.lib.published FOLDER

writes `segformer_b0.onnx` (512x512), `vitpose_b.onnx` (256x192), `dinov2_s.onnx` (224x224) and `clip_vit_b32.onnx`
(224x224, two stored prompts) for `benchmarks.cost.tasks`. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OPSET = 17


def _segformer(transformers: Any, torch: Any) -> tuple[Any, tuple[int, int]]:
    config = transformers.SegformerConfig(num_labels=150)
    return _Reading(torch, transformers.SegformerForSemanticSegmentation(config), lambda made: made.logits), (512, 512)


def _vitpose(transformers: Any, torch: Any) -> tuple[Any, tuple[int, int]]:
    config = transformers.VitPoseConfig(backbone_config=transformers.VitPoseBackboneConfig(), num_labels=17)
    return _Reading(torch, transformers.VitPoseForPoseEstimation(config), lambda made: made.heatmaps), (256, 192)


def _dinov2(transformers: Any, torch: Any) -> tuple[Any, tuple[int, int]]:
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=224)
    return _Reading(torch, transformers.Dinov2Model(config), lambda made: made.pooler_output), (224, 224)


def _clip(transformers: Any, torch: Any) -> tuple[Any, tuple[int, int]]:
    model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig())
    prompts = torch.nn.functional.normalize(torch.randn(512, 2), dim=0)

    def scores(made: Any) -> Any:
        return 100 * torch.nn.functional.normalize(made.image_embeds, dim=-1) @ prompts

    return _Reading(torch, model, scores), (224, 224)


def _Reading(torch: Any, model: Any, read: Callable[[Any], Any]) -> Any:  # noqa: N802 - a class that torch makes
    class Reading(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any) -> Any:
            return read(self.model(pixel_values=image))

    return Reading()


_MODELS = {"segformer_b0": _segformer, "vitpose_b": _vitpose, "dinov2_s": _dinov2, "clip_vit_b32": _clip}


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    import torch  # noqa: PLC0415 - so that --help does without it
    import transformers  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    for name, build in _MODELS.items():
        torch.manual_seed(0)
        model, size = build(transformers, torch)
        image = torch.randn(1, 3, *size)
        torch.onnx.export(
            model.eval(), image, str(folder / f"{name}.onnx"), opset_version=_OPSET, input_names=["image"], dynamo=False
        )
        print(folder / f"{name}.onnx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
