"""How an architecture of the zoo is described and built."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn


class GeneralizedMeanPool(nn.Module):
    """Generalised-mean pooling over the grid: ``[N, C, H, W] -> [N, C]``."""

    def __init__(self, power: float = 3.0, floor: float = 1e-6) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.full((1,), power))
        self.floor = floor

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Pool a feature map ``[N, C, H, W]`` to ``[N, C]``."""
        raised = feature.clamp(min=self.floor).pow(self.power)
        return raised.mean(dim=(2, 3)).pow(1.0 / self.power)


class _Scores(nn.Module):
    """A classifier of transformers that gives nothing but its class scores."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__()
        import transformers

        kind = getattr(transformers, name)
        configuration = kind.config_class(**options)
        self.network = kind(configuration)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify images ``[N, 3, H, W]``: ``[N, K]``."""
        scores: torch.Tensor = self.network(pixel_values=images).logits
        return scores


@dataclass(frozen=True)
class Architecture:
    """One model of the zoo.

    Attributes:
        id: Name of the fixture family, unique in the zoo.
        source: ``timm``, ``torchvision``, ``transformers`` or ``vit-pytorch``.
        model: The name under which the source knows it, in transformers that of the class, in vit-pytorch
            ``module.Class``; the id when empty.
        size: Height and width of its input; those of its published weights when None.
        options: Further arguments of the model's constructor, in transformers of its configuration.
        exporters: Names of the exporters to use.
        feature_module: Module whose output is the last feature map, where the model has no ``forward_features``.
        expected: What experiments on the model cannot tell; goes over what they tell.
        edit: Last changes to the built model.
    """

    id: str
    source: str = "timm"
    model: str = ""
    size: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    exporters: tuple[str, ...] = ("legacy", "dynamo", "ptir", "onnxir")
    feature_module: str = ""
    expected: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[nn.Module], None] | None = None

    def build(self) -> nn.Module:
        """Build the network without pretrained weights, in evaluation mode."""
        if self.source == "timm":
            import timm

            options = {"num_classes": 1000} | self.options
            model = timm.create_model(self.model or self.id, pretrained=False, **options)
        elif self.source == "transformers":
            model = _Scores(self.model, {"num_labels": 1000} | self.options)
        elif self.source == "vit-pytorch":
            module, _, name = self.model.partition(".")
            kind = getattr(import_module(f"vit_pytorch.{module}"), name)
            model = kind(**{"num_classes": 1000} | self.options)
        else:
            import torchvision

            model = torchvision.models.get_model(self.model or self.id, weights=None, **self.options)
        if self.edit is not None:
            self.edit(model)
        return model.eval()
