"""Which task a model does and which method explains it: a walk over what is registered."""

from __future__ import annotations

from collections.abc import Set
from functools import partial

from xai_insert.errors import (
    ShapeUnknownError,
    TargetNotFoundError,
    UnsupportedTaskError,
    UnusedOptionError,
    XaiInsertError,
)
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import activations, makers
from xai_insert.graph.traits import PRODUCTS, WITH_BODIES
from xai_insert.graph.view import Graph, Node, Op
from xai_insert.locate.classifier import Wanted
from xai_insert.locate.inputs import image_inputs
from xai_insert.methods.base import Method, Refusal
from xai_insert.options import AUTO, DECIDING, EVERY_METHOD, Options, flag
from xai_insert.registry import METHODS_FOLDER, TASKS_FOLDER, names, registered
from xai_insert.tasks.any_size import plan_of_any_size
from xai_insert.tasks.base import Found, NotMine, Study, Task
from xai_insert.tasks.plan import Plan


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
    make = partial(_plan, loaded, options=options)
    try:
        plan = make(graph)
    except (TargetNotFoundError, UnsupportedTaskError, ShapeUnknownError):
        if (other := plan_of_any_size(graph, options, make)) is None:
            raise
        return other
    return (plan_of_any_size(graph, options, make) if plan.wants_sizes else None) or plan


def _plan(loaded: LoadedModel, graph: Graph, options: Options) -> Plan:
    """See `make_plan`; of a model with open sides, a plan that does without their sizes."""
    asked = None if options.method == AUTO else method(options.method)
    try:
        _require_agreeing(asked, options)
        study = Study(loaded, graph, options, Wanted.ANY if asked is None else asked.reads)
        found = _recognised(study, asked)
        plan = _chosen(study, asked, found)
        if not options.target_layer and study.wanted is not Wanted.IMAGE:  # the image itself may be asked for
            _require_learned(graph, found)
    except XaiInsertError as err:
        if graph.hint:
            err.args = (f"{err}; {graph.hint}",)
        raise
    unused = options.on_purpose - EVERY_METHOD - plan.uses()
    if unused:
        raise UnusedOptionError({name: flag(name) for name in unused}, plan.method)
    return plan


def method(name: str) -> Method:
    """The method of that name."""
    found: Method = registered(METHODS_FOLDER, name, "METHOD")
    return found


def task(name: str) -> Task:
    """The task in the file of that name."""
    found: Task = registered(TASKS_FOLDER, name, "TASK")
    return found


def _require_agreeing(asked: Method | None, options: Options) -> None:
    """Refuse options that contradict each other or the method, whatever the model."""
    excluded = {} if asked is None else asked.excludes
    if options.top_k and options.classes:
        raise UnsupportedTaskError("--top-k and --classes each say which classes get a map; leave one of them out")
    if options.per_box and (options.target_layer or options.top_k or options.classes):
        excluded = {"per_box": "--per-box is for detectors; leave out what is for other models, or --per-box"}
    for name, reason in excluded.items():
        if getattr(options, name):
            raise UnsupportedTaskError(reason)


def _recognised(study: Study, asked: Method | None) -> Found:
    """What the first task that knows the model found in it; those for which a strong sign speaks are asked first."""
    decisive = {name for name in DECIDING if getattr(study.options, name)}
    reasons: dict[int, NotMine] = {}
    for item in _in_turn(study, asked, decisive):
        found = item.recognise(study)
        if isinstance(found, Found):
            return found
        reasons[item.rank] = found
    if asked is not None and asked.lacking:
        raise TargetNotFoundError(asked.lacking)
    if not reasons:
        flags = " and ".join(flag(name) for name in sorted(decisive))
        raise UnsupportedTaskError(f"{flags} is for other models than --method {study.options.method}")
    last = reasons[max(rank for rank, item in reasons.items() if item.reason)]
    raise last.error(last.reason)


def _in_turn(study: Study, asked: Method | None, decisive: Set[str]) -> list[Task]:
    """The tasks that options and method leave, in the order in which they are asked."""
    known = {name: task(name) for name in names(TASKS_FOLDER) if asked is None or name in asked.tasks}
    tasks = sorted((item for item in known.values() if decisive <= item.takes), key=lambda item: item.rank)
    return sorted(tasks, key=lambda item: not item.is_likely(study))


def _require_learned(graph: Graph, found: Found) -> None:
    """Refuse to explain pixels, as they are or moved about.

    Raises:
        TargetNotFoundError: no layer that learns lies between the image and a map that is explained.
    """
    reached = activations(graph, image_inputs(graph))
    for feature in found.placed():
        if not makers(feature.value, _may_learn, reached.__contains__):
            raise TargetNotFoundError(
                f"{feature.value.describe()} would be explained, but no layer with learned weights lies between the "
                "image and it: its map would show the image's pixels, not what the model makes of them"
            )


def _may_learn(node: Node) -> bool:
    """Whether an operation makes something of pixels, and does not only move, scale or round them."""
    if node.op in PRODUCTS or node.op is Op.ATTENTION or node.type in WITH_BODIES:
        return True
    return node.op is Op.OTHER and any(value.is_constant and value.axis_count > 1 for value in node.operands)


def _chosen(study: Study, asked: Method | None, found: Found) -> Plan:
    """The plan of the method that was asked for, or of the first of the task's own that fits."""
    refusal = None
    tried = found.methods if asked is None or study.options.method in found.kin else (study.options.method,)
    for name in tried:
        plan = method(name).applies(study, found)
        if isinstance(plan, Plan):
            return plan
        refusal = refusal or plan
    assert isinstance(refusal, Refusal)  # every task has a method
    raise refusal.error(refusal.reason)
