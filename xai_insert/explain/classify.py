"""Classifiers: which classes are predicted, and their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xai_insert.errors import UnsupportedTaskError
from xai_insert.explain.explained import Explained, Prediction, Scores, ranking
from xai_insert.explain.outputs import Array, Outputs, map_of, of_first
from xai_insert.explain.preprocessing import View
from xai_insert.explain.ready import ReadyToRun

_LISTED = 5
_SCORED = {np.dtype(kind) for kind in ("float16", "float32", "float64", "uint8")}
"""Types of class scores; those of quantised classifiers are bytes, 255 for 1."""
_LIKE = {"self": "like itself", "input": "like the reference"}
"""What the one map of an embedding says, by what it is compared with."""


def class_logits(outputs: Outputs) -> Array:
    """The first output `[1, K]` (or `[1, K, 1, 1]`, or `[1]` of one class) that fits the saliency map, as `[K]`.

    Raises:
        UnsupportedTaskError: there is none.
    """
    if outputs.saliency_scores is not None:
        own: Array = outputs.saliency_scores[0]
        return own
    classes = _classes(outputs)
    for array in outputs.predictions.values():
        flat = _flat(array, classes)
        if flat is not None:
            return flat if flat.dtype.kind == "f" else flat.astype(np.float32) / np.iinfo(flat.dtype).max
    found = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.predictions.items())
    wanted = "[N, K]" if classes is None else f"[N, {classes}]"
    raise UnsupportedTaskError(
        f"only classifiers can be drawn: wanted class scores {wanted}, found {found or 'none'}; a model that gives its "
        "best class alone has to give the scores as well, by which maps are chosen and named"
    )


def _classes(outputs: Outputs) -> int | None:
    """How many classes there are, if each has its map."""
    saliency = outputs.saliency_map
    if saliency is None or saliency.ndim not in (4, 5) or outputs.saliency_classes is not None:
        return None
    return int(saliency.shape[1])


def _flat(array: Array, classes: int | None) -> Array | None:
    """Scores `[K]` of the first image, if an output is scores of that many classes; None for any number."""
    if array.ndim == 1 and classes == 1:
        array = array[:, None]  # one number for each image
    is_flat = array.ndim >= 2 and array.shape[2:] == (1,) * (array.ndim - 2)
    if not is_flat or array.dtype not in _SCORED or classes not in (None, array.shape[1]):
        return None
    flat: Array = array.reshape(array.shape[:2])[0]
    return flat


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
class Classifier(ReadyToRun):
    """A classifier that is ready to run.

    Attributes:
        engine: the compiled model.
        feeder: makes its input from an image.
        meaning: what its scores mean.
        selection: which classes to draw.
    """

    def read(self, outputs: Outputs, shape: Sequence[int], view: View) -> Explained:
        """Read the outputs for the first image of an input of that shape.

        Raises:
            XaiInsertError: the model is no classifier, or lacks a class that was asked for.
        """
        del shape
        saliency, classes = map_of(outputs), of_first(outputs.saliency_classes)
        ranges = of_first(outputs.saliency_range)
        like = self._likeness(outputs)
        if like is not None:
            return Explained([like], [like], saliency, view, ranges=ranges)
        scores, independent = probabilities(class_logits(outputs), self.meaning.multilabel)
        self.meaning.require(len(scores))
        order = ranking(scores)
        likely = int((scores >= self.meaning.threshold).sum()) if independent else 1
        names = [self.meaning.label(number) for number in range(len(scores))]
        chosen = self.selection.choose(scores, order[: max(likely, 1)], names)
        if classes is not None:
            chosen = _with_map(chosen, classes)
        return Explained(
            [self.meaning.prediction(scores, number) for number in order[: max(likely, _LISTED)]],
            [self.meaning.prediction(scores, number) for number in chosen],
            saliency,
            view,
            classes,
            ranges=ranges,
        )

    def _likeness(self, outputs: Outputs) -> Prediction | None:
        """The one thing that an embedding says: how like it is to what it is compared with."""
        like = _LIKE.get(self.engine.about.get("reference", ""))
        if like is None or outputs.saliency_scores is None:
            return None
        label = self.meaning.labels[0] if self.meaning.is_told and self.meaning.labels else like
        return Prediction(0, label, float(outputs.saliency_scores[0, 0]))
