"""Anomaly map: the model's own, in bytes by its own threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Ops, Surgeon
from xai_insert.graph.view import Graph, format_grid
from xai_insert.layouts.record import Layout
from xai_insert.locate.layout import FeatureMap
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.scaling import to_bytes_by_threshold
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.known.anomaly import FoundAnomaly
from xai_insert.tasks.plan import Branch, Plan


@dataclass(frozen=True)
class AnomalyPlan(Plan):
    """A decision for an anomaly detector."""

    found: FoundAnomaly

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        del loaded, graph
        op, feature = surgeon.ops, self.found.parts.feature
        maps = _with_channel(op, surgeon.handle(feature.value), feature)
        raw = op.isolated(maps, 1, is_map=True, is_given=options.output_dtype == "f32")
        return Branch(self, raw, in_bytes=self._in_bytes(op), is_sized=not feature.is_whole)

    def _in_bytes(self, op: Ops[Any]) -> Callable[[Any], Any] | None:
        threshold = self.found.parts.threshold
        return None if threshold is None else lambda maps: to_bytes_by_threshold(op, maps, threshold)

    def uses(self) -> frozenset[str]:
        return frozenset({"output"})

    def metadata(self, options: Options) -> dict[str, str]:
        del options
        parts = self.found.parts
        layout = Layout(map_at=parts.output, score_at=parts.score, label_at=parts.label, threshold=parts.threshold)
        return {
            "target": parts.feature.value.name,
            "grid": format_grid(parts.feature.grid),
            **layout.written(),
        }


def _with_channel(op: Ops[Any], handle: Any, feature: FeatureMap) -> Any:
    """`[B, 1, h, w]`."""
    rest = [axis for axis in range(1, len(feature.shape)) if axis not in feature.grid_axes]
    perm = (0, *rest, *feature.grid_axes)
    handle = handle if perm == tuple(range(len(perm))) else op.transpose(handle, perm)
    return handle if rest else op.unsqueeze(handle, (1,))


class AnomalyMapMethod(Method):
    """Of anomaly detectors."""

    summary = "the model's own anomaly map; bytes: half of the scale is the model's threshold"
    page = "anomaly-map.md"
    tasks = frozenset({"anomaly"})
    options = frozenset({"output"})
    lacking = (
        "no output alone gives one number for every place of the image; choose with --output NAME, or leave --method "
        "to the tool"
    )

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundAnomaly):
            return Refusal(self.lacking)
        parts = found.parts
        told = "no threshold in the model" if parts.threshold is None else f"threshold {parts.threshold:g}"
        shape = (parts.feature.shape[0], 1, *parts.feature.grid)
        return AnomalyPlan(found, "anomaly-map", Form.SCORES, f"the model's own map, {told}", shape, 0.0)


METHOD = AnomalyMapMethod()
