"""Classifiers: one score per class and image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from xai_insert.errors import TargetNotFoundError, UnsupportedTaskError
from xai_insert.graph.cuts import activations
from xai_insert.graph.view import Graph, Value
from xai_insert.locate.anomaly import is_distance, is_least_place
from xai_insert.locate.classifier import ClassifierParts, Wanted, locate_classifier
from xai_insert.locate.embedding import holds_direction, may_be_embedding, parts_with_a_box
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.locate.lengths import is_normalised
from xai_insert.locate.logits import Logits, beside_scores, find_logits, no_class_scores, scored_outputs, takes_least
from xai_insert.locate.texts import texts_read
from xai_insert.methods.reading import Reading
from xai_insert.tasks.base import Found, NotMine, Study, Task

_FLOATS = ("float16", "float32", "float64", "bfloat16")
_NAMED = 3  # outputs
_OF_MASKS = frozenset({"form", "mask_batch", "block", "kernel"})
"""Options with which a user asks for a map by masks."""


@dataclass(frozen=True)
class FoundClassifier(Found):
    """A classifier.

    Attributes:
        parts: what was located in it.
        instead: why there is no map of every class, where a map by derivatives takes its place; empty if there is.
        reading: what is made of its vector, where that holds no scores of classes; None if it does.
        decided: names of the options that said what the vector is.
        note: what else the model may be, for people.
    """

    task = "classification"
    methods: ClassVar[tuple[str, ...]] = ("vit-recipro-cam", "recipro-cam")
    kin = frozenset(methods)
    parts: ClassifierParts
    instead: str = ""
    reading: Reading | None = None
    decided: frozenset[str] = frozenset()
    note: str = ""

    @property
    def maps(self) -> int | None:
        """How many maps an image has; None if that is told while the model runs."""
        return self.parts.logits.classes if self.reading is None else self.reading.count

    @property
    def frame(self) -> Frame:
        return self.parts.target.frame

    def placed(self) -> Sequence[FeatureMap]:
        return [self.parts.target, *self.parts.streams]

    def pooled(self) -> Value | None:
        return self.parts.pooled

    @property
    def score_at(self) -> int | None:
        """Which output is the one score of an anomaly detector; None for all else."""
        return None

    def describe(self) -> dict[str, Any]:
        logits, target = self.parts.logits, self.parts.target
        return {
            "logits": {
                "output": logits.output_name,
                "name": logits.value.name,
                "shape": logits.value.shape,
                "classes": self.maps,
                "note": self.note,
            },
            "target": target.describe() | {"masked": []},
        }


@dataclass(frozen=True)
class FoundDistance(FoundClassifier):
    """An anomaly detector that gives one number for an image, how far it is from what is normal, and no map.

    Attributes:
        number: which output that is.
    """

    task = "anomaly detection"
    number: int = 0

    @property
    def score_at(self) -> int | None:
        return self.number


class Unmasked(FoundClassifier):
    """A classifier of which Recipro-CAM has no map."""

    methods = ("hirescam",)
    kin = frozenset()


class Classification(Task):
    """One score per class and image."""

    rank = 50
    takes = frozenset({"target_layer"})

    def recognise(self, study: Study) -> FoundClassifier | NotMine:
        graph, options = study.graph, study.options
        if not scored_outputs(graph, image_inputs(graph), options.output):
            return NotMine(no_class_scores(graph))
        logits = find_logits(graph, image_inputs(graph), options.output)
        if options.num_classes == logits.classes:
            return _with_target(study, logits, frozenset({"num_classes"}), _why_least(study, logits))
        return _unstated(study, logits)


def _with_target(study: Study, logits: Logits, decided: frozenset[str], note: str) -> FoundClassifier:
    """The classifier with the map that is explained: by masks, or else by derivatives."""
    options = study.options
    try:
        return FoundClassifier(located(study, logits), decided=decided, note=note)
    except TargetNotFoundError as err:
        if study.wanted is not Wanted.ANY or options.target_layer is not None or options.on_purpose & _OF_MASKS:
            raise
        try:
            parts = located(study, logits, Wanted.DERIVATIVE)
        except TargetNotFoundError:
            raise err from None
        return Unmasked(parts, str(err), decided=decided, note=note)


def _other_reading(graph: Graph, logits: Logits) -> str:
    """What a vector is or may be, if not scores of classes; empty where nothing speaks for it."""
    if holds_direction(logits.value):
        return (
            "a part of its numbers is divided by its length, as a direction or a rotation is: no classes, but the map "
            "of each number shows what raises it"
        )
    if parts := parts_with_a_box(logits.value):
        return (
            f"joined of {' and '.join(map(str, parts))} numbers: if four are a box, these are no classes; a map shows "
            "what raises its number"
        )
    if may_be_embedding(graph, logits):
        return f"taken for scores of {logits.classes} classes; if it is an embedding: --reference or --class-embeddings"
    return ""


def _read_with_text(text: Value, logits: Logits) -> str:
    return (
        f"not a classifier of images alone: the scores {logits.value.describe()} are read off the image and the text "
        f"{text.describe()} together, as documents and answers to questions are; --method recipro-cam explains them by "
        "the image, with the text as it is fed"
    )


def _why_least(study: Study, logits: Logits) -> str:
    """What is said of numbers of which the least counts; empty where nothing tells that it does."""
    if takes_least(study.graph, logits.value):
        what = f"the model itself takes the least of the numbers {logits.value.describe()}, as of distances"
        return f"{what}: a map of what raises them is dark where a class is seen"
    if logits.classes == 1 and is_least_place(logits.value, study.places):
        what = (
            f"{logits.value.describe()} is the least of a map of one number for every place, as of how normal each is"
        )
        return f"{what}: a map of what raises it is dark where something is wrong"
    return ""


def located(study: Study, logits: Logits, wanted: Wanted | None = None) -> ClassifierParts:
    """What is explained where `logits` stand for the class scores.

    Args:
        study: the model.
        logits: a vector for each image.
        wanted: what is read; None for what the method that was asked for reads.

    Raises:
        XaiInsertError: see `locate_classifier`; or the values are no floating-point numbers.
    """
    parts = locate_classifier(study.graph, study.options, wanted or study.wanted, logits)
    for value in (parts.target.value, parts.logits.value):
        if value.dtype not in _FLOATS:
            raise TargetNotFoundError(
                f"{value.describe()} holds {value.dtype}, wanted floating-point numbers: insert into the model before "
                "it is quantised, or quantise it with QuantizeLinear and DequantizeLinear (QDQ), not QLinearConv"
            )
    return parts


def _unstated(study: Study, logits: Logits) -> FoundClassifier | NotMine:
    """What numbers are that the user has not said to be scores of classes."""
    graph = study.graph
    if study.wanted is Wanted.ANY and (texts := texts_read(graph, logits.value)):
        raise UnsupportedTaskError(_read_with_text(texts[0], logits))
    if is_normalised(logits.value):
        return NotMine(
            f"{logits.value.describe()} ends in a norm over its own elements, as an embedding does: it is no "
            f"classifier; --reference explains it as an embedding, --num-classes {logits.classes} says that it "
            "holds scores of classes"
        )
    if least := _why_least(study, logits):
        raise UnsupportedTaskError(f"{least}; --num-classes {logits.classes} writes it all the same")
    note = _other_reading(graph, logits)
    if logits.classes == 1:
        if is_distance(logits.value) and not _is_of_two(graph, logits.value):
            number = list(graph.output_names).index(logits.output_name)
            return FoundDistance(located(study, logits), number=number)
        note = "one number for each image: the map shows what raises it, be it a class, an anomaly or a measure"
    notes = (note, what_else(study, logits))
    return _with_target(study, logits, frozenset(), "; ".join(filter(None, notes)))


def _is_of_two(graph: Graph, value: Value) -> bool:
    """Whether a value is made of two images and more, as how far one is from the other."""
    images = image_inputs(replace(graph, watched=None))
    return sum(value in activations(graph, [image]) for image in images) > 1


def what_else(study: Study, logits: Logits) -> str:
    """Which other outputs nothing is said of, for who did not choose one; empty where there are none."""
    aside = [] if study.options.output else beside_scores(study.graph, logits.value)
    if not aside:
        return ""
    others = ", ".join(aside[:_NAMED]) + (" and more" if len(aside) > _NAMED else "")
    return f"explained is output {logits.output_name!r} alone, not {others}; --output or --method chooses another"


TASK = Classification()
