"""Instance segmenters: boxes, classes and masks among the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import ModelFileError, UnsupportedTaskError
from xai_insert.feeds import feeds_of
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.proportion import require_proportion
from xai_insert.graph.view import Graph, Op, Value
from xai_insert.locate.classifier import Wanted
from xai_insert.locate.inputs import image_axes, image_inputs
from xai_insert.locate.instances import locate_instances, may_hold_masks
from xai_insert.locate.instances.classes import ClassHead, find_class_head
from xai_insert.locate.instances.frames import frame_of_masks
from xai_insert.locate.instances.kinds import (
    Found as Layout,
)
from xai_insert.locate.instances.kinds import (
    ListedInstances,
    LocationInstances,
    QueryInstances,
    Sample,
)
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.locate.regions import drawn_maps
from xai_insert.tasks.base import Found, NotMine, Study, Task

Feeds = dict[str, npt.NDArray[Any]]
_SURE = 8.0  # a logit that leaves the other classes nothing


@dataclass(frozen=True)
class FoundInstances(Found):
    """An instance segmenter.

    Attributes:
        layout: how its outputs hold boxes, classes and masks.
        classes: their number.
        image: its input.
        axes: those of the input's height and width.
        drawn: maps that lie in the image as the masks do.
        turned: how the masks lie in it.
    """

    task = "instance segmentation"
    methods = ("instance-masks",)
    may_be_empty = True
    layout: Layout
    classes: int
    image: Value
    axes: tuple[int, int]
    drawn: Sequence[FeatureMap] = ()
    turned: Frame = field(default_factory=Frame)

    def placed(self) -> Sequence[FeatureMap]:
        return self.drawn

    def describe(self) -> dict[str, Any]:
        scores = self.layout.scored
        return {
            "logits": {
                "output": scores.name,
                "name": scores.value.name,
                "shape": scores.value.shape,
                "classes": self.classes,
            }
        }


class InstanceSegmentation(Task):
    """Masks of objects with classes."""

    rank = 10
    takes = frozenset({"per_box"})

    def is_likely(self, study: Study) -> bool:
        del study
        return True  # a detector's outputs with masks beside them are no detector's

    def recognise(self, study: Study) -> FoundInstances | NotMine:
        graph, loaded = study.graph, study.loaded
        listed = ", ".join(value.describe() for value in graph.outputs)
        none = NotMine(f"no instances with masks among the outputs: wanted boxes, classes and masks, found {listed}")
        if _is_of_detectors(study) or not may_hold_masks(graph):
            return none
        require_proportion(graph)
        image = image_inputs(graph)[0]
        feeds, arrays = _look(loaded.runner())
        samples = _samples(graph, arrays)
        axes = image_axes(image)
        looked_at = next(array.shape for array in feeds.values() if array.ndim == len(image.sizes))
        layout = locate_instances(graph, samples, (looked_at[axes[0]], looked_at[axes[1]]), study.options.num_classes)
        if layout is None:
            return none
        classes = study.options.num_classes or _classes(loaded, layout, feeds)
        drawn = drawn_maps(graph, [image], layout.drawn.value)
        turned = frame_of_masks(graph, study.places, layout, drawn)
        return FoundInstances(layout, classes, image, axes, drawn, turned)


def _is_of_detectors(study: Study) -> bool:
    """Whether maps of boxes are wanted, and the boxes are a detector's: those of segmenters that pool no regions."""
    if not study.options.per_box or study.wanted is not Wanted.ANY:
        return False
    return not any(node.op is Op.ROI_ALIGN for node in study.graph.nodes)


def _samples(graph: Graph, arrays: Sequence[npt.NDArray[Any]]) -> list[Sample]:
    """The outputs with what a run gave.

    Raises:
        ModelFileError: one has another number of axes than its file says.
    """
    samples = [Sample(*item) for item in zip(graph.output_names, graph.outputs, arrays, strict=True)]
    for sample in samples:
        if sample.value.rank not in (None, sample.array.ndim):
            raise ModelFileError(f"output {sample.value.describe()} is {list(sample.shape)} when run")
    return samples


def _look(runner: Runner) -> tuple[Feeds, list[npt.NDArray[Any]]]:
    """Outputs for a random image, on which something is found if possible, and that image."""
    rng = np.random.default_rng(0)
    noise = feeds_of(runner.inputs, rng)
    outputs = runner.run(noise)
    if all(output.size for output in outputs):
        return noise, outputs
    louder = {name: np.abs(array * 64).astype(array.dtype) for name, array in noise.items()}
    return louder, runner.run(louder)


def _classes(loaded: LoadedModel, found: Layout, feeds: Feeds) -> int:
    """Number of classes, read off the layer that scores them.

    Raises:
        UnsupportedTaskError: it cannot be told.
    """
    if isinstance(found, LocationInstances):
        width = found.predictions.shape[2 if found.channels_last else 1]
        return width - 4 - found.has_objectness - found.prototypes.shape[1]
    if isinstance(found, QueryInstances):
        return found.scores.shape[2] - found.has_no_object
    head = find_class_head(found.scored.value)
    if head is None:
        raise UnsupportedTaskError(
            f"no class head leads to the scores {found.scored.describe()}; give the number of classes: --num-classes"
        )
    if isinstance(found, ListedInstances) and head.is_exclusive:
        return _labels_of(loaded, head, found.labels, feeds) or head.width
    return head.width


def _labels_of(loaded: LoadedModel, head: ClassHead, labels: Sample, feeds: Feeds) -> int:
    """One more than the highest label: a background may be the first or the last score, and labels begin at 0 or 1.

    The model is asked: with the last score, or the one before it, raised everywhere, it reports that class.
    """
    logits = loaded.between([], [head.logits.native]).run(feeds)[0]
    runner = loaded.between([head.logits], [labels.value.native])
    names = [name for name, _, _ in runner.inputs]
    highest = -1
    for raised in (head.width - 1, head.width - 2):
        changed = np.full_like(logits, -_SURE)
        np.moveaxis(changed, head.axis, -1)[..., raised] = _SURE
        reported = runner.run(dict(zip(names, [changed, *feeds.values()], strict=True)))[0]
        highest = max(highest, int(reported.max(initial=-1)))
    return highest + 1


TASK = InstanceSegmentation()
