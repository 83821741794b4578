"""Semantic segmenters: class scores for every place of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xai_insert.errors import UnsupportedTaskError
from xai_insert.graph.cuts import activations
from xai_insert.graph.operators import Resized
from xai_insert.graph.view import Graph
from xai_insert.locate.classifier import Wanted
from xai_insert.locate.inputs import image_inputs, image_size, sized_axes
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.locate.segmenter import Segmenter, find_segmenter, may_segment
from xai_insert.tasks.base import Found, NotMine, Study, Task


@dataclass(frozen=True)
class FoundSegmenter(Found):
    """A semantic segmenter.

    Attributes:
        parts: its class scores.
        name: the output that they lead to.
        read: what the layer reads that gives them; None if that is no map.
        masked: the map whose places a method masks; None where what is shown lies as the scores do.
        is_laid_out: whether the model lays its output over the whole image, corners on corners on the way. By the
            places of its coarse cells such scores lie a part of a cell further inside, which training makes up for.
    """

    task = "semantic segmentation"
    methods = ("class-score-map",)
    parts: Segmenter
    name: str
    read: FeatureMap | None
    is_laid_out: bool = False
    masked: FeatureMap | None = None

    @property
    def shown(self) -> FeatureMap:
        """The map on whose grid the places are explained."""
        return self.masked or self.parts.scores

    @property
    def frame(self) -> Frame:
        return self.shown.frame

    def placed(self) -> Sequence[FeatureMap]:
        return [self.shown]

    def features(self) -> Sequence[FeatureMap]:
        return [] if self.read is None else [self.read]

    def describe(self) -> dict[str, Any]:
        scores, masked = self.parts.scores, self.masked
        return {
            "logits": {
                "output": self.name,
                "name": scores.value.name,
                "shape": scores.shape,
                "classes": self.parts.classes,
            },
            "target": self.shown.describe() | {"masked": [] if masked is None else [masked.value.name]},
        }


class Segmentation(Task):
    """Class scores for every place of the image."""

    rank = 95  # behind detectors, whose heads look like this where nothing compares or resizes their scores

    def is_likely(self, study: Study) -> bool:
        given = [value for _, value in study.graph.chosen(study.options.output)]
        if study.options.num_classes is not None or not may_segment(given):
            return False  # a number of classes is for detectors that return their heads undecoded
        found = find_segmenter(study.graph, study.places, study.options.output)
        return found is not None and _is_sure(study.graph, found)

    def recognise(self, study: Study) -> FoundSegmenter | NotMine:
        found = find_segmenter(study.graph, study.places, study.options.output)
        if found is None:
            return NotMine(_several(study) or _open_sides(study))
        if not _is_sure(study.graph, found) and study.wanted is Wanted.ANY:
            value = found.scores.value
            if found.classes == 1:
                return NotMine("")  # depth, a mask, a heat map
            return NotMine(
                f"{value.describe()} is {found.classes} values for every place of the image, which may be classes as "
                "well as colours (super-resolution, restoration), normals, an optical flow, features, or boxes; "
                "--method class-score-map says that they are classes"
            )
        if found.takes_least and study.wanted is Wanted.ANY:
            raise UnsupportedTaskError(
                f"the model itself takes the least of the numbers {found.scores.value.describe()}, as of distances: a "
                "map of them is dark where a class is seen; --method class-score-map writes it all the same"
            )
        source = found.source
        read = None if source is None else study.places.map_of(source)
        return FoundSegmenter(found, study.graph.output_names[found.output], read, _is_laid_out(study.graph, found))


def _is_sure(graph: Graph, found: Segmenter) -> bool:
    """Whether scores are of classes, and no new values of the image, as denoisers steered by a step or a text give."""
    if found.compares or not found.is_sure:
        return found.is_sure
    images = image_inputs(graph)
    steered = activations(graph, [value for value in graph.inputs if value not in images])
    as_many = {images[0].sizes[axis] for axis in range(1, images[0].axis_count)} - {*sized_axes(images[0])}
    return found.scores.value not in steered and found.classes not in as_many


def _is_laid_out(graph: Graph, found: Segmenter) -> bool:
    image, given = image_inputs(graph)[0], graph.outputs[found.output].sizes
    sides = tuple(size for axis, size in enumerate(given) if axis not in (0, found.class_axis))
    reached = activations(graph, [image])
    corners = [node for node in graph.nodes if isinstance(node.kind, Resized) and node.kind.corners]
    return sides == image_size(image) and any(node.output in reached for node in corners)


def _several(study: Study) -> str:
    """Which outputs are class scores each of its own, as of a head that helps in training; nothing if not all are."""
    names = study.graph.output_names
    if len(names) < 2 or study.options.output is not None or not may_segment(study.graph.outputs):
        return ""
    found = [find_segmenter(study.graph, study.places, name) for name in names]
    if not all(item is not None and _is_sure(study.graph, item) for item in found):
        return ""
    listed = ", ".join(f"{name!r}" for name in names)
    return f"semantic segmentation with class scores of its own at each of the outputs {listed}: --output chooses one"


def _open_sides(study: Study) -> str:
    """Why the places of scores cannot be told where the image has open sides and is made into tokens; else nothing."""
    values = study.graph.outputs
    image = image_inputs(study.graph)[0]
    lost = [item for item in values if item.rank == len(image.sizes) and 1 not in item.sizes[-2:]]
    if len(lost) < len(values) or image.sizes[-2:] != (None, None) or any(map(study.places.map_of, values)):
        return ""
    return (
        f"{lost[0].describe()} may be class scores for every place of the image, but which place is lost among tokens "
        f"while height and width are open: fix them, --input-shape {image.name}:1,3,H,W"
    )


TASK = Segmentation()
