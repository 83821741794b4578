"""Activation Map: where the feature is strong, for no class in particular."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xai_insert.errors import AmbiguousModelError, UnsupportedTaskError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, Shape, format_grid, volume
from xai_insert.layouts.record import Layout
from xai_insert.locate.detector import Regions
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.query_attention import WANTED, QueryReport, find_query_report
from xai_insert.locate.region_head import RegionReport
from xai_insert.methods.activation_map import activation_map
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.of_classes import Choice
from xai_insert.methods.of_classifier import NO_CLIPS, ClassifierPlan
from xai_insert.methods.region_maps import region_maps
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import mega
from xai_insert.tasks.known.classification import FoundClassifier
from xai_insert.tasks.known.detection import FoundDetector
from xai_insert.tasks.per_box import (
    BY_ATTENTION,
    OF_REGIONS,
    QueryMethod,
    describe_queries,
    describe_regions,
    per_box_output,
    query_output,
    query_report,
    region_report,
)
from xai_insert.tasks.plan import Branch, Plan

_NAME = "activation-map"


@dataclass(frozen=True)
class MeanPlan(ClassifierPlan):
    """A decision for a classifier's feature map."""

    def add(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options, choice: Choice) -> Any:
        del loaded, graph, options, choice
        return activation_map(surgeon, self.found.parts.target)

    def uses(self) -> frozenset[str]:
        readout = self.found.parts.readout
        used = super().uses() - {"reference", "class_embeddings"}
        return used | ({"block"} if readout is not None and not readout.is_pool else set())


@dataclass(frozen=True)
class RegionsPlan(Plan):
    """A decision for a detector whose features are read by a region head or by queries.

    Attributes:
        read: those features.
        reported: what a map of each reported box is made of; None if it is not wanted.
        by_query: how the map of the box of a query is made.
    """

    read: Regions
    reported: RegionReport | QueryReport | None = None
    by_query: QueryMethod = BY_ATTENTION

    @property
    def keep_float32(self) -> bool:
        return self.reported is not None  # numbers of regions need more than the eight bits of bf16

    @property
    def keeps_batch(self) -> bool:
        return self.by_query.keeps_batch

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        feature = self.read.feature
        follows = feature.is_whole and None not in feature.shape
        follows = follows and self.reported is None and options.saliency_size is None
        raw = activation_map(surgeon, feature, follows=follows)
        if self.reported is None:
            return Branch(self, raw, is_sized=not follows)
        if isinstance(self.reported, QueryReport):
            return Branch(self, raw, outputs=query_output(surgeon, graph, self.reported, self.by_query, options))
        grid = options.saliency_size or self.reported.grid
        rows, columns = (self.reported.head.scale * a / b for a, b in zip(grid, self.reported.grid, strict=True))
        maps = region_maps(surgeon, graph, self.reported, grid, (columns, rows))
        return Branch(self, raw, outputs=per_box_output(surgeon, maps, self.reported.boxes.value, grid, options))

    def uses(self) -> frozenset[str]:
        is_scored = isinstance(self.reported, QueryReport) and self.reported.scores is not None
        return frozenset({"per_box", "num_classes"} if is_scored else {"per_box"})

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"target": self.read.feature.describe()}
        if isinstance(self.reported, QueryReport):
            described["per_box"] = describe_queries(self.reported)
        elif self.reported is not None:
            known = zip(self.map_shape[-2:], self.reported.grid, strict=True)
            grid = tuple(side if size is None else size for size, side in known)
            described["per_box"] = describe_regions(self.reported, grid)
        return described

    def metadata(self, options: Options) -> dict[str, str]:
        entries = {"target": self.read.value.name, "grid": format_grid(self.read.feature.grid)}
        if self.reported is None:
            return entries
        if not isinstance(self.reported, QueryReport):
            return {**entries, "per_box": OF_REGIONS}
        if self.reported.scores is not None and self.reported.scores.value.rank == 3:
            entries |= Layout(self.reported.scores.classes).written()
        return {**entries, "per_box": self.by_query.meaning}


class ActivationMap(Method):
    """Of classifiers, and of detectors without class scores at locations."""

    summary = "mean over channels of the feature map; one map for all classes"
    page = "activation-map.md"
    tasks = frozenset({"classification", "detection", "embedding", "prompts"})
    options = frozenset({"num_classes", "output", "target_layer", "block", "per_box"})
    excludes: ClassVar = {
        name: f"the Activation Map is one map for all classes: leave out --{name.replace('_', '-')}"
        for name in ("top_k", "classes")
    }

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if isinstance(found, FoundClassifier):
            return _of_classifier(found)
        if not isinstance(found, FoundDetector) or found.read is None:
            return Refusal("no feature map that a head reads")
        return _of_regions(study, found, found.read)


def _of_classifier(found: FoundClassifier) -> Plan | Refusal:
    if found.frame.times is not None or found.parts.consensus is not None:
        return Refusal(NO_CLIPS, UnsupportedTaskError)
    target = found.parts.target
    shape, work = _size_and_work(target)
    return MeanPlan(found, _NAME, Form.CHANNEL_MEAN, "one map for all classes", shape, work)


def _reported(study: Study, read: Regions) -> RegionReport | QueryReport | Refusal:
    """The boxes that the model reports, for maps of each."""
    if read.has_region_head:
        return region_report(study.loaded, study.graph, read)
    return query_report(study.graph, study.options) or Refusal(WANTED, UnsupportedTaskError)


def _queries(study: Study) -> QueryReport | str:
    return find_query_report(study.graph, study.options.num_classes, study.options.output)


def _size_and_work(feature: FeatureMap) -> tuple[Shape, float | None]:
    of_one = (2 if size is None else size for axis, size in enumerate(feature.shape) if axis != feature.batch_axis)
    return (feature.batch, *feature.grid), mega(volume([*of_one]))


def _of_regions(study: Study, found: FoundDetector, read: Regions) -> Plan | Refusal:
    """The map that a region head or queries read, and what they report, where a map of each box is wanted."""
    reported = _reported(study, read) if study.options.per_box else None
    if isinstance(reported, Refusal):
        return reported
    reason = f"read by the {read.readers}; no class scores at locations"
    queries = "" if read.has_region_head else _queries(study)
    if isinstance(queries, QueryReport) and queries.untold:
        if study.options.num_classes is not None:  # which asks for a map of each
            raise AmbiguousModelError(queries.untold)
        reason += f"; a map of each class wants to know them: {queries.untold}"
    shape, work = _size_and_work(read.feature)
    return RegionsPlan(found, _NAME, Form.CHANNEL_MEAN, reason, shape, work, read, reported)


METHOD = ActivationMap()
