"""What the graphs inside of an operation (If, Loop, Scan) do to places, read without following them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import fields, replace
from typing import NamedTuple

from xai_insert.graph.operators import ControlFlow
from xai_insert.graph.traits import KEEPS_PLACES
from xai_insert.graph.view import Op


class BodyNode(NamedTuple):
    """An operation of a body.

    Attributes:
        op: its kind.
        read: what it reads.
        given: what it gives.
        is_of_first: whether it takes one element along the first axis of what the body is given, or puts one there, as
            lists of tensors (TensorFlow's `TensorArray`) are written.
    """

    op: Op
    read: Collection[Hashable]
    given: Collection[Hashable]
    is_of_first: bool


def flow_of(steps: Iterable[BodyNode], stored: Iterable[Hashable]) -> ControlFlow:
    """What a body does to places, of what it works on and not of sizes and what is stored.

    Args:
        steps: its operations, producers before consumers.
        stored: its constants.
    """
    sizes, flow = set(stored), ControlFlow()
    for op, read, given, is_of_first in steps:
        if op is Op.SHAPE or sizes.issuperset(read):
            sizes.update(given)
        elif is_of_first:
            flow = replace(flow, moves_first=True)
        elif op is Op.RESIZE:
            flow = replace(flow, resizes=True)
        elif op not in KEEPS_PLACES:
            return ControlFlow(moves=True)
    return flow


def together(flows: Iterable[ControlFlow]) -> ControlFlow:
    """What several bodies do, of which any may run."""
    found = list(flows)
    names = [item.name for item in fields(ControlFlow)]
    return ControlFlow(**{name: any(getattr(flow, name) for flow in found) for name in names})
