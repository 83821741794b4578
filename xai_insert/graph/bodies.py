"""What the graphs inside of an operation (If, Loop, Scan) do to places, read without following them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable

from xai_insert.graph.traits import KEEPS_PLACES
from xai_insert.graph.view import Op

Step = tuple[Op, Collection[Hashable], Collection[Hashable]]
"""An operation, what it reads and what it gives."""


def moves_values(steps: Iterable[Step], stored: Iterable[Hashable]) -> bool:
    """Whether a body may arrange or cut what it works on, and not only sizes and what is stored.

    Args:
        steps: its operations, producers before consumers.
        stored: its constants.
    """
    sizes = set(stored)
    for op, read, given in steps:
        if op is Op.SHAPE or sizes.issuperset(read):
            sizes.update(given)
        elif op not in KEEPS_PLACES:
            return True
    return False
