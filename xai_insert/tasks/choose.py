"""Which task a model does, told from its structure."""

from __future__ import annotations

from xai_insert.errors import TargetNotFoundError, UnsupportedTaskError, UnusedOptionError, XaiInsertError
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph, Op
from xai_insert.options import Options
from xai_insert.tasks.classification import plan_classification
from xai_insert.tasks.detection import METHOD as SCORE_MAP
from xai_insert.tasks.detection import plan_detection, reports_boxes, selects_rows
from xai_insert.tasks.instances import METHOD as INSTANCE_MASKS
from xai_insert.tasks.instances import plan_instances
from xai_insert.tasks.plan import EVERY_PLAN_USES, Plan

_OF_CLASSIFIERS = ("recipro-cam", "vit-recipro-cam")


def make_plan(loaded: LoadedModel, graph: Graph, options: Options) -> Plan:
    """Locate the model's parts and choose method and form.

    Args:
        loaded: the unedited model; its runtime answers what structure alone leaves open.
        graph: its view.
        options: what the user has chosen.

    Raises:
        UnusedOptionError: the plan does not go by an option that was set on purpose.
        XaiInsertError: another of its children says what was not found.
    """
    try:
        plan = _make_plan(loaded, graph, options)
    except XaiInsertError as err:
        if graph.hint:
            err.args = (f"{err}; {graph.hint}",)
        raise
    unused = options.on_purpose - EVERY_PLAN_USES - plan.uses()
    if unused:
        raise UnusedOptionError(unused, plan.method)
    return plan


def _make_plan(loaded: LoadedModel, graph: Graph, options: Options) -> Plan:
    if options.method == "activation-map" and options.top_k is not None:
        raise UnsupportedTaskError("the Activation Map is one map for all classes: leave out --top-k")
    if options.per_box:
        if options.method in _OF_CLASSIFIERS or options.target_layer or options.top_k:
            raise UnsupportedTaskError("--per-box is for detectors; leave out what is for other models, or --per-box")
        has_regions = any(node.op is Op.ROI_ALIGN for node in graph.nodes)
        instances = _plan_instances(loaded, graph, options) if has_regions or options.method == INSTANCE_MASKS else None
        return instances or plan_detection(loaded, graph, options)
    if options.method in _OF_CLASSIFIERS or options.target_layer is not None:
        return plan_classification(graph, options)
    instances = _plan_instances(loaded, graph, options)
    if instances is not None:
        return instances
    if options.method == SCORE_MAP:
        return plan_detection(loaded, graph, options)
    if selects_rows(graph):
        try:
            return plan_detection(loaded, graph, options)
        except (UnsupportedTaskError, TargetNotFoundError):
            if reports_boxes(graph):
                raise
            # a classifier may drop tokens by their scores
    try:
        return plan_classification(graph, options)
    except UnsupportedTaskError:
        return plan_detection(loaded, graph, options)


def _plan_instances(loaded: LoadedModel, graph: Graph, options: Options) -> Plan | None:
    """The plan for an instance segmenter; None if the model is none, or another method was asked for."""
    if options.method not in ("auto", INSTANCE_MASKS):
        return None
    plan = plan_instances(loaded, graph, options)
    if plan is None and options.method == INSTANCE_MASKS:
        listed = ", ".join(value.describe() for value in graph.outputs)
        raise UnsupportedTaskError(
            f"no instances with masks among the outputs: wanted boxes, classes and masks, found {listed}"
        )
    return plan
