"""What is a feature map, and what is said of a model where none was found."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.cuts import region
from xai_insert.graph.operators import Product, Unknown, Window
from xai_insert.graph.view import Graph, Value
from xai_insert.locate.consensus import folded_times
from xai_insert.locate.inputs import image_inputs, shape_hint
from xai_insert.locate.places import Places


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
        return (
            "views or parts of an image stand side by side in one batch (test-time augmentation): their maps cannot be "
            "told apart; insert into the model of one view"
        )
    if len(sources) > 1:
        listed = ", ".join(value.describe() for value in sources)
        return (
            f"{len(sources)} streams that cannot be masked as one feed the scores, and no map that can be followed "
            f"holds them all: {listed}; the map of one leaves out what the others see; --method input-x-gradient "
            "explains the scores by the image itself"
        )
    return (
        f"no feature map found before the logits {logits.describe()}; nearest value with a grid of the image: "
        f"{sources[0].describe()}, which is {_what_instead(graph, places, sources[0])}"
    )


def _what_instead(graph: Graph, places: Places, nearest: Value) -> str:
    """What the nearest value with a grid is, if it is no feature map."""
    readers = [use.node for use in nearest.uses if use.node.output.rank == nearest.rank]
    lost = next((node for node in readers if places.of(node.output) is None), None)
    if lost is None or is_feature(graph, nearest):
        return f"no batch of maps with channels; {shape_hint(graph)}"
    return f"the image: it is not known where {lost.type} {lost.name!r} puts it; insert into what is behind that"
