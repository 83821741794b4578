"""Detectors and instance segmenters: which objects are found, and the maps of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from xai_insert.explain.detections import Detections, Facts, Floats
from xai_insert.explain.errors import UnknownLayoutError
from xai_insert.explain.explained import Explained, Instance, Polygon, Prediction
from xai_insert.explain.layouts import detections
from xai_insert.explain.masks import instances
from xai_insert.explain.outputs import Array, Outputs, map_of, of_first
from xai_insert.explain.preprocessing import View
from xai_insert.explain.ready import ReadyToRun

DETECTION, SEGMENTATION = "detection", "instance segmentation"
TASKS = (DETECTION, SEGMENTATION)
THRESHOLD = 0.3
_LEAST_OUTLINE = 3


@dataclass(frozen=True)
class Finder(ReadyToRun):
    """A detector or an instance segmenter that is ready to run.

    Attributes:
        engine: the compiled model.
        feeder: makes its input from an image.
        meaning: names of its classes.
        selection: which classes to draw.
        threshold: least score of an object.
    """

    threshold: float = THRESHOLD

    @property
    def settings(self) -> Sequence[object]:
        """What its results depend on, besides the model."""
        return self.feeder, self.meaning, self.selection, self.threshold

    def read(self, outputs: Outputs, shape: Sequence[int], view: View) -> Explained:
        """Read the outputs for the first image of an input of that shape.

        Raises:
            XaiInsertError: the model lacks a class that was asked for.
        """
        saliency = map_of(outputs)
        size = (shape[self.feeder.layout.index("H")], shape[self.feeder.layout.index("W")])
        maps = len(saliency) if saliency.ndim == 3 else None
        facts = Facts.of(self.engine.layout, size, maps, len(self.meaning.labels))
        read = instances if self.engine.about.get("task") == SEGMENTATION else detections
        try:
            found = read(list(outputs.predictions.values()), facts)
            box_maps = _box_maps(outputs, found)
        except UnknownLayoutError as err:
            return self._without_objects(saliency, view, facts, _note(outputs, err))
        objects = self._objects(found, box_maps, facts, view)
        if maps is None:
            return Explained(objects, [], saliency, view, instances=objects)
        best = found.best(maps)
        first = facts.first_label
        predicted = list(dict.fromkeys(item.class_id - first for item in objects))
        chosen = self._chosen(best, predicted, facts)
        drawn = [Prediction(number + first, self._label(number, facts), float(best[number])) for number in chosen]
        ranges = of_first(outputs.saliency_range)
        return Explained(objects, drawn, saliency, view, np.arange(maps) + first, objects, ranges=ranges)

    def _chosen(self, best: Floats, predicted: Sequence[int], facts: Facts) -> Sequence[int]:
        """Numbers of the maps to draw; classes that are asked for by number are labels of the model."""
        maps = len(best)
        others = [maps + 1] * (facts.first_label == 1) + [maps - 1] * (facts.background == 0)
        self.meaning.require(maps, *others)
        names = [self._label(number, facts) for number in range(maps)]
        return self.selection.choose(best, predicted, names, facts.first_label)

    def _objects(self, found: Detections, box_maps: Array | None, facts: Facts, view: View) -> list[Instance]:
        objects = []
        for index in found.found(self.threshold, facts.overlap):
            number = int(found.classes[index])
            around = () if found.mask is None else outline(found.mask(index), facts.size, view)
            left, top, right, bottom = map(float, in_image(found.boxes[index].reshape(2, 2), view).reshape(-1))
            name, score = self._label(number, facts), float(found.scores[index])
            own_map = None if box_maps is None else box_maps[index]
            objects.append(
                Instance(number + facts.first_label, name, score, (left, top, right, bottom), around, own_map)
            )
        return objects

    def _label(self, number: int, facts: Facts) -> str:
        """Name of a class; a list of names may leave out a background that the model counts as 0."""
        names = len(self.meaning.labels)
        skips_background = facts.background == 0 and facts.classes == names + 1
        if skips_background:
            return self.meaning.label(number - 1) if number else "background"
        counts_label_0 = facts.first_label == 1 and facts.classes is not None and names > facts.classes
        if not names or counts_label_0:
            return self.meaning.label(number + facts.first_label)
        return self.meaning.label(number)

    def _without_objects(self, saliency: Array, view: View, facts: Facts, note: str) -> Explained:
        """The maps that were asked for by number, without scores; else all, but none drawn over the image."""
        if saliency.ndim == 2:
            return Explained([], [], saliency, view, note=f"{note}; the map is drawn without boxes")
        is_asked = self.selection.kind in ("all", "listed")
        every = range(len(saliency))
        first = facts.first_label
        chosen = self._chosen(np.zeros(len(saliency)), every, facts) if is_asked else every
        drawn = [Prediction(number + first, self._label(number, facts), 0.0) for number in chosen]
        told = "the maps are drawn without boxes" if is_asked else "no map is drawn, all are written; see --classes"
        numbers = np.arange(len(saliency)) + first
        return Explained([], drawn, saliency, view, numbers, note=f"{note}; {told}", has_overlays=is_asked)


def _box_maps(outputs: Outputs, found: Detections) -> Array | None:
    """The maps `[M, h, w]` of the first image's boxes, by number of the box; None if the model gives none.

    Raises:
        UnknownLayoutError: the boxes that were read are not those that the maps belong to.
    """
    if outputs.saliency_map_per_box is None:
        return None
    maps: Array = outputs.saliency_map_per_box[0]
    if found.is_dense or len(found.scores) > len(maps):
        raise UnknownLayoutError(f"there are {len(maps)} maps of boxes, but {len(found.scores)} boxes")
    return maps


def _note(outputs: Outputs, err: UnknownLayoutError) -> str:
    listed = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.predictions.items())
    return f"no boxes can be read from the outputs {listed}: {err}"


def in_image(points: Floats, view: View) -> Polygon:
    """Points `[P, 2]` in shares of the input, in shares of the image; those in the padding move to its border."""
    source, goal = (np.array(box).reshape(2, 2) for box in (view.in_input, view.in_image))
    shares = (points - source[0]) / (source[1] - source[0])
    return np.asarray((goal[0] + shares * (goal[1] - goal[0])).clip(0, 1), np.float64)


def outline(mask: Floats, size: tuple[int, int], view: View) -> tuple[Polygon, ...]:
    """Polygons around a mask `[h, w]` of the whole input, in shares of the image."""
    if mask.shape[0] < size[0]:
        mask = np.asarray(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR), np.float64)
    height, width = mask.shape
    inner = np.pad((mask > 0.5).astype(np.uint8), 1)
    contours, _ = cv2.findContours(inner, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    sides = np.array([width, height])
    return tuple(
        in_image((contour.reshape(-1, 2) - 0.5) / sides, view) for contour in contours if len(contour) >= _LEAST_OUTLINE
    )
