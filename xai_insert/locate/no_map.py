"""What is a feature map, and what is said of a model where none was found."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.along import along
from xai_insert.graph.axes import has_place
from xai_insert.graph.cuts import activations, region
from xai_insert.graph.operators import Product, Unknown, Window
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.consensus import folded_times
from xai_insert.locate.inputs import image_inputs, open_hint, shape_hint
from xai_insert.locate.places import Places

_BY_THE_IMAGE = "--method input-x-gradient explains the scores by the image itself"


def is_feature(graph: Graph, value: Value) -> bool:
    """Whether weights have made a value of the image, which is never a feature itself, moved or scaled as it may be."""
    return any(isinstance(node.kind, (Window, Product)) for node in region(graph, image_inputs(graph), [value]))


def where_lost(graph: Graph, places: Places) -> str:
    """The first operation of which it is not known where it puts what it reads."""
    for node in graph.nodes:
        is_lost = isinstance(node.kind, Unknown) and places.of(node.outputs[0]) is None
        if is_lost and any(value is not None and places.of(value) for value in node.inputs):
            return f" (they are lost at {node.type} {node.name!r})"
    return ""


def why_no_map(graph: Graph, places: Places, logits: Value, sources: Sequence[Value]) -> str:
    """What is said where none of the values on every path is a feature map; `sources` are the last with a grid."""
    if any(folded_times(axes) is not None for axes in places.traced.values()):
        return (
            "the frames of a clip stand in the batch, and more than a mean of their scores is made of them: their maps "
            "cannot be told apart"
        )
    if any(map(places.has_views, places.traced)):
        return _side_by_side(graph)
    if len(sources) > 1:
        listed = ", ".join(value.describe() for value in sources)
        return (
            f"{len(sources)} streams that cannot be masked as one feed the scores, and no map that can be followed "
            f"holds them all: {listed}; the map of one leaves out what the others see; {_BY_THE_IMAGE}"
        )
    return (
        f"no feature map found before the logits {logits.describe()}; nearest value with a grid of the image: "
        f"{sources[0].describe()}, which is {_what_instead(graph, places, sources[0])}"
    )


def _side_by_side(graph: Graph) -> str:
    joins = [node for node in graph.nodes if node.op is Op.CONCAT and along(node.kind) == 0]
    node = next((node for node in joins if _are_of_several(graph, node)), None)
    if node is None:
        return (
            "views or parts of an image stand side by side in one batch (test-time augmentation): their maps cannot be "
            "told apart; insert into the model of one view"
        )
    return (
        f"several inputs stand side by side in one batch, joined by {node.type} {node.name!r}: their maps cannot be "
        "told apart; export the model with its backbone run on each input"
    )


def _are_of_several(graph: Graph, join: Node) -> bool:
    """Whether what is joined comes from different inputs of the model."""
    values = {*join.computed}
    return any(0 < len(values & activations(graph, [image])) < len(values) for image in graph.inputs)


def _what_instead(graph: Graph, places: Places, nearest: Value) -> str:
    """What the nearest value with a grid is, if it is no feature map."""
    if is_feature(graph, nearest):
        return _with_axes(places, nearest) or _no_batch(graph)
    lost = [use.node for use in nearest.uses if places.of(use.node.output) is None]
    lost.sort(key=lambda node: node.output.rank != nearest.rank)
    return _put_elsewhere(graph, lost[0], nearest) if lost else _no_batch(graph)


def _no_batch(graph: Graph) -> str:
    return f"no batch of maps with channels; {shape_hint(graph)}"


def _put_elsewhere(graph: Graph, node: Node, image: Value) -> str:
    """How the places of an image are lost at a node."""
    if node.output.rank == image.rank:
        known = open_hint(graph).removeprefix("; ")  # resized to a fixed size, it lies there as its own size says
        ways = f"{known}, or " if known else ""
        return (
            f"the image: it is not known where {node.type} {node.name!r} puts it; {ways}insert into what is behind that"
        )
    return (
        f"the image: {node.type} {node.name!r} and what follows cut it into parts or take its rows and columns in "
        f"another order, and no map behind lies as the image does; {_BY_THE_IMAGE}"
    )


def _with_axes(places: Places, value: Value) -> str:
    """What is said of a value with more than one axis of several elements beside batch, rows and columns."""
    axes = enumerate(places.traced.get(value, ()))
    beside = [str(value.sizes[index]) for index, axis in axes if index and not has_place(axis)]
    if len(beside) < 2:
        return ""
    return (
        f"no map of one axis of channels: beside rows and columns it has axes of {' and '.join(beside)}, of which one "
        f"may hold bands, or frames that were subtracted or turned about; {_BY_THE_IMAGE}"
    )
