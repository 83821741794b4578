"""No map: the pooled feature alone, for programs that take no other output beside the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph
from xai_insert.methods.base import Method, Refusal
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.plan import Branch, Plan


@dataclass(frozen=True)
class VectorPlan(Plan):
    """A decision to add no map."""

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        del loaded, surgeon, graph, options
        return Branch(self, None)

    def uses(self) -> frozenset[str]:
        return frozenset({"output", "num_classes"})

    def metadata(self, options: Options) -> dict[str, str]:
        del options
        return {}


class NoMap(Method):
    """Of every model that has a feature vector."""

    summary = "no map: with --feature-vector, that output alone"
    page = "feature-vector.md"
    tasks = frozenset(
        {"anomaly", "classification", "detection", "embedding", "instances", "keypoints", "prompts", "segmentation"}
    )
    options = frozenset({"output", "num_classes"})
    excludes: ClassVar = {
        name: f"--method none adds no map: leave out --{name.replace('_', '-')}" for name in ("range", "saliency_size")
    }

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not study.options.feature_vector:
            return Refusal("--method none adds no map, and without --feature-vector nothing at all")
        return VectorPlan(found, "none", Form.NONE, "the feature vector alone", (), 0.0)


METHOD = NoMap()
