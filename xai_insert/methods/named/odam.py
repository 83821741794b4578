"""ODAM: the map of each reported box by the derivative of its own score."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from xai_insert.errors import NoDerivativeError, UnsupportedTaskError
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph
from xai_insert.locate.boxes import BoxVoters
from xai_insert.locate.query_attention import QueryReport
from xai_insert.methods.base import Refusal
from xai_insert.methods.gradients.odam import odam, towers
from xai_insert.methods.gradients.odam_queries import odam_of_queries
from xai_insert.methods.named.activation_map import ActivationMap, RegionsPlan
from xai_insert.methods.named.det_class_probability_map import DetClassProbabilityMap, ScoresPlan
from xai_insert.methods.named.query_attention import QueriesPlan, QueryAttention
from xai_insert.methods.rehearsal import Rehearsal
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.per_box import QueryMethod
from xai_insert.tasks.plan import Plan

_BY_DERIVATIVE = QueryMethod(
    "derivative of the score of the box's query times the values that its last look at the image reads", odam_of_queries
)


@dataclass(frozen=True)
class OdamPlan(ScoresPlan):
    """A decision for maps of reported boxes by derivatives, beside the map of each class."""

    def per_box(self, surgeon: Surgeon[Any], graph: Graph, voters: BoxVoters) -> Any:
        return odam(surgeon, graph, self.scored, voters, follows=self.boxes_follow)

    def metadata(self, options: Options) -> dict[str, str]:
        return super().metadata(options) | {
            "per_box": "derivative of the box's score times feature, in the level of the box"
        }


class Odam(DetClassProbabilityMap):
    """Of single-stage detectors whose class scores come of convolutions, and of detectors with queries."""

    summary = "with --per-box: derivative of each reported box's score times feature"
    paper = "Zhao and Chan, ODAM: Gradient-based instance-specific visual explanations for object detection, 2023"
    page = "odam.md"

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not study.options.per_box:
            return Refusal("ODAM is a map of each reported box: add --per-box", UnsupportedTaskError)
        try:
            plan = super().applies(study, found)
            for other in (QueryAttention(), ActivationMap()):
                plan = other.applies(study, found) if isinstance(plan, Refusal) else plan
            return _by_derivatives(study, plan)
        except (NoDerivativeError, UnsupportedTaskError) as err:
            return Refusal(str(err), type(err))


def _report(plan: ScoresPlan | QueriesPlan | RegionsPlan) -> Any:
    """What is known of the reported boxes."""
    if isinstance(plan, ScoresPlan):
        return plan.voters
    return plan.report if isinstance(plan, QueriesPlan) else plan.reported


def _by_derivatives(study: Study, plan: Plan | Refusal) -> Plan | Refusal:
    """The plan with maps of boxes that derivatives make, tried without writing anything."""
    if isinstance(plan, (ScoresPlan, QueriesPlan, RegionsPlan)):
        report = _report(plan)
        if isinstance(report, QueryReport):
            odam_of_queries(Rehearsal(), study.graph, report)
            return replace(plan, method="odam", by_query=_BY_DERIVATIVE)
    if isinstance(plan, ScoresPlan) and isinstance(plan.voters, BoxVoters):
        reach = max(tower.reach for tower in towers(study.graph, plan.scored))
        made = OdamPlan(**{item.name: getattr(plan, item.name) for item in fields(plan)} | {"method": "odam"})
        made.per_box(Rehearsal(), study.graph, plan.voters)
        return replace(made, reason=f"{made.reason}; its scores read {reach} cells around each location")
    wanted = "ODAM wants class scores that convolutions give at every location, or queries that look at the image"
    return plan if isinstance(plan, Refusal) else Refusal(wanted, UnsupportedTaskError)


METHOD = Odam()
