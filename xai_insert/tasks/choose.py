"""Which task a model does, told from its structure."""

from __future__ import annotations

from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph
from xai_insert.options import Options
from xai_insert.tasks.classification import plan_classification
from xai_insert.tasks.plan import Plan


def make_plan(loaded: LoadedModel, graph: Graph, options: Options) -> Plan:
    """Locate the model's parts and choose method and form.

    Args:
        loaded: the unedited model; its runtime answers what structure alone leaves open.
        graph: its view.
        options: what the user has chosen.

    Raises:
        XaiInsertError: one of its children says what was not found.
    """
    del loaded
    return plan_classification(graph, options)
