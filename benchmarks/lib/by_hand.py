"""LayerCAM of a ResNet's best class, with the backward pass written on paper: what a person would put into the graph.

No rule of the tool stands in it. Transposed convolutions carry the scales of the batch norms in their weights, and
rectifiers are masks. Needs torch and timm.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from model_zoo_fixtures.export import shims  # noqa: F401 - must come before timm

import torch  # isort: skip
from torch.nn import functional  # isort: skip


class LayerCamByHand(torch.nn.Module):
    """A ResNet of bottlenecks (timm's), which also gives the map at the end of a stage.

    Args:
        model: the plain network.
        behind: stages behind the map, 1 or more.
    """

    def __init__(self, model: Any, behind: int) -> None:
        super().__init__()
        self.model, self.behind = model, behind

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores `[B, K]` and the map `[B, h, w]`."""
        model = self.model
        x = model.maxpool(model.act1(model.bn1(model.conv1(image))))
        stages = [model.layer1, model.layer2, model.layer3, model.layer4]
        for stage in stages[: -self.behind]:
            x = stage(x)
        feature, passed = x, []
        for block in chain(*stages[-self.behind :]):
            x, values = _through(block, x)
            passed.append((block, values))
        scores = model.fc(x.mean((2, 3)))
        row = model.fc.weight[scores.argmax(1)] / (x.shape[2] * x.shape[3])
        gradient = row[:, :, None, None].expand_as(x)
        for block, values in reversed(passed):
            gradient = _back(block, gradient, values)
        return scores, (gradient.clamp(min=0) * feature).sum(1).clamp(min=0)


def _through(block: Any, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What a bottleneck gives, and what its three rectifiers give."""
    first = block.act1(block.bn1(block.conv1(x)))
    second = block.act2(block.bn2(block.conv2(first)))
    shortcut = x if block.downsample is None else block.downsample(x)
    last = functional.relu(block.bn3(block.conv3(second)) + shortcut)
    return last, [first, second, last]


def _back(block: Any, gradient: torch.Tensor, values: list[torch.Tensor]) -> torch.Tensor:
    """The derivative by what a bottleneck reads."""
    first, second, last = values
    gradient = gradient * (last > 0)
    inner = _transposed(block.conv3, block.bn3, gradient) * (second > 0)
    inner = _transposed(block.conv2, block.bn2, inner) * (first > 0)
    inner = _transposed(block.conv1, block.bn1, inner)
    if block.downsample is None:
        return inner + gradient
    convolution, norm = (
        next(item for item in block.downsample if isinstance(item, kind))
        for kind in (torch.nn.Conv2d, torch.nn.BatchNorm2d)
    )
    return inner + _transposed(convolution, norm, gradient)


def _transposed(convolution: Any, norm: Any, gradient: torch.Tensor) -> torch.Tensor:
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).view(-1, 1, 1, 1)
    stride, padding = convolution.stride[0], convolution.padding[0]
    return functional.conv_transpose2d(
        gradient, convolution.weight * scale, stride=stride, padding=padding, output_padding=stride - 1
    )
