"""What the plans of detectors and segmenters share where a map of each reported box is wanted."""

from __future__ import annotations

from typing import Any

from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.proportion import require_proportion
from xai_insert.graph.view import Graph, Shape
from xai_insert.locate.boxes import ReportedBoxes
from xai_insert.locate.detector import Regions
from xai_insert.locate.region_head import RegionReport, find_region_head
from xai_insert.methods.scaling import to_bytes
from xai_insert.options import Options
from xai_insert.probe.regions import find_region_report
from xai_insert.tasks.plan import Output

PER_BOX = "saliency_map_per_box"
WANTED = "--per-box is for detectors with class scores at every location, or with a head that classifies regions"
OF_REGIONS = "Recipro-CAM of the reported class on the feature of the box's region, where that lies"


def reported_sizes(boxes: ReportedBoxes) -> Shape:
    """B and M."""
    sizes = boxes.value.sizes
    return (1, sizes[0]) if len(sizes) == 2 else sizes[:2]


def per_box_output(
    surgeon: Surgeon[Any], maps: Any, boxes: ReportedBoxes, grid: Shape, options: Options
) -> dict[str, Output]:
    """The output with maps `[B, M, h, w]`."""
    shape = (*reported_sizes(boxes), *grid)
    if options.output_dtype == "f32":
        return {PER_BOX: Output(maps, "float32", shape)}
    return {PER_BOX: Output(to_bytes(surgeon.ops, maps, (2, 3)), "uint8", shape)}


def region_report(loaded: LoadedModel, graph: Graph, found: Regions) -> RegionReport:
    """Locate a two-stage detector's region head and the boxes that it reports.

    Raises:
        ShapeUnknownError: see `find_region_report`.
        UnsupportedTaskError: see `find_region_head` and `find_region_report`.
    """
    head = find_region_head(graph, found)
    require_proportion(graph)
    return find_region_report(loaded, graph, head)


def describe_regions(report: RegionReport, grid: Shape) -> dict[str, Any]:
    """The field `per_box` of a `Report`."""
    head, boxes = report.head, report.boxes
    return {
        "feature": head.feature.value.name,
        "logits": head.logits.name,
        "regions": head.regions.name,
        "boxes": boxes.value.name,
        "boxes_format": boxes.format,
        "scores": report.scores.name,
        "shape": (*reported_sizes(boxes), *grid),
    }
