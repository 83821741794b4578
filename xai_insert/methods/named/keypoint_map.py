"""Keypoint map: for each key point, how much the model puts it at each place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, Shape, Value, fixed, format_grid
from xai_insert.layouts.record import Layout
from xai_insert.locate.keypoints import Bins, HeatMaps
from xai_insert.methods.base import Method, Refusal
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import mega
from xai_insert.tasks.known.keypoints import FoundKeypoints
from xai_insert.tasks.plan import Branch, Plan


@dataclass(frozen=True)
class KeypointPlan(Plan):
    """A decision for a model of key points."""

    found: FoundKeypoints

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        del loaded, graph
        parts = self.found.parts
        if isinstance(parts, Bins):
            return Branch(self, _of_bins(surgeon, parts))
        maps = _of_maps(surgeon, parts, is_given=options.output_dtype == "f32")
        return Branch(self, maps, is_sized=not parts.feature.is_whole)

    def uses(self) -> frozenset[str]:
        return frozenset({"output"})

    def metadata(self, options: Options) -> dict[str, str]:
        del options
        parts = self.found.parts
        if isinstance(parts, Bins):
            target, layout = parts.columns.name, Layout(parts.joints, bins_at=parts.outputs)
        else:
            axis = None if parts.output is None else parts.feature.channel_axis
            target = parts.feature.value.name
            layout = Layout(parts.joints, map_at=parts.output, class_axis=axis)
        return {"target": target, "grid": format_grid(self.map_shape[-2:]), **layout.written()}


def _of_maps(surgeon: Surgeon[Any], parts: HeatMaps, *, is_given: bool) -> Any:
    op, feature = surgeon.ops, parts.feature
    maps, perm = surgeon.handle(feature.value), (0, feature.channel_axis, *feature.grid_axes)
    if perm != tuple(range(len(perm))):
        maps = op.transpose(maps, perm)
    if len(feature.grid_axes) == 1:
        maps = op.reshape(maps, [-1, parts.joints, *fixed(feature.grid)])
    return op.isolated(maps, parts.joints, is_map=True, is_given=is_given)


def _of_bins(surgeon: Surgeon[Any], parts: Bins) -> Any:
    """The shares of a row and of a column, multiplied: `S[j, (r, c)] = sum_r softmax(y_j) * sum_c softmax(x_j)`."""
    op, (height, width) = surgeon.ops, parts.grid

    def shares(scores: Value, cells: int) -> Any:
        bins = op.reshape(op.softmax(surgeon.handle(scores), 2), [-1, parts.joints, cells, parts.each])
        return op.reduce(bins, "sum", (3,))

    across = op.reshape(shares(parts.columns, width), [-1, parts.joints, 1, width])
    return op.mul(shares(parts.rows, height), across)


class KeypointMap(Method):
    """Of models of key points."""

    summary = "for each key point, how much the model puts it at each place"
    paper = "SimCC: Li et al., 2022"
    page = "keypoint-map.md"
    tasks = frozenset({"keypoints"})
    options = frozenset({"output"})
    lacking = "no output gives a map, or bins along columns and rows, for each key point; leave --method to the tool"

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundKeypoints):
            return Refusal(self.lacking)
        parts = found.parts
        shape: Shape
        if isinstance(parts, Bins):
            shape = (parts.columns.sizes[0], parts.joints, *parts.grid)
            cost = mega(
                parts.joints * (5 * sum(side * parts.each for side in parts.grid) + parts.grid[0] * parts.grid[1])
            )
        else:
            shape = (parts.feature.shape[0], parts.joints, *parts.feature.grid)
            cost = 0.0
        reason = parts.sign
        if isinstance(parts, HeatMaps) and parts.output is not None and len(found.names) == 1:
            reason += "; --method class-score-map reads them as classes"
        return KeypointPlan(found, "keypoint-map", Form.SCORES, reason, shape, cost)


METHOD = KeypointMap()
