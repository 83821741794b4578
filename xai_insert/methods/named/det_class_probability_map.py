"""DetClassProbabilityMap: what a detector's heads say of each class, at every location."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.items import summed
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, volume
from xai_insert.layouts.record import Layout
from xai_insert.locate.boxes import BoxVoters, powers_of_size
from xai_insert.locate.detector import ClassLevel, Detector
from xai_insert.locate.inputs import image_inputs, image_size
from xai_insert.locate.query_attention import QueryReport
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.box_votes import box_votes
from xai_insert.methods.det_class_probability_map import det_class_probability_map
from xai_insert.options import Options
from xai_insert.probe.boxes import find_box_voters
from xai_insert.probe.labels import Labels, labels_of
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import mega
from xai_insert.tasks.known.detection import FoundDetector
from xai_insert.tasks.per_box import (
    BY_ATTENTION,
    QueryMethod,
    describe_queries,
    per_box_output,
    query_output,
    query_report,
    reported_sizes,
)
from xai_insert.tasks.plan import Branch, Plan


@dataclass(frozen=True)
class ScoresPlan(Plan):
    """A decision for a detector with class scores at every location.

    Attributes:
        scored: those scores.
        voters: what a map of each reported box is made of; None if it is not wanted.
        labels: those that the outputs give to the classes.
        by_query: how the map of the box of a query is made.
        size: height and width of the image for which the voters were found.
        boxes_follow: whether their maps are for any size of the image.
    """

    scored: Detector
    voters: BoxVoters | QueryReport | None = None
    labels: Labels = field(default_factory=Labels)
    by_query: QueryMethod = BY_ATTENTION
    size: tuple[int, int] | None = None
    boxes_follow: bool = False

    @property
    def keeps_batch(self) -> bool:
        return self.by_query.keeps_batch

    @property
    def asks_another_size(self) -> bool:
        return isinstance(self.voters, BoxVoters) and not self.voters.is_late

    def for_any_size(self, other: Plan) -> Plan:
        same = isinstance(other, type(self)) and self._meaning() == other._meaning() is not None
        return replace(self, boxes_follow=True) if same else self

    def _meaning(self) -> tuple[object, ...] | None:
        """What voters are, in terms that another size of the image does not change; None where it is for one size."""
        voters, size = self.voters, self.size
        if not isinstance(voters, BoxVoters) or size is None or not all(map(_is_grid, self.scored.levels)):
            return None
        counts = [(item.level.cells or 0) * item.channels.anchors for item in self.scored.levels]
        before = [voters.before(level) for level in voters.levels]
        starts = [sum(counts[number] for number in numbers) for numbers in before]
        stand_end_to_end = starts == [level.start for level in voters.levels]
        powers = [powers_of_size(pair, size) for pair in (voters.reported.scale, voters.bounds or (1.0, 1.0))]
        if not stand_end_to_end or None in powers:
            return None
        rows = [(level.value.name, level.row_axis, level.column_axis, level.anchors_first) for level in voters.levels]
        reported = replace(voters.reported, scale=(1.0, 1.0))
        told = (reported.column, reported.format, reported.label_column, reported.first_label, reported.value.name)
        orders = [(item.head.value.name, item.channels) for item in self.scored.levels]
        return rows, before, powers, voters.bounds is None, voters.format, voters.is_exclusive, told, orders

    @property
    def keep_float32(self) -> bool:
        return self.voters is not None  # coordinates of boxes need more than the eight bits of bf16

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        maps = [item.feature for item in self.scored.parts]
        follows = self.voters is None or self.boxes_follow
        follows = follows and all(item.is_whole and None not in item.shape[1:] for item in maps)
        raw = det_class_probability_map(surgeon, self.scored, follows=follows)
        if self.voters is None:
            return Branch(self, raw, is_sized=not follows)
        if isinstance(self.voters, QueryReport):
            return Branch(self, raw, outputs=query_output(surgeon, graph, self.voters, self.by_query, options))
        votes = self.per_box(surgeon, graph, self.voters)
        if options.saliency_size is not None and options.saliency_size != self.map_shape[-2:]:
            votes = surgeon.ops.resize(votes, *options.saliency_size)
        grid = options.saliency_size or self.map_shape[-2:]
        outputs = per_box_output(surgeon, votes, self.voters.reported.value, grid, options)
        return Branch(self, raw, outputs=outputs, is_sized=not follows)

    def per_box(self, surgeon: Surgeon[Any], graph: Graph, voters: BoxVoters) -> Any:
        """Add the maps of the reported boxes, `[B, M, h, w]`."""
        return box_votes(surgeon, graph, self.scored, voters, follows=self.boxes_follow)

    def uses(self) -> frozenset[str]:
        return frozenset({"num_classes", "output", "per_box"})

    def describe(self) -> dict[str, Any]:
        found = self.scored
        return {
            "heads": [
                {
                    "name": item.head.value.name,
                    "shape": item.head.value.shape,
                    "grid": (item.level.height, item.level.width),
                    "anchors": item.channels.anchors,
                    "classes": item.channels.labels,
                }
                for level in found.levels
                for item in level.parts
            ],
            "background": found.background,
            "per_box": self._described(),
        }

    def _described(self) -> dict[str, Any]:
        if self.voters is None:
            return {}
        if isinstance(self.voters, QueryReport):
            return describe_queries(self.voters)
        reported = self.voters.reported
        return {
            "decoded": [level.value.name for level in self.voters.levels],
            "decoded_format": self.voters.format,
            "boxes": reported.value.name,
            "boxes_format": reported.format,
            "labels": None if reported.labels is None else reported.labels.name,
            "first_label": reported.first_label,
            "shape": (*reported_sizes(reported.value), *self.map_shape[-2:]),
        }

    def metadata(self, options: Options) -> dict[str, str]:
        found = self.scored
        entries = {
            "target": ", ".join(dict.fromkeys(item.head.value.name for level in found.levels for item in level.parts)),
            "levels": str(len(found.levels)),
            **Layout(found.classes, found.background, self.labels.first, self.labels.table).written("background"),
        }
        if isinstance(self.voters, QueryReport):
            entries["per_box"] = self.by_query.meaning
        elif self.voters is not None:
            entries["per_box"] = "overlap with the reported box times cosine of class scores, at every location"
            entries["per_box_first_label"] = str(self.voters.reported.first_label)
        return entries


class DetClassProbabilityMap(Method):
    """Of detectors with class scores at every location."""

    summary = "class scores of all levels, on the grid of the middle one"
    paper = "OpenVINO Training Extensions, DetClassProbabilityMap"
    page = "det-class-probability-map.md"
    tasks = frozenset({"detection"})
    options = frozenset({"num_classes", "output", "per_box"})
    lacking = "no head gives class scores at every location; leave --method to the tool"

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        detector = found.scored if isinstance(found, FoundDetector) else None
        if not isinstance(found, FoundDetector) or detector is None:
            return Refusal(self.lacking)
        labels = labels_of(study.loaded, study.graph, detector)
        background = labels.background
        detector = replace(detector, background=background)
        voters: BoxVoters | QueryReport | None = None
        if study.options.per_box:
            voters = query_report(study.graph, study.options, None if background is not None else detector.classes)
            voters = voters or find_box_voters(study.loaded, study.graph, detector)
        level, work = detector.middle.level, _scores(detector)
        count = len(detector.levels)
        reason = f"{count} level{'s' if count > 1 else ''}; {detector.evidence}"
        shape = (detector.batch, detector.classes, level.height, level.width)
        size = image_size(image_inputs(study.graph)[0])
        name = "det-class-probability-map"
        return ScoresPlan(found, name, Form.SCORES, reason, shape, mega(work), detector, voters, labels, size=size)


def _is_grid(item: ClassLevel) -> bool:
    """Whether the scores of a level have an axis of rows and one of columns, of their own."""
    return item.feature.is_whole and len(item.level.grid_axes) == 2


def _scores(detector: Detector) -> int | None:
    """How many scores of all levels are read; None where a size follows the image."""
    sizes = [volume((item.level.height, item.level.width, item.head.channels)) for item in detector.levels]
    return summed(sizes)


METHOD = DetClassProbabilityMap()
