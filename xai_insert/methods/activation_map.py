"""Activation Map: where the feature map is strong, for no class in particular."""

from __future__ import annotations

import numpy as np

from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import fixed
from xai_insert.locate.layout import FeatureMap
from xai_insert.methods.shaping import batch_size, grid_sizes, reshape


def activation_map(surgeon: Surgeon[V], feature: FeatureMap, *, follows: bool = False) -> V:
    """Mean over channels, `[B, h, w]` float32.

    Written as a linear layer with weights 1/C instead of a reduction: OpenVINO's CPU plugin computes the tail of a
    graph, back to the first linear layer, in float32 even when the rest runs in bf16; a branch that begins with a
    reduction would extend that tail into the model and move its predictions.

    Args:
        surgeon: the model being edited.
        feature: float `[B, C, h, w]`, `[B, h, w, C]` or tokens `[B, N, C]`, `[B, C, N]`, `[N, B, C]`.
        follows: whether height and width are read while the model runs though they are known, so that the model may be
            reshaped.
    """
    op = surgeon.ops
    value = feature.value
    x = surgeon.handle(value)
    channels = fixed([feature.channels])[0]
    grid = [op.size(x, axis) for axis in feature.grid_axes] if follows else grid_sizes(surgeon, x, feature)
    sizes = [batch_size(surgeon, x, feature), *grid]
    if feature.channel_axis == len(feature.shape) - 1:
        weight = np.full((channels, 1), 1.0 / channels, np.float32)
        mean = op.matmul(x, op.constant(weight))
    elif len(feature.shape) == 4:
        weight = np.full((1, channels, 1, 1), 1.0 / channels, np.float32)
        mean = op.conv1x1(x, op.constant(weight))
    else:
        weight = np.full((1, channels), 1.0 / channels, np.float32)
        mean = op.matmul(op.constant(weight), x)
    if len(feature.grid_axes) == 1 and feature.positions != feature.shape[feature.grid_axes[0]]:
        end = feature.prefix + fixed([feature.positions])[0]
        mean = op.slice(mean, feature.grid_axes[0], feature.prefix, end)
    return reshape(op, op.transpose(mean, (1, 0, 2)) if feature.batch_axis else mean, sizes)
