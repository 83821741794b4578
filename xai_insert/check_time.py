"""Proof, before anything is written, that a clip's maps run from its first frames to its last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CheckFailedError, MisplacedMapError
from xai_insert.feeds import feeds_of
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Value
from xai_insert.locate.inputs import frames_in_channels, time_axis
from xai_insert.locate.layout import FeatureMap

_SEED = 1
_CLEAR = 4.0  # by how much more the other end must answer to contradict


def require_times(features: Sequence[FeatureMap], loaded: LoadedModel, image: Value) -> None:
    """Change the frames of the first cell, then those of the last: each must change its own end of a map more.

    Args:
        features: the maps that are explained.
        loaded: the model before insertion.
        image: its input of clips.

    Raises:
        MisplacedMapError: the frames of one end change the other end.
    """
    count, axis = frames_in_channels(image), time_axis(image)
    each = 1 if count is None else (image.sizes[1] or 0) // count
    axis = axis if count is None else 1
    for feature in features:
        if axis is None or feature.frame.times is None or _count(feature) < 2:
            continue
        try:
            first, last = _changes(feature, feature.frame.times, loaded, image, axis, each)
        except CheckFailedError:  # the values cannot be run to by themselves
            continue
        if first[-1] * last[0] > _CLEAR * first[0] * last[-1]:
            raise MisplacedMapError(
                f"the times of {feature.value.describe()} do not lie where its axes say: the first frames change its "
                "end and the last ones its beginning; choose another layer with --target-layer"
            )


def _changes(
    feature: FeatureMap, times: tuple[float, float], loaded: LoadedModel, image: Value, axis: int, each: int
) -> list[npt.NDArray[Any]]:
    """How much each time of a map changes with the frames of its first cell, and with those of its last.

    A frame is `each` elements along `axis`.
    """
    runner = loaded.between([], [feature.value.native])
    rng = np.random.default_rng(_SEED)
    feeds = feeds_of(runner.inputs, rng)
    name = image.name if image.name in feeds else next(iter(feeds))
    plain, count, (stride, offset) = _by_time(runner.run(feeds)[0], feature), _count(feature), times
    found = []
    for cell in (0, count - 1):
        low = offset + stride * (cell - 0.5)
        frames = [slice(None)] * feeds[name].ndim
        frames[axis] = slice(each * max(round(low), 0), each * max(round(low + stride), 1))
        clip = feeds[name].copy()
        clip[tuple(frames)] = rng.standard_normal(clip[tuple(frames)].shape)
        after = _by_time(runner.run({**feeds, name: clip})[0], feature)
        found.append(np.abs(after - plain).sum(axis=1))
    return found


def _by_time(value: npt.NDArray[Any], feature: FeatureMap) -> npt.NDArray[np.float64]:
    """Of the first clip, the elements of each time, `[t, ...]`."""
    first = feature.grid_first(value)
    if len(feature.grid_axes) == 1:
        first = first[feature.prefix : feature.prefix + (feature.positions or 0)]
    sides = first.reshape(*(size or 1 for size in feature.grid), -1)
    found: npt.NDArray[np.float64] = np.moveaxis(sides, 2 if feature.frame.times_last else 0, 0)
    return found.reshape(_count(feature), -1)


def _count(feature: FeatureMap) -> int:
    """How many times a map has."""
    return feature.grid[2 if feature.frame.times_last else 0] or 1
