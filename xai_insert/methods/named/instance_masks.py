"""Instance masks: score-weighted masks, averaged for each class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xai_insert.errors import ShapeUnknownError, UnsupportedTaskError
from xai_insert.form import Form
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, fixed, format_grid
from xai_insert.layouts.record import Layout
from xai_insert.locate.inputs import image_inputs, image_size
from xai_insert.locate.instances.kinds import (
    Found as Instances,
)
from xai_insert.locate.instances.kinds import (
    ListedInstances,
    LocationInstances,
    QueryInstances,
    RowInstances,
)
from xai_insert.locate.region_head import RegionReport
from xai_insert.locate.regions import region_feature
from xai_insert.methods.base import Method, Refusal
from xai_insert.methods.instance_masks import SUPPRESSION_SCORE, MaskTarget, instance_masks
from xai_insert.methods.region_maps import region_maps
from xai_insert.methods.selection import MOST_INSTANCES, MOST_OVERLAP
from xai_insert.options import Options
from xai_insert.tasks.base import Found, Study
from xai_insert.tasks.cost import mega
from xai_insert.tasks.known.instances import FoundInstances
from xai_insert.tasks.per_box import OF_REGIONS, describe_regions, per_box_output, region_report
from xai_insert.tasks.plan import Branch, Plan

_PIXELS_PER_CELL = 4  # along a side, unless the user says otherwise


@dataclass(frozen=True)
class InstancesPlan(Plan):
    """A decision for an instance segmenter.

    Attributes:
        target: what was located in the model.
        reported: what a map of each reported box is made of; None if it is not wanted.
    """

    target: MaskTarget
    reported: RegionReport | None = None

    @property
    def keep_float32(self) -> bool:
        return True  # coordinates of boxes need more than the eight bits of bf16

    @property
    def keeps_batch(self) -> bool:
        return self.reported is None

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        del loaded
        sides = [self.target.image.sizes[axis] for axis in self.target.image_axes]
        is_whole = self.rectangle() is None and self.target.frame.is_upright
        follows = self.reported is None and None not in sides and is_whole
        maps, present = instance_masks(surgeon, replace(self.target, follows=follows))
        outputs = {}
        if self.reported is not None:
            grid, boxes = self.target.grid, self.reported.boxes
            of_boxes = region_maps(surgeon, graph, self.reported, grid, self._cells(boxes.scale))
            outputs = per_box_output(surgeon, of_boxes, boxes.value, grid, options)
        spread = None if present is None else lambda maps: present.spread(surgeon.ops, maps)
        return Branch(self, maps, outputs=outputs, spread=spread, is_sized=not follows)

    def _cells(self, scale: tuple[float, float]) -> tuple[float, float]:
        """Columns and rows of the grid for one unit of the regions; one of the boxes is `scale` of these."""
        found, image = self.target.found, self.target.image
        is_relative = isinstance(found, ListedInstances) and found.box_format.is_relative
        height, width = (1, 1) if is_relative else fixed([image.sizes[axis] for axis in self.target.image_axes])
        return self.target.grid[1] / width / scale[0], self.target.grid[0] / height / scale[1]

    def uses(self) -> frozenset[str]:
        return frozenset({"num_classes", "score_threshold", "per_box"})

    def describe(self) -> dict[str, Any]:
        masks = self.target.found.drawn
        return self.found.describe() | {
            "per_box": {} if self.reported is None else describe_regions(self.reported, self.target.grid),
            "target": {"name": masks.value.name, "shape": masks.value.shape, "grid": self.target.grid},
        }

    def metadata(self, options: Options) -> dict[str, str]:
        found = self.target.found
        entries = {
            "target": found.drawn.value.name,
            "grid": format_grid(self.target.grid),
            **Layout(
                self.target.classes,
                masks=self.form.name.lower(),
                box_format="" if isinstance(found, QueryInstances) else found.box_format.key,
                suppression_overlap=MOST_OVERLAP if isinstance(found, LocationInstances) else None,
            ).written(),
        }
        if self.reported is not None:
            entries["per_box"] = OF_REGIONS
        if not isinstance(found, QueryInstances):
            entries["boxes"] = str(found.box_format)
        if isinstance(found, LocationInstances):
            entries["most_instances"] = str(MOST_INSTANCES)
        if options.score_threshold is not None:
            entries["score_threshold"] = str(options.score_threshold)
        elif isinstance(found, LocationInstances):
            entries["score_threshold"] = str(SUPPRESSION_SCORE)
        return entries


class InstanceMasks(Method):
    """Of instance segmenters."""

    summary = "for each class, the mean of score times mask over its instances"
    paper = "OpenVINO Training Extensions, saliency maps of Mask R-CNN and RTMDet-Ins"
    page = "instance-masks.md"
    tasks = frozenset({"instances"})
    options = frozenset({"num_classes", "score_threshold", "per_box"})

    def applies(self, study: Study, found: Found) -> Plan | Refusal:
        if not isinstance(found, FoundInstances):
            return Refusal("instance masks are for instance segmenters")
        size, options = image_size(found.image), study.options
        grid = options.saliency_size or (None if size is None else _default_grid(size))
        pixels = None if options.saliency_size else _PIXELS_PER_CELL
        if grid is None:
            raise ShapeUnknownError(
                f"the size of the map follows that of the input {found.image.describe()}; fix one of them: "
                "--saliency-size or --input-shape"
            )
        target = MaskTarget(
            found.layout, found.classes, grid, found.image, found.axes, options.score_threshold, found.turned, pixels
        )
        form, reason = _form(found.layout)
        shape = (_batch(found.layout), found.classes, *grid)
        reported = _reported(study.loaded, study.graph) if options.per_box else None
        return InstancesPlan(found, "instance-masks", form, reason, shape, mega(_flops(target)), target, reported)


def _reported(loaded: LoadedModel, graph: Graph) -> RegionReport:
    regions = region_feature(graph, image_inputs(graph))
    if regions is None:
        raise UnsupportedTaskError("of instance segmenters, --per-box is for those with two stages")
    return region_report(loaded, graph, regions)


def _default_grid(size: tuple[int, int]) -> tuple[int, int]:
    return max(size[0] // _PIXELS_PER_CELL, 1), max(size[1] // _PIXELS_PER_CELL, 1)


def _batch(found: Instances) -> int | None:
    """Images at once; 1 where the outputs have no axis for them."""
    counted = found.boxes if isinstance(found, ListedInstances) else found.scored
    if len(counted.shape) == 2:
        return 1
    return None if counted.value.shape is None else counted.value.shape[0]


def _form(found: Instances) -> tuple[Form, str]:
    """How the masks come about, and why, for the report."""
    if isinstance(found, ListedInstances):
        if found.per_box:
            return Form.PASTED, f"a list of instances with masks of their boxes ({found.box_format})"
        return Form.WHOLE, "a list of instances with masks of the whole image"
    if isinstance(found, RowInstances):
        return Form.PROTOTYPES, f"detections with coefficients ({found.box_format})"
    if isinstance(found, LocationInstances):
        return Form.SUPPRESSED, f"locations with coefficients ({found.box_format})"
    last = ", the last score means no object" if found.has_no_object else ""
    return Form.QUERIES, f"queries with class scores and masks{last}"


def _flops(target: MaskTarget) -> int:
    """Matrix products, for as many instances as there can be."""
    found, (height, width) = target.found, map(int, target.grid)
    if isinstance(found, QueryInstances):
        return 2 * target.classes * found.scores.shape[1] * height * width
    if isinstance(found, ListedInstances):
        count, (rows, columns) = 100, found.masks.shape[-2:]
        pasting = 2 * height * columns * (rows + width) if found.per_box else 0
        return count * (pasting + 2 * target.classes * height * width)
    _, depth, rows, columns = found.prototypes.shape
    return MOST_INSTANCES * 2 * (depth * rows * columns + target.classes * height * width)


METHOD = InstanceMasks()
