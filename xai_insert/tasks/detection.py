"""Detectors: DetClassProbabilityMap, or Activation Map where no location has class scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from xai_insert.errors import TargetNotFoundError, UnsupportedTaskError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, Op, Shape, Value, format_grid, volume
from xai_insert.locate.boxes import BoxVoters
from xai_insert.locate.detector import Detector, Regions
from xai_insert.locate.frontier import Head
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.layout import FeatureMap, Frame, grid_of_map
from xai_insert.locate.outputs import likely_task
from xai_insert.locate.places import find_places
from xai_insert.locate.region_head import RegionReport
from xai_insert.locate.regions import encoder_feature, region_feature
from xai_insert.methods.activation_map import activation_map
from xai_insert.methods.box_votes import box_votes
from xai_insert.methods.det_class_probability_map import det_class_probability_map
from xai_insert.methods.region_maps import region_maps
from xai_insert.options import Options
from xai_insert.probe.boxes import find_box_voters
from xai_insert.probe.classes import find_class_levels
from xai_insert.probe.labels import first_label
from xai_insert.tasks.cost import mega
from xai_insert.tasks.per_box import OF_REGIONS, describe_regions, per_box_output, region_report, reported_sizes
from xai_insert.tasks.plan import Branch, Plan, described_rectangle

METHOD = "det-class-probability-map"
_BOX = 4


@dataclass(frozen=True)
class ScoresPlan(Plan):
    """A decision for a detector with class scores at every location.

    Attributes:
        found: what was located in the model.
        voters: what a map of each reported box is made of; None if it is not wanted.
        first_label: the label that the outputs give to class 0; None where no output holds labels.
    """

    task = "detection"
    found: Detector
    voters: BoxVoters | None = None
    first_label: int | None = None

    @property
    def keep_float32(self) -> bool:
        return self.voters is not None  # coordinates of boxes need more than the eight bits of bf16

    @property
    def frame(self) -> Frame:
        return self.found.middle.level.frame

    def placed(self) -> Sequence[FeatureMap]:
        return [item.feature for level in self.found.levels for item in level.parts]

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        raw = det_class_probability_map(surgeon, self.found)
        if self.voters is None:
            return Branch(self, raw)
        votes = box_votes(surgeon, graph, self.found, self.voters)
        if options.saliency_size is not None and options.saliency_size != self.map_shape[-2:]:
            votes = surgeon.ops.resize(votes, *options.saliency_size)
        grid = options.saliency_size or self.map_shape[-2:]
        return Branch(self, raw, outputs=per_box_output(surgeon, votes, self.voters.reported, grid, options))

    def uses(self) -> frozenset[str]:
        return frozenset({"num_classes", "per_box"})

    def features(self) -> Sequence[FeatureMap]:
        heads = {item.head.source: item.head for level in self.found.levels for item in level.parts}
        return [_source_map(head) for head in heads.values()]

    def describe(self) -> dict[str, Any]:
        found = self.found
        return {
            "heads": [
                {
                    "name": item.head.value.name,
                    "shape": item.head.value.shape,
                    "grid": (item.level.height, item.level.width),
                    "anchors": item.channels.anchors,
                    "classes": item.channels.classes,
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
        reported = self.voters.reported
        return {
            "decoded": [level.value.name for level in self.voters.levels],
            "decoded_format": self.voters.format,
            "boxes": reported.value.name,
            "boxes_format": reported.format,
            "labels": None if reported.labels is None else reported.labels.name,
            "first_label": reported.first_label,
            "shape": (*reported_sizes(reported), *self.map_shape[-2:]),
        }

    def metadata(self, options: Options) -> dict[str, str]:
        found = self.found
        entries = {
            "target": ", ".join(dict.fromkeys(item.head.value.name for level in found.levels for item in level.parts)),
            "levels": str(len(found.levels)),
            "classes": str(found.classes),
            "background": "none" if found.background is None else str(found.background),
        }
        entries |= described_rectangle(self.frame, (found.middle.level.height, found.middle.level.width))
        if self.first_label is not None:
            entries["first_label"] = str(self.first_label)
        if self.voters is not None:
            entries["per_box"] = "overlap with the reported box times cosine of class scores, at every location"
            entries["per_box_first_label"] = str(self.voters.reported.first_label)
        return entries


@dataclass(frozen=True)
class RegionsPlan(Plan):
    """A decision for a detector whose features are read by a region head or by queries.

    Attributes:
        found: what was located in the model.
        reported: what a map of each reported box is made of; None if it is not wanted.
    """

    task = "detection"
    found: Regions
    reported: RegionReport | None = None

    @property
    def keep_float32(self) -> bool:
        return self.reported is not None  # numbers of regions need more than the eight bits of bf16

    @property
    def frame(self) -> Frame:
        return self.found.feature.frame

    def placed(self) -> Sequence[FeatureMap]:
        return [self.found.feature]

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        raw = activation_map(surgeon, self.found.feature)
        if self.reported is None:
            return Branch(self, raw)
        grid = options.saliency_size or self.reported.grid
        rows, columns = (self.reported.head.scale * a / b for a, b in zip(grid, self.reported.grid, strict=True))
        maps = region_maps(surgeon, graph, self.reported, grid, (columns, rows))
        return Branch(self, raw, outputs=per_box_output(surgeon, maps, self.reported.boxes, grid, options))

    def uses(self) -> frozenset[str]:
        return frozenset({"per_box"})

    def features(self) -> Sequence[FeatureMap]:
        return [self.found.feature]

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"target": self.found.feature.describe()}
        if self.reported is not None:
            known = zip(self.map_shape[-2:], self.reported.grid, strict=True)
            grid = tuple(side if size is None else size for size, side in known)
            described["per_box"] = describe_regions(self.reported, grid)
        return described

    def metadata(self, options: Options) -> dict[str, str]:
        entries = {"target": self.found.value.name, "grid": format_grid(self.found.feature.grid)}
        entries |= described_rectangle(self.frame, self.found.feature.grid)
        return entries if self.reported is None else {**entries, "per_box": OF_REGIONS}


def selects_rows(graph: Graph) -> bool:
    """Whether a model chooses among locations: suppression, region pooling, boxes, rows where scores are best."""
    if any(node.op in (Op.NMS, Op.ROI_ALIGN) for node in graph.nodes):
        return True
    if any(value.rank == 3 and value.sizes[2] == _BOX for value in graph.outputs):
        return True
    chosen: set[Value] = set()
    for node in graph.nodes:
        if node.op is Op.TOPK:
            chosen.update(node.outputs[1:])
        elif node.op not in (Op.SHAPE, Op.GATHER, Op.TAKE) and any(operand in chosen for operand in node.inputs):
            chosen.update(node.outputs)
    return any(node.op in (Op.GATHER, Op.TAKE) and node.operand(1) in chosen for node in graph.nodes)


def plan_detection(loaded: LoadedModel, graph: Graph, options: Options) -> Plan:
    """Locate a detector's class scores, or the feature that its regions or queries read.

    Raises:
        UnsupportedTaskError: neither is there.
        AmbiguousModelError: several readings of the heads fit.
        TargetNotFoundError: the channels of the class heads cannot be told apart, or the chosen method does not fit.
    """
    images = image_inputs(graph)
    regions = region_feature(graph, images)
    if regions is not None and options.method != METHOD:
        reported = None
        if options.per_box:
            _require_upright(regions.feature.frame)
            reported = region_report(loaded, graph, regions)
        return _regions_plan(regions, reported)
    detector = None if regions is not None else find_class_levels(loaded, graph, options.num_classes)
    if detector is not None and options.method in ("auto", METHOD):
        _require_one_frame(detector)
        if options.per_box:
            _require_upright(detector.middle.level.frame)
        label, background = first_label(loaded, graph, detector)
        detector = replace(detector, background=background)
        voters = find_box_voters(loaded, graph, detector) if options.per_box else None
        return _scores_plan(detector, voters, label)
    if options.per_box:
        raise UnsupportedTaskError(
            "--per-box is for detectors with class scores at every location, or with a head that classifies regions"
        )
    if options.method == METHOD:
        raise TargetNotFoundError("no head gives class scores at every location; leave --method to the tool")
    if detector is not None:
        read = find_places(graph).map_of(detector.middle.head.source)
        if read is not None and read.channel_axis == 1:
            return _regions_plan(Regions(read, "class head"))
    regions = encoder_feature(graph, images)
    if regions is None:
        listed = ", ".join(value.describe() for value in graph.outputs)
        likely = likely_task(graph)
        raise UnsupportedTaskError(
            "not a classifier and no detector that can be explained: wanted an output [N, classes], or boxes and class "
            f"scores, found {listed}" + ("" if likely is None else f"; {likely}")
        )
    return _regions_plan(regions)


def _require_one_frame(found: Detector) -> None:
    """Refuse levels of which one runs along the columns, backwards or round another way than the next.

    Raises:
        UnsupportedTaskError: there are such.
    """
    placed = [item for item in found.levels if item.level.cells != 1]
    kinds = {(item.level.frame.transposed, item.level.frame.flipped, item.level.frame.rolled) for item in placed}
    if len(kinds) > 1:
        listed = ", ".join(item.head.value.describe() for item in placed)
        raise UnsupportedTaskError(f"the levels {listed} lie in the image in different directions")


def _require_upright(frame: Frame) -> None:
    if not frame.is_upright:
        raise UnsupportedTaskError("--per-box wants class scores in the order of the image; these are turned or rolled")


def _source_map(head: Head) -> FeatureMap:
    """What a head reads; tokens are one axis."""
    rank = len(head.source.sizes)
    channel = head.channel_axis if head.channel_axis == 1 else rank - 1
    axes = tuple(axis for axis in range(1, rank) if axis != channel)
    return FeatureMap(head.source, channel, axes, grid_of_map(head.source, axes) if len(axes) == 2 else (None, None))


def _scores_plan(found: Detector, voters: BoxVoters | None, label: int | None) -> ScoresPlan:
    level = found.middle.level
    shape: Shape = (found.batch, found.classes, level.height, level.width)
    sizes = [volume((item.level.height, item.level.width, item.head.channels)) for item in found.levels]
    work = None if None in sizes else sum(size or 0 for size in sizes)
    count = len(found.levels)
    reason = f"{count} level{'s' if count > 1 else ''}; {found.evidence}"
    return ScoresPlan(METHOD, "class scores", reason, shape, mega(work), found, voters, label)


def _regions_plan(found: Regions, reported: RegionReport | None = None) -> RegionsPlan:
    feature = found.feature
    shape: Shape = (feature.shape[0], *feature.grid)
    flops = volume([2 if size is None else size for size in feature.shape[1:]])
    reason = f"read by the {found.readers}; no class scores at locations"
    return RegionsPlan("activation-map", "channel mean", reason, shape, mega(flops), found, reported)
