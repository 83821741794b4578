"""What a model's outputs may be, told from where their axes come from: boxes of queries, maps, text, key points."""

from __future__ import annotations

from xai_insert.graph.along import along
from xai_insert.graph.axes import Axes, has_place
from xai_insert.graph.cuts import activations
from xai_insert.graph.pattern import before
from xai_insert.graph.trace import Traced
from xai_insert.graph.traits import ARRANGES, SAME
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.anomaly import map_of_one
from xai_insert.locate.inputs import image_inputs, image_size, outputs_of_image
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.lengths import is_normalised
from xai_insert.locate.logits import why_no_scores
from xai_insert.locate.places import find_places
from xai_insert.locate.segmenter import find_segmenter
from xai_insert.locate.softmaxes import is_softmax
from xai_insert.locate.texts import texts_read

_BOX = 4
_MAP = 4  # axes
_SIDES = 2
_FEWEST_LEVELS = 2
_COLOURS = 3
_FEWEST_CHARACTERS = 10
_THROUGH = SAME | ARRANGES | {Op.GATHER, Op.TAKE, Op.SLICE}


def query_boxes(graph: Graph) -> list[Value]:
    """Outputs that hold the boxes of queries or of chosen locations.

    They are rows of four beside an output with the same rows, or rows joined of a box and more.
    """
    traced = find_places(graph).traced
    return [value for value in outputs_of_image(graph) if _holds_boxes(value, graph, traced)]


def has_boxes_by_level(graph: Graph, output: str | None = None) -> bool:
    """Whether maps of several grids are outputs, on each as many, of which one has room for boxes.

    Args:
        graph: the model.
        output: name of the outputs that count; all if it is None.
    """
    places = find_places(graph)
    widths: dict[tuple[float, float], list[int | None]] = {}
    for _, value in graph.chosen(output):
        place = places.of(value)
        if place is not None and value.rank == _MAP and len(place.axes) == _SIDES:
            channels = {1, 2, 3}.difference(place.axes)
            grid = (abs(place.rows.stride), abs(place.columns.stride))
            widths.setdefault(grid, []).extend(value.sizes[axis] for axis in channels)
    if len(widths) < _FEWEST_LEVELS or len({*map(len, widths.values())}) > 1:
        return False
    return all(len(found) > 1 and any(width and width % _BOX == 0 for width in found) for found in widths.values())


def are_masks(graph: Graph) -> bool:
    """Whether every output has one number for each pixel, but for those that others are computed from.

    So it is with U^2-Net and ISNet, which give their features too. No detector has a head for each pixel, and a head
    that is given feeds no mask. Nor are vectors of a fixed length one, which describe the places of interest points.
    """
    places = find_places(graph)
    given = [value for value in graph.outputs if value.rank in (3, 4)]
    masks = {value for value in given if _is_mask(map_of_one(value, places))}
    if not masks or len(given) < len(graph.outputs):
        return False
    return all(is_normalised(value) or not masks.isdisjoint(activations(graph, [value])) for value in given)


def _is_mask(found: FeatureMap | None) -> bool:
    lines = None if found is None else found.frame.lines
    return lines is not None and all(abs(stride) <= 1 for stride, _ in lines)


def likely_task(graph: Graph) -> str | None:
    """What outputs that are no detections most likely are, for people; None if nothing tells."""
    traced = find_places(graph).traced
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        if _is_map(value, traced) or _is_as_large(value, graph):
            chosen = f"; --output {name} chooses it" if len(graph.outputs) > 1 else ""
            return _of_every_place(graph, value) + chosen + _beside_descriptors(graph, value, traced)
    told = (why_no_scores(graph, value) or _half_followed(value, traced) for value in graph.outputs)
    return next(filter(None, told), None) or _rows_among(graph)


def _of_every_place(graph: Graph, value: Value) -> str:
    return f"{value.describe()} is a value for every place of the image: {_kind_of_map(graph, value)}"


def _beside_descriptors(graph: Graph, value: Value, traced: Traced) -> str:
    """What is said of a map beside vectors of a fixed length for every place, which are made to be compared."""
    others = [other for other in graph.outputs if other is not value and other.rank == 4 and _is_map(other, traced)]
    vectors = next((other for other in others if is_normalised(other)), None)
    if vectors is None:
        return ""
    return (
        f"; beside {vectors.describe()}, a vector for every place to be compared with others, it most likely scores "
        "interest points, which have no classes"
    )


def _rows_among(graph: Graph) -> str | None:
    rows = [value for value in graph.outputs if value.rank == 3 and "float" in value.dtype]
    return _kind_of_rows(rows[0], graph) if rows else None


def _half_followed(value: Value, traced: Traced) -> str:
    """What is said of maps of which one side of the image is lost."""
    if value.rank != 4 or 1 in value.sizes[1:] or sum(has_place(axis) for axis in traced.get(value, ())) != 1:
        return ""
    return (
        f"{value.describe()} may be values for every place of the image, but either its rows or its columns cannot be "
        "followed from there, as where a stored matrix takes their place: insert into the model without that"
    )


def _kind_of_rows(value: Value, graph: Graph) -> str:
    width = value.sizes[2] or 0
    if width in (2, 3) and not is_softmax(value):
        return f"{value.describe()} looks like key points: {width} coordinates of each"
    if texts := texts_read(graph, value):
        return (
            f"{value.describe()} looks like a caption or an answer: it is made of the image and of the text "
            f"{texts[0].describe()}"
        )
    is_vector = _is_one_vector(find_places(graph).traced.get(value, ()))
    if width >= _FEWEST_CHARACTERS and not (is_vector and is_softmax(value)):
        return (
            f"{value.describe()} looks like text, or features of tokens: many values for each of a row of places; "
            "features of an image are explained where the model gives one vector of them, [N, D], pooled or of its "
            "class token"
        )
    if is_softmax(value) or is_vector:
        return f"{value.describe()} {_answers(value)}"
    return (
        f"{value.describe()} has no classes beside it that share its rows, and no layer each of whose channels raises "
        "one of its columns"
    )


def _answers(value: Value) -> str:
    """What rows are that share nothing with places of the image."""
    count, width = value.sizes[1:]
    what = "shares of one" if is_softmax(value) else "values"
    return (
        f"holds {width} {what} for each of {count} questions, as of attributes; scores of classes are one list: "
        f"export the model with them flattened, [N, {count}*{width}]"
    )


def _kind_of_map(graph: Graph, value: Value) -> str:
    if before(value, SAME).made_by(Op.COMPARE) is not None:
        return "a mask that says where scores pass a threshold; insert into the model without that comparison"
    if "float" not in value.dtype or before(value, (Op.CAST,)).made_by(Op.ARGMAX):
        return "a semantic segmenter after its argmax"
    if len(value.sizes) > 4:
        return "the heads of a detector before its boxes are decoded (--num-classes), or features for another model"
    if len(value.sizes) == 4 and (value.sizes[1] or 0) > 1:
        if value.sizes[1] == _COLOURS:
            return "colours (super-resolution, restoration), normals, semantic segmentation, or heat maps of key points"
        return (
            "semantic segmentation (--method class-score-map says so), heat maps of key points (--method keypoint-map "
            "says the latter), the heads of a detector before its boxes are decoded (--num-classes), or features for "
            f"another model{_of_cells(graph, value)}"
        )
    index = graph.outputs.index(value)
    is_mask = find_segmenter(graph, find_places(graph), graph.output_names[index]) is not None
    if not is_mask:
        return "depth, a mask or a heat map; --method anomaly-map draws it as it is"
    return (
        "depth, a mask or a heat map; --method class-score-map says that it is a mask, --method anomaly-map that it "
        "shows anomalies"
    )


def _of_cells(graph: Graph, value: Value) -> str:
    """What is said of as many channels as a cell has pixels, and one."""
    size = image_size(image_inputs(graph)[0])
    count, *grid = value.sizes[1:]
    if size is None or count is None or any(not part or side % part for side, part in zip(size, grid, strict=True)):
        return ""
    height, width = (side // (part or 1) for side, part in zip(size, grid, strict=True))
    if height * width + 1 != count:
        return ""
    return (
        f"; or a score of interest points for each of the {height}x{width} pixels of a cell, and one for none: export "
        "the model with these laid out, [N, H, W]"
    )


def _is_as_large(value: Value, graph: Graph) -> bool:
    """Whether the last two sizes are the sides of the image, twice these or half, wherever the axes come from."""
    size = image_size(image_inputs(graph)[0])
    if size is None or value.rank not in (3, 4):
        return False
    return any(value.sizes[-2:] == tuple(int(side * times) for side in size) for times in (0.5, 1, 2))


def _is_map(value: Value, traced: Traced) -> bool:
    """Whether two axes of a value go along the rows and the columns of the image."""
    return sum(has_place(axis) for axis in traced.get(value, ())) > 1


def _holds_boxes(value: Value, graph: Graph, traced: Traced) -> bool:
    if value.rank != 3 or "float" not in value.dtype or is_softmax(value) or _is_map(value, traced):
        return False
    if value.sizes[2] == _BOX:  # numbers of a fixed list are coordinates of key points, and how sure they are
        return not _is_one_vector(traced.get(value, ())) and _has_beside(value, graph)
    node = before(value, _THROUGH).made_by(Op.CONCAT)
    return (value.sizes[2] or 0) > _BOX and node is not None and _joins_columns(node)


def _has_beside(value: Value, graph: Graph) -> bool:
    """Whether another output has as many rows."""
    others = [other for other in graph.outputs if other is not value and other.rank in (2, 3)]
    return any(other.sizes[1] == value.sizes[1] for other in others)


def _is_one_vector(axes: Axes) -> bool:
    """Whether rows and columns are the channels of one layer, divided."""
    if len(axes) != 3 or not axes[1]:
        return False
    return all(any(digit.origin is other.origin for other in axes[2]) for digit in axes[1])


def _joins_columns(node: Node) -> bool:
    return node.output.rank == 3 and along(node.kind) in (1, 2)
