"""The class map by its definition, from scores whose place is known, and the verdict on an inserted detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from model_zoo_fixtures.testbed.detection_oracle import definition
from model_zoo_fixtures.testbed.nets.graph import Array
from model_zoo_fixtures.testbed.nets.oracle import TOLERANCE, Verdict, compiled, distance, session
from xai_insert import Options, insert
from xai_insert.errors import XaiInsertError


@dataclass(frozen=True)
class Part:
    """Class scores of some anchors of one level.

    Attributes:
        value: name of the value that holds them.
        read: what makes `[B, anchors, K, h, w]` of it.
    """

    value: str
    read: Callable[[Array], Array]


Level = tuple[Part, ...]  # of one grid
Reading = tuple[Level, ...]  # from the finest level to the coarsest


@dataclass(frozen=True)
class Sample:
    """A generated detector, or what looks like one, with what is right for it.

    Attributes:
        seed: what it was generated from.
        tags: the kinds it is made of.
        model: as built.
        readings: the class scores; several where one reading is as good as another. Empty: no class has scores.
        features: what is right where no location has class scores, `[B, h, w]`.
        classes: as the heads count them, a background included.
        told: what a user would say of their number.
        backgrounds: what may be said of the background.
        first_label: label that the outputs give to class 0 of the heads; None if no output holds labels.
        image: sizes of one image.
        batch: how many images the model is run on.
        refusal_ok: whether to refuse is as good as a map.
        beside: other inputs.
        tasks: what else than detection it may be taken for; that map is judged elsewhere.
    """

    seed: int
    tags: tuple[str, ...]
    model: onnx.ModelProto
    readings: tuple[Reading, ...]
    features: tuple[Part, ...]
    classes: int
    told: int
    backgrounds: tuple[int | None, ...]
    first_label: int | None
    image: tuple[int, ...]
    batch: int
    refusal_ok: bool
    beside: dict[str, Array]
    tasks: tuple[str, ...] = ()

    def feeds(self) -> dict[str, Array]:
        """The images, and what else the model takes."""
        return {"image": self.images(), **self.beside}

    def images(self) -> Array:
        """Noise, of another strength at every place."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.standard_normal((self.batch, *self.image)).astype(np.float32)

    def maps(self) -> list[Array]:
        """What is right, `[B, K, h, w]` each; `[B, h, w]` where it is no map of classes."""
        names = [part.value for reading in self.readings for level in reading for part in level]
        names += [part.value for part in self.features]
        known = _values(self.model, [*dict.fromkeys(names)], self.feeds())
        right = []
        for reading in self.readings:
            levels, anchors = [], []
            for level in reading:
                scores = np.concatenate([part.read(known[part.value]) for part in level], 1)
                anchors.append(scores.shape[1])
                levels.append(scores.reshape(len(scores), -1, *scores.shape[3:]))
            right.append(definition(levels, anchors, self.classes))
        return right + [part.read(known[part.value]) for part in self.features]


def judge(sample: Sample, convert: Callable[[onnx.ModelProto], Any] = lambda model: model) -> Verdict:
    """Insert and compare with the oracle. `convert` makes the other format.

    A refusal that says that the number of classes decides is tested: with it, no map may be wrong.
    """
    model = convert(sample.model)
    if not isinstance(model, onnx.ModelProto) and not _agrees(sample, model):
        return Verdict(sample, "unjudged", "the runtime gives other predictions for the plain model")
    first = _judged(sample, model, Options(output_dtype="f32"))
    if first.judgement == "refused" and "--num-classes" in first.reason and sample.readings:
        again = convert(sample.model)
        told = _judged(sample, again, Options(output_dtype="f32", num_classes=sample.told))
        if told.judgement == "wrong":
            return Verdict(sample, "wrong", f"with --num-classes {sample.told}: {told.reason}")
    return first


def _judged(sample: Sample, model: Any, options: Options) -> Verdict:
    try:
        result = insert(model, options)
    except XaiInsertError as error:
        return Verdict(sample, "refused", str(error).splitlines()[0])
    except Exception as error:  # a traceback is a fault of its own kind, and never a refusal
        return Verdict(sample, "wrong", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    report = result.report
    heads = [f"{head['name']} {head['shape']} as {head['anchors']} x {head['classes']}" for head in report.heads]
    found = ", ".join([report.method, *(heads or [f"{report.target.get('name')}"])])
    if report.task in sample.tasks:
        return Verdict(sample, "right", found)
    if not sample.readings and not sample.features:
        return Verdict(sample, "wrong", f"{found}: no map is right")
    try:
        drawn = saliency(result.model, sample.feeds())
    except Exception as error:
        return Verdict(sample, "wrong", f"{found}: does not run, {type(error).__name__}: {str(error)[:200]}")
    nearest = min((distance(drawn, right) for right in sample.maps()), default=np.inf)
    if nearest > 1:
        return Verdict(sample, "wrong", f"{found}: differs by {nearest * TOLERANCE:.1e} of its range, {drawn.shape}")
    if report.method != "det-class-probability-map":
        return Verdict(sample, "right" if sample.features else "wrong", found)
    return _named(sample, report.background, _first_label(result.model), found)


def _named(sample: Sample, background: int | None, label: int | None, found: str) -> Verdict:
    """The verdict on what is said of classes beside the map."""
    if background not in sample.backgrounds:
        wanted = " or ".join(map(str, sample.backgrounds))
        return Verdict(sample, "wrong", f"{found}: background {background}, right is {wanted}")
    if label is not None and label != sample.first_label:
        return Verdict(sample, "wrong", f"{found}: first label {label}, right is {sample.first_label}")
    return Verdict(sample, "right", "" if label == sample.first_label else "no first label")


def _first_label(model: Any) -> int | None:
    if isinstance(model, onnx.ModelProto):
        text = next((entry.value for entry in model.metadata_props if entry.key == "xai_insert.first_label"), None)
    else:
        path = ["xai_insert", "first_label"]
        text = str(model.get_rt_info(path).astype(str)) if model.has_rt_info(path) else None
    return None if text is None else int(text)


def _values(model: onnx.ModelProto, names: Sequence[str], feeds: dict[str, Array]) -> dict[str, Array]:
    if not names:
        return {}
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.output[:]
    twin.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return dict(zip(names, session(twin).run(None, feeds), strict=True))


def saliency(model: Any, feeds: dict[str, Array]) -> Array:
    """The map of an inserted model."""
    if isinstance(model, onnx.ModelProto):
        return session(model).run(["saliency_map"], feeds)[0]
    return np.array(compiled(model)(feeds)["saliency_map"])


def _agrees(sample: Sample, model: Any) -> bool:
    """Whether another runtime gives the same; a selection may be in another order where scores are alike."""
    expected = session(sample.model).run(None, sample.feeds())
    given = compiled(model)(sample.feeds())
    for index, array in enumerate(expected):
        other, least = np.array(given[index]), 1e-3 * float(np.abs(array).max(initial=1e-6))
        comparable = other.shape == array.shape and array.dtype.kind == "f" and array.ndim > 2
        if comparable and not np.allclose(other, array, rtol=1e-3, atol=least):
            return False
    return True
