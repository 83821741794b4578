"""Maps of probabilities: what softmaxes over channels give, averaged, weighed and resized."""

from __future__ import annotations

from xai_insert.graph.operators import Resized
from xai_insert.graph.traits import ARITHMETIC, ARRANGES, CUTS_OUT, SQUASHES, UNCHANGED
from xai_insert.graph.view import Node, Op, Value, volume
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.places import Places
from xai_insert.locate.softmaxes import shares_along, written_out

_KEEPS = UNCHANGED | ARRANGES | CUTS_OUT | ARITHMETIC | {Op.CONCAT, Op.REDUCE}
"""What drops, orders, joins, averages and weighs probabilities of classes."""


def are_probabilities(scores: FeatureMap, places: Places) -> bool:
    """Whether several values of a place are made of softmaxes over channels alone, and of sigmoids beside them.

    One value alone may be the probability of an anomaly as well. Numbers that differ from channel to channel weigh no
    probabilities: they make an expected value of them.
    """
    if scores.channels == 1:
        return False
    found, waiting, seen = False, [scores.value], set[Value]()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer
        if node is None or not (_is_squashed(value) or _keeps_probabilities(node)):
            return False
        if _is_squashed(value):
            found = found or _is_over_channels(node, places)
        else:
            waiting += node.computed if node.op in ARITHMETIC | {Op.CONCAT} else [node.read(0)]
    return found


def _is_squashed(value: Value) -> bool:
    """Whether a softmax, in one operator or several, or a sigmoid gives a value."""
    return value.made_by(*SQUASHES) is not None or written_out(value) is not None


def _keeps_probabilities(node: Node) -> bool:
    """Whether a node gives probabilities where it reads them."""
    if node.op in ARITHMETIC and any(volume(item.sizes) != 1 for item in node.stored):
        return False
    return node.op in _KEEPS or isinstance(node.kind, Resized)


def _is_over_channels(node: Node, places: Places) -> bool:
    """Whether a softmax is over neither images nor places, of one model or of several that were stacked."""
    place, axis = places.of(node.output), shares_along(node.output)
    if axis is None or place is None or len(place.axes) != 2:
        return False
    return axis not in {0, *place.axes}
