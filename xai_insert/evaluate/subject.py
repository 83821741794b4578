"""A model as it is measured: its maps and scores, for images as the model takes them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from xai_insert.evaluate.metrics import Array, Scorer, scaled
from xai_insert.evaluate.metrics import Explainer as Mapper
from xai_insert.explain.classify import Classifier, class_logits, probabilities
from xai_insert.explain.detect import Finder
from xai_insert.explain.draw import Image
from xai_insert.explain.errors import RunError
from xai_insert.explain.explained import Explained, Prediction, ScoreMeaning, Selection
from xai_insert.explain.explainer import Explainer, Explanation
from xai_insert.explain.outputs import Outputs, part_of
from xai_insert.explain.picture import Rectangle
from xai_insert.explain.preprocessing import View

_NEVER, _FAINT = 1.0, 0.01  # least scores of objects


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image as the model takes it.

    Attributes:
        pixels: float32 `[1, C, H, W]`, whatever layout and type the model has.
        black: a black image, likewise.
        view: how image and input fit together.
        found: what the model says about it, all its maps.
    """

    pixels: Array
    black: Array
    view: View
    found: Explained

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        return self.pixels.shape[2], self.pixels.shape[3]


class Subject:
    """A model that is measured.

    Args:
        explainer: the model.

    Raises:
        XaiInsertError: it cannot be read, inserted into or compiled.
    """

    def __init__(self, explainer: Explainer) -> None:
        self._ready = explainer.opened()
        self._model = self._ready.model
        self._channels_last = self._model.feeder.layout == "NHWC"
        self.rectangle = self._ready.rectangle

    @property
    def meaning(self) -> ScoreMeaning:
        """Names of the classes."""
        return self._model.meaning

    def classes(self, found: Explained) -> list[tuple[str, int]]:
        """Name and number of each class that has a name."""
        if not self.meaning.labels:
            return []
        if isinstance(self._model, Classifier) or found.saliency_map.ndim == 2:
            return [(label, number) for number, label in enumerate(self.meaning.labels)]
        return [(item.label, item.class_id) for item in found.chosen]

    @property
    def method(self) -> str:
        """What the insertion says of itself."""
        about = self._model.engine.about
        return about.get("method") or "map"

    @property
    def workers(self) -> int:
        """How many inferences run side by side at best."""
        return self._ready.workers

    def prepare(self, image: Image) -> Prepared:
        """Run on an image, uint8 RGB `[H, W, 3]`.

        Raises:
            XaiInsertError: the model cannot be run, or its scores cannot be read.
        """
        (pixels, view), (black, _) = (self._model.feeder.feed(item) for item in (image, np.zeros_like(image)))
        pixels, black = self._planes(pixels), self._planes(black)
        found = self._read(pixels, view)
        if found.note is not None:
            raise RunError(found.note)
        return Prepared(pixels, black, view, found)

    def explained(self, image: Image) -> Explanation:
        """The image with its maps, to be drawn."""
        return Explanation(image, self.prepare(image).found, self.rectangle)

    def map_of(self, found: Explained, class_id: int, size: tuple[int, int]) -> Array | None:
        """The map of a class, in 0..1 over the input `[H, W]`; None if the model gives none for it."""
        raw = self.raw_map(found, class_id)
        return None if raw is None else placed(raw, size, self.rectangle)

    def raw_map(self, found: Explained, class_id: int) -> npt.NDArray[np.generic] | None:
        """The map of a class as the model gave it; one for all classes is taken for each."""
        if found.saliency_map.ndim == 2:
            return found.saliency_map
        known = range(len(found.saliency_map)) if found.map_classes is None else found.map_classes
        return found.map_of(class_id) if class_id in known else None

    def mapper(self, prepared: Prepared, class_id: int) -> Mapper:
        """Gives the map of a class for other inputs of the same size; zeros where there is none."""

        def explain(pixels: Array) -> Array:
            found = self.map_of(self._read(pixels, prepared.view), class_id, prepared.size)
            return np.zeros(prepared.size, np.float32) if found is None else found

        return explain

    def read_again(self, prepared: Prepared) -> Explained:
        """What this model says about an image that another one prepared."""
        return self._read(prepared.pixels, prepared.view)

    def scorer(self, prepared: Prepared, class_id: int) -> Scorer:
        """Gives the score of a class for inputs `[N, C, H, W]` of the same size.

        What the model's numbers mean is settled by the image itself: those of a changed one may fit another meaning.
        """
        score = self._score_of(prepared, class_id)

        def scores(pixels: Array) -> Array:
            batch = self._ready.batch
            parts = [pixels[start : start + batch] for start in range(0, len(pixels), batch)]
            if len(parts) == 1 or self.workers == 1:
                found = [self._scores(part, score) for part in parts]
            else:
                with ThreadPoolExecutor(self.workers) as pool:
                    found = list(pool.map(lambda part: self._scores(part, score), parts))
            return np.asarray([item for part in found for item in part], np.float32)

        return scores

    def _score_of(self, prepared: Prepared, class_id: int) -> Callable[[Outputs], float]:
        model = self._model
        if isinstance(model, Classifier):
            logits = class_logits(self._infer(prepared.pixels))
            is_raw = not np.array_equal(probabilities(logits, model.meaning.multilabel)[0], logits.clip(0, 1))
            multilabel = model.meaning.multilabel

            def probability(outputs: Outputs) -> float:
                values = np.asarray(class_logits(outputs), np.float64)
                if not is_raw:
                    return float(values[class_id].clip(0, 1))
                if multilabel:
                    return float(1 / (1 + np.exp(-values[class_id].clip(-500, 500))))
                powers = np.exp(values - values.max())
                return float(powers[class_id] / powers.sum())

            return probability
        shape, only = prepared.pixels.shape, Selection("listed", listed=(class_id,))
        has_own = prepared.found.saliency_map.ndim == 3
        alone = replace(model, selection=only)
        if isinstance(alone, Finder):
            # Objects are made of what reaches the threshold; of maps per class the best score is there without them.
            alone = replace(alone, threshold=_NEVER if has_own else _FAINT)
        native = (shape[0], *shape[2:], shape[1]) if self._channels_last else shape

        def best(outputs: Outputs) -> float:
            found = alone.read(outputs, native, prepared.view)
            of_class: list[Prediction] = [*found.chosen] if has_own else [*found.predictions]
            return max((item.score for item in of_class if item.class_id == class_id), default=0.0)

        return best

    def _scores(self, pixels: Array, score: Callable[[Outputs], float]) -> list[float]:
        outputs = self._infer(pixels)
        batch = max(len(pixels), self._model.feeder.batch)
        return [score(part_of(outputs, index, batch)) for index in range(len(pixels))]

    def _read(self, pixels: Array, view: View) -> Explained:
        outputs = part_of(self._infer(pixels), 0, max(1, self._model.feeder.batch))
        every = replace(self._model, selection=Selection("all"))
        shape = (1, *pixels.shape[2:], pixels.shape[1]) if self._channels_last else (1, *pixels.shape[1:])
        if isinstance(every, Classifier) and outputs.saliency_classes is not None:
            every = replace(every, selection=Selection("listed", listed=tuple(map(int, outputs.saliency_classes[0]))))
        return every.read(outputs, shape, view)

    def _infer(self, pixels: Array) -> Outputs:
        """Run on `[N, C, H, W]`, at most a batch."""
        feeder = self._model.feeder
        native = pixels.transpose(0, 2, 3, 1) if self._channels_last else pixels
        if len(native) < feeder.batch:
            native = np.concatenate([native, np.repeat(native[-1:], feeder.batch - len(native), axis=0)])
        dtype = np.dtype(feeder.dtype)
        if dtype.kind in "ui":
            limits = np.iinfo(dtype)
            native = np.round(native).clip(limits.min, limits.max)
        return self._model.engine.infer(np.ascontiguousarray(native, dtype))

    def _planes(self, feed: npt.NDArray[np.generic]) -> Array:
        first = np.asarray(feed[:1], np.float32)
        return first.transpose(0, 3, 1, 2) if self._channels_last else first


def placed(raw: npt.NDArray[np.generic], size: tuple[int, int], rectangle: Rectangle | None) -> Array:
    """A raw map in 0..1 over the input `[H, W]`, where it lies in it; zeros elsewhere."""
    if rectangle is None:
        return scaled(raw, size)
    edges = [round(part * size[index % 2]) for index, part in enumerate(rectangle)]
    top, left, bottom, right = edges[0], edges[1], max(edges[2], edges[0] + 1), max(edges[3], edges[1] + 1)
    part = scaled(raw, (bottom - top, right - left))
    whole = np.zeros(size, np.float32)
    down, across = slice(max(top, 0), min(bottom, size[0])), slice(max(left, 0), min(right, size[1]))
    whole[down, across] = part[down.start - top : down.stop - top, across.start - left : across.stop - left]
    return whole


def in_input(box: tuple[float, float, float, float], prepared: Prepared) -> tuple[float, float, float, float] | None:
    """A box in shares of the image, in pixels of the model's input; None if the model does not see it."""
    (u0, v0, u1, v1), (x0, y0, x1, y1) = prepared.view.in_image, prepared.view.in_input
    height, width = prepared.size

    def moved(value: float, low: float, high: float, first: float, last: float) -> float:
        return first + min(max((value - low) / (high - low), 0.0), 1.0) * (last - first)

    left, right = (moved(value, u0, u1, x0, x1) * width for value in box[::2])
    top, bottom = (moved(value, v0, v1, y0, y1) * height for value in box[1::2])
    return (left, top, right, bottom) if left < right and top < bottom else None
