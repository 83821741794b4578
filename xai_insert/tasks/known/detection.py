"""Detectors: class scores at every location, or features that a region head or queries read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xai_insert.errors import AmbiguousModelError, TargetNotFoundError, UnsupportedTaskError
from xai_insert.graph.cuts import activations
from xai_insert.graph.view import Graph, Op, Value
from xai_insert.locate.classifier import Wanted
from xai_insert.locate.detector import Detector, Regions
from xai_insert.locate.frontier import Head, find_heads
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.keypoints import HeatMaps, find_keypoints
from xai_insert.locate.layout import FeatureMap, Frame, grid_of_map
from xai_insert.locate.outputs import has_boxes_by_level, likely_task, query_boxes
from xai_insert.locate.query_attention import WANTED
from xai_insert.locate.regions import encoder_feature, of_queries, pools_regions, region_feature
from xai_insert.locate.softmaxes import is_softmax
from xai_insert.probe.classes import find_class_levels
from xai_insert.tasks.base import Found, NotMine, Study, Task

_BOX = 4
_PAIR = 2  # outputs
_TAKES = (Op.GATHER, Op.TAKE)


@dataclass(frozen=True)
class FoundDetector(Found):
    """A detector.

    Attributes:
        scored: its class scores at every location; None if it has none.
        read: what its region head, its queries or, for want of these, its class heads read; None if that is no map.
    """

    task = "detection"
    methods = ("det-class-probability-map", "query-attention", "activation-map")
    scored: Detector | None
    read: Regions | None

    @property
    def frame(self) -> Frame:
        if self.scored is not None:
            return self.scored.middle.level.frame
        return Frame() if self.read is None else self.read.feature.frame

    def placed(self) -> Sequence[FeatureMap]:
        if self.scored is not None:
            return [item.feature for level in self.scored.levels for item in level.parts]
        return [] if self.read is None else [self.read.feature]

    def features(self) -> Sequence[FeatureMap]:
        if self.scored is None:
            return [] if self.read is None else [self.read.feature]
        heads = {item.head.source: item.head for level in self.scored.levels for item in level.parts}
        return [source_map(head) for head in heads.values()]


class OpenVocabulary(FoundDetector):
    """A detector whose classes are texts that it is given; those that are alike have one map."""

    may_be_empty = True


class Detection(Task):
    """Boxes with classes."""

    rank = 90
    takes = frozenset({"per_box"})

    def is_likely(self, study: Study) -> bool:
        graph = study.graph
        if selects_rows(graph) or query_boxes(graph) or pools_regions(graph, image_inputs(graph)):
            return True
        return has_boxes_by_level(graph, study.options.output)

    def recognise(self, study: Study) -> FoundDetector | NotMine:
        found = self._recognise(study)
        if isinstance(found, FoundDetector):
            _require_one_frame(found)
            if study.options.per_box and not found.frame.is_upright:
                raise UnsupportedTaskError("--per-box wants features in the order of the image; these are turned")
        return found

    def _recognise(self, study: Study) -> FoundDetector | NotMine:
        graph = study.graph
        images = image_inputs(graph)
        regions = region_feature(graph, images)
        if regions is not None:
            return FoundDetector(None, regions)
        try:
            detector = find_class_levels(study.loaded, graph, study.options.num_classes, study.options.output)
        except TargetNotFoundError as err:
            if reports_boxes(graph):
                raise
            # a classifier that drops tokens by their scores looks like this too
            return NotMine(str(err), TargetNotFoundError)
        if detector is not None and study.wanted is Wanted.ANY:
            _require_no_keypoints(study, detector)
        queries = (None if detector is None else _read_by_heads(detector)) or encoder_feature(graph, images)
        if detector is None and queries is None:
            return _without_map(study)
        by_text = detector is not None and detector.middle.head.value in activations(graph, _others(graph, images))
        return (OpenVocabulary if by_text else FoundDetector)(detector, queries)


def _require_no_keypoints(study: Study, detector: Detector) -> None:
    """Refuse the scores of as many classes as another output has pairs of offsets for, where nothing else tells.

    Raises:
        AmbiguousModelError: the maps may be those of key points.
    """
    if study.options.num_classes is not None or len(study.graph.outputs) != _PAIR:
        return
    found = find_keypoints(study.graph, study.places, study.options.output)
    if isinstance(found, HeatMaps) and found.joints == detector.classes and detector.middle.channels.anchors == 1:
        maps = study.graph.output_names[found.output or 0]
        raise AmbiguousModelError(
            f"{maps!r} may hold scores of {found.joints} classes, or the places of as many key points with "
            f"{2 * found.joints} offsets beside them; say which: --num-classes {found.joints}, or --method keypoint-map"
        )


def _without_map(study: Study) -> NotMine:
    """Why nothing is explained.

    Raises:
        UnsupportedTaskError: and the model reports boxes, so that it is no other task's.
    """
    reason = f"--per-box is for {WANTED}" if study.options.per_box else _nothing_found(study.graph)
    if reports_boxes(study.graph):
        raise UnsupportedTaskError(reason)
    return NotMine(reason)


def _read_by_heads(detector: Detector) -> Regions | None:
    read = source_map(detector.middle.head)
    return Regions(read, "class head") if read.channel_axis == 1 else None


def _others(graph: Graph, images: Sequence[Value]) -> list[Value]:
    return [value for value in graph.inputs if value not in images]


def _require_one_frame(found: FoundDetector) -> None:
    """Refuse levels of which one runs along the columns, backwards or round another way than the next.

    Raises:
        UnsupportedTaskError: there are such.
    """
    placed = [feature for feature in found.placed() if feature.positions != 1]
    if len({(item.frame.transposed, item.frame.flipped, item.frame.rolled) for item in placed}) > 1:
        listed = ", ".join(item.value.describe() for item in placed)
        raise UnsupportedTaskError(f"the levels {listed} lie in the image in different directions")


def _nothing_found(graph: Graph) -> str:
    heads = find_heads(graph, images := image_inputs(graph))
    if heads and query_boxes(graph) and not of_queries(graph, images):
        listed = ", ".join(head.value.describe() for head in heads)
        return (
            f"boxes and scores are made of {listed}, but no channel of these was seen to raise one number alone from "
            "nearly 0 towards 1, as it raises the score of a class: several layers or channels share in each score, or "
            "the scores are no shares of one (clipped, shifted, an exponential); export the model with its scores as "
            "sigmoid or softmax give them, or with its heads as outputs, and --num-classes"
        )
    listed = ", ".join(value.describe() for value in graph.outputs)
    likely = likely_task(graph)
    return (
        "not a classifier and no detector that can be explained: wanted an output [N, classes], or boxes and class "
        f"scores, found {listed}" + ("" if likely is None else f"; {likely}")
    )


def reports_boxes(graph: Graph) -> bool:
    """Whether a model suppresses boxes that overlap, or gives several rows or columns of four numbers."""
    if any(node.op is Op.NMS for node in graph.nodes):
        return True
    pairs = [value.sizes[1:] for value in graph.outputs if value.rank == 3 and not is_softmax(value)]
    rows = {pair[0] for pair in pairs}
    of_classes = [value.sizes[1::2] for value in graph.outputs if value.rank == 4 and value.sizes[1] in rows]
    return any(_BOX in sides and 1 not in sides for sides in pairs + of_classes)


def selects_rows(graph: Graph) -> bool:
    """Whether a model chooses among locations: suppression, boxes, rows where scores are best."""
    chosen = _best_places(graph)
    return reports_boxes(graph) or any(node.op in _TAKES and node.operand(1) in chosen for node in graph.nodes)


def _best_places(graph: Graph) -> set[Value]:
    """The numbers of what is best, and what is computed of these."""
    chosen: set[Value] = set()
    for node in graph.nodes:
        if node.op in (Op.TOPK, Op.NONZERO):
            chosen.update(node.outputs[-1:])
        elif node.op is not Op.SHAPE and not chosen.isdisjoint(node.inputs[:1] if node.op in _TAKES else node.inputs):
            chosen.update(node.outputs)
    return chosen


def source_map(head: Head) -> FeatureMap:
    """What a head reads; tokens are one axis."""
    rank = len(head.source.sizes)
    channel = head.channel_axis if head.channel_axis == 1 else rank - 1
    axes = tuple(axis for axis in range(1, rank) if axis != channel)
    return FeatureMap(head.source, channel, axes, grid_of_map(head.source, axes) if len(axes) == 2 else (None, None))


TASK = Detection()
