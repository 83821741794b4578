"""Models of several frames at once: a video in clips, and the maps of a clip at each of its frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from xai_insert.explain.classify import Classifier
from xai_insert.explain.draw import Image
from xai_insert.explain.explained import Explained
from xai_insert.explain.outputs import Array
from xai_insert.layouts.record import Layout


def explained_frames(frames: Iterator[Image], model: Classifier, count: int) -> Iterator[tuple[Image, Explained]]:
    """Each frame of a video with what the model says about the clip that it is in.

    Clips follow one another without a gap; the last one is filled with its last frame.

    Args:
        frames: the video.
        model: a model of clips.
        count: frames of a clip.
    """
    clip: list[Image] = []
    for frame in frames:
        clip.append(frame)
        if len(clip) == count:
            yield from _explained(clip, model, count)
            clip = []
    if clip:
        yield from _explained(clip, model, count)


def _explained(clip: list[Image], model: Classifier, count: int) -> Iterator[tuple[Image, Explained]]:
    feed, view = model.feeder.clip(clip)
    found = model.read(model.engine.infer(feed), feed.shape, view)
    maps = _bytes(found.saliency_map)
    stride, offset = _times(model.engine.layout, count / maps.shape[1])
    for number, frame in enumerate(clip):
        yield frame, replace(found, saliency_map=_at(maps, (number - offset) / stride), ranges=None)


def _times(layout: Layout, frames: float) -> tuple[float, float]:
    """Frames from one time of a map to the next, and the frame in the middle of the first, as they were written."""
    if layout.frames is None:
        return frames, (frames - 1) / 2
    stride, offset = layout.frames
    return stride, offset


def _bytes(maps: Array) -> Array:
    """Maps `[K, t, h, w]` of bytes; raw ones each scaled over all its times, so that these can be compared."""
    if maps.dtype == np.uint8:
        return maps
    low, high = (end(maps, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
    found: Array = np.floor(255 * (maps - low) / np.where(high > low, high - low, 1)).astype(np.uint8)
    return found


def _at(maps: Array, place: float) -> Array:
    """Maps `[K, h, w]` between the two times that are nearest."""
    place = min(max(place, 0.0), maps.shape[1] - 1.0)
    low = int(place)
    high, part = min(low + 1, maps.shape[1] - 1), place - low
    found: Array = np.rint((1 - part) * maps[:, low] + part * maps[:, high]).astype(np.uint8)
    return found
