"""Saliency from the derivative of a class score by a feature map.

With F the feature map and g the derivative of the score of class k by it:

    HiResCAM   sum_c g_c F_c                  Draelos and Carin 2020, https://arxiv.org/abs/2011.08891
    Grad-CAM   ReLU(sum_c mean_p(g_c) F_c)    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391
    LayerCAM   ReLU(sum_c ReLU(g_c) F_c)      Jiang et al. 2021, https://doi.org/10.1109/TIP.2021.3089943

"Input x gradient" (Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713) is the first of them with the image as F.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from xai_insert.graph.ops import Ops, Surgeon, V
from xai_insert.graph.view import Graph, Value, fixed
from xai_insert.locate.layout import FeatureMap
from xai_insert.methods.gradients.pullback import pullback
from xai_insert.methods.shaping import grid_sizes, scalar
from xai_insert.methods.top_classes import ClassChoice, last_layer

Array = npt.NDArray[Any]
_STEEP = 2.0  # the gamma of LayerCAM's fusion


@dataclass(frozen=True)
class Formula:
    """A method: what is made of derivative and feature map.

    Attributes:
        averages: whether the derivative is averaged over the grid first.
        keeps_positive: whether its negative part is left out.
        rectifies: whether the negative part of the map is left out.
    """

    averages: bool = False
    keeps_positive: bool = False
    rectifies: bool = False


FORMULAS: Mapping[str, Formula] = {
    "hirescam": Formula(),
    "grad-cam": Formula(averages=True, rectifies=True),
    "layercam": Formula(keeps_positive=True, rectifies=True),
    "input-x-gradient": Formula(),
}


@dataclass(frozen=True)
class GradientMap(Generic[V]):
    """What was written for one feature map.

    Attributes:
        feature: that map.
        raw: the maps of the classes, float32 `[B, k, h, w]`.
        gradient: the derivatives, of the feature map's sizes; with an axis of classes before them if there are several.
    """

    feature: FeatureMap
    raw: V
    gradient: V


def gradient_maps(
    surgeon: Surgeon[V],
    graph: Graph,
    features: Sequence[FeatureMap],
    logits: Value,
    choice: ClassChoice[V],
    method: str,
    *,
    one_by_one: bool = False,
) -> list[GradientMap[V]]:
    """The maps of the chosen classes.

    Args:
        surgeon: the model being edited.
        graph: its view.
        features: the targets, `[B, C, h, w]`, `[B, h, w, C]`, `[B, N, C]`, `[B, C, N]` or `[N, B, C]`.
        logits: class scores `[B, K]`, perhaps with further axes of size 1.
        choice: the classes.
        method: a name in `FORMULAS`.
        one_by_one: whether each target lies on every path to the one before it, the first to the scores, in place of
            all side by side.

    Raises:
        NoDerivativeError: an operator between the feature map and the scores has no rule.
        ShapeUnknownError: a size between them follows the input.
    """
    count = None if choice.count == 1 else choice.count
    seeds = seeds_of(surgeon, logits, choice)
    if not one_by_one:
        gradients = pullback(surgeon, graph, [item.value for item in features], seeds, count)
    else:
        gradients = []
        for item in features:
            gradients += pullback(surgeon, graph, [item.value], seeds, count)
            seeds = {item.value: gradients[-1]}
    made = []
    for feature, gradient in zip(features, gradients, strict=True):
        handle = surgeon.handle(feature.value)
        raw = _combined(surgeon.ops, handle, gradient, feature, FORMULAS[method], 0 if count is None else 1)
        made.append(GradientMap(feature, _by_class(surgeon, raw, feature, count), gradient))
    return made


def _by_class(surgeon: Surgeon[V], raw: V, feature: FeatureMap, count: int | None) -> V:
    op, sides = surgeon.ops, grid_sizes(surgeon, surgeon.handle(feature.value), feature)
    if count is None:
        return op.reshape(raw, [-1, 1, *sides])
    return op.transpose(op.reshape(raw, [count, -1, *sides]), (1, 0, *range(2, 2 + len(sides))))


def summed(surgeon: Surgeon[V], maps: Sequence[GradientMap[V]]) -> V:
    """The maps of several feature maps added up, on the grid of the first."""
    sides = grid_sizes(surgeon, surgeon.handle(maps[0].feature.value), maps[0].feature)
    total = maps[0].raw
    for item in maps[1:]:
        is_same = item.feature.grid == maps[0].feature.grid
        total = surgeon.ops.add(total, item.raw if is_same else surgeon.ops.resize(item.raw, *sides))
    return total


def fused(surgeon: Surgeon[V], maps: Sequence[GradientMap[V]]) -> V:
    """The maps of several layers, the last first, as LayerCAM fuses them, on the grid of the shallowest; 0 to 1.

    The last layer's map `m` becomes `m / max(m)`, those before it `tanh(2 m / max(m))`, each resized (bilinear); of
    every cell the largest is taken.
    """
    op = surgeon.ops
    sides = grid_sizes(surgeon, surgeon.handle(maps[-1].feature.value), maps[-1].feature)
    best: V | None = None
    for item in maps:
        largest = op.nonzero_or(op.reduce(item.raw, "max", [2, 3]), scalar(op, 1.0))
        scaled = op.div(item.raw, largest)
        if item is not maps[0]:
            scaled = op.function("tanh", op.mul(scaled, scalar(op, _STEEP)))
        if item is not maps[-1]:
            scaled = op.resize(scaled, *sides)
        best = scaled if best is None else op.maximum(best, scaled)
    assert best is not None  # there is a last layer
    return best


def seeds_of(surgeon: Surgeon[V], logits: Value, choice: ClassChoice[V]) -> dict[Value, V]:
    """Where the walk back begins: the derivatives of the chosen scores, with an axis of classes if there are several.

    Those by what the last layer reads are rows of its weight; where there is no such layer, one-hot rows at the scores.
    """
    op, layer = surgeon.ops, None
    if len(logits.sizes) == 2 and (classes := logits.sizes[1]) is not None:
        layer = last_layer(surgeon, logits, classes)
    if layer is None:
        return {logits: _one_hot(op, logits, choice)}
    weight = surgeon.handle(layer.weight)
    rows = op.gather(weight if layer.is_transposed else op.transpose(weight, (1, 0)), choice.indices)  # [B, K, C]
    if choice.count == 1:
        return {layer.source: op.reshape(rows, [-1, *fixed(layer.source.sizes[1:])])}
    return {layer.source: op.transpose(rows, (1, 0, 2))}


def _one_hot(op: Ops[V], logits: Value, choice: ClassChoice[V]) -> V:
    """1 at the chosen class, of the sizes of the logits; with an axis of classes before them if there are several."""
    classes = max(size or 1 for size in logits.sizes[1:] or logits.sizes)
    wanted = op.cast(op.reshape(choice.indices, [-1, choice.count, 1]), "float32")
    rows = op.equal(wanted, op.constant(np.arange(classes, dtype=np.float32).reshape(1, 1, classes)))
    sizes = [-1, *(size or 1 for size in logits.sizes[1:])] if len(logits.sizes) > 1 else [classes]
    if choice.count == 1:
        return op.reshape(rows, sizes)
    return op.reshape(op.transpose(rows, (1, 0, 2)), [choice.count, *sizes])


def _combined(op: Ops[V], x: V, gradient: V, feature: FeatureMap, formula: Formula, lead: int) -> V:
    """Summed over channels, one for each cell."""
    zero = scalar(op, 0.0)
    if feature.positions is not None and len(feature.grid_axes) == 1:
        (axis,) = feature.grid_axes
        if feature.shape[axis] != feature.positions:
            end = feature.prefix + feature.positions
            x = op.slice(x, axis, feature.prefix, end)
            gradient = op.slice(gradient, axis + lead, feature.prefix, end)
    if formula.averages:
        gradient = op.reduce(gradient, "mean", [axis + lead for axis in feature.grid_axes])
    if formula.keeps_positive:
        gradient = op.maximum(gradient, zero)
    total = op.reduce(op.mul(gradient, x), "sum", [feature.channel_axis + lead])
    if feature.batch_axis:
        total = op.transpose(total, (*range(lead), lead + 1, lead, lead + 2))
    return op.maximum(total, zero) if formula.rectifies else total


def defined(method: str, feature: FeatureMap) -> Callable[[Array, Array], Array]:
    """The method in NumPy: `[B, ...]` and `[..., B, ...]` to `[..., B, cells]`."""
    formula = FORMULAS[method]

    def combine(x: Array, gradient: Array) -> Array:
        back = x.ndim
        if len(feature.grid_axes) == 1 and feature.positions is not None:
            kept = np.arange(feature.prefix, feature.prefix + feature.positions)
            x = x.take(kept, axis=feature.grid_axes[0])
            gradient = gradient.take(kept, axis=feature.grid_axes[0] - back)
        if formula.averages:
            gradient = gradient.mean(axis=tuple(axis - back for axis in feature.grid_axes), keepdims=True)
        if formula.keeps_positive:
            gradient = np.maximum(gradient, 0)
        total = (gradient * x).sum(axis=feature.channel_axis - back)
        if feature.batch_axis:
            total = total.swapaxes(-1, -2)
        total = total.reshape(*total.shape[: total.ndim - len(feature.grid_axes)], -1)
        rectified: Array = np.maximum(total, 0) if formula.rectifies else total
        return rectified

    return combine
