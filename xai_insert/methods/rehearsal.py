"""Trying a closed form while planning: the rules run, and nothing is written.

Whether a head can run on all positions at once is told by the rules of `xai_insert.methods.batching`, which follow the
axes of its values; the values themselves they do not look at. With a surgeon that gives one stand-in for every value,
a method says at once what it would say while it edits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

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

    def within(self, value: object) -> object:
        return value

    def add_input(self, name: str, dtype: str, shape: Shape) -> object:
        return STAND_IN

    def prune(self) -> None:
        pass

    def pinned(self, value: object, shape: Shape, image: Value, axes: Sequence[int]) -> object:
        return value

    def add_output(self, value: object, name: str, dtype: str, shape: Shape) -> None:
        pass


class _NotedOps(_NoOps):
    """The same, which note what they are asked for."""

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    def __getattr__(self, name: str) -> Callable[..., object]:
        def operation(*given: object, **more: object) -> object:
            self._asked.append(f"{name} {_told(given)} {_told([*more.values()])}")
            return STAND_IN

        return operation


class Noted(Rehearsal):
    """A rehearsal of which one can tell whether another would write the same.

    Attributes:
        asked: every operation with the numbers that it is given, and every node that is copied, in order.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ops = _NotedOps(self.asked)

    def handle(self, value: Value) -> object:
        self.asked.append(f"value {value.name}")
        return STAND_IN

    def copy(self, node: Node, inputs: Sequence[object | None]) -> Sequence[object]:
        self.asked.append(f"copy {node.name}")
        return super().copy(node, inputs)


def _told(given: object) -> str:
    """Numbers and names among operands; values are all alike."""
    if isinstance(given, np.ndarray):
        return f"{given.dtype} {given.shape} {sha256(given.tobytes()).hexdigest()}"
    if isinstance(given, (list, tuple)):
        return f"({', '.join(map(_told, given))})"
    return "value" if given is STAND_IN else repr(given)
