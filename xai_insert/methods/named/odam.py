"""ODAM: the map of each reported box by the derivative of its own score."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from xai_insert.errors import NoDerivativeError, UnsupportedTaskError
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph
from xai_insert.locate.boxes import BoxVoters
from xai_insert.methods.base import Refusal
from xai_insert.methods.gradients.odam import odam, towers
from xai_insert.methods.named.det_class_probability_map import DetClassProbabilityMap, ScoresPlan
from xai_insert.methods.rehearsal import Rehearsal
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.plan import Plan


@dataclass(frozen=True)
class OdamPlan(ScoresPlan):
    """A decision for maps of reported boxes by derivatives, beside the map of each class."""

    def per_box(self, surgeon: Surgeon[Any], graph: Graph, voters: BoxVoters) -> Any:
        return odam(surgeon, graph, self.scored, voters)

    def metadata(self, options: Options) -> dict[str, str]:
        return super().metadata(options) | {
            "per_box": "derivative of the box's score times feature, in the level of the box"
        }


class Odam(DetClassProbabilityMap):
    """Of single-stage detectors whose class scores come of convolutions."""

    summary = "with --per-box: derivative of each reported box's score times feature"
    paper = "Zhao and Chan, ODAM: Gradient-based instance-specific visual explanations for object detection, 2023"
    page = "odam.md"

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not study.options.per_box:
            return Refusal("ODAM is a map of each reported box: add --per-box", UnsupportedTaskError)
        plan = super().applies(study, found)
        if not isinstance(plan, ScoresPlan):
            return plan
        voters = plan.voters
        if not isinstance(voters, BoxVoters):
            return Refusal("ODAM wants boxes that are decoded at every location", UnsupportedTaskError)
        chosen = {item.name: getattr(plan, item.name) for item in fields(plan)}
        made = OdamPlan(**chosen | {"method": "odam"})
        try:
            reach = max(tower.reach for tower in towers(study.graph, made.scored))
            made.per_box(Rehearsal(), study.graph, voters)
        except (NoDerivativeError, UnsupportedTaskError) as err:
            return Refusal(str(err), type(err))
        return replace(made, reason=f"{made.reason}; its scores read {reach} cells around each location")


METHOD = Odam()
