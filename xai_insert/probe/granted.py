"""What is taken for granted where the classes of a detector are told, in words."""

from __future__ import annotations

from collections.abc import Iterable

from xai_insert.graph.view import Op
from xai_insert.locate.frontier import Head


class Granted:
    """Sentences about heads, by their places among all of them."""

    def __init__(self) -> None:
        self._told: dict[int, dict[str, None]] = {}

    def note(self, index: int, text: str) -> None:
        """Add a sentence about a head; the same again changes nothing."""
        if text:
            self._told.setdefault(index, {})[text] = None

    def about(self, indices: Iterable[int]) -> list[str]:
        """The sentences about the first head of which there are any: those of other levels say the same."""
        return next(([*self._told[index]] for index in indices if index in self._told), [])


def first_is_objectness(count: int) -> str:
    """Of several scores of a row the first is no class."""
    return (
        f"of the {count} scores behind each box the first is taken for objectness, as where one layer gives several "
        f"boxes: if it is a class, say so with --num-classes {count}"
    )


def is_behind(other: Head) -> str:
    """Another head has scores of one class, and a later output."""
    return f"{other.value.name!r} scores each box too, and its output stands behind"


def is_factor(other: Head) -> str:
    """Another head has scores of one class, and both are multiplied."""
    return (
        f"its score is multiplied by that of {other.value.name!r}: one of the two may be an objectness or the quality "
        "of the box, and nothing tells which"
    )


def is_objectness(other: Head) -> str:
    """Another head has one score for each box, beside several."""
    return (
        f"{other.value.name!r} beside them is taken for objectness: if it scores the only class, say so with "
        "--num-classes 1"
    )


def are_layers(head: Head) -> list[str]:
    """Several layers of one channel each are joined to one head; nothing if they are not."""
    joined = head.value.made_by(Op.CONCAT)
    if joined is None or len(joined.operands) < head.channels:
        return []
    return [f"each of the {head.channels} layers that are joined to {head.value.name!r} is taken for a class"]


def stands_before(other: Head) -> str:
    """Another head has several scores, whose columns end where those of the classes begin."""
    return (
        f"{other.channels} scores of {other.value.name!r} stand before them in each row: if these are classes too, the "
        "maps are those of the classes behind them"
    )
