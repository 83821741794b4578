"""Measuring the maps of one model, image by image, beside maps that know nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from xai_insert.evaluate import metrics
from xai_insert.evaluate.annotations import Annotations, class_numbers
from xai_insert.evaluate.errors import AnnotationError
from xai_insert.evaluate.measure import BLIND, STEPS, blind_map, faithfulness, localisation
from xai_insert.evaluate.metrics import Array, Rectangle
from xai_insert.evaluate.metrics import Explainer as Mapper
from xai_insert.evaluate.subject import Prepared, Subject, in_input, placed
from xai_insert.explain.files import Source, read_image, shown

SHUFFLED = "shuffled weights"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How the maps of a model are measured.

    Attributes:
        subject: the model.
        shuffled: the same with shuffled weights; None if there is none.
        annotations: boxes of objects; None if there are none.
        numbers: the model's number of each annotated class that it knows.
        steps: of insertion and deletion.
    """

    subject: Subject
    shuffled: Subject | None = None
    annotations: Annotations | None = None
    numbers: dict[str, int] = field(default_factory=dict)
    steps: int = STEPS

    def measure(self, source: Source) -> dict[str, Any]:
        """The figures of one image.

        Args:
            source: the image.

        Returns:
            `name`, `source`, the explained class (`class_id`, `label`, `score`; None where nothing is found), `maps`
            with the figures of each kind of map by the keys of `MEASURES`, `sanity`, the correlation of the map with
            that of shuffled weights (None where there is none), and `annotated`, whether there are boxes.

        Raises:
            XaiInsertError: the image cannot be read or does not fit its annotations, or the model cannot be run.
        """
        image = read_image(source.path)
        boxes = self._boxes(source.path, image.shape[1], image.shape[0])
        prepared = self.subject.prepare(image)
        other = None if self.shuffled is None else self.shuffled.read_again(prepared)
        best = next(iter(prepared.found.predictions), None)
        result: dict[str, Any] = {
            "name": source.name,
            "source": shown(source.path),
            **{key: getattr(best, key, None) for key in ("class_id", "label", "score")},
            "maps": {},
            "sanity": None,
            "annotated": boxes is not None,
        }
        rng = np.random.default_rng(crc32(source.name.encode(errors="replace")))
        if best is not None:
            result["sanity"] = self._add_faithfulness(result["maps"], prepared, other, best.class_id, rng)
        for class_id, edges in self._in_input(boxes or {}, prepared).items():
            for name, saliency, _ in self._maps(prepared, other, class_id, rng):
                _add(result["maps"].setdefault(name, {}), localisation(saliency, edges))
        for figures in result["maps"].values():
            figures.update({key: float(np.mean(value)) for key, value in figures.items() if isinstance(value, list)})
        return result

    def _add_faithfulness(
        self, maps: dict[str, Any], prepared: Prepared, other: Any, class_id: int, rng: np.random.Generator
    ) -> float | None:
        """What each map of the best class is worth to the model; gives the likeness to that of shuffled weights."""
        sanity = None
        score = self.subject.scorer(prepared, class_id)
        for name, saliency, mapper in self._maps(prepared, other, class_id, rng):
            maps[name] = faithfulness(prepared.pixels, saliency, score, mapper, prepared.black, self.steps)
            if name == SHUFFLED and self.subject.method in maps:
                own = self.subject.map_of(prepared.found, class_id, prepared.size)
                sanity = None if own is None else metrics.correlation(own, saliency) or 0.0
        return sanity

    def _boxes(self, path: Path, width: int, height: int) -> dict[str, list[Rectangle]] | None:
        """The objects of an image by class, in shares of it; None if nobody has annotated it."""
        annotated = None if self.annotations is None else self.annotations.of(path)
        if annotated is None:
            return None
        found: dict[str, list[Rectangle]] = {}
        for label, edges in annotated.shares(width, height):
            found.setdefault(label, []).append(edges)
        return found

    def _in_input(self, boxes: dict[str, list[Rectangle]], prepared: Prepared) -> dict[int, list[Rectangle]]:
        """Those of known classes that the model sees, in pixels of its input."""
        known = {self.numbers[label]: edges for label, edges in boxes.items() if label in self.numbers}
        seen = {number: [in_input(item, prepared) for item in edges] for number, edges in known.items()}
        return {number: here for number, edges in seen.items() if (here := [item for item in edges if item])}

    def _maps(
        self, prepared: Prepared, other: Any, class_id: int, rng: np.random.Generator
    ) -> Sequence[tuple[str, Array, Mapper]]:
        """The model's map of a class, and those beside it: name, map, and how it is made of another image."""
        own = self.subject.raw_map(prepared.found, class_id)
        if own is None:
            return []
        grid = (own.shape[0], own.shape[1])
        rectangle, size = self.subject.rectangle, prepared.size
        maps = [(self.subject.method, placed(own, size, rectangle), self.subject.mapper(prepared, class_id))]
        if self.shuffled is not None:
            there = self.shuffled.map_of(other, class_id, size)
            if there is not None:
                maps.append((SHUFFLED, there, self.shuffled.mapper(prepared, class_id)))
        for kind in BLIND:

            def blind(_: Array | None = None, kind: str = kind) -> Array:
                return placed(blind_map(kind, grid, rng), size, rectangle)

            maps.append((kind, blind(), blind))
        return maps


def _add(figures: dict[str, Any], more: Mapping[str, float]) -> None:
    """Beside the figures of a map of another class."""
    for key, value in more.items():
        figures[key] = [*figures.get(key, []), value]


def prepared_evaluation(
    subject: Subject,
    shuffled: Subject | None,
    annotations: Annotations | None,
    sources: Sequence[Source],
    first: Source,
    steps: int,
) -> tuple[Evaluation, list[str]]:
    """An evaluation whose annotations fit the model, and the annotated classes that the model does not know.

    Args:
        subject: the model.
        shuffled: see `Evaluation`.
        annotations: see `Evaluation`.
        sources: the images.
        first: one of them that can be read.
        steps: see `Evaluation`.

    Raises:
        XaiInsertError: the annotations are of other images or classes.
    """
    if annotations is None:
        return Evaluation(subject, shuffled, steps=steps), []
    if not any(annotations.of(source.path) for source in sources):
        raise AnnotationError(
            f"{shown(annotations.source)} has annotations of none of the {len(sources)} images; are the names the same?"
        )
    found = subject.prepare(read_image(first.path)).found
    numbers, unknown = class_numbers(annotations, subject.classes(found))
    return Evaluation(subject, shuffled, annotations, numbers, steps), unknown
