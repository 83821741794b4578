"""Predictions of classifiers: scores, labels, and which classes to draw."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from xai_insert.errors import UnsupportedTaskError
from xai_insert.explain.draw import Image
from xai_insert.explain.errors import RunError
from xai_insert.explain.feed import Feeder
from xai_insert.explain.outputs import SALIENCY_MAP, Array, Outputs
from xai_insert.explain.preprocessing import View, is_true
from xai_insert.explain.runtime import Engine

_LISTED = 5

Scores = npt.NDArray[np.float64]


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


def class_logits(outputs: Outputs) -> Array:
    """The first output `[1, K]` (or `[1, K, 1, 1]`) that fits the saliency map, as `[K]`.

    Raises:
        UnsupportedTaskError: there is none.
    """
    saliency = outputs.saliency_map
    is_whole = saliency is not None and saliency.ndim == 4 and outputs.saliency_classes is None
    classes = saliency.shape[1] if saliency is not None and is_whole else None
    for array in outputs.predictions.values():
        flat = array.ndim == 2 or (array.ndim > 2 and array.shape[2:] == (1,) * (array.ndim - 2))
        if flat and array.dtype.kind == "f" and classes in (None, array.shape[1]):
            logits: Array = array.reshape(array.shape[:2])[0]
            return logits
    found = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.predictions.items())
    wanted = "[N, K]" if classes is None else f"[N, {classes}]"
    raise UnsupportedTaskError(f"only classifiers can be drawn: wanted class scores {wanted}, found {found or 'none'}")


def probabilities(logits: Array, multilabel: bool) -> tuple[Scores, bool]:
    """Turn class scores `[K]` into probabilities, unless they are.

    Values in 0..1 are taken as they are: exclusive classes if they sum to one, independent labels if not. Others go
    through softmax, or through a sigmoid where `multilabel` says that the classes are independent.

    Returns:
        float64 `[K]` in 0..1, and whether the classes are independent.
    """
    values = np.asarray(logits, np.float64)
    if values.min() >= 0 and values.max() <= 1 + 1e-6:
        exclusive = not multilabel and abs(values.sum() - 1) < 1e-2
        return values.clip(0, 1), not exclusive
    if multilabel:
        return 1 / (1 + np.exp(-values.clip(-500, 500))), True
    powers = np.exp(values - values.max())
    return powers / powers.sum(), False


@dataclass(frozen=True)
class Selection:
    """Which classes to draw.

    Attributes:
        kind: `predictions`, `all`, `top` or `listed`.
        count: how many for `top`.
        listed: the classes for `listed`.
    """

    kind: str = "predictions"
    count: int = 0
    listed: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read `predictions`, `all`, `top5` or `3,17`.

        Raises:
            ValueError: it is none of these.
        """
        if text in ("predictions", "all"):
            return cls(text)
        if match := re.fullmatch(r"top([1-9]\d*)", text):
            return cls("top", count=int(match[1]))
        if re.fullmatch(r"\d+(,\d+)*", text):
            return cls("listed", listed=tuple(dict.fromkeys(int(item) for item in text.split(","))))
        raise ValueError(f"{text!r} is not predictions, all, top5 or class numbers such as 3,17")

    def choose(self, scores: Scores, predicted: Sequence[int]) -> Sequence[int]:
        """The classes to draw.

        Args:
            scores: probabilities `[K]`.
            predicted: the predicted classes.

        Raises:
            RunError: a listed class does not exist.
        """
        if self.kind == "all":
            return range(len(scores))
        if self.kind == "top":
            return ranking(scores)[: self.count]
        if self.kind == "listed":
            missing = [number for number in self.listed if number >= len(scores)]
            if missing:
                raise RunError(f"there is no class {missing[0]}: the model has the classes 0 to {len(scores) - 1}")
            return self.listed
        return predicted


def ranking(scores: Scores) -> list[int]:
    """Numbers of the classes, best first."""
    return [int(index) for index in np.argsort(-scores, kind="stable")]


@dataclass(frozen=True)
class ScoreMeaning:
    """What a classifier's metadata says about its scores.

    Attributes:
        labels: names of the classes; empty if unknown.
        multilabel: whether the classes are independent.
        threshold: least score of a predicted class, where they are.
    """

    labels: tuple[str, ...] = ()
    multilabel: bool = False
    threshold: float = 0.5

    @classmethod
    def from_metadata(cls, info: Mapping[str, str]) -> ScoreMeaning:
        """Read `labels`, `multilabel` and `confidence_threshold` of Model API."""
        try:
            threshold = float(info.get("confidence_threshold", cls.threshold))
        except ValueError:
            threshold = cls.threshold
        return cls(tuple(info.get("labels", "").split()), is_true(info.get("multilabel", "")), threshold)

    def prediction(self, scores: Scores, class_id: int) -> Prediction:
        """One class; without a label it is called by its number."""
        label = self.labels[class_id] if class_id < len(self.labels) else f"class {class_id}"
        return Prediction(class_id, label, float(scores[class_id]))


@dataclass(frozen=True)
class Explained:
    """What a model says about one image.

    Attributes:
        predictions: the likeliest classes, best first: every predicted one, and at least five.
        chosen: those to draw.
        saliency_map: `[K, h, w]` per class or `[h, w]`, as the model gave it.
        view: which area of the image the map shows.
        map_classes: the class of each map `[K]`; None if map k is that of class k.
    """

    predictions: Sequence[Prediction]
    chosen: Sequence[Prediction]
    saliency_map: Array
    view: View
    map_classes: Array | None = None

    def map_of(self, class_id: int) -> Array:
        """The map `[h, w]` of a class that was chosen."""
        index = class_id if self.map_classes is None else int(np.flatnonzero(self.map_classes == class_id)[0])
        found: Array = self.saliency_map[index]
        return found


def _with_map(chosen: Sequence[int], classes: Array) -> list[int]:
    """Those of the chosen classes that have a map.

    Raises:
        UnsupportedTaskError: none has one.
    """
    found = [number for number in chosen if number in classes]
    if not found:
        listed = ", ".join(map(str, chosen))
        raise UnsupportedTaskError(f"no map for class {listed}: the model gives those of its {len(classes)} best only")
    return found


@dataclass(frozen=True)
class Classifier:
    """A classifier that is ready to run.

    Attributes:
        engine: the compiled model.
        feeder: makes its input from an image.
        meaning: what its scores mean.
        selection: which classes to draw.
    """

    engine: Engine
    feeder: Feeder
    meaning: ScoreMeaning
    selection: Selection = field(default_factory=Selection)

    def explain(self, image: Image) -> Explained:
        """Run on one image, uint8 RGB `[H, W, 3]`.

        Raises:
            XaiInsertError: the model cannot be run, is no classifier, or lacks a class that was asked for.
        """
        feed, view = self.feeder.feed(image)
        outputs = self.engine.infer(feed)
        if outputs.saliency_map is None:
            raise UnsupportedTaskError(f"the model has no output {SALIENCY_MAP!r}")
        scores, independent = probabilities(class_logits(outputs), self.meaning.multilabel)
        order = ranking(scores)
        likely = int((scores >= self.meaning.threshold).sum()) if independent else 1
        chosen = self.selection.choose(scores, order[: max(likely, 1)])
        if outputs.saliency_classes is not None:
            chosen = _with_map(chosen, outputs.saliency_classes[0])
        return Explained(
            [self.meaning.prediction(scores, number) for number in order[: max(likely, _LISTED)]],
            [self.meaning.prediction(scores, number) for number in chosen],
            outputs.saliency_map[0],
            view,
            None if outputs.saliency_classes is None else outputs.saliency_classes[0],
        )
