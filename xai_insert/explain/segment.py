"""Semantic segmenters: which classes are in the image, and their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xai_insert.explain.explained import Explained, ScoreMeaning, Scores, ranking
from xai_insert.explain.outputs import Array, Outputs, map_of, of_first
from xai_insert.explain.preprocessing import View
from xai_insert.explain.ready import ReadyToRun

SEMANTIC_SEGMENTATION = "semantic segmentation"
_LEAST_SHARE = 0.01
_OF_MEANS = "seg-recipro-cam"
"""The mean over a region: the larger that is, the less one place does to it."""
_LISTED = 5


@dataclass(frozen=True)
class Painter(ReadyToRun):
    """A semantic segmenter that is ready to run; a class's score is the share of the places that it has.

    A small object is there as much as a large one, so maps of predicted classes are not fainter by their scores.

    Attributes:
        engine: the compiled model.
        feeder: makes its input from an image.
        meaning: names of its classes.
        selection: which classes to draw; those that are predicted have a hundredth of the places, or the most.
    """

    def read(self, outputs: Outputs, shape: Sequence[int], view: View) -> Explained:
        """Read the outputs for the first image of an input of that shape.

        Raises:
            XaiInsertError: the model lacks a class that was asked for.
        """
        del shape
        maps = map_of(outputs)
        shares = self._shares(outputs, len(maps))
        meaning = self._meaning(len(maps))
        names = [meaning.label(number) for number in range(len(maps))]
        order = ranking(shares)
        likely = max(int((shares >= _LEAST_SHARE).sum()), 1)
        chosen = self.selection.choose(shares, order[:likely], names)
        return Explained(
            [meaning.prediction(shares, number) for number in order[: max(likely, _LISTED)]],
            [meaning.prediction(shares, number) for number in chosen],
            maps,
            view,
            ranges=of_first(outputs.saliency_range),
            strengths={number: min(float(share) / _LEAST_SHARE, 1.0) for number, share in enumerate(shares)},
            is_comparable=self.engine.about.get("method") != _OF_MEANS,
        )

    def _meaning(self, classes: int) -> ScoreMeaning:
        """The names of that many classes; Model API's metadata leave out the background, which is class 0."""
        meaning = self.meaning
        if not meaning.is_told and self.engine.by_model_api and len(meaning.labels) == classes - 1:
            meaning = replace(meaning, labels=("background", *meaning.labels))
        meaning.require(classes)
        return meaning

    def _shares(self, outputs: Outputs, classes: int) -> Scores:
        """How much of the first image each class has, `[K]`."""
        axis = self.engine.layout.class_axis
        found = list(outputs.predictions.values())[self.engine.layout.classes_at or 0]
        if found.dtype.kind == "b" and axis is not None:  # masks, which may lie on one another
            places = tuple(other for other in range(found.ndim - 1) if other != axis - 1)
            return np.asarray(found[0].mean(axis=places), np.float64)
        if classes == 1 and found.dtype.kind == "f":
            return np.array([float((found[0] > _boundary(found[0])).mean())])
        labels: Array = found[0] if axis is None else found[0].argmax(axis=axis - 1)
        return self._counted(labels, classes)

    def _counted(self, labels: Array, classes: int) -> Scores:
        """How many places have each label."""
        if (called := self.engine.layout.labels) is not None:
            return np.array([np.mean(labels == label) for label in called[:classes]], np.float64)
        numbers = np.asarray(labels, np.int64).reshape(-1) - (self.engine.layout.first_label or 0)
        counted = np.bincount(numbers[(numbers >= 0) & (numbers < classes)], minlength=classes)
        return np.asarray(counted / labels.size, np.float64)


def _boundary(mask: Array) -> float:
    """Where a mask of one class begins: at a half of probabilities, at zero of scores before a sigmoid."""
    return 0.5 if mask.min() >= 0 and mask.max() <= 1 else 0.0
