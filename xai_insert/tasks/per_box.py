"""What the plans of detectors and segmenters share where a map of each reported box is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xai_insert.errors import AmbiguousModelError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.proportion import require_proportion
from xai_insert.graph.view import Graph, Shape, Value
from xai_insert.locate.detector import Regions
from xai_insert.locate.query_attention import DenseLook, QueryReport, find_query_report
from xai_insert.locate.region_head import RegionReport, find_region_head
from xai_insert.methods.query_attention import box_query_maps, query_maps
from xai_insert.methods.scaling import to_bytes
from xai_insert.options import Options
from xai_insert.probe.regions import find_region_report
from xai_insert.tasks.plan import Output

PER_BOX = "saliency_map_per_box"
OF_REGIONS = "Recipro-CAM of the reported class on the feature of the box's region, where that lies"


@dataclass(frozen=True)
class QueryMethod:
    """How the map of a box of a query is made.

    Attributes:
        meaning: for the metadata.
        maps: adds `[B, M, h, w]`; its last argument is what `query_maps` gave, if that is there already.
        keeps_batch: as of a plan with such maps, see `Plan`: a derivative has the sizes of what it is taken of.
    """

    meaning: str
    maps: Callable[[Surgeon[Any], Graph, QueryReport, Any], Any]
    keeps_batch: bool = True


def _attended(surgeon: Surgeon[Any], graph: Graph, report: QueryReport, looks: Any) -> Any:
    return box_query_maps(surgeon, report, query_maps(surgeon, graph, report) if looks is None else looks)


BY_ATTENTION = QueryMethod(
    "attention of the box's query to the image in the last decoder layer, times its class score",
    _attended,
    keeps_batch=False,
)


def reported_sizes(boxes: Value) -> Shape:
    """B and M."""
    sizes = boxes.sizes
    return (1, sizes[0]) if len(sizes) == 2 else sizes[:2]


def per_box_output(surgeon: Surgeon[Any], maps: Any, boxes: Value, grid: Shape, options: Options) -> dict[str, Output]:
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
        "shape": (*reported_sizes(boxes.value), *grid),
    }


def query_report(graph: Graph, options: Options, classes: int | None = None) -> QueryReport | None:
    """Locate what the queries look at whose boxes a detector reports; None if it has no such queries.

    Args:
        graph: the model.
        options: what the user has chosen.
        classes: how many classes the queries are known to have, none of them a background.

    Raises:
        AmbiguousModelError: their class scores are wanted and cannot be told.
    """
    found = find_query_report(graph, options.num_classes or classes, options.output)
    if isinstance(found, str):
        return None
    if found.scores is None and options.output_dtype == "f32":
        raise AmbiguousModelError(f"--per-box in f32 is attention times the class score: {found.untold}")
    return found


def query_output(
    surgeon: Surgeon[Any], graph: Graph, report: QueryReport, method: QueryMethod, options: Options, looks: Any = None
) -> dict[str, Output]:
    """The output with the maps of the reported boxes' queries; for `looks` see `QueryMethod`."""
    maps, grid = method.maps(surgeon, graph, report, looks), report.grid
    if options.saliency_size is not None and options.saliency_size != grid:
        maps, grid = surgeon.ops.resize(maps, *options.saliency_size), options.saliency_size
    return per_box_output(surgeon, maps, report.boxes, grid, options)


def describe_queries(report: QueryReport) -> dict[str, Any]:
    """The field `per_box` of a `Report`."""
    look = report.look
    read = [look.attention.key] if isinstance(look, DenseLook) else [item.source for item in look.samplings]
    return {
        "attention": (look.attention.result if isinstance(look, DenseLook) else look.weights).name,
        "read": [value.name for value in read],
        "boxes": report.boxes.name,
        "scores": None if report.scores is None else report.scores.value.name,
        "shape": (*report.boxes.sizes[:2], *report.grid),
    }
