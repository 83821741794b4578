"""Anomaly detectors: how far every place of the image is from what is normal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xai_insert.locate.anomaly import AnomalyMap, find_anomaly_map, may_be_anomalies
from xai_insert.locate.classifier import Wanted
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.tasks.base import Found, NotMine, Study, Task


@dataclass(frozen=True)
class FoundAnomaly(Found):
    """An anomaly detector.

    Attributes:
        parts: its map, and the outputs beside it.
        name: the output that is the map, or its mask.
    """

    task = "anomaly detection"
    methods = ("anomaly-map",)
    may_be_empty = True  # all of a random image may be far over the threshold, or far below
    parts: AnomalyMap
    name: str

    @property
    def frame(self) -> Frame:
        return self.parts.feature.frame

    def placed(self) -> Sequence[FeatureMap]:
        return [self.parts.unbounded]

    def describe(self) -> dict[str, Any]:
        feature = self.parts.feature
        return {
            "logits": {"output": self.name, "name": feature.value.name, "shape": feature.shape, "classes": 1},
            "target": feature.describe() | {"masked": []},
        }


class Anomaly(Task):
    """One number for every place of the image, and one for all of it."""

    rank = 5  # before instance segmenters, which have masks and scores too

    def is_likely(self, study: Study) -> bool:
        if not may_be_anomalies(study.graph):
            return False
        found = find_anomaly_map(study.graph, study.places, study.options.output)
        return found is not None and found.is_sure

    def recognise(self, study: Study) -> FoundAnomaly | NotMine:
        found = find_anomaly_map(study.graph, study.places, study.options.output)
        if found is None or (not found.is_sure and study.wanted is Wanted.ANY):
            return NotMine("")  # one number for every place may be a depth or a mask as well
        return FoundAnomaly(found, study.graph.output_names[found.output])


TASK = Anomaly()
