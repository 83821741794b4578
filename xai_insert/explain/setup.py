"""What a run needs to open a model, as plain data that can be sent to another process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from xai_insert.explain.classify import Classifier
from xai_insert.explain.dense import READERS, Reader
from xai_insert.explain.detect import TASKS, THRESHOLD, Finder
from xai_insert.explain.explained import ScoreMeaning, Selection
from xai_insert.explain.feed import Feeder
from xai_insert.explain.keypoints import KEYPOINTS, Joints
from xai_insert.explain.preprocessing import LAYOUTS, RESIZES, from_metadata
from xai_insert.explain.runtime import RUNTIMES, Engine, RuntimeName, load_settled

ReadyModel = Classifier | Finder | Reader
CHANNELS = ("rgb", "bgr")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def _are_numbers(value: Any) -> bool:
    return _is_number(value) or (_is_sequence(value) and len(value) > 0 and all(map(_is_number, value)))


def _one_of(known: Sequence[str]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in known, f"be one of {', '.join(known)}"


_MUST: dict[str, tuple[Callable[[Any], bool], str]] = {
    "device": (lambda value: isinstance(value, str) and value != "", "be the name of a device, such as CPU"),
    "runtime": _one_of(RUNTIMES),
    "batch_size": (_is_count, "count images, from 1"),
    "threshold": (lambda value: _is_number(value) and 0 <= value <= 1, "lie in 0..1"),
    "labels": (
        lambda value: _is_sequence(value) and all(isinstance(item, str) for item in value),
        "be a sequence of names",
    ),
    "mean": (_are_numbers, "be a number, or one for each channel"),
    "scale": (
        lambda value: _are_numbers(value) and bool(np.all(np.asarray(value) != 0)),
        "be a number, or one for each channel; images are divided by it, so it cannot be 0",
    ),
    "channels": _one_of(CHANNELS),
    "layout": _one_of(LAYOUTS),
    "resize": _one_of(RESIZES),
    "input_size": (
        lambda value: _is_sequence(value) and len(value) == 2 and all(map(_is_count, value)),
        "be height and width",
    ),
    "fed": (
        lambda value: (
            isinstance(value, Mapping) and all(np.asarray(item).dtype.kind in "biuf" for item in value.values())
        ),
        "be arrays by the names of inputs",
    ),
}


def require_choices(given: Mapping[str, Any]) -> None:
    """Refuse choices that no model could be run with.

    Args:
        given: value of each choice, by its name in `Explainer`; None leaves it to the model.

    Raises:
        ValueError: the first that cannot be.
    """
    for name, value in given.items():
        fits, wanted = _MUST[name]
        if value is not None and not fits(value):
            raise ValueError(f"{name} must {wanted}, not {value!r}")


@dataclass(frozen=True)
class Setup:
    """How a model is opened and run.

    Attributes:
        path: `.xml` or `.onnx`.
        runtime: None takes OpenVINO for IR and onnxruntime for ONNX.
        device: as the runtime calls it.
        classes: which maps are wanted, see `Selection.parse`.
        threshold: least score; None takes the usual one of the task.
        labels: class names; None takes the model's own.
        prepared: attributes of `Preprocessing` that are chosen instead of the model's own.
        layout: `NCHW` or `NHWC`; None finds it.
        input_size: height and width where the model leaves them open.
        fed: arrays for other inputs than the image, by name.
    """

    path: Path
    runtime: RuntimeName | None = None
    device: str = "CPU"
    classes: str = "predictions"
    threshold: float | None = None
    labels: tuple[str, ...] | None = None
    prepared: Mapping[str, Any] = field(default_factory=dict)
    layout: str | None = None
    input_size: tuple[int, int] | None = None
    fed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def told_by(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """What tells the arrays that are fed from others: names, digests and shapes."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.fed.items()}
        return [(name, sha256(array.tobytes()).hexdigest(), array.shape) for name, array in arrays.items()]

    def open(self) -> tuple[ReadyModel, Sequence[str]]:
        """The model, ready to run, and what the content of its files is told by.

        Raises:
            ValueError: `classes` is no selection of its classes.
            XaiInsertError: it cannot be read, inserted into or compiled.
        """
        engine, content = load_settled(self.path, self.runtime, self.device, self.fed)
        how = from_metadata(engine.info, engine.by_model_api, self.prepared)
        feeder = Feeder.of(engine.image_input, how, self.layout, self.input_size)
        meaning = ScoreMeaning.from_metadata(engine.info)
        if self.labels is not None:
            meaning = replace(meaning, labels=self.labels, is_told=True)
        selection = Selection.parse(self.classes, meaning.labels)
        return model_of(engine, feeder, meaning, selection, self.threshold), content


def model_of(
    engine: Engine, feeder: Feeder, meaning: ScoreMeaning, selection: Selection, threshold: float | None = None
) -> ReadyModel:
    """What reads the outputs of a model of that task, as its metadata name it.

    Args:
        engine: the compiled model.
        feeder: makes its input from an image.
        meaning: what its scores mean.
        selection: which maps are wanted.
        threshold: least score; None takes the usual one of the task.
    """
    task = engine.about.get("task", "")
    least = THRESHOLD if threshold is None else threshold
    if task == KEYPOINTS:
        return Joints(engine, feeder, meaning, selection, least)
    if (reader := READERS.get(task)) is not None:
        return reader(engine, feeder, meaning, selection)
    if task in TASKS:
        return Finder(engine, feeder, meaning, selection, least)
    if threshold is not None:
        meaning = replace(meaning, threshold=threshold)
    return Classifier(engine, feeder, meaning, selection)
