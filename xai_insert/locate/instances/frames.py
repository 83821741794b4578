"""How the masks of instances lie in the image."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.errors import MisplacedMapError
from xai_insert.graph.cuts import region
from xai_insert.graph.view import Graph, Node, Value
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.instances.kinds import Found, ListedInstances, QueryInstances
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.locate.places import Places


def frame_of_masks(graph: Graph, places: Places, found: Found, drawn: Sequence[FeatureMap]) -> Frame:
    """How masks of the whole image lie in it; those that boxes cut out are refused where they do not lie as it does.

    Args:
        graph: the model.
        places: where its values lie in the image.
        found: its outputs.
        drawn: what lies in the image as the masks do.

    Raises:
        MisplacedMapError: the place of the masks is lost, or boxes, whose place is not followed, cut them out of a
            turned image.
    """
    masks = found.drawn.value
    if isinstance(found, QueryInstances) or (isinstance(found, ListedInstances) and not found.per_box):
        place = places.of(masks)
        if place is not None:
            return places.frame_of(place)
        lost = _where_lost(places, masks) if isinstance(found, QueryInstances) else None
        if lost is not None:
            raise MisplacedMapError(
                f"it is not known where {lost.type} {lost.name!r} puts the cells of the masks {masks.describe()}; "
                "insert into the model without it"
            )
        return Frame()
    for feature in drawn:
        if not feature.frame.is_upright:
            node = _where_turned(graph, places, feature.value)
            by = "" if node is None else f" by {node.type} {node.name!r}"
            raise MisplacedMapError(
                f"{feature.value.describe()}, of which boxes cut the masks, is turned{by} and does not lie in the "
                "image as the model is given it; where the boxes lie is not followed: insert into the model without it"
            )
    return Frame()


def _where_lost(places: Places, value: Value) -> Node | None:
    """The nearest operation before a value that reads a grid and gives none; None if no grid leads there."""
    ahead = [value]
    for item in ahead:
        node = item.producer
        if node is None:
            continue
        if any(map(places.of, node.computed)):
            return node
        ahead += [read for read in node.computed if read not in ahead]
    return None


def _where_turned(graph: Graph, places: Places, value: Value) -> Node | None:
    """The first operation on the way to a value whose result is not in the order of what it reads."""
    for node in region(graph, image_inputs(graph), [value]):
        place = places.of(node.output)
        read = [found for item in node.computed if (found := places.of(item)) is not None]
        if place is None or not read:
            continue
        frames = [places.frame_of(item) for item in (place, read[0])]
        if not frames[0].is_upright and frames[1].is_upright:
            return node
    return None
