"""Key points: where in the image each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xai_insert.locate.classifier import Wanted
from xai_insert.locate.keypoints import Bins, HeatMaps, find_keypoints
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.probe.joints import require_order_of_rows
from xai_insert.tasks.base import Found, NotMine, Study, Task


@dataclass(frozen=True)
class FoundKeypoints(Found):
    """A model of key points.

    Attributes:
        parts: its heat maps, or bins.
        names: of the model's outputs.
    """

    task = "keypoints"
    methods = ("keypoint-map",)
    parts: HeatMaps | Bins
    names: Sequence[str]

    @property
    def frame(self) -> Frame:
        return self.parts.frame if isinstance(self.parts, Bins) else self.parts.feature.frame

    def placed(self) -> Sequence[FeatureMap]:
        return [] if isinstance(self.parts, Bins) else [self.parts.feature]  # which bin is where has been learned

    def describe(self) -> dict[str, Any]:
        parts = self.parts
        if isinstance(parts, Bins):
            value, output, grid = parts.columns, parts.outputs[0], parts.grid
            target = {"name": value.name, "shape": value.sizes, "grid": grid, "grid_axes": ()}
        else:
            value, output = parts.feature.value, parts.output or 0
            target = parts.feature.describe()
        return {
            "logits": {
                "output": self.names[output],
                "name": value.name,
                "shape": value.sizes,
                "classes": parts.joints,
            },
            "target": target | {"masked": []},
        }


class Keypoints(Task):
    """A place of the image for each of several points."""

    rank = 6  # before segmenters, whose class scores look like heat maps

    def is_likely(self, study: Study) -> bool:
        if study.options.num_classes is not None:
            return False  # a number of classes is for detectors that return their heads undecoded
        found = find_keypoints(study.graph, study.places, study.options.output)
        return found is not None and found.is_sure

    def recognise(self, study: Study) -> FoundKeypoints | NotMine:
        found = find_keypoints(study.graph, study.places, study.options.output)
        if found is None or (study.wanted is Wanted.ANY and not (found.is_sure and self.is_likely(study))):
            return NotMine("")  # one map for each may be class scores as well
        if isinstance(found, HeatMaps) and found.output is None and found.is_sure:
            require_order_of_rows(study.loaded, study.graph, found)
        return FoundKeypoints(found, list(study.graph.output_names))


TASK = Keypoints()
