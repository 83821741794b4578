"""What a detector's builder gives, and how its random weights are made lively."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from model_zoo_fixtures.export.init import reinitialise

Images = torch.Tensor
Levels = list[torch.Tensor]


_TAIL = 5.0  # no raw score lies more than that many deviations from the mean


def _as_they_are(outputs: list[torch.Tensor]) -> Levels:
    return outputs


@dataclass
class Detector:
    """A detector and where its raw class scores are.

    Attributes:
        id: Architecture, with options that matter.
        model: What is exported: float32 images ``[N, 3, H, W]`` to a tensor or a tuple of tensors.
        score_heads: Last layers of the class branches; each call of one gives the raw scores of one level, in order.
        box_heads: Last layers of the box branches, with the deviation that their outputs should have.
        size: Height and width.
        classes: Number of classes ``K`` of the head, background included.
        anchors: Anchors for each level.
        background: Index of the background class, or -1.
        label_offset: What to add to a class index to get the label that the model gives out.
        activation: ``sigmoid``, ``softmax`` or ``none``.
        kind: ``single_stage``, ``two_stage``, ``encoder_scores``, ``query``.
        package: Where the code comes from.
        licence: SPDX identifier of that code.
        levels: From the outputs of the score heads, in call order, to levels ``[N, A * K, h, w]``, fine to coarse.
        features: Modules whose outputs feed the region head; their outputs, in call order.
        feature_maps: From the outputs of ``features`` to the maps ``[N, C, h, w]``.
        skipped_heads: Heads to be left as they are by ``enliven`` (mask of rows that are class scores).
        unit_images: Whether the image values are in 0..1 rather than of zero mean.
        channels_last: Whether the input is ``[N, H, W, 3]``.
        exporters: Exporters to be used.
        outputs: Names of the outputs.
        dynamic_axes: Free dimensions of inputs and outputs for the TorchScript-based exporter; the input is ``image``.
        score_mean: Mean of the raw class scores.
        batch: Whether the model takes more than one image.
        kept: Parameters that are constants of the architecture and must not be replaced.
        note: Anything worth knowing.
    """

    id: str
    model: nn.Module
    score_heads: list[nn.Module]
    size: tuple[int, int]
    classes: int
    anchors: list[int]
    box_heads: list[tuple[nn.Module, float]] = field(default_factory=list)
    background: int = -1
    label_offset: int = 0
    activation: str = "sigmoid"
    kind: str = "single_stage"
    package: str = ""
    licence: str = ""
    levels: Callable[[list[Any]], Levels] = _as_they_are
    features: list[nn.Module] = field(default_factory=list)
    feature_maps: Callable[[list[Any]], Levels] = _as_they_are
    unit_images: bool = True
    channels_last: bool = False
    exporters: tuple[str, ...] = ("legacy", "dynamo", "ptir", "onnxir")
    outputs: tuple[str, ...] = ()
    dynamic_axes: dict[str, dict[int, str]] | None = None
    score_mean: float = -1.5
    score_deviation: float = 1.2
    batch: bool = True
    kept: Callable[[str], bool] = lambda name: False
    finish: Callable[[], None] = lambda: None
    note: str = ""


@contextmanager
def recorded(modules: list[nn.Module]) -> Iterator[list[Any]]:
    """Collect what modules give out, in the order of the calls."""
    outputs: list[Any] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for module in modules
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def enliven(detector: Detector, images: Images) -> None:
    """Replace all weights so that scores vary over positions and classes and are neither saturated nor constant.

    Args:
        detector: Its model is changed in place.
        images: float32 ``[N, 3, H, W]``, at least six of them.
    """
    model = detector.model
    constants = {name: value.detach().clone() for name, value in model.state_dict().items() if detector.kept(name)}
    reinitialise(model, detector.id, detector.size)
    model.load_state_dict(constants, strict=False)
    detector.finish()
    model = detector.model.eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        _rescale(model, [(head, 0.0, deviation) for head, deviation in detector.box_heads], images, generator)
        scores = [(head, detector.score_mean, detector.score_deviation) for head in detector.score_heads]
        _rescale(model, scores, images, generator)


def _rescale(
    model: nn.Module, heads: list[tuple[nn.Module, float, float]], images: Images, generator: torch.Generator
) -> None:
    """Give the outputs of heads a mean and a deviation over images and positions."""
    collected: list[list[torch.Tensor]] = [[] for _ in heads]
    handles = [
        head.register_forward_hook(lambda _module, _inputs, output, rows=rows: rows.append(output))
        for (head, _, _), rows in zip(heads, collected, strict=True)
    ]
    for image in images:
        model(image[None])
    for handle in handles:
        handle.remove()
    for (head, mean, deviation), outputs in zip(heads, collected, strict=True):
        axis = 1 if isinstance(head, nn.Conv2d) else -1
        values = torch.cat([output.movedim(axis, -1).reshape(-1, output.shape[axis]) for output in outputs])
        spread = torch.maximum(values.std(dim=0), (values - values.mean(dim=0)).abs().amax(dim=0) / _TAIL)
        gain = deviation / spread.clamp(min=1e-6)
        targets = mean + 0.3 * deviation * torch.randn(values.shape[1], generator=generator)
        head.weight.mul_(gain.reshape(-1, *(1 for _ in head.weight.shape[1:])))
        if head.bias is not None:
            head.bias.copy_((head.bias - values.mean(dim=0)) * gain + targets)
