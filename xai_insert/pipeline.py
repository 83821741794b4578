"""The pipeline: model -> view -> location -> plan -> splice -> check -> model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from xai_insert.check import CheckResult, Plain, run_plain
from xai_insert.check_random import what_draws
from xai_insert.check_steps import IN_STEPS
from xai_insert.errors import (
    AlreadyInsertedError,
    CannotFreeBatchError,
    CheckFailedError,
    DefinitionError,
    ModelFileError,
    XaiInsertError,
)
from xai_insert.files import size
from xai_insert.formats.backend import LoadedModel, load
from xai_insert.formats.guard import RAISED, last_line
from xai_insert.graph.names import PREFIX
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.proportion import require_moderate_map, require_proportion
from xai_insert.graph.shape import format_shape
from xai_insert.graph.view import Graph, Value
from xai_insert.layouts.record import Layout
from xai_insert.locate.inputs import image_inputs, sized_axes
from xai_insert.methods.scaling import least_and_greatest, to_bytes_in_parts
from xai_insert.one_image import fixing_layer, of_one_image
from xai_insert.open_size import size_for
from xai_insert.opening import Opened, for_any_size, opened_sizes
from xai_insert.options import Options, settled
from xai_insert.outputs import add_feature_vector, add_range, finished
from xai_insert.prove import prove
from xai_insert.report import Report, Stages, describe_plan
from xai_insert.several import Planned, beside, planned, without_closed_form
from xai_insert.tasks.plan import Branch, Plan
from xai_insert.version import __version__
from xai_insert.writing import require_folder, require_writable, write_model

logger = logging.getLogger(__name__)

SALIENCY_MAP = "saliency_map"
SALIENCY_RANGE = "saliency_range"
FEATURE_VECTOR = "feature_vector"
IGNORED_SCOPE = f"{PREFIX}.*"
"""The names that a quantiser must leave alone in an inserted model, as a regular expression."""
_ADVICE = "--no-check inserts without running it"


@dataclass(frozen=True, repr=False)
class InsertResult:
    """A finished insertion.

    Attributes:
        model: the new model, of the same kind as the one given (`ov.Model`, `onnx.ModelProto`, `onnx_ir.Model`; for a
            path, what the format's adapter holds: `ov.Model` or `onnx_ir.Model`).
        report: what was done and why.
    """

    model: Any
    report: Report

    def save(self, path: str | Path) -> list[Path]:
        """Write the model, whole or not at all.

        Args:
            path: `.onnx` for a model of ONNX, `.xml` for one of OpenVINO.

        Returns:
            The files that were written, the main one last.

        Raises:
            ModelFileError: the suffix is that of another format, or the files cannot be written.
        """
        loaded, output = load(self.model, {}), Path(path)
        wanted = ".onnx" if loaded.format_name == "ONNX" else ".xml"
        if output.suffix.lower() != wanted:
            raise ModelFileError(f"this model is {loaded.format_name}: give an output that ends in {wanted}")
        require_folder(output.parent)
        return write_model(loaded, output)

    def __repr__(self) -> str:
        saliency, method = self.report.saliency_map, self.report.method
        added = f"saliency_map {format_shape(saliency['shape'])} {saliency['dtype']}" if saliency else FEATURE_VECTOR
        return f"InsertResult({type(self.model).__name__}, {method}: {added})"


def _ignored(step: str) -> None:
    del step


def insert(model: Any, options: Options | None = None) -> InsertResult:
    """Insert a saliency map into a copy of a model.

    Args:
        model: path of a `.xml` or `.onnx` file, `ov.Model`, `onnx.ModelProto` or `onnx_ir.Model`; never changed.
        options: what to insert; the default finds everything by itself.

    Raises:
        XaiInsertError: one of its children says what is wrong with the model or the options.
    """
    options = settled(options)
    loaded, report = insert_loaded(lambda: load(model, options.input_shapes), options, _name(model))
    return InsertResult(loaded.result_like(model), report)


def plan_insertion(
    model: Any,
    options: Options | None = None,
    output: str | Path | None = None,
    passed: Callable[[str], None] = _ignored,
) -> Report:
    """Say what `insert` would do. Arguments and errors are those of `insert` and `insert_file`.

    It is done, on a copy that nobody gets, but for the check: the inserted model is not run.
    """
    options, goal = settled(options), None if output is None else Path(output)
    return insert_loaded(lambda: load(model, options.input_shapes, goal), options, _name(model), passed, dry_run=True)[
        1
    ]


def insert_file(
    source: str | Path,
    output: str | Path,
    options: Options | None = None,
    passed: Callable[[str], None] = _ignored,
) -> Report:
    """Insert into the model file `source` and write the result to `output`, whole or not at all.

    Args:
        source: `.xml` or `.onnx`.
        output: `.xml` or `.onnx`; a `.onnx` source with a `.xml` output is converted on the way.
        options: what to insert.
        passed: called with `read`, `located` and `run` when the model is past that step; what follows the last one
            takes its time in proportion to the model.

    Raises:
        XaiInsertError: one of its children; nothing was written.
    """
    options, source, output = settled(options), Path(source), Path(output)
    require_writable(source, output)
    loaded, report = insert_loaded(lambda: load(source, options.input_shapes, output), options, str(source), passed)
    stages = Stages(report.seconds)
    with stages("write"):
        files = write_model(loaded, output)
    bytes_after = sum(path.stat().st_size for path in files)
    return replace(
        report, output=str(output), bytes_before=size(source), bytes_after=bytes_after, seconds=stages.seconds
    )


def insert_loaded(
    fresh: Callable[[], LoadedModel],
    options: Options,
    source: str,
    passed: Callable[[str], None] = _ignored,
    *,
    dry_run: bool = False,
) -> tuple[LoadedModel, Report]:
    """Plan, splice and check; where a closed form turns out not to be the definition, start afresh without it."""
    stages = Stages()
    with stages("load"):
        loaded = fresh()
        graph = loaded.view()
    _refuse_twice(loaded, graph, options)
    if options.check:
        require_proportion(graph, _ADVICE)
    layer = fixing_layer(loaded, graph) if options.check else None
    if layer is not None:
        with stages("load"):
            fresh = of_one_image(fresh, graph)
            loaded = fresh()
            graph = loaded.view()
    passed("read")
    drawn = what_draws(graph)
    try:
        loaded, report = _inserted(loaded, graph, fresh, options, source, passed, stages, dry_run=dry_run)
    except CheckFailedError as err:
        if drawn:
            err.args = (f"{err}; {drawn}",)
        raise
    if drawn:
        report = replace(report, reason=f"{report.reason}; {drawn}")
    if layer is not None:
        reason = (
            f"{report.reason}; one image at a time, since {layer.type} {layer.name!r} has the batch written into it"
        )
        report = replace(report, reason=reason)
    return loaded, report


def _inserted(
    loaded: LoadedModel,
    graph: Graph,
    fresh: Callable[[], LoadedModel],
    options: Options,
    source: str,
    passed: Callable[[str], None],
    stages: Stages,
    *,
    dry_run: bool,
) -> tuple[LoadedModel, Report]:
    """See `insert_loaded`."""
    with stages("plan"):
        plans = planned(loaded, graph, options)
        plans = [replace(item, plan=for_any_size(fresh, item.graph, item.plan, options)) for item in plans]
    passed("located")
    plain = None
    if options.check and not dry_run:
        with stages("check"):
            plain = run_plain(loaded, graph, size_for(plans))
    passed("run")
    with stages("plan"):
        opened = opened_sizes(loaded, graph, plans[0].plan, options) if plans[0].graph is graph else None
    while opened is not None:
        try:
            return loaded, _carry_out(loaded, plans, options, source, plain, stages, opened)
        except XaiInsertError as err:
            logger.info("the map is for one %s: %s", "size of the image" if opened.follows else "batch", err)
        with stages("load"):
            loaded = fresh()
            graph = loaded.view()
        with stages("plan"):
            plans = planned(loaded, graph, options)
            opened = opened_sizes(loaded, graph, plans[0].plan, options, sides=False) if opened.follows else None
    try:
        return loaded, _carry_out(loaded, plans, options, source, plain, stages)
    except (CannotFreeBatchError, DefinitionError) as err:
        reason = _why_not_closed(err, plans, options)
        if reason is None:
            raise
        logger.info("no closed form: %s", err)
    with stages("load"):
        loaded = fresh()
    with stages("plan"):
        others = without_closed_form(planned(loaded, loaded.view(), options), reason)
    assert others is not None  # the same model gives the same plans
    return loaded, _carry_out(loaded, others, options, source, plain, stages)


def _why_not_closed(err: XaiInsertError, plans: Sequence[Planned], options: Options) -> str | None:
    """Why plans are carried out without their closed form; None if they cannot be."""
    reason = str(err) if isinstance(err, CannotFreeBatchError) else "the closed form is not the definition here"
    can_be = options.form != "closed" and without_closed_form(plans, reason) is not None
    return reason if can_be else None


def _carry_out(
    loaded: LoadedModel,
    plans: Sequence[Planned],
    options: Options,
    source: str,
    plain: Plain | None,
    stages: Stages,
    opened: Opened | None = None,
) -> Report:
    """Splice, and check if there are outputs of the plain model to compare with."""
    for item in plans:
        require_moderate_map(item.plan.map_shape)
    try:
        with stages("emit"):
            branches = [splice(loaded, item.graph, item.plan, options, opened, item.suffix) for item in plans]
            if len(plans) > 1:
                loaded.annotate({f"input{item.suffix}": item.input for item in plans})
            made = [replace(item, plan=branch.plan) for item, branch in zip(plans, branches, strict=True)]
    except RAISED as err:  # OpenVINO looks at each layer's sizes when it is made, onnxruntime when the model is loaded
        raise ModelFileError(
            f"the layers to insert do not fit the model: {last_line(err)}; is the file whole?"
        ) from err
    checked = None
    if plain is not None:
        with stages("check"):
            checked = prove(loaded, plans, branches, options, plain, opened)
    report = _report(loaded, branches[0].plan, options, source, checked)
    if checked is not None and checked.in_steps:
        report = replace(report, reason=f"{report.reason}; {IN_STEPS}")
    return replace(report, seconds=stages.seconds, beside=beside(made))


def splice(
    loaded: LoadedModel, graph: Graph, plan: Plan, options: Options, opened: Opened | None = None, suffix: str = ""
) -> Branch:
    """Carry out a plan on `loaded`, whose view `graph` is; with its sides open where it is `opened`.

    What is added has names that end in `suffix`: empty for the first image input.
    """
    surgeon = loaded.surgeon(keep_float32=plan.keep_float32)
    if opened is None:
        branch = plan.splice(loaded, surgeon, graph, options)
    else:
        branch = replace(opened.plan.splice(loaded, surgeon, opened.graph, options), plan=plan)
    if branch.raw is not None:
        plan = _add_map(surgeon, branch, options, image_inputs(graph)[0], opened, suffix)
    about = plan.metadata(options) | Layout(rectangle=plan.rectangle()).written()
    if suffix:
        loaded.annotate({f"{key}{suffix}": text for key, text in about.items()})
        return replace(branch, plan=plan)
    if options.feature_vector:
        add_feature_vector(surgeon, plan, FEATURE_VECTOR)
    if opened is not None:
        loaded.close_sizes()
    common = {"version": __version__, "task": plan.found.task, "method": plan.method, "form": plan.form.value}
    common["quantiser_ignored_scope"] = IGNORED_SCOPE
    if written := options.written():
        common["options"] = written
    loaded.annotate(common | about)
    return replace(branch, plan=plan)


def _add_map(
    surgeon: Surgeon[Any], branch: Branch, options: Options, image: Value, opened: Opened | None, suffix: str
) -> Plan:
    """Add the outputs of a branch; the plan, with the final size of its map."""
    saliency, plan = finished(surgeon, branch, options)
    ends = least_and_greatest(surgeon.ops, saliency, len(plan.map_shape)) if options.range else None
    dtype = "float32" if options.output_dtype == "f32" else "uint8"
    if options.output_dtype == "u8":
        saliency = _in_bytes(surgeon, branch, saliency, plan)
    if branch.spread is not None:
        saliency = branch.spread(saliency)
        ends = None if ends is None else branch.spread(ends)
    if branch.is_sized and (opened is None or not opened.follows):
        saliency = surgeon.pinned(saliency, plan.map_shape, image, sized_axes(image))
    surgeon.add_output(saliency, f"{SALIENCY_MAP}{suffix}", dtype, plan.map_shape)
    for name, output in branch.outputs.items():
        surgeon.add_output(output.handle, f"{name}{suffix}", output.dtype, output.shape)
    if ends is not None:
        add_range(surgeon, ends, plan.map_shape, f"{SALIENCY_RANGE}{suffix}")
    return plan


def _refuse_twice(loaded: LoadedModel, graph: Graph, options: Options) -> None:
    known = loaded.read_metadata()
    if known:
        is_alone = FEATURE_VECTOR in graph.output_names and SALIENCY_MAP not in graph.output_names
        raise AlreadyInsertedError(
            f"the model already has a {'feature vector' if is_alone else 'saliency map'} (inserted by "
            f"xai-insert {known.get('version', '?')}, {known.get('method', '?')}); insert into the plain model instead"
        )
    added = [SALIENCY_MAP, FEATURE_VECTOR] if options.feature_vector else [SALIENCY_MAP]
    if taken := [name for name in added if name in graph.output_names]:
        raise AlreadyInsertedError(f"there already is an output {taken[0]!r}; insert into the plain model instead")


def _report(
    loaded: LoadedModel, plan: Plan, options: Options, source: str, checked: CheckResult | None = None
) -> Report:
    return Report(
        source=source,
        format=loaded.format_name,
        check="left out" if not options.check else "not yet" if checked is None else "done",
        output_difference=None if checked is None else checked.output_difference,
        map_difference=None if checked is None else checked.map_difference,
        place=("unchecked" if plan.found.placed() else None) if checked is None else checked.place,
        quantiser_ignored_scope=IGNORED_SCOPE,
        versions={"xai_insert": __version__, **loaded.versions()},
        **describe_plan(plan, options.output_dtype),
    )


def _name(model: Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else type(model).__name__


def _in_bytes(surgeon: Surgeon[Any], branch: Branch, saliency: Any, plan: Plan) -> Any:
    """A scaled map in whole numbers, as the branch makes them or as any is rounded."""
    in_bytes = branch.in_bytes or partial(to_bytes_in_parts, surgeon.ops, shape=plan.map_shape)
    return in_bytes(saliency)
