"""Classifiers: one score per class and image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from xai_insert.errors import TargetNotFoundError
from xai_insert.graph.view import Value
from xai_insert.locate.classifier import Classifier, Wanted, locate_classifier
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.locate.logits import no_class_scores, scored_outputs
from xai_insert.tasks.base import Found, NotMine, Study, Task

_FLOATS = ("float16", "float32", "float64", "bfloat16")
_OF_MASKS = frozenset({"form", "mask_batch", "block", "kernel"})
"""Options with which a user asks for a map by masks."""


@dataclass(frozen=True)
class FoundClassifier(Found):
    """A classifier.

    Attributes:
        parts: what was located in it.
        instead: why there is no map of every class, where a map by derivatives takes its place; empty if there is.
    """

    task = "classification"
    methods: ClassVar[tuple[str, ...]] = ("vit-recipro-cam", "recipro-cam")
    kin = frozenset(methods)
    parts: Classifier
    instead: str = ""

    @property
    def frame(self) -> Frame:
        return self.parts.target.frame

    def placed(self) -> Sequence[FeatureMap]:
        return [self.parts.target, *self.parts.streams]

    def pooled(self) -> Value | None:
        return self.parts.pooled

    def describe(self) -> dict[str, Any]:
        logits, target = self.parts.logits, self.parts.target
        return {
            "logits": {
                "output": logits.output_name,
                "name": logits.value.name,
                "shape": logits.value.shape,
                "classes": logits.classes,
            },
            "target": target.describe() | {"masked": [], "rectangle": target.frame.rectangle},
        }


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
        instead, kind = "", FoundClassifier
        try:
            parts = locate_classifier(graph, options, study.wanted)
        except TargetNotFoundError as err:
            if study.wanted is not Wanted.ANY or options.target_layer is not None or options.on_purpose & _OF_MASKS:
                raise
            try:
                parts = locate_classifier(graph, options, Wanted.DERIVATIVE)
            except TargetNotFoundError:
                raise err from None
            instead, kind = str(err), Unmasked
        for value in (parts.target.value, parts.logits.value):
            if value.dtype not in _FLOATS:
                raise TargetNotFoundError(
                    f"{value.describe()} holds {value.dtype}, wanted floating-point numbers; is the file whole?"
                )
        return kind(parts, instead)


TASK = Classification()
