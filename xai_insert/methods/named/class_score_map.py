"""Class score map: what a semantic segmenter says of each class, on the grid on which it says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, format_grid
from xai_insert.layouts.record import Layout
from xai_insert.locate.layout import Rectangle
from xai_insert.methods.base import Method, Refusal
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.known.segmentation import FoundSegmenter
from xai_insert.tasks.plan import Branch, Plan


@dataclass(frozen=True)
class ScoreMapPlan(Plan):
    """A decision for a semantic segmenter."""

    found: FoundSegmenter

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        del loaded, graph
        op, scores = surgeon.ops, self.found.parts.scores
        maps, perm = surgeon.handle(scores.value), (0, scores.channel_axis, *scores.grid_axes)
        if perm != (0, 1, 2, 3):
            maps = op.transpose(maps, perm)
        raw = op.isolated(maps, self.found.parts.classes, is_map=True, is_given=options.output_dtype == "f32")
        return Branch(self, raw, is_sized=not scores.is_whole)

    def rectangle(self) -> Rectangle | None:
        return None if self.found.is_laid_out else super().rectangle()

    def uses(self) -> frozenset[str]:
        return frozenset({"output"})

    def metadata(self, options: Options) -> dict[str, str]:
        del options
        parts = self.found.parts
        return {
            "target": parts.scores.value.name,
            "grid": format_grid(parts.scores.grid),
            **Layout(
                classes=parts.classes,
                classes_at=parts.output,
                class_axis=parts.class_axis,
                first_label=parts.first_label or None,
                labels=parts.labels or None,
            ).written("class_axis"),
        }


class ClassScoreMap(Method):
    """Of semantic segmenters."""

    summary = "class scores at every place, before softmax and before the last resize"
    page = "class-score-map.md"
    tasks = frozenset({"segmentation"})
    options = frozenset({"output"})
    lacking = (
        "the outputs are not made of one map of class scores for every place of the image; choose one with --output "
        "NAME, or leave --method to the tool"
    )

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundSegmenter):
            return Refusal(self.lacking)
        parts = found.parts
        reason = "before the last resize" if parts.enlarged else "as the head gives them"
        if not parts.compares:
            reason += "; if they are heat maps of key points: --method keypoint-map"
            if not parts.enlarged:
                reason += ", if a detector's head before its boxes are decoded: --num-classes"
        shape = (parts.scores.shape[0], parts.classes, *parts.scores.grid)
        return ScoreMapPlan(found, "class-score-map", Form.SCORES, reason, shape, 0.0)


METHOD = ClassScoreMap()
