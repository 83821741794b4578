"""Seg-Recipro-CAM: for a class's region in a segmenter's output, the places of the feature that speak for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from xai_insert.errors import UnsupportedTaskError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import cut_values, region
from xai_insert.graph.operators import Product, Resized, Window
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.pattern import layer_of, missing_layer
from xai_insert.graph.view import Graph, Node, Op, fixed, format_grid, volume
from xai_insert.layouts.record import Layout
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.layout import FeatureMap, Rectangle
from xai_insert.locate.segmenter import Segmenter
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.kernels import position_mask
from xai_insert.methods.masked_runs import run_masks
from xai_insert.methods.of_classifier import no_closed_form
from xai_insert.methods.recipro_cam import MOST_RUNS, cell_masks
from xai_insert.methods.region_means import RegionMeans, by_neighbours, first_channels, mean_of_region, shares_of
from xai_insert.methods.shaping import scalar
from xai_insert.options import Options
from xai_insert.probe.resizes import resize_of
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import flops_of, mega
from xai_insert.tasks.known.segmentation import FoundSegmenter
from xai_insert.tasks.plan import Branch, Masking, Plan

_NAME = "seg-recipro-cam"
_MOST_TAPS = 49  # of a layer in closed form, each of which is a product of its own


@dataclass(frozen=True)
class SegReciproCamPlan(Plan):
    """A decision for a segmenter, `found.masked` of which is masked.

    With `M_k` the pixels that class k wins, `z_k(f m_p)` its scores with the feature f kept at place p alone:
    `S[k, p] = sum over M_k of z_k(f m_p) / |M_k|`, zero where `M_k` is empty. A linear head gives place p the score
    `w_k . f_p + b_k`, and a resize R is linear with weights that sum to one, so that
    `S[k, p] = (z_k(p) - b_k) (R^T M_k)_p / |M_k| + b_k`; likewise where it reads neighbours. Any other head runs once
    for each place.

    Attributes:
        masked: the map that is masked.
        ends: what is read of a run: the scores of each pixel, or what is resized to them.
        one_by_one: whether masks are run one by one because several at once turned out not to be the same.
    """

    found: FoundSegmenter
    masked: FeatureMap
    ends: FeatureMap
    one_by_one: bool = field(default=False, kw_only=True)

    @property
    def keep_float32(self) -> bool:
        return True  # counts of pixels need more than the eight bits of bf16

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        parts, ends = self.found.parts, self.ends
        sides = None if ends.value is parts.judged.value else resize_of(loaded, ends, parts.judged)
        shares, count = shares_of(surgeon, parts.judged, sides)
        judged = surgeon.handle(parts.judged.value)
        if self.form is Form.CLOSED:
            return Branch(self, self._closed(surgeon, shares, count), judged)
        at_once = 1 if self.one_by_one else options.mask_batch
        means = RegionMeans(surgeon, ends, parts.classes, shares)
        masks, features = cell_masks(self.masked), [self.masked.value]
        return Branch(self, run_masks(surgeon, graph, features, masks, ends.value, at_once, means), judged)

    def _closed(self, surgeon: Surgeon[Any], shares: Any, count: Any) -> Any:
        op, parts = surgeon.ops, self.found.parts
        bias = None if parts.bias is None else op.reshape(surgeon.handle(parts.bias), [1, parts.classes, 1, 1])
        layer = layer_of(parts.scores.value)
        if layer is not None and isinstance(layer.kind, Window) and not _is_pointwise(layer.kind):
            maps = by_neighbours(surgeon, layer, layer.kind, shares)
        else:
            scores = first_channels(surgeon, surgeon.handle(parts.scores.value), parts.scores)
            maps = op.mul(scores if bias is None else op.sub(scores, bias), shares)
        present = op.greater(count, scalar(op, 0.0))
        return maps if bias is None else op.add(maps, op.mul(bias, present))

    def masking(self, options: Options) -> Masking | None:
        del options
        masked, judged = self.masked, self.found.parts.judged
        return Masking(
            [masked.value],
            lambda shape, position: position_mask(shape, masked, position),
            partial(mean_of_region, judged),
            is_small=True,
        )

    def without_closed_form(self, graph: Graph, reason: str) -> SegReciproCamPlan | None:
        if self.form is Form.CLOSED:
            return self.by_runs(graph, reason)
        return None if self.one_by_one else replace(self, one_by_one=True)

    def by_runs(self, graph: Graph, reason: str) -> SegReciproCamPlan:
        """The plan that runs the head once for each place."""
        rest = region(graph, [self.masked.value], [self.ends.value])
        cells, batch = self.masked.positions or 0, self.masked.shape[0] or 1
        work = mega(cells * sum(flops_of(node, batch) for node in rest))
        return replace(self, form=Form.RUNS, reason=reason, mflops=work)

    def rectangle(self) -> Rectangle | None:
        return None if self.found.is_laid_out else super().rectangle()

    def uses(self) -> frozenset[str]:
        return frozenset({"output", "form"} | ({"mask_batch"} if self.form is Form.RUNS else set()))

    def metadata(self, options: Options) -> dict[str, str]:
        del options
        parts = self.found.parts
        return {
            "target": self.masked.value.name,
            "grid": format_grid(self.masked.grid),
            **Layout(
                classes=parts.classes,
                classes_at=parts.output,
                class_axis=parts.class_axis,
                first_label=parts.first_label or None,
                labels=parts.labels or None,
            ).written("class_axis"),
        }


def _is_pointwise(layer: Window) -> bool:
    return set(layer.kernel or ()) == {1}


def _has_one_bias(scores: FeatureMap, layer: Node) -> bool:
    """Whether what is added to the sums of a layer is one number for each class, or nothing."""
    own, add = layer.operand(2), scores.value.made_by(Op.ADD)
    found = [item for item in (own, *(() if add is None else add.stored)) if item is not None]
    return len(found) < 2 and all(volume(item.sizes) == scores.channels for item in found)


def _is_alike_everywhere(scores: FeatureMap, masked: FeatureMap) -> bool:
    """Whether the layer that gives the scores weighs each place, or each with its neighbours, on a grid that stays."""
    node = layer_of(scores.value)
    if node is None or scores.grid != masked.grid or not _has_one_bias(scores, node):
        return False
    kind = node.kind
    if not isinstance(kind, Window) or _is_pointwise(kind):
        return True
    is_plain = not kind.transposed and kind.groups == 1 and set(kind.strides) == {1} and kind.pads_begin is not None
    return is_plain and node.read(1).is_constant and 1 < math.prod(kind.kernel or ()) <= _MOST_TAPS


def _why_not_closed(parts: Segmenter, masked: FeatureMap) -> str | None:
    """Why a head has no closed form; None if it is one linear layer on the grid that it reads, and a resize maybe."""
    scores, judged = parts.scores.value, parts.judged.value
    if parts.source is not masked.value or not _is_alike_everywhere(parts.scores, masked):
        made = f"{scores.describe()} is not what one linear layer makes of the places of {masked.value.describe()}"
        return f"{made}; {missing}" if (missing := missing_layer(scores)) else made
    resize = judged.producer
    is_next = resize is not None and isinstance(resize.kind, Resized) and resize.operand(0) is scores
    return None if judged is scores or is_next else f"{scores.describe()} is not resized as it is"


def _before_resize(study: Study, parts: Segmenter) -> FeatureMap:
    """What is resized to the scores of each pixel; these themselves if nothing is."""
    resize, judged = parts.judged.value.producer, parts.judged
    before = study.places.map_of(resize.read(0)) if resize is not None and isinstance(resize.kind, Resized) else None
    return before if before is not None and None not in before.grid else judged


def _last_read(study: Study, parts: Segmenter) -> FeatureMap | None:
    """The last map that lies on every path to the scores and that a layer with weights reads; None if there is none."""
    graph, judged = study.graph, parts.judged.value
    for value in reversed(cut_values(graph, image_inputs(graph), judged)):
        found = study.places.map_of(value) if value.producer is not None else None
        if found is None or None in found.grid or (found.positions or 0) > MOST_RUNS:
            continue
        if any(isinstance(node.kind, (Window, Product)) for node in region(graph, [value], [judged])):
            return found
    return None


class SegReciproCam(Method):
    """Of semantic segmenters."""

    summary = "why a class's region: its mean score with one place of the feature kept"
    paper = "after Byun and Lee, Recipro-CAM, 2022, for the mean score of a region"
    page = "seg-recipro-cam.md"
    tasks = frozenset({"segmentation"})
    options = frozenset({"output", "form", "mask_batch"})
    lacking = "no output gives class scores for every place of the image; leave --method to the tool"

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundSegmenter):
            return Refusal(self.lacking)
        parts, read = found.parts, found.read
        judged = parts.judged.value
        if parts.classes < 2:
            return Refusal(f"Seg-Recipro-CAM needs regions of several classes, and {judged.describe()} is of one")
        if None in parts.judged.grid or None in parts.scores.grid:
            return Refusal(
                f"Seg-Recipro-CAM needs the sizes of {judged.describe()}; give those of the input: --input-shape",
                UnsupportedTaskError,
            )
        if read is None:
            obstacle = f"{parts.scores.value.describe()} is not what one linear layer makes of a map"
        elif (why := _why_not_closed(parts, read)) is None:
            return self._closed(study, found, read)
        else:
            obstacle = why
        if study.options.form == "closed":
            raise no_closed_form(obstacle)
        masked = _last_read(study, parts)
        if masked is None:
            return Refusal(
                f"Seg-Recipro-CAM runs the rest of the model once for each place of a map, since {obstacle}; of those "
                f"that lie on every path to {judged.describe()}, none has {MOST_RUNS} places or fewer",
                UnsupportedTaskError,
            )
        return self._plan(study, found, masked, obstacle).by_runs(study.graph, obstacle)

    def _closed(self, study: Study, found: FoundSegmenter, read: FeatureMap) -> Plan | Refusal:
        parts = found.parts
        plan = self._plan(study, found, read, "linear head" if not parts.enlarged else "linear head and a resize")
        if study.options.form != "masked":
            return replace(plan, mflops=mega(_flops(parts)))
        if (read.positions or 0) > MOST_RUNS:
            return Refusal(f"{read.value.describe()} has {read.positions} places, of which each would be a run")
        return plan.by_runs(study.graph, "as asked for")

    def _plan(self, study: Study, found: FoundSegmenter, masked: FeatureMap, reason: str) -> SegReciproCamPlan:
        shape = (masked.shape[0], found.parts.classes, *masked.grid)
        ends, found = _before_resize(study, found.parts), replace(found, masked=masked)
        return SegReciproCamPlan(found, _NAME, Form.CLOSED, reason, shape, None, masked, ends)


def _flops(parts: Segmenter) -> int:
    (rows, columns), (height, width) = fixed(parts.scores.grid), fixed(parts.judged.grid)
    resizing = 0 if parts.judged is parts.scores else 2 * rows * width * (height + columns)
    layer = layer_of(parts.scores.value)
    again = 0
    if layer is not None and isinstance(layer.kind, Window) and not _is_pointwise(layer.kind):
        again = flops_of(layer, 1) or 0
    return parts.classes * (resizing + 2 * height * width) + again


METHOD = SegReciproCam()
