"""Patterns: parts that are found one from the other, operators that are looked past, a layer with its bias."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xai_insert.graph.view import Node, Op, Value


def before(value: Value, passed: Container[Op]) -> Value:
    """What a value was before the operators in `passed`, along their first operands."""
    while (node := value.producer) is not None and node.op in passed:
        value = node.read(0)
    return value


def maker(value: Value, passed: Container[Op] = ()) -> Node | None:
    """The nearest operator that is not in `passed`; None where a constant or an input of the model comes first."""
    return before(value, passed).producer


def layer_of(value: Value) -> Node | None:
    """The operator that gives a value, before a bias is added to it."""
    if (add := value.made_by(Op.ADD)) is not None:
        return next((operand.producer for operand in add.computed), None)
    return value.producer


@dataclass(frozen=True)
class Part:
    """One part of a pattern.

    Attributes:
        name: what it is called among those that are found.
        what: what is wanted, for people.
        find: it, from the node at which the search begins and the parts before it; None if it is not there.
    """

    name: str
    what: str
    find: Callable[[Node, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Miss:
    """The first part of a pattern that is not there.

    Attributes:
        node: where the search began.
        fitting: how many parts are there.
        what: what was wanted.
    """

    node: Node
    fitting: int
    what: str

    def __str__(self) -> str:
        return f"{self.node.type} {self.node.name!r} has no {self.what}"


def fitted(parts: Sequence[Part], node: Node, **given: Any) -> dict[str, Any] | Miss:
    """Every part by its name, beside what was given to search by, or the first that is missing."""
    found: dict[str, Any] = dict(given)
    for part in parts:
        item = part.find(node, found)
        if item is None:
            return Miss(node, len(found) - len(given), part.what)
        found[part.name] = item
    return found


def nearest(parts: Sequence[Part], nodes: Sequence[Node]) -> Miss | None:
    """Of nodes where the pattern does not fit, the one that has most of its parts, the last of these."""
    misses = [miss for node in nodes if isinstance(miss := fitted(parts, node), Miss)]
    return max(reversed(misses), key=lambda miss: miss.fitting, default=None)
