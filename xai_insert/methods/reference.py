"""The model's own head as the branch computes it, against which the branch is checked."""

from __future__ import annotations

from collections.abc import Sequence

from xai_insert.errors import CannotFreeBatchError
from xai_insert.graph.cuts import region
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Graph, Value


def unrounded(surgeon: Surgeon[V], graph: Graph, sources: Sequence[Value], results: Sequence[Value]) -> list[V]:
    """`results` without the quantisers between `sources` and them.

    Where the model computes so itself, these are its own values. Otherwise they are those of a copy that no output
    reads; a runtime drops it, and so does the surgeon when the model is written.

    Args:
        surgeon: the model being edited.
        graph: its view.
        sources: where the copy begins.
        results: what is wanted.
    """
    nodes = region(graph, sources, results)
    made = {source: surgeon.handle(source) for source in sources}
    if any(surgeon.rounds(node) for node in nodes):
        try:
            for node in nodes:
                operands = [value if value is None else _handle(surgeon, made, value) for value in node.inputs]
                made.update(zip(node.outputs, surgeon.copy(node, operands), strict=True))
        except CannotFreeBatchError:
            made = {}
    return [_handle(surgeon, made, result) for result in results]


def _handle(surgeon: Surgeon[V], made: dict[Value, V], value: Value) -> V:
    return made[value] if value in made else surgeon.handle(value)
