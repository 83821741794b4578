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
    if not _are_whole(found):
        _require_upright(graph, places, drawn)
        return Frame()
    place = places.of(found.drawn.value)
    if place is not None:
        return places.frame_of(place)
    if isinstance(found, QueryInstances):
        _require_none_lost(places, found.drawn.value)
    return Frame()


def _are_whole(found: Found) -> bool:
    """Whether masks are of the whole image, and no boxes cut them."""
    return isinstance(found, QueryInstances) or (isinstance(found, ListedInstances) and not found.per_box)


def _require_upright(graph: Graph, places: Places, drawn: Sequence[FeatureMap]) -> None:
    for feature in drawn:
        if not feature.frame.is_upright:
            value = feature.value
            way = region(graph, image_inputs(graph), [value])
            node = next(node for node in way if _is_turned(places, node.output))
            raise MisplacedMapError(
                f"{value.describe()}, of which boxes cut the masks, is turned by {node.type} {node.name!r}, so "
                "that it does not lie as the image that is given; where the boxes lie is not followed: insert into the "
                "model without it"
            )


def _is_turned(places: Places, value: Value) -> bool:
    """Whether a value does not lie as the image does."""
    place = places.of(value)
    return place is not None and not places.frame_of(place).is_upright


def _require_none_lost(places: Places, masks: Value) -> None:
    lost = _where_lost(places, masks)
    if lost is not None:
        raise MisplacedMapError(
            f"it is not known where {lost.type} {lost.name!r} puts the cells of the masks {masks.describe()}; insert "
            "into the model without it"
        )


def _where_lost(places: Places, value: Value) -> Node | None:
    """The nearest operation before a value that reads a grid; None if no grid leads there."""
    ahead = [value]
    for item in ahead:
        read = [] if item.producer is None else item.producer.computed
        if any(map(places.of, read)):
            return item.producer
        ahead += [value for value in read if value not in ahead]
    return None
