"""Query attention: for each class of a detector with queries, where the queries that speak for it look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xai_insert.errors import AmbiguousModelError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, format_grid
from xai_insert.layouts.record import Layout
from xai_insert.locate.query_attention import QueryReport, find_query_report
from xai_insert.locate.query_scores import ReportedScores
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.query_attention import class_query_maps, query_maps
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import mega
from xai_insert.tasks.known.detection import FoundDetector
from xai_insert.tasks.per_box import BY_ATTENTION, QueryMethod, describe_queries, query_output
from xai_insert.tasks.plan import Branch, Plan

_NAME = "query-attention"


@dataclass(frozen=True)
class QueriesPlan(Plan):
    """A decision for a detector whose queries look at the image.

    Attributes:
        report: the queries, their attention and their boxes.
        scores: their class scores.
        per_box: whether a map of each reported box is wanted as well.
        by_query: how that is made.
    """

    report: QueryReport
    scores: ReportedScores
    per_box: bool
    by_query: QueryMethod = BY_ATTENTION

    @property
    def keep_float32(self) -> bool:
        return True  # coordinates of points need more than the eight bits of bf16

    @property
    def keeps_batch(self) -> bool:
        return self.by_query.keeps_batch

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        del loaded
        looks = query_maps(surgeon, graph, self.report)
        raw = class_query_maps(surgeon, self.report, self.scores, looks)
        if not self.per_box:
            return Branch(self, raw)
        outputs = query_output(surgeon, graph, self.report, self.by_query, options, looks)
        return Branch(self, raw, outputs=outputs)

    def uses(self) -> frozenset[str]:
        return frozenset({"num_classes", "output", "per_box"})

    def describe(self) -> dict[str, Any]:
        described = describe_queries(self.report)
        return {"per_box": described} if self.per_box else {}

    def metadata(self, options: Options) -> dict[str, str]:
        entries = {
            "target": self.scores.value.name,
            "grid": format_grid(self.report.grid),
            **Layout(self.scores.classes).written(),
        }
        return {**entries, "per_box": self.by_query.meaning} if self.per_box else entries


class QueryAttention(Method):
    """Of detectors with queries and no class scores at locations."""

    summary = "attention of a detector's queries, summed by class score"
    paper = "Carion et al., ECCV 2020, arXiv 2005.12872, figure 6"
    page = "query-attention.md"
    tasks = frozenset({"detection"})
    options = frozenset({"num_classes", "output", "per_box"})
    lacking = "no queries of a detector whose attention to the image can be followed; leave --method to the tool"

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundDetector):
            return Refusal(self.lacking)
        report = find_query_report(study.graph, study.options.num_classes, study.options.output)
        if isinstance(report, str):
            return Refusal(report)
        if report.scores is None:
            return Refusal(report.untold, AmbiguousModelError)
        if report.scores.value.rank != 3:
            return Refusal("the model gives the best score of each box alone, and none of other classes")
        if not found.frame.is_upright:
            return Refusal("the features are turned against the image")
        (height, width), queries, classes = report.grid, report.queries, report.scores.classes
        shape = (report.scores.value.sizes[0], classes, height, width)
        work = mega(2 * queries * classes * height * width)
        reason = f"{queries} queries, as their last attention to the image and their class scores have it"
        return QueriesPlan(found, _NAME, Form.SCORES, reason, shape, work, report, report.scores, study.options.per_box)


METHOD = QueryAttention()
