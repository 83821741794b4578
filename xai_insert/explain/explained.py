"""What a model says about one image: predictions, instances with their outlines, and which maps are to be drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.explain.class_names import class_names
from xai_insert.explain.draw import Image
from xai_insert.explain.errors import RunError
from xai_insert.explain.outputs import Array
from xai_insert.explain.preprocessing import Box, View, is_true
from xai_insert.explain.scale import OwnScale, Scaled, ScaleName, raw_values, scaled

Scores = npt.NDArray[np.float64]
Polygon = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """One class of one image.

    Attributes:
        class_id: index of the class, which is also the channel of its map.
        label: name of the class.
        score: probability, 0..1.
    """

    class_id: int
    label: str
    score: float

    def record(self, width: int, height: int) -> dict[str, Any]:
        """What is written about it, for an image of that size."""
        del width, height
        return {"class_id": self.class_id, "label": self.label, "score": self.score}


@dataclass(frozen=True, eq=False)
class Instance(Prediction):
    """One detected object.

    Attributes:
        box: its corners x0, y0, x1, y1, in shares of the image.
        outline: polygons `[P, 2]` around its mask, x and y in shares of the image; empty for a detector.
        saliency_map: the map of this object alone `[h, w]`, as the model gave it; None if there is none.
    """

    box: Box
    outline: tuple[Polygon, ...] = ()
    saliency_map: Array | None = None

    def record(self, width: int, height: int) -> dict[str, Any]:
        sides = (width, height, width, height)
        pixels = [round(part * side, 1) for part, side in zip(self.box, sides, strict=True)]
        return {**super().record(width, height), "box": pixels}


def _class_named(item: str, names: Sequence[str]) -> int | str:
    """A class by its name or its number."""
    if item in names:
        return item
    if not re.fullmatch(r"\d+", item):
        example = f", or class names such as {names[0]}" if names else ""
        raise ValueError(f"{item!r} is not predictions, all, top5 or class numbers such as 3,17{example}")
    return int(item)


@dataclass(frozen=True)
class Selection:
    """Which classes to draw.

    Attributes:
        kind: `predictions`, `all`, `top` or `listed`.
        count: how many for `top`.
        listed: the classes for `listed`, by number or name.
    """

    kind: str = "predictions"
    count: int = 0
    listed: tuple[int | str, ...] = ()

    @classmethod
    def parse(cls, text: str, names: Sequence[str] = ()) -> Selection:
        """Read `predictions`, `all`, `top5`, or classes by number or name: `3,17` or `cat,fire truck`.

        Args:
            text: the selection.
            names: what the classes are called.

        Raises:
            ValueError: it is none of these.
        """
        if text in ("predictions", "all"):
            return cls(text)
        if match := re.fullmatch(r"top([1-9]\d*)", text):
            return cls("top", count=int(match[1]))
        items = [item.strip() for item in ([text] if text in names else text.split(","))]
        return cls("listed", listed=tuple(dict.fromkeys(_class_named(item, names) for item in items)))

    def choose(self, scores: Scores, predicted: Sequence[int], names: Sequence[str], first: int = 0) -> Sequence[int]:
        """The numbers of the maps to draw.

        Args:
            scores: probabilities `[K]`.
            predicted: the predicted ones.
            names: what the classes are called, `[K]`.
            first: the class of the first map.

        Raises:
            RunError: a listed class does not exist, or a name is that of several.
        """
        if self.kind == "all":
            return range(len(scores))
        if self.kind == "top":
            return ranking(scores)[: self.count]
        if self.kind == "listed":
            return [self._number(item, names, first) for item in self.listed]
        return predicted

    @staticmethod
    def _number(item: int | str, names: Sequence[str], first: int) -> int:
        if isinstance(item, str):
            fits = [number for number, name in enumerate(names) if name == item]
            if len(fits) != 1:
                listed = ", ".join(str(number + first) for number in fits) or "none"
                raise RunError(f"classes called {item!r}: {listed}; give the number of one")
            return fits[0]
        if not 0 <= item - first < len(names):
            raise RunError(f"there is no class {item}: the model has the classes {first} to {len(names) - 1 + first}")
        return item - first


def ranking(scores: Scores) -> list[int]:
    """Numbers of the classes, best first."""
    best: list[int] = np.argsort(-scores, kind="stable").tolist()
    return best


@dataclass(frozen=True)
class ScoreMeaning:
    """What a classifier's metadata says about its scores.

    Attributes:
        labels: names of the classes; empty if unknown.
        multilabel: whether the classes are independent.
        threshold: least score of a predicted class, where they are.
        is_told: whether the user gave the names, and not the model.
    """

    labels: tuple[str, ...] = ()
    multilabel: bool = False
    threshold: float = 0.5
    is_told: bool = False

    def require(self, *counts: int) -> None:
        """Refuse names of another number of classes, which would be those of others.

        Args:
            counts: how many names fit; the first is the number of classes.

        Raises:
            RunError: the number of names is none of them.
        """
        if len(self.labels) in counts or not (self.labels or self.is_told):
            return
        where, remedy = ("there are", "") if self.is_told else ("the model's metadata have", "; give them as --labels")
        classes = f"{counts[0]} {'class' if counts[0] == 1 else 'classes'}"
        raise RunError(
            f"{where} {len(self.labels)} labels, but {classes}: one name for each is wanted, in their order{remedy}"
        )

    @classmethod
    def from_metadata(cls, info: Mapping[str, str]) -> ScoreMeaning:
        """Read `labels`, `multilabel` and `confidence_threshold` of Model API, or else ultralytics' `names`."""
        try:
            threshold = float(info.get("confidence_threshold", cls.threshold))
        except ValueError:
            threshold = cls.threshold
        return cls(class_names(info), is_true(info.get("multilabel", "")), threshold)

    def label(self, class_id: int) -> str:
        """Name of a class; without one it is called by its number."""
        return self.labels[class_id] if 0 <= class_id < len(self.labels) else f"class {class_id}"

    def prediction(self, scores: Scores, class_id: int) -> Prediction:
        """One class of a classifier."""
        return Prediction(class_id, self.label(class_id), float(scores[class_id]))


@dataclass(frozen=True)
class Explained:
    """What a model says about one image.

    Attributes:
        predictions: the likeliest classes, best first: every predicted one, and at least five; or the instances.
        chosen: classes to draw, each with the score of its best instance.
        saliency_map: `[K, h, w]` per class or `[h, w]`, as the model gave it.
        view: which area of the image the map shows.
        map_classes: the class of each map `[K]`; None if map k is that of class k.
        instances: what to draw on the maps: detected objects.
        note: what could not be told about the image, one line.
        has_overlays: whether the chosen maps are drawn over the image, else only written as they are.
        ranges: raw values behind 0 and 255 of each map, `[K, 2]`; None where the model does not say them.
        strengths: by class, what its map is faint by, 1 if it is not; None if it is by its score beside the best one.
        own_scale: that of the maps' bytes where it is the model's own; None if each map is scaled by itself.
        others: what is said of other images that the model is fed.
        is_comparable: whether a difference of raw values is as much in the map of one class as in that of another.
    """

    predictions: Sequence[Prediction]
    chosen: Sequence[Prediction]
    saliency_map: Array
    view: View
    map_classes: Array | None = None
    instances: Sequence[Instance] = ()
    note: str | None = None
    has_overlays: bool = True
    ranges: Array | None = None
    strengths: Mapping[int, float] | None = None
    own_scale: OwnScale | None = None
    others: Sequence[OfOther] = ()
    is_comparable: bool = True

    @property
    def has_scores(self) -> bool:
        """Whether the scores of the chosen classes are known."""
        return self.note is None

    @property
    def is_joint(self) -> bool:
        """Whether there is one map for all classes."""
        return self.saliency_map.ndim == 2

    def strength(self, item: Prediction) -> float | None:
        """What the map of a chosen class is faint by; None if unknown."""
        if not self.has_scores:
            return None
        return item.score if self.strengths is None else self.strengths[item.class_id]

    def scaled(self, items: Sequence[Prediction], scale: ScaleName) -> list[Scaled]:
        """How the maps of chosen classes are coloured beside each other."""
        maps, scores = [self.values_of(item.class_id) for item in items], [self.strength(item) for item in items]
        full, count = None if self.strengths is None else 1.0, len(maps) if self.is_comparable else 1
        starts = range(0, len(maps), max(count, 1))
        found = [scaled(maps[at : at + count], scores[at : at + count], scale, full) for at in starts]
        return [replace(item, own=self.own_scale) for group in found for item in group]

    def of_class(self, class_id: int) -> list[Instance]:
        """The objects of a class."""
        return [item for item in self.instances if item.class_id == class_id]

    def map_of(self, class_id: int) -> Array:
        """The map `[h, w]` of a class that was chosen, as the model gave it."""
        found: Array = self.saliency_map[self._index(class_id)]
        return found

    def values_of(self, class_id: int) -> Array:
        """The map `[h, w]` of a class that was chosen: raw values where the model gives them, else bytes."""
        index = self._index(class_id)
        return raw_values(self.saliency_map[index], None if self.ranges is None else self.ranges[index])

    def range_of(self, class_id: int) -> tuple[float, float] | None:
        """The raw values behind 0 and 255 of the map of a class; None where the model does not say them."""
        if self.ranges is None:
            return None
        low, high = map(float, self.ranges[self._index(class_id)])
        return low, high

    def _index(self, class_id: int) -> int:
        return class_id if self.map_classes is None else int(np.flatnonzero(self.map_classes == class_id)[0])


@dataclass(frozen=True, eq=False)
class OfOther:
    """What a model says about another image that it is fed.

    Attributes:
        input: name of its input.
        image: uint8 RGB `[H, W, 3]`.
        found: the same predictions, and maps of this image.
        rectangle: where the maps lie in it; None if they cover all of it.
    """

    input: str
    image: Image
    found: Explained
    rectangle: tuple[float, ...] | None
