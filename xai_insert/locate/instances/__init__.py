"""Which outputs of an instance segmenter are what, told from their sizes, types and values on a sample image."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.graph.view import Graph, Value
from xai_insert.locate.instances.kinds import Found, Sample
from xai_insert.locate.instances.lists import find_list
from xai_insert.locate.instances.prototypes import find_prototypes
from xai_insert.locate.instances.queries import find_queries

_LEAST_SIDE = 7  # of a mask


def may_hold_masks(graph: Graph) -> bool:
    """Whether the outputs are such that it is worth running the model: several, one of which may be masks."""
    return len(graph.outputs) > 1 and any(map(_may_be_masks, graph.outputs))


def _may_be_masks(value: Value) -> bool:
    if value.shape is None:
        return True
    sides = value.shape[-2:]
    return len(value.shape) in (3, 4, 5) and all(side is None or side >= _LEAST_SIDE for side in sides)


def locate_instances(
    graph: Graph, samples: Sequence[Sample], image: tuple[int, int], num_classes: int | None
) -> Found | None:
    """Tell what the outputs are.

    Args:
        graph: the model.
        samples: its outputs for a sample image.
        image: height and width of that image.
        num_classes: the number of classes if the user has given it.

    Returns:
        None for a model that does not give instances with masks.

    Raises:
        AmbiguousModelError: several outputs fit equally well.
        UnsupportedTaskError: the columns of an output cannot be told.
    """
    return (
        find_list(samples, image) or find_prototypes(samples, num_classes) or find_queries(graph, samples, num_classes)
    )
