"""Models that make every image of one size, and so explain images of any size by maps of one."""

from __future__ import annotations

import numpy as np

from xai_insert.graph.cuts import activations
from xai_insert.graph.view import Graph, Node, Value, constant_of
from xai_insert.locate.layout import FeatureMap
from xai_insert.tasks.base import Found

_FEW = 1 << 16  # elements of a constant that may be computed from the size of the image


def is_of_one_size(one: tuple[Graph, Found], other: tuple[Graph, Found]) -> bool:
    """Whether nothing behind the maps that are explained follows the size of the image, in which they lie alike.

    Args:
        one: a model at one size of the image, and what was found in it.
        other: the same model at another size.
    """
    (graph, found), (larger, twin) = one, other
    features, twins = found.placed(), twin.placed()
    if len(features) != len(twins) or not all(map(_lie_alike, features, twins)):
        return False
    behind = activations(graph, [feature.value for feature in features])
    nodes = {node.output.native: node for node in larger.nodes}
    return all(
        _is_same(node, nodes.get(node.output.native)) for node in graph.nodes if not behind.isdisjoint(node.outputs)
    )


def _lie_alike(feature: FeatureMap, twin: FeatureMap) -> bool:
    """Whether two maps are one value, of one grid, which lies alike in images of two sizes."""
    is_same = feature.value.native == twin.value.native and feature.grid == twin.grid and None not in feature.grid
    return is_same and feature.frame.lies_as(twin.frame, feature.grid)


def _is_same(node: Node, twin: Node | None) -> bool:
    """Whether a node reads and gives the same sizes, and the same constants, at two sizes of the image."""
    if twin is None or not all(map(_are_as_large, node.outputs, twin.outputs)):
        return False
    return all(map(_are_alike, node.operands, twin.operands))


def _are_as_large(one: Value, other: Value) -> bool:
    return None not in one.sizes[1:] and one.sizes == other.sizes


def _are_alike(one: Value, other: Value) -> bool:
    if one.is_constant is not other.is_constant:
        return False
    a, b = (constant_of(value, limit=_FEW) for value in (one, other))
    return a is b or (a is not None and b is not None and np.array_equal(a, b))
