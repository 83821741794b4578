"""Whether two models look at the same places: float and INT8, plain and pruned, old and new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.evaluate import metrics
from xai_insert.evaluate.metrics import Array
from xai_insert.evaluate.subject import Prepared, Subject
from xai_insert.explain.draw import Image, to_bytes
from xai_insert.explain.errors import RunError
from xai_insert.explain.explained import Explained, Prediction
from xai_insert.explain.files import Source, read_image, shown
from xai_insert.explain.picture import laid_out

_LONGEST = 256  # sides of an image on which maps of different views are compared


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models of the same classes.

    Attributes:
        first: the one whose classes are explained.
        second: the one that is to agree with it.
    """

    first: Subject
    second: Subject

    def measure(self, source: Source) -> dict[str, Any]:
        """Compare the maps of the class that the first model predicts, or holds for likeliest where it finds nothing.

        Args:
            source: the image.

        Returns:
            `name`, `source`, `label`, `score` and `other_score` of that class, `other_label`, what the second model
            predicts, `correlation` of the maps (0 if one of them alone is constant, 1 if both are) and
            `peak_distance`, in parts of the diagonal.

        Raises:
            XaiInsertError: the image cannot be read, a model cannot be run, or they have other classes.
        """
        image = read_image(source.path)
        one, two = self.first.prepare(image), self.second.prepare(image)
        _require_alike(one.found, two.found)
        best, other = _best(one.found), _best(two.found)
        maps = self._maps(image, one, two, best.class_id)
        return {
            "name": source.name,
            "source": shown(source.path),
            "class_id": best.class_id,
            "label": best.label,
            "score": best.score,
            "other_label": other.label,
            "other_score": _score(two.found, best.class_id),
            "is_same_class": best.class_id == other.class_id,
            "correlation": _correlation(*maps),
            "peak_distance": metrics.peak_distance(*maps),
        }

    def _maps(self, image: Image, one: Prepared, two: Prepared, class_id: int) -> tuple[Array, Array]:
        """Both maps of a class over the same places."""
        first, second = self.first.raw_map(one.found, class_id), self.second.raw_map(two.found, class_id)
        if first is None or second is None:
            raise RunError(f"a model gives no map of class {class_id}: insert without --top-k to compare")
        if one.view == two.view and self.first.rectangle == self.second.rectangle:
            size = (max(first.shape[0], second.shape[0]), max(first.shape[1], second.shape[1]))
            return metrics.scaled(first, size), metrics.scaled(second, size)
        ratio = min(_LONGEST / max(image.shape[:2]), 1.0)
        size = (max(round(image.shape[0] * ratio), 1), max(round(image.shape[1] * ratio), 1))
        laid = [
            laid_out(to_bytes(np.asarray(raw)), size, prepared.view, subject.rectangle)[0]
            for raw, prepared, subject in ((first, one, self.first), (second, two, self.second))
        ]
        return np.asarray(laid[0], np.float32), np.asarray(laid[1], np.float32)


_NOTHING = Prediction(-1, "nothing found", 0.0)


def _best(found: Explained) -> Prediction:
    return found.predictions[0] if found.predictions else max(found.chosen, key=_by_score, default=_NOTHING)


def _by_score(item: Prediction) -> float:
    return item.score


def _score(found: Explained, class_id: int) -> float | None:
    scores = [item.score for item in (*found.predictions, *found.chosen) if item.class_id == class_id]
    return max(scores, default=None)


def _correlation(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> float:
    found = metrics.correlation(one, other)
    if found is not None:
        return found
    return float(not np.ptp(one) and not np.ptp(other))


def _require_alike(one: Explained, other: Explained) -> None:
    counts = [len(found.saliency_map) for found in (one, other) if found.saliency_map.ndim == 3 and _has_all(found)]
    if len(set(counts)) > 1:
        raise RunError(f"the models have {counts[0]} and {counts[1]} classes: only models of the same classes compare")


def _has_all(found: Explained) -> bool:
    """Whether there is a map for every class, rather than for the best ones."""
    classes = found.map_classes
    return classes is None or np.array_equal(classes, np.arange(len(classes)) + classes[0])
