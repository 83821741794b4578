"""Key points: a map for each, and a mark where it is highest, if the point is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xai_insert.explain.detect import THRESHOLD, in_image
from xai_insert.explain.explained import Explained, Instance, Prediction, Scores, ranking
from xai_insert.explain.outputs import Array, Outputs, map_of, of_first
from xai_insert.explain.preprocessing import View
from xai_insert.explain.ready import ReadyToRun
from xai_insert.explain.scale import raw_values

KEYPOINTS = "keypoints"
_RADIUS = 0.02
_CORNERS = np.linspace(0, 2 * np.pi, 12, endpoint=False)


@dataclass(frozen=True)
class Joints(ReadyToRun):
    """A model of key points that is ready to run.

    Attributes:
        engine: the compiled model.
        feeder: makes its input from an image.
        meaning: names of the key points; without them they are numbered.
        selection: which to draw; those that are predicted are all.
        threshold: least score of a key point that is there. Others have no mark, and a map as faint as they score.
    """

    threshold: float = THRESHOLD

    @property
    def settings(self) -> Sequence[object]:
        """What its results depend on, besides the model."""
        return *super().settings, self.threshold

    def read(self, outputs: Outputs, shape: Sequence[int], view: View) -> Explained:
        """Read the outputs for the first image of an input of that shape.

        Raises:
            XaiInsertError: the model has no maps, or lacks a key point that was asked for.
        """
        del shape
        maps = map_of(outputs)
        ranges = of_first(outputs.saliency_range)
        self.meaning.require(len(maps))
        names = list(self.meaning.labels) or [f"keypoint {number}" for number in range(len(maps))]
        scores = self._scores(outputs, raw_values(maps, ranges))
        told = np.zeros(len(maps)) if scores is None else scores
        chosen = self.selection.choose(told, range(len(maps)), names)
        points = [
            _marked(Prediction(number, name, float(told[number])), maps[number], view)
            for number, name in enumerate(names)
        ]
        return Explained(
            [points[number] for number in ranking(told)],
            [Prediction(number, names[number], float(told[number])) for number in chosen],
            maps,
            view,
            instances=[points[number] for number in chosen if scores is None or told[number] >= self.threshold],
            note="the model gives no scores of its key points" if scores is None else None,
            ranges=ranges,
            strengths=None if scores is None else self._strengths(scores),
        )

    def _strengths(self, scores: Scores) -> dict[int, float]:
        """Beside the best key point of the image, drawn or not, or the threshold if none is there."""
        finite = np.where(np.isfinite(scores), scores, 0.0)
        best = max(float(finite.max()), self.threshold)
        return {number: max(float(score) / best, 0.0) if best else 1.0 for number, score in enumerate(finite)}

    def _scores(self, outputs: Outputs, values: Array) -> Scores | None:
        """How sure the model is of each key point: the peak of its map, the lower of those of its bins, or its own."""
        layout, given = self.engine.layout, list(outputs.predictions.values())
        joints = len(values)
        if layout.bins_at is not None:
            peaks = [given[index][0].max(axis=1) for index in layout.bins_at]
            return np.asarray(np.minimum(*peaks), np.float64)
        if layout.map_at is not None and layout.class_axis is not None:
            return _peaks(np.moveaxis(given[layout.map_at][0], layout.class_axis - 1, 0), joints)
        listed = [array for array in given if array.shape[-2:] == (joints, 3)]
        if listed:
            return np.asarray(listed[0].reshape(-1, joints, 3)[0, :, 2], np.float64)
        return None if values.dtype == np.uint8 else _peaks(values, joints)


def _marked(point: Prediction, saliency: Array, view: View) -> Instance:
    """A circle around the middle of the cell where a map is highest."""
    row, column = np.unravel_index(int(saliency.argmax()), saliency.shape)
    height, width = saliency.shape
    middle = in_image(np.array([[(column + 0.5) / width, (row + 0.5) / height]]), view)[0]
    circle = (middle + _RADIUS * np.stack([np.cos(_CORNERS), np.sin(_CORNERS)], axis=1)).clip(0, 1)
    (left, top), (right, bottom) = circle.min(axis=0), circle.max(axis=0)
    box = (float(left), float(top), float(right), float(bottom))
    return Instance(point.class_id, point.label, point.score, box, (np.asarray(circle, np.float64),))


def _peaks(maps: Array, joints: int) -> Scores:
    """The greatest value of each map."""
    return np.asarray(maps.reshape(joints, -1).max(axis=1), np.float64)
