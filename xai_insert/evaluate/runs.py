"""A run over images: measuring the maps of one model, or comparing those of two."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xai_insert.evaluate import page
from xai_insert.evaluate.annotations import listed
from xai_insert.evaluate.compare import Comparison
from xai_insert.evaluate.errors import AnnotationError
from xai_insert.evaluate.evaluation import Evaluation
from xai_insert.evaluate.measure import MEASURES
from xai_insert.evaluate.subject import Subject
from xai_insert.evaluate.summary import Spread, Summary, table
from xai_insert.evaluate.worst import Worst
from xai_insert.explain import files
from xai_insert.explain.draw import Image
from xai_insert.explain.errors import ImageFileError, RunError
from xai_insert.explain.files import Source, read_image, shown
from xai_insert.explain.ordered import side_by_side
from xai_insert.files import printable

_ON_TERMINAL = 10
_FORMAT = 1
FIGURES = ("evaluation.json", "comparison.json")


class Run:
    """Images that are measured, and what came of it.

    Args:
        title: heading of the page.
        facts: what the page says about the run.
        measure: gives the record of one image; called from several threads.
        badness: judges a record, the lower the worse.
        workers: images at once.

    Attributes:
        count: images that were measured.
        failed: images that could not be.
    """

    def __init__(
        self,
        title: str,
        facts: Mapping[str, str],
        measure: Callable[[Source], dict[str, Any]],
        badness: Callable[[Mapping[str, Any]], float],
        workers: int,
    ) -> None:
        self._title, self._facts, self._measure, self._workers = title, facts, measure, workers
        self._worst = Worst(badness)
        self.count = self.failed = 0

    def over(self, sources: Sequence[Source], tell: Callable[[str], None]) -> None:
        """Measure all images.

        Args:
            sources: the images.
            tell: called with what is wrong with an image, which is left out then.

        Raises:
            XaiInsertError: not one could be measured, or a model cannot be run.
        """
        for measured, error in side_by_side(self._measured, sources, self._workers):
            if measured is None:
                self.failed += 1
                tell(str(error))
                continue
            self.count += 1
            self._worst.add(measured)
            self.add(measured)
        if not self.count:
            raise ImageFileError("not one of the images could be measured")

    def _measured(self, source: Source) -> tuple[dict[str, Any] | None, str | None]:
        try:
            return self._measure(source), None
        except (ImageFileError, AnnotationError) as err:
            return None, str(err)

    def write(self, output: Path) -> None:
        """Write the figures, the images from the worst on, and the page.

        Raises:
            RunError: a file cannot be written.
        """
        files.make_folder(output)
        name, figures = self.figures()
        data = {"version": _FORMAT, "about": self._facts, **figures, "failed": self.failed}
        files.write(output / name, json.dumps(data, indent=1, allow_nan=False).encode())
        self._worst.write(output / "images.jsonl")
        cards = (self.card(record) for record in self._worst.shown())
        head, rows = self.table()
        page.write(output / "index.html", self._title, self._facts, self.verdicts(), head, rows, cards)

    def text(self) -> str:
        """For the terminal."""
        head, rows = self.table()
        return "\n".join([table(head, rows), *self.verdicts()])

    def add(self, measured: dict[str, Any]) -> None:
        """Take the figures of one image in."""
        raise NotImplementedError

    def figures(self) -> tuple[str, dict[str, Any]]:
        """The name of the file of figures, and what it holds."""
        raise NotImplementedError

    def table(self) -> tuple[Sequence[str], list[tuple[str, Sequence[str]]]]:
        """Its head and rows."""
        raise NotImplementedError

    def card(self, record: Mapping[str, Any]) -> page.Card:
        """An image on the page."""
        raise NotImplementedError

    def verdicts(self) -> list[str]:
        """What the figures say, a sentence each."""
        return []

    def verdict(self) -> str | None:
        """Why the run is a failure."""
        return None

    def notes(self) -> list[str]:
        """What was left out."""
        return []


class EvaluationRun(Run):
    """Measures the maps of one model.

    Args:
        title: see `Run`.
        facts: see `Run`.
        evaluation: what is measured.
        unknown: annotated classes that the model does not know.
        no_sanity: why there is no map of shuffled weights; None if there is one.
    """

    def __init__(
        self,
        title: str,
        facts: Mapping[str, str],
        evaluation: Evaluation,
        unknown: Sequence[str] = (),
        no_sanity: str | None = None,
    ) -> None:
        super().__init__(title, facts, evaluation.measure, self._badness, evaluation.subject.workers + 1)
        self.evaluation, self.summary = evaluation, Summary()
        self._unknown, self._no_sanity = unknown, no_sanity
        self._annotated = self._without_object = 0

    def _badness(self, record: Mapping[str, Any]) -> float:
        figures = record["maps"].get(self.evaluation.subject.method, {})
        return float(figures.get("arcc", figures.get("energy", 1.0)))

    def add(self, measured: dict[str, Any]) -> None:
        self.summary.add(measured)
        self._annotated += measured["annotated"]
        self._without_object += measured["label"] is None

    def figures(self) -> tuple[str, dict[str, Any]]:
        return FIGURES[0], self.summary.as_dict()

    def table(self) -> tuple[Sequence[str], list[tuple[str, Sequence[str]]]]:
        return [f"{self.count} images", *self.summary.maps], list(self.summary.rows())

    def card(self, record: Mapping[str, Any]) -> page.Card:
        subject = self.evaluation.subject
        picture = _overlay(subject, record)
        figures = record["maps"].get(subject.method, {})
        told = [f"{MEASURES[key].name} {value:.2f}" for key, value in figures.items()]
        label = "nothing found" if record["label"] is None else f"{record['label']} {record['score']:.2f}"
        return page.Card(record["source"], [label, ", ".join(told)], [("the map", picture)])

    def verdicts(self) -> list[str]:
        if not self.summary.sanity.count:
            return []
        found = self.summary.sanity
        return [
            f"sanity: the map correlates by {found.text()} with that of the same network with shuffled weights; near 1 "
            "it would say nothing of what was learned"
        ]

    def notes(self) -> list[str]:
        found = [f"classes unknown to the model are left out: {listed(self._unknown)}"] if self._unknown else []
        if self.evaluation.annotations is not None and self._annotated < self.count:
            found.append(f"{self.count - self._annotated} images have no annotations")
        if self._without_object:
            found.append(f"nothing is found in {self._without_object} images, whose maps explain nothing")
        return found + ([f"no map of shuffled weights: {self._no_sanity}"] if self._no_sanity else [])


class ComparisonRun(Run):
    """Compares the maps of two models.

    Args:
        title: see `Run`.
        facts: see `Run`.
        comparison: the models.
        fail_under: least mean correlation; None if any will do.
    """

    def __init__(
        self, title: str, facts: Mapping[str, str], comparison: Comparison, fail_under: float | None = None
    ) -> None:
        super().__init__(title, facts, comparison.measure, _correlation, comparison.first.workers + 1)
        self.comparison, self._fail_under = comparison, fail_under
        self.correlation, self.distance, self.same = Spread(), Spread(), Spread()

    def add(self, measured: dict[str, Any]) -> None:
        self.correlation.add(measured["correlation"])
        self.distance.add(measured["peak_distance"])
        self.same.add(float(measured["is_same_class"]))

    def figures(self) -> tuple[str, dict[str, Any]]:
        figures = {"correlation": self.correlation, "peak_distance": self.distance, "same_class": self.same}
        found: dict[str, Any] = {key: spread.as_dict() for key, spread in figures.items()}
        return FIGURES[1], {"images": self.count, **found, "fail_under": self._fail_under}

    def table(self) -> tuple[Sequence[str], list[tuple[str, Sequence[str]]]]:
        rows: list[tuple[str, Sequence[str]]] = []
        for record in self._worst.shown()[:_ON_TERMINAL]:
            classes = f"{record['label']} / {record['other_label']}"
            rows.append(
                (record["name"], [f"{record['correlation']:.4f}", f"{record['peak_distance']:.3f}", printable(classes)])
            )
        rows.append(("mean", [self.correlation.text(), self.distance.text(), f"{self.same.mean:.1%} the same"]))
        return ["worst images first", "correlation", "peak distance", "predicted"], rows

    def card(self, record: Mapping[str, Any]) -> page.Card:
        lines = [
            f"correlation {record['correlation']:.4f}, peaks {record['peak_distance']:.3f} of the diagonal apart",
            f"{record['label']} {record['score']:.2f}; the other predicts {record['other_label']}",
        ]
        both = (("the model", self.comparison.first), ("against", self.comparison.second))
        return page.Card(record["source"], lines, [(caption, _overlay(subject, record)) for caption, subject in both])

    def verdict(self) -> str | None:
        if self._fail_under is None or self.correlation.mean >= self._fail_under:
            return None
        return (
            f"the maps agree too little: mean correlation {self.correlation.mean:.4f} on {self.count} images, wanted "
            f"{self._fail_under:g} (--fail-under)"
        )


def _correlation(record: Mapping[str, Any]) -> float:
    return float(record["correlation"])


def _overlay(subject: Subject, record: Mapping[str, Any]) -> Image:
    found = subject.explained(read_image(Path(record["source"])))
    which = record["class_id"]
    return found.overlay(which if which is not None and which >= 0 else None)


def require_own(output: Path) -> None:
    """Refuse a folder whose page is not of an earlier run.

    Raises:
        RunError: it is not.
    """
    if (output / "index.html").exists() and not any((output / name).exists() for name in FIGURES):
        raise RunError(f"{shown(output)} has an index.html that is not of an earlier evaluation; give another folder")
