"""Items that may be missing, and sizes that may not be known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def only(items: Collection[_Item]) -> _Item | None:
    """The one item; None if there is none, or several."""
    return next(iter(items)) if len(items) == 1 else None


def present(items: Iterable[_Item | None]) -> list[_Item]:
    """The items that are not None."""
    return [item for item in items if item is not None]


def first_present(items: Iterable[_Item | None]) -> _Item | None:
    """The first item that is not None, no further looked for."""
    return next((item for item in items if item is not None), None)


def summed(sizes: Sequence[int | None]) -> int | None:
    """Sum of sizes, or None if one is unknown."""
    known = present(sizes)
    return sum(known) if len(known) == len(sizes) else None
