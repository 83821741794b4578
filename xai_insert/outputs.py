"""From a raw map to an output: upright, in the size that was asked for; and the outputs beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from xai_insert.errors import TargetNotFoundError
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.shape import with_open
from xai_insert.graph.view import Shape, fixed
from xai_insert.locate.layout import FeatureMap
from xai_insert.methods.framing import straightened
from xai_insert.methods.scaling import map_axes
from xai_insert.methods.shaping import known_or_read, reshape
from xai_insert.options import Options
from xai_insert.tasks.plan import Branch, Plan


def finished(surgeon: Surgeon[Any], branch: Branch, options: Options) -> tuple[Any, Plan]:
    """The map of a branch, upright and in its final size, still raw; and the plan with that size."""
    plan, saliency = branch.plan, branch.raw if branch.arranged is None else branch.arranged(branch.raw)
    if not plan.found.frame.is_upright:
        saliency, shape = straightened(surgeon.ops, saliency, plan.map_shape, plan.found.frame)
        plan = replace(plan, map_shape=shape)
    if options.saliency_size is not None and plan.map_shape[-2:] != options.saliency_size:
        saliency = _resized(surgeon, saliency, plan.map_shape, options.saliency_size)
        plan = replace(plan, map_shape=(*plan.map_shape[:-2], *options.saliency_size))
    return saliency, plan


def add_range(surgeon: Surgeon[Any], ends: Any, shape: Shape, name: str) -> None:
    """Add the least and the greatest raw value of each map, whose sizes are `shape`, as output `name`."""
    sizes = (*shape[: map_axes(len(shape))[0]], 2)
    batch = surgeon.ops.size(ends, 0) if None in sizes[1:] else -1
    flat = surgeon.ops.reshape(ends, [batch, *with_open(sizes[1:])])
    surgeon.add_output(flat, name, "float32", sizes)


def _resized(surgeon: Surgeon[Any], raw: Any, shape: Shape, size: tuple[int, int]) -> Any:
    op = surgeon.ops
    if len(shape) == 4:
        return op.resize(raw, *size)
    if len(shape) == 5:  # each time by itself
        times, *sides = (op.size(raw, axis) for axis in (2, 3, 4))
        frames = op.resize(op.reshape(raw, [-1, 1, *sides]), *size)
        return op.reshape(frames, [-1, *fixed(shape[1:2]), times, *size])
    batch, height, width = (known_or_read(op, raw, axis, side) for axis, side in enumerate(shape))
    return reshape(op, op.resize(reshape(op, raw, [batch, 1, height, width]), *size), [batch, *size])


def add_feature_vector(surgeon: Surgeon[Any], plan: Plan, name: str) -> None:
    """Add the pooled feature, or the means of what the heads of a detector read, as output `name`.

    Raises:
        TargetNotFoundError: the model has neither.
    """
    pooled = plan.found.pooled()
    if pooled is None:
        _add_feature_means(surgeon, plan.found.features(), name)
        return
    handle = surgeon.handle(pooled)
    width = math.prod(fixed(pooled.sizes[1:]))
    vector = surgeon.ops.isolated(surgeon.ops.reshape(handle, [-1, width]), width)
    surgeon.add_output(vector, name, pooled.dtype, (pooled.sizes[0], width))


def _add_feature_means(surgeon: Surgeon[Any], maps: Sequence[FeatureMap], name: str) -> None:
    if not maps:
        raise TargetNotFoundError("this model has no pooled feature for --feature-vector; leave the option out")
    op, parts = surgeon.ops, []
    widths = fixed([feature.channels for feature in maps])
    for feature, width in zip(maps, widths, strict=True):
        means = op.reduce(surgeon.handle(feature.value), "mean", feature.grid_axes)
        parts.append(op.reshape(means, [-1, width]))
    vector = parts[0] if len(parts) == 1 else op.concat(parts, 1)
    vector = op.isolated(vector, sum(widths))
    surgeon.add_output(vector, name, "float32", (maps[0].batch, sum(widths)))
