"""The pipeline: model -> view -> location -> plan -> splice -> check -> model."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xai_insert.check import CheckResult, Definition, check_definition, check_outputs, position_mask, run_random
from xai_insert.errors import AlreadyInsertedError, CannotFreeBatchError, DefinitionError, ModelFileError
from xai_insert.formats.backend import LoadedModel, load
from xai_insert.graph.ops import Surgeon
from xai_insert.graph.view import Graph, fixed
from xai_insert.locate.transformer import Attention
from xai_insert.methods.activation_map import activation_map
from xai_insert.methods.recipro_cam import masked_runs, recipro_cam
from xai_insert.methods.scaling import to_bytes
from xai_insert.methods.vit_recipro_cam import (
    VitTarget,
    ZeroTokens,
    masked_features,
    masked_vit_runs,
    patch_weights,
    vit_recipro_cam,
)
from xai_insert.options import Options
from xai_insert.plan import Plan, make_plan, masked_plan
from xai_insert.probe import probe_zero_tokens
from xai_insert.report import Report, describe_plan
from xai_insert.version import __version__

logger = logging.getLogger(__name__)

SALIENCY_MAP = "saliency_map"
FEATURE_VECTOR = "feature_vector"


@dataclass(frozen=True)
class InsertResult:
    """A finished insertion.

    Attributes:
        model: the new model, of the same kind as the one given (`ov.Model`, `onnx.ModelProto`, `onnx_ir.Model`; for a
            path, what the format's adapter holds: `ov.Model` or `onnx_ir.Model`).
        report: what was done and why.
    """

    model: Any
    report: Report


def insert(model: Any, options: Options | None = None) -> InsertResult:
    """Insert a saliency map into a copy of a model.

    Args:
        model: path of a `.xml` or `.onnx` file, `ov.Model`, `onnx.ModelProto` or `onnx_ir.Model`; never changed.
        options: what to insert; the default finds everything by itself.

    Raises:
        XaiInsertError: one of its children says what is wrong with the model or the options.
    """
    options = options or Options()
    loaded, report = _insert(lambda: load(model, options.input_shapes), options, _name(model))
    return InsertResult(loaded.result_like(model), report)


def plan_insertion(model: Any, options: Options | None = None, output: Path | None = None) -> Report:
    """Say what `insert` would do, without doing it. Arguments and errors are those of `insert`."""
    options = options or Options()
    loaded = load(model, options.input_shapes, output)
    _refuse_twice(loaded, graph := loaded.view())
    return _report(loaded, make_plan(graph, options), options, _name(model))


def insert_file(source: Path, output: Path, options: Options | None = None) -> Report:
    """Insert into the model file `source` and write the result to `output`, whole or not at all.

    Args:
        source: `.xml` or `.onnx`.
        output: `.xml` or `.onnx`; a `.onnx` source with a `.xml` output is converted on the way.
        options: what to insert.

    Raises:
        XaiInsertError: one of its children; nothing was written.
    """
    options = options or Options()
    _require_writable(source, output)
    loaded, report = _insert(lambda: load(source, options.input_shapes, output), options, str(source))
    written = _write(loaded, output)
    return replace(
        report, output=str(output), bytes_before=_size(source), bytes_after=sum(path.stat().st_size for path in written)
    )


def _insert(fresh: Callable[[], LoadedModel], options: Options, source: str) -> tuple[LoadedModel, Report]:
    """Plan, splice and check; where a closed form turns out not to be the definition, start afresh with masked runs."""
    loaded = fresh()
    graph = loaded.view()
    _refuse_twice(loaded, graph)
    plan = make_plan(graph, options)
    plain = run_random(loaded.runner()) if options.check else []
    try:
        return loaded, _carry_out(loaded, graph, plan, options, source, plain)
    except DefinitionError as err:
        if plan.form != "closed form":
            raise
        logger.info("no closed form: %s", err)
    loaded = fresh()
    graph = loaded.view()
    plan = make_plan(graph, options)
    plan = masked_plan(graph, plan.found, plan.map_shape, "the closed form is not the definition here")
    return loaded, _carry_out(loaded, graph, plan, options, source, plain)


def _carry_out(
    loaded: LoadedModel, graph: Graph, plan: Plan, options: Options, source: str, plain: Sequence[Any]
) -> Report:
    spliced = splice(loaded, graph, plan, options)
    checked = None
    if options.check:
        moved = check_outputs(plain, run_random(loaded.runner()), graph.output_names)
        definition = _definition(spliced.plan, options)
        off = None if definition is None else check_definition(loaded, definition, spliced.raw, spliced.logits)
        checked = CheckResult(moved, off)
    return _report(loaded, spliced.plan, options, source, checked)


def _definition(plan: Plan, options: Options) -> Definition | None:
    """What the raw map must equal; None for a method that masks nothing."""
    found = plan.found
    if plan.method == "recipro-cam":
        target = found.target
        return Definition([target.value], lambda shape, position: position_mask(shape, target.grid_axes, position))
    if plan.method == "vit-recipro-cam" and found.readout is not None:
        height, width = fixed(found.target.grid)
        weights = patch_weights((height, width), found.readout.prefix, options.kernel)
        return Definition(masked_features(found.readout), lambda _, position: weights[position][:, None])
    return None


@dataclass(frozen=True)
class Spliced:
    """What was added to a model.

    Attributes:
        plan: the plan as it was carried out.
        raw: handle of the unscaled map.
        logits: handle of the class scores.
    """

    plan: Plan
    raw: Any
    logits: Any


def splice(loaded: LoadedModel, graph: Graph, plan: Plan, options: Options) -> Spliced:
    """Carry out a plan on `loaded`, whose view `graph` is."""
    readout = plan.found.readout
    zeros = {} if readout is None or plan.form != "closed form" else probe_zero_tokens(loaded, readout)
    # A transformer's map is a small difference on a large common part; that of a pooled head is not.
    surgeon = loaded.surgeon(keep_float32=plan.method == "vit-recipro-cam")
    plan, raw = _add_branch(surgeon, graph, plan, options, zeros)
    saliency = raw if options.output_dtype == "f32" else to_bytes(surgeon.ops, raw, _spatial_axes(plan))
    dtype = "float32" if options.output_dtype == "f32" else "uint8"
    surgeon.add_output(saliency, SALIENCY_MAP, dtype, plan.map_shape)
    if options.feature_vector:
        _add_feature_vector(surgeon, plan)
    loaded.annotate(_metadata(plan, options))
    return Spliced(plan, raw, surgeon.handle(plan.found.logits.value))


def _add_branch(
    surgeon: Surgeon[Any], graph: Graph, plan: Plan, options: Options, zeros: Mapping[Attention, ZeroTokens]
) -> tuple[Plan, Any]:
    """The plan as it was carried out, and the raw map."""
    found = plan.found
    if plan.method == "activation-map":
        return plan, activation_map(surgeon, found.target)
    vit = None
    if found.readout is not None:
        vit = VitTarget(found.readout, found.target, found.logits.value, options.kernel)
    if plan.form == "closed form":
        try:
            if vit is not None:
                return plan, vit_recipro_cam(surgeon, graph, vit, zeros)
            return plan, recipro_cam(surgeon, graph, found.target, found.ends, found.logits.value)
        except CannotFreeBatchError as err:
            logger.info("no closed form: %s", err)
            plan = masked_plan(graph, found, plan.map_shape, str(err))
    if vit is not None:
        return plan, masked_vit_runs(surgeon, graph, vit)
    return plan, masked_runs(surgeon, graph, found.target, found.logits.value)


def _spatial_axes(plan: Plan) -> tuple[int, int]:
    rank = len(plan.map_shape)
    return rank - 2, rank - 1


def _add_feature_vector(surgeon: Surgeon[Any], plan: Plan) -> None:
    pooled = plan.found.pooled
    handle = surgeon.handle(pooled)
    width = math.prod(fixed(pooled.sizes[1:]))
    vector = surgeon.ops.isolated(surgeon.ops.reshape(handle, [-1, width]), width)
    surgeon.add_output(vector, FEATURE_VECTOR, pooled.dtype, (pooled.sizes[0], width))


def _metadata(plan: Plan, options: Options) -> dict[str, str]:
    found = plan.found
    entries = {
        "version": __version__,
        "method": plan.method,
        "form": plan.form,
        "target": found.target.value.name,
        "grid": "x".join("?" if side is None else str(side) for side in found.target.grid),
        "classes": str(found.logits.classes),
    }
    if plan.method == "vit-recipro-cam":
        entries["kernel"] = options.kernel
    return entries


def _refuse_twice(loaded: LoadedModel, graph: Graph) -> None:
    known = loaded.read_metadata()
    if known:
        raise AlreadyInsertedError(
            f"the model already has a saliency map (inserted by xai-insert {known.get('version', '?')}, "
            f"{known.get('method', '?')}); insert into the plain model instead"
        )
    if SALIENCY_MAP in graph.output_names:
        raise AlreadyInsertedError(f"there already is an output {SALIENCY_MAP!r}; insert into the plain model instead")


def _report(
    loaded: LoadedModel, plan: Plan, options: Options, source: str, checked: CheckResult | None = None
) -> Report:
    return Report(
        source=source,
        format=loaded.format_name,
        output_difference=None if checked is None else checked.output_difference,
        map_difference=None if checked is None else checked.map_difference,
        versions={"xai_insert": __version__, **loaded.versions()},
        **describe_plan(plan, options.output_dtype),
    )


def _name(model: Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else type(model).__name__


def _require_writable(source: Path, output: Path) -> None:
    """Refuse before any work what could not be written after it."""
    if output.suffix.lower() not in (".xml", ".onnx"):
        raise ModelFileError(f"unknown kind of output {output.name!r}: wanted .xml (OpenVINO IR) or .onnx")
    if source.suffix.lower() == ".xml" and output.suffix.lower() == ".onnx":
        raise ModelFileError("an OpenVINO IR cannot become ONNX: give an output that ends in .xml")
    folder = output.parent
    if not folder.is_dir():
        raise ModelFileError(f"the output folder does not exist: {folder}")
    if not os.access(folder, os.W_OK):
        raise ModelFileError(f"the output folder cannot be written: {folder}")
    if output.exists() and source.exists() and output.samefile(source):
        raise ModelFileError(f"input and output are the same file: {output}; choose another output")


def _write(loaded: LoadedModel, output: Path) -> list[Path]:
    """Write beside the goal and move into place, so that the goal is never half a file."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            files = loaded.save(scratch, output.name)
            for path in files:
                os.replace(path, output.parent / path.name)
            return [output.parent / path.name for path in files]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as err:
        raise ModelFileError(f"cannot write {output}: {err.strerror or err}") from err


def _size(source: Path) -> int:
    weights = [source.with_suffix(".bin")] if source.suffix.lower() == ".xml" else [Path(f"{source}.data")]
    return sum(path.stat().st_size for path in (source, *weights) if path.is_file())
