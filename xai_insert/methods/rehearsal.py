"""Trying a closed form while planning: the rules run, and nothing is written.

Whether a head can run on all positions at once is told by the rules of `xai_insert.methods.lifting`, which follow the
axes of its values; the values themselves they do not look at. With a surgeon that gives one stand-in for every value,
a method says at once what it would say while it edits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xai_insert.graph.view import Node, Shape, Value

STAND_IN = object()


class _NoOps:
    """`Ops` that write nothing."""

    def top(self, a: object, count: object) -> tuple[object, object]:
        del a, count
        return STAND_IN, STAND_IN

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *_, **__: STAND_IN


class Rehearsal:
    """A `Surgeon` that edits nothing; every handle is `STAND_IN`."""

    def __init__(self) -> None:
        self.ops: Any = _NoOps()

    def handle(self, value: Value) -> object:
        del value
        return STAND_IN

    def copy(self, node: Node, inputs: Sequence[object | None]) -> Sequence[object]:
        del inputs
        return [STAND_IN for _ in node.outputs]

    def stored(self, node: Node, index: int) -> object:
        del node, index
        return STAND_IN

    def rounds(self, node: Node) -> bool:
        del node
        return False

    def repeat(self, runs: object, body: Callable[[object], object], width: int) -> object:
        del runs, width
        return body(STAND_IN)

    def add_input(self, name: str, dtype: str, shape: Shape) -> object:
        return STAND_IN

    def prune(self) -> None:
        pass

    def pinned(self, value: object, shape: Shape, image: Value, axes: Sequence[int]) -> object:
        return value

    def add_output(self, value: object, name: str, dtype: str, shape: Shape) -> None:
        pass
