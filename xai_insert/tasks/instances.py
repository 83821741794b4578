"""Instance segmenters: score-weighted masks, averaged for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import ModelFileError, ShapeUnknownError, UnsupportedTaskError
from xai_insert.feeds import random_array
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.proportion import require_proportion
from xai_insert.graph.view import Graph, fixed, format_grid
from xai_insert.locate.inputs import image_axes, image_inputs, image_size
from xai_insert.locate.instances import locate_instances, may_hold_masks
from xai_insert.locate.instances.classes import ClassHead, find_class_head
from xai_insert.locate.instances.kinds import (
    Found,
    ListedInstances,
    LocationInstances,
    QueryInstances,
    RowInstances,
    Sample,
)
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.region_head import RegionReport
from xai_insert.locate.regions import drawn_maps, region_feature
from xai_insert.methods.instance_masks import SUPPRESSION_SCORE, MaskTarget, instance_masks
from xai_insert.methods.region_maps import region_maps
from xai_insert.methods.selection import MOST_INSTANCES, MOST_OVERLAP
from xai_insert.options import Options
from xai_insert.tasks.cost import mega
from xai_insert.tasks.per_box import OF_REGIONS, describe_regions, per_box_output, region_report
from xai_insert.tasks.plan import Branch, Plan

Feeds = dict[str, npt.NDArray[Any]]
METHOD = "instance-masks"
_PIXELS_PER_CELL = 4  # along a side, unless the user says otherwise
_SURE = 8.0  # a logit that leaves the other classes nothing


@dataclass(frozen=True)
class InstancesPlan(Plan):
    """A decision for an instance segmenter.

    Attributes:
        target: what was located in the model.
        reported: what a map of each reported box is made of; None if it is not wanted.
        drawn: maps that lie in the image as the masks do.
    """

    task = "instance segmentation"
    may_be_empty = True
    target: MaskTarget
    reported: RegionReport | None = None
    drawn: Sequence[FeatureMap] = ()

    def placed(self) -> Sequence[FeatureMap]:
        return self.drawn

    @property
    def keep_float32(self) -> bool:
        return True  # coordinates of boxes need more than the eight bits of bf16

    def splice(self, loaded: LoadedModel, surgeon: Surgeon[Any], graph: Graph, options: Options) -> Branch:
        del loaded
        maps, present = instance_masks(surgeon, self.target)
        outputs = {}
        if self.reported is not None:
            grid, boxes = self.target.grid, self.reported.boxes
            of_boxes = region_maps(surgeon, graph, self.reported, grid, self._cells(boxes.scale))
            outputs = per_box_output(surgeon, of_boxes, boxes, grid, options)
        spread = None if present is None else lambda maps: present.spread(surgeon.ops, maps)
        return Branch(self, maps, outputs=outputs, spread=spread)

    def _cells(self, scale: tuple[float, float]) -> tuple[float, float]:
        """Columns and rows of the grid for one unit of the regions; one of the boxes is `scale` of these."""
        found, image = self.target.found, self.target.image
        is_relative = isinstance(found, ListedInstances) and found.box_format.is_relative
        height, width = (1, 1) if is_relative else fixed([image.sizes[axis] for axis in self.target.image_axes])
        return self.target.grid[1] / width / scale[0], self.target.grid[0] / height / scale[1]

    def uses(self) -> frozenset[str]:
        return frozenset({"num_classes", "score_threshold", "per_box"})

    def describe(self) -> dict[str, Any]:
        scores, masks = self.target.found.scored, self.target.found.drawn
        return {
            "per_box": {} if self.reported is None else describe_regions(self.reported, self.target.grid),
            "logits": {
                "output": scores.name,
                "name": scores.value.name,
                "shape": scores.value.shape,
                "classes": self.target.classes,
            },
            "target": {"name": masks.value.name, "shape": masks.value.shape, "grid": self.target.grid},
        }

    def metadata(self, options: Options) -> dict[str, str]:
        found = self.target.found
        entries = {
            "target": found.drawn.value.name,
            "grid": format_grid(self.target.grid),
            "classes": str(self.target.classes),
        }
        if self.reported is not None:
            entries["per_box"] = OF_REGIONS
        if not isinstance(found, QueryInstances):
            entries["boxes"] = str(found.box_format)
        if isinstance(found, LocationInstances):
            entries |= {"suppression_overlap": str(MOST_OVERLAP), "most_instances": str(MOST_INSTANCES)}
        if options.score_threshold is not None:
            entries["score_threshold"] = str(options.score_threshold)
        elif isinstance(found, LocationInstances):
            entries["score_threshold"] = str(SUPPRESSION_SCORE)
        return entries


def plan_instances(loaded: LoadedModel, graph: Graph, options: Options) -> InstancesPlan | None:
    """Locate instances with masks among the outputs; None for a model that gives none.

    Raises:
        XaiInsertError: one of its children says what could not be told, and which option tells it.
    """
    if not may_hold_masks(graph):
        return None
    require_proportion(graph)
    image = image_inputs(graph)[0]
    runner = loaded.runner()
    feeds, arrays = _look(runner)
    samples = [
        Sample(name, value, array) for name, value, array in zip(graph.output_names, graph.outputs, arrays, strict=True)
    ]
    for sample in samples:
        if sample.value.rank not in (None, sample.array.ndim):
            raise ModelFileError(f"output {sample.value.describe()} is {list(sample.shape)} when run")
    axes = image_axes(image)
    looked_at = next(array.shape for array in feeds.values() if array.ndim == len(image.sizes))
    found = locate_instances(graph, samples, (looked_at[axes[0]], looked_at[axes[1]]), options.num_classes)
    if found is None:
        return None
    size = image_size(image)
    grid = options.saliency_size or (None if size is None else _default_grid(size))
    if grid is None:
        raise ShapeUnknownError(
            f"the size of the map follows that of the input {image.describe()}; fix one of them: --saliency-size or "
            "--input-shape"
        )
    classes = options.num_classes or _classes(loaded, found, feeds)
    target = MaskTarget(found, classes, grid, image, axes, options.score_threshold)
    form, reason = _form(found)
    shape = (_batch(found), classes, *grid)
    reported = _reported(loaded, graph) if options.per_box else None
    drawn = drawn_maps(graph, [image], found.drawn.value)
    return InstancesPlan(METHOD, form, reason, shape, mega(_flops(target)), target, reported, drawn)


def _reported(loaded: LoadedModel, graph: Graph) -> RegionReport:
    regions = region_feature(graph, image_inputs(graph))
    if regions is None:
        raise UnsupportedTaskError("of instance segmenters, --per-box is for those with two stages")
    return region_report(loaded, graph, regions)


def _default_grid(size: tuple[int, int]) -> tuple[int, int]:
    return max(size[0] // _PIXELS_PER_CELL, 1), max(size[1] // _PIXELS_PER_CELL, 1)


def _look(runner: Runner) -> tuple[Feeds, list[npt.NDArray[Any]]]:
    """Outputs for a random image, on which something is found if possible, and that image."""
    rng = np.random.default_rng(0)
    noise = {name: random_array(rng, shape, dtype) for name, dtype, shape in runner.inputs}
    outputs = runner.run(noise)
    if all(output.size for output in outputs):
        return noise, outputs
    louder = {name: np.abs(array * 64).astype(array.dtype) for name, array in noise.items()}
    return louder, runner.run(louder)


def _batch(found: Found) -> int | None:
    """Images at once; 1 where the outputs have no axis for them."""
    counted = found.boxes if isinstance(found, ListedInstances) else found.scored
    if len(counted.shape) == 2:
        return 1
    return None if counted.value.shape is None else counted.value.shape[0]


def _form(found: Found) -> tuple[str, str]:
    """How the masks come about, and why, for the report."""
    if isinstance(found, ListedInstances):
        if found.per_box:
            return "masks pasted from boxes", f"a list of instances with masks of their boxes ({found.box_format})"
        return "masks of the image", "a list of instances with masks of the whole image"
    if isinstance(found, RowInstances):
        return "masks from prototypes", f"detections with coefficients ({found.box_format})"
    if isinstance(found, LocationInstances):
        return "masks from prototypes, suppressed", f"locations with coefficients ({found.box_format})"
    last = ", the last score means no object" if found.has_no_object else ""
    return "masks of queries", f"queries with class scores and masks{last}"


def _classes(loaded: LoadedModel, found: Found, feeds: Feeds) -> int:
    """Number of classes, read off the layer that scores them.

    Raises:
        UnsupportedTaskError: it cannot be told.
    """
    if isinstance(found, LocationInstances):
        width = found.predictions.shape[2 if found.channels_last else 1]
        return width - 4 - found.has_objectness - found.prototypes.shape[1]
    if isinstance(found, QueryInstances):
        return found.scores.shape[2] - found.has_no_object
    head = find_class_head(found.scored.value)
    if head is None:
        raise UnsupportedTaskError(
            f"no class head leads to the scores {found.scored.describe()}; give the number of classes: --num-classes"
        )
    if isinstance(found, ListedInstances) and head.is_exclusive:
        return _labels_of(loaded, head, found.labels, feeds) or head.width
    return head.width


def _labels_of(loaded: LoadedModel, head: ClassHead, labels: Sample, feeds: Feeds) -> int:
    """One more than the highest label: a background may be the first or the last score, and labels begin at 0 or 1.

    The model is asked: with the last score, or the one before it, raised everywhere, it reports that class.
    """
    logits = loaded.between([], [head.logits.native]).run(feeds)[0]
    runner = loaded.between([head.logits], [labels.value.native])
    names = [name for name, _, _ in runner.inputs]
    highest = -1
    for raised in (head.width - 1, head.width - 2):
        changed = np.full_like(logits, -_SURE)
        np.moveaxis(changed, head.axis, -1)[..., raised] = _SURE
        reported = runner.run(dict(zip(names, [changed, *feeds.values()], strict=True)))[0]
        highest = max(highest, int(reported.max(initial=-1)))
    return highest + 1


def _flops(target: MaskTarget) -> int:
    """Matrix products, for as many instances as there can be."""
    found, (height, width) = target.found, target.grid
    if isinstance(found, QueryInstances):
        return 2 * target.classes * found.scores.shape[1] * height * width
    if isinstance(found, ListedInstances):
        count, (rows, columns) = 100, found.masks.shape[-2:]
        pasting = 2 * height * columns * (rows + width) if found.per_box else 0
        return count * (pasting + 2 * target.classes * height * width)
    _, depth, rows, columns = found.prototypes.shape
    return MOST_INSTANCES * 2 * (depth * rows * columns + target.classes * height * width)
