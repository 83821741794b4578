"""Cut values: the activations through which every path from the image to a result passes.

In graph theory, the dominators of the result in the graph of the values that depend on the image. They come in a
total order; in a residual network they are the joints between blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from xai_insert.graph.view import Graph, Node, Op, Value

T = TypeVar("T")


def walk(starts: Iterable[T], following: Callable[[T], Iterable[T]]) -> Iterator[T]:
    """Everything that can be reached from `starts`, once each, what was found last first."""
    stack, seen = list(starts), set[T]()
    while stack:
        item = stack.pop()
        if item not in seen:
            seen.add(item)
            yield item
            stack += following(item)


def activations(graph: Graph, sources: Iterable[Value]) -> set[Value]:
    """Values whose content depends on `sources`. A shape that was read off a value does not depend on its content."""
    reached = set(sources)
    for node in graph.nodes:
        if node.op is not Op.SHAPE and not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
    return reached


def region(graph: Graph, sources: Iterable[Value], targets: Iterable[Value]) -> list[Node]:
    """Nodes on some path from `sources` to `targets`, shape computations included, in topological order."""
    dependent: set[Value] = set(sources)
    for node in graph.nodes:
        if not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
    inner = dependent.difference(sources)

    def made_of(values: Iterable[Value]) -> list[Node]:
        return [value.producer for value in values if value in inner and value.producer is not None]

    return sorted(walk(made_of(targets), lambda node: made_of(node.operands)), key=graph.order.__getitem__)


def makers(value: Value, wanted: Callable[[Node], bool], is_way: Callable[[Value], bool] | None = None) -> list[Node]:
    """The nodes before `value` for which `wanted` holds, the nearest on every path.

    Args:
        value: where the paths end.
        wanted: tells what is looked for.
        is_way: tells which values paths lead through; all of them by default.
    """

    def maker(current: Value) -> Node | None:
        return current.producer if is_way is None or is_way(current) else None

    way = walk([value], lambda item: () if (node := maker(item)) is None or wanted(node) else node.operands)
    return list(dict.fromkeys(node for item in way if (node := maker(item)) is not None and wanted(node)))


def cut_values(graph: Graph, sources: Sequence[Value], target: Value) -> list[Value]:
    """The dominators of `target`, from the image on, `target` last."""
    reached = activations(graph, sources)
    if target not in reached:
        return []
    parent = _nearest_dominators(graph, sources, reached)
    chain: list[Value] = []
    vertex: Value | Node | None = target
    while vertex is not None:
        if isinstance(vertex, Value):
            chain.append(vertex)
        vertex = parent[vertex]
    return chain[::-1]


def _nearest_dominators(
    graph: Graph, sources: Sequence[Value], reached: set[Value]
) -> dict[Value | Node, Value | Node | None]:
    """The immediate dominator of each node and each value; None for the sources.

    In one topological sweep (the graph has no cycle), by the nearest common ancestor of the operands; nodes and values
    are both vertices, so that a Split's outputs are told apart.
    """
    parent: dict[Value | Node, Value | Node | None] = dict.fromkeys(sources)
    depth: dict[Value | Node | None, int] = {None: 0, **dict.fromkeys(sources, 1)}

    def common(a: Value | Node | None, b: Value | Node | None) -> Value | Node | None:
        while a is not b:
            if depth[a] < depth[b]:
                a, b = b, a
            a = parent[a] if a is not None else None
        return a

    for node in graph.nodes:
        operands = [value for value in node.operands if value in reached and value in depth]
        if not operands or node.op is Op.SHAPE:
            continue
        nearest: Value | Node | None = operands[0]
        for operand in operands[1:]:
            nearest = common(nearest, operand)
        parent[node], depth[node] = nearest, depth[nearest] + 1
        for output in node.outputs:
            parent[output], depth[output] = node, depth[node] + 1
    return parent
