"""Models that draw random numbers, as those do that were exported in training mode."""

from __future__ import annotations

from xai_insert.graph.traits import DRAWS
from xai_insert.graph.view import Graph


def what_draws(graph: Graph) -> str:
    """What to say of a model whose layers draw random numbers; empty for any other."""
    layer = next((node for node in graph.nodes if node.type in DRAWS), None)
    if layer is None:
        return ""
    return (
        f"{layer.type} {layer.name!r} draws random numbers, so predictions and maps may differ from run to run "
        "(exported in training mode?)"
    )
