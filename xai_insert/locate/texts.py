"""Texts that a model reads beside its image."""

from __future__ import annotations

from xai_insert.graph.cuts import activations
from xai_insert.graph.pattern import before
from xai_insert.graph.traits import ARRANGES, SAME
from xai_insert.graph.view import Graph, Op, Value

_TABLE = 2
_TEXT = 2


def texts_read(graph: Graph, value: Value) -> list[Value]:
    """The inputs with numbers of words, by which rows of a stored table are looked up, that a value depends on."""
    made = activations(graph, list(graph.inputs))
    looked_up = {
        before(node.read(1), SAME | ARRANGES)
        for node in graph.nodes
        if node.op is Op.GATHER and node.read(0).rank == _TABLE and node.read(0) not in made
    }
    texts = [item for item in graph.inputs if item in looked_up and _is_text(item)]
    return [item for item in texts if value in activations(graph, [item])]


def _is_text(item: Value) -> bool:
    """Whether an input holds several whole numbers for each text, and no class or place alone."""
    return "int" in item.dtype and item.rank == _TEXT and item.sizes[1] != 1
