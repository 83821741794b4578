"""Anomaly detectors: the map by the model's threshold, and the outline of what lies over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xai_insert.explain.detect import outline
from xai_insert.explain.explained import Explained, Instance, Prediction
from xai_insert.explain.outputs import Array, Outputs, map_of, of_first
from xai_insert.explain.preprocessing import View
from xai_insert.explain.ready import ReadyToRun
from xai_insert.explain.scale import OwnScale

ANOMALY_DETECTION = "anomaly detection"
_HALF = 127.5
"""The threshold, in bytes."""


@dataclass(frozen=True)
class Inspector(ReadyToRun):
    """An anomaly detector that is ready to run.

    Attributes:
        engine: the compiled model.
        feeder: makes its input from an image.
        meaning: names of what is normal and what is not, if there are two.
        selection: not looked at, there is one map.
    """

    @property
    def settings(self) -> Sequence[object]:
        """What its results depend on, besides the model."""
        return self.feeder, self.meaning

    def read(self, outputs: Outputs, shape: Sequence[int], view: View) -> Explained:
        """Read the outputs for the first image of an input of that shape.

        Raises:
            UnsupportedTaskError: the model has no map.
        """
        layout, given = self.engine.layout, map_of(outputs)
        score = _number(outputs, layout.score_at)
        name = self._name(_number(outputs, layout.label_at))
        found = Prediction(0, name, float(given.max()) if score is None else score)
        threshold = layout.threshold
        if threshold is None:
            ranges = of_first(outputs.saliency_range)
            return Explained([found], [found], given, view, ranges=ranges)
        maps = given if given.dtype == np.uint8 else in_bytes(given, threshold)
        size = (shape[self.feeder.layout.index("H")], shape[self.feeder.layout.index("W")])
        parts = outline(maps[0] / (2 * _HALF), size, view)
        over = []
        if parts:
            low, high = (function(np.concatenate(parts), axis=0) for function in (np.min, np.max))
            box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
            over = [Instance(0, "over", threshold, box, parts)]
        return Explained([found], [found], maps, view, instances=over, own_scale=self._scale(outputs, threshold))

    def _scale(self, outputs: Outputs, threshold: float) -> OwnScale:
        """The scale of the map of the first image, whose lower end is told by its raw values, wherever they are."""
        layout, given, ranges = self.engine.layout, map_of(outputs), of_first(outputs.saliency_range)
        own = None if layout.map_at is None else list(outputs.predictions.values())[layout.map_at][0]
        raw = next((array for array in (ranges, own, given) if array is not None and array.dtype != np.uint8), None)
        return OwnScale(threshold, None if raw is None else min(float(raw.min()), 0.0))

    def _name(self, label: float | None) -> str:
        """What the model says of the image, in a word."""
        if label is None:
            return "anomaly"
        names = self.meaning.labels if len(self.meaning.labels) == 2 else ("normal", "anomalous")
        return names[bool(label)]


def _number(outputs: Outputs, index: int | None) -> float | None:
    """The one number that an output holds."""
    return None if index is None else float(list(outputs.predictions.values())[index].reshape(-1)[0])


def in_bytes(maps: Array, threshold: float) -> Array:
    """Raw maps `[K, h, w]` as an inserted model scales them: the threshold is half of 255."""
    low = np.minimum(maps.min(axis=(1, 2), keepdims=True), 0)
    span = np.maximum(2 * (threshold - low), 1e-6)
    return np.asarray(255 * ((maps - low) / span).clip(0, 1), np.uint8)
