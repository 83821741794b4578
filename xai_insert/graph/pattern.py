"""Patterns: parts that are found one from the other, operators that are looked past, a layer with its bias."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xai_insert.graph.operators import Product, Window
from xai_insert.graph.view import Node, Op, Value


def before(value: Value, passed: Container[Op]) -> Value:
    """What a value was before the operators in `passed`, along their first operands."""
    while (node := value.producer) is not None and node.op in passed:
        value = node.read(0)
    return value


def maker(value: Value, passed: Container[Op] = ()) -> Node | None:
    """The nearest operator that is not in `passed`; None where a constant or an input of the model comes first."""
    return before(value, passed).producer


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


def _unbiased(node: Node, found: Mapping[str, Any]) -> Node | None:
    """A node, or what it adds a stored bias to."""
    del found
    if node.op is not Op.ADD:
        return node
    return node.computed[0].producer if len(node.computed) == 1 else None


def _if_linear(node: Node, found: Mapping[str, Any]) -> Node | None:
    del node
    layer: Node = found["unbiased"]
    is_linear = isinstance(layer.kind, Product) or (isinstance(layer.kind, Window) and layer.kind.pool is None)
    return layer if is_linear else None


LINEAR = (
    Part("unbiased", "single summand beside a stored bias", _unbiased),
    Part("layer", "linear layer or convolution before it", _if_linear),
)
"""A linear layer, with its bias or without."""


def layer_of(value: Value) -> Node | None:
    """The linear layer that gives a value, before its bias is added; None if none does."""
    found = None if value.producer is None else fitted(LINEAR, value.producer)
    return found["layer"] if isinstance(found, dict) else None


def missing_layer(value: Value) -> Miss | None:
    """What keeps a value from being what a linear layer gives; None where nothing does, or nothing makes it."""
    found = None if value.producer is None else fitted(LINEAR, value.producer)
    return found if isinstance(found, Miss) else None
