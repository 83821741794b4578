"""`xai-insert`: put a saliency map into exported models."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import click
from click.core import ParameterSource

from xai_insert.cli.parsing import COUNT, INPUT_SHAPE, SIZE
from xai_insert.cli.streams import Refused, open_streams, say, signals_end_cleanly
from xai_insert.cli.worker import Job, Runner, Worker, configure_logging
from xai_insert.files import clashes, identities, printable, write_whole, written
from xai_insert.graph.shape import Shape
from xai_insert.options import KERNELS, METHODS, OUTPUT_DTYPES, Options
from xai_insert.report import Report, to_json
from xai_insert.version import __version__

EXIT_FAILED = 1
_PARAMETERS = {"output": "output_name", "check": "no_check"}
"""Parameters of the command for those fields of `Options` whose names differ."""

EPILOG = """\b
Methods: auto, recipro-cam, vit-recipro-cam, activation-map,
  det-class-probability-map, instance-masks
\b
Exit codes: 0 done, 1 a model could not be inserted into, 2 wrong usage.
\b
Examples:
  xai-insert model.xml -o model_xai.xml
  xai-insert exported/*.onnx -o explained/ --report report.json
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@click.option(
    "-o", "--output-model", "output", type=click.Path(path_type=Path), metavar="FILE|DIR",
    help="Model to write; a folder for several models. A .onnx model with a .xml output is converted.",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(METHODS), default=Options.method, metavar="NAME",
    help="Saliency method, see below; by default that of the kind of model found.",
)  # fmt: skip
@click.option("--target-layer", metavar="NAME", help="Layer to explain, instead of the one found.")
@click.option("--output", "output_name", metavar="NAME", help="Output with the class scores, if several.")
@click.option(
    "--output-dtype", type=click.Choice(OUTPUT_DTYPES), default=Options.output_dtype, show_default=True,
    help="u8: each map scaled to 0..255; f32: raw scores.",
)  # fmt: skip
@click.option(
    "--kernel", type=click.Choice(KERNELS), default=Options.kernel, show_default=True,
    help="ViT Recipro-CAM: keep a 3x3 neighbourhood, or one patch.",
)  # fmt: skip
@click.option(
    "--block", type=COUNT, default=Options.block, metavar="K",
    help="ViT Recipro-CAM: mask the K-th last block.",
)  # fmt: skip
@click.option("--saliency-size", type=SIZE, metavar="HxW", help="Size of the map, instead of the method's own.")
@click.option("--num-classes", type=COUNT, metavar="K", help="Number of classes, where the model hides it.")
@click.option("--score-threshold", type=click.FloatRange(0, 1), metavar="S", help="Instance masks: drop lower scores.")
@click.option("--feature-vector", is_flag=True, help="Also add the pooled feature_vector.")
@click.option(
    "--top-k", type=COUNT, metavar="K",
    help="Classifiers: only the maps of the K best classes, named by output saliency_classes.",
)  # fmt: skip
@click.option("--per-box", is_flag=True, help="Detectors: also a map of each reported box.")
@click.option(
    "--input-shape", "input_shapes", multiple=True, type=INPUT_SHAPE, metavar="NAME:N,C,H,W",
    help="Fix sizes of an input; ? stays open. Repeatable.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what would be done; write nothing.")
@click.option(
    "--verify", "action", flag_value="verify", help="Instead, judge an inserted MODEL that tools have changed."
)
@click.option("--strip", "action", flag_value="strip", help="Instead take the map off MODEL again.")
@click.option("--layers", "action", flag_value="layers", help="Instead list what --target-layer can name.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), metavar="FILE.json", help="Write a report.")
@click.option("--no-check", is_flag=True, help="Write without comparing before and after.")
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
    help="Time to read a model, at most.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", count=True, help="Print what happens inside; -vv: all.")
@click.version_option(__version__, prog_name="xai-insert")
@click.pass_obj
def main(
    run: Runner | None,
    models: tuple[Path, ...],
    output: Path | None,
    method: str,
    target_layer: str | None,
    output_name: str | None,
    output_dtype: str,
    kernel: str,
    block: int,
    saliency_size: tuple[int, int] | None,
    num_classes: int | None,
    score_threshold: float | None,
    feature_vector: bool,
    top_k: int | None,
    per_box: bool,
    input_shapes: tuple[tuple[str, Shape], ...],
    dry_run: bool,
    action: str | None,
    report_path: Path | None,
    no_check: bool,
    time_limit: float | None,
    quiet: bool,
    verbose: int,
) -> None:
    """Put a saliency map into exported vision models.

    Reads MODEL (OpenVINO .xml or .onnx), finds backbone and head by itself, and writes a model whose single
    inference gives the untouched predictions and the output saliency_map.
    """
    open_streams()
    configure_logging(verbose)
    options = Options(
        method=method,  # type: ignore[arg-type]  # click.Choice has checked it
        target_layer=target_layer,
        output=output_name,
        output_dtype=output_dtype,  # type: ignore[arg-type]
        kernel=kernel,  # type: ignore[arg-type]
        block=block,
        saliency_size=saliency_size,
        num_classes=num_classes,
        score_threshold=score_threshold,
        feature_vector=feature_vector,
        top_k=top_k,
        per_box=per_box,
        input_shapes=dict(input_shapes),
        check=not no_check,
        given=tuple(item.name for item in fields(Options) if _was_typed(_PARAMETERS.get(item.name, item.name))),
    )
    writes_nothing = _writes_nothing(action, output, dry_run, options) or dry_run
    goals = _outputs(models, output, writes_nothing)
    _require_apart(models, goals, report_path, writes_nothing)
    jobs = [Job(model, goal, options, dry_run, action or "insert") for model, goal in zip(models, goals, strict=True)]
    troubles: dict[str, None] = {}

    def show(report: Report) -> None:
        if report.error is not None:
            say(f"error: {report.text()}", err=True)
        elif not quiet:
            trouble = say(report.text())
            if trouble is not None:
                troubles[f"cannot write to the standard output: {trouble}"] = None

    def keep(reports: list[Report]) -> None:
        if report_path is None:
            return
        try:
            write_whole(report_path, to_json(reports))
        except OSError as err:
            troubles[f"cannot write the report {printable(str(report_path))}: {err.strerror}"] = None

    with signals_end_cleanly(), Worker(verbose, time_limit) as worker:
        reports = _done(jobs, run or worker, show, keep)
    for text in troubles:
        say(f"error: {text}", err=True)
    failed = sum(report.error is not None for report in reports)
    if failed and len(reports) > 1:
        say(f"{failed} of {len(reports)} models failed", err=True)
    sys.exit(EXIT_FAILED if failed or troubles else 0)


def _writes_nothing(action: str | None, output: Path | None, dry_run: bool, options: Options) -> bool:
    """Whether what is done instead of inserting writes no model; refuses what it would not go by."""
    if action is None:
        return False
    used = {"layers": {"output", "input_shapes"}}.get(action, set())
    spare = {_PARAMETERS.get(name, name) for name in options.on_purpose - used}
    spare |= {name for name, given in (("output-model", output and action != "strip"), ("dry-run", dry_run)) if given}
    if spare:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(spare))
        raise click.UsageError(f"--{action} does not go by {flags}: leave it out")
    return action != "strip"


def _was_typed(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _done(
    jobs: Sequence[Job], run: Runner, show: Callable[[Report], None], keep: Callable[[list[Report]], None]
) -> list[Report]:
    """Do all jobs, and keep the reports after each.

    An option that does nothing for one model is refused only if it does nothing for all others too.
    """
    reports: dict[int, Report] = {}
    for index, job in enumerate(jobs):
        report = reports[index] = run(job)
        keep(list(reports.values()))
        if len(jobs) == 1 or not report.unused_options:
            show(report)
    used: set[str] = set()
    for index, job in enumerate(jobs):
        if reports[index].error is None or reports[index].unused_options:
            used |= job.options.on_purpose - set(reports[index].unused_options)
    for index, job in enumerate(jobs):
        unused = reports[index].unused_options
        if len(jobs) == 1 or not unused:
            continue
        if used.issuperset(unused):
            options = replace(job.options, given=tuple(sorted(job.options.on_purpose - set(unused))))
            reports[index] = run(replace(job, options=options))
            keep(list(reports.values()))
        show(reports[index])
    return list(reports.values())


def _outputs(models: tuple[Path, ...], output: Path | None, dry_run: bool) -> list[Path | None]:
    """Where each model goes: one file, or a file of the same name in a folder."""
    if output is None:
        if not dry_run:
            raise click.UsageError("missing option -o: where to write the result (or --dry-run)")
        return [None] * len(models)
    if len(models) == 1 and not output.is_dir() and not str(output).endswith(("/", "\\")) and output.suffix:
        return [output]
    if not output.is_dir():
        raise click.UsageError(f"the output folder does not exist: {output}")
    return [output / model.name for model in models]


def _require_apart(models: tuple[Path, ...], goals: Sequence[Path | None], report: Path | None, dry_run: bool) -> None:
    """Refuse a call in which one file is written twice, or read for one model and written for another or the report.

    What is read and written for one model is that model's failure alone, see `insert_file`.
    """
    targets = [[] if goal is None else written(goal) for goal in goals]
    seen: dict[tuple[object, ...], int] = {}
    for index, group in enumerate(targets):
        for path in group:
            for key in identities(path):
                if seen.setdefault(key, index) != index:
                    raise Refused(f"several models would be written to {printable(str(path))}")
    if report is not None:
        _require_place(report)
        if any(key in seen for key in identities(report)):
            raise Refused(f"the report {printable(str(report))} would overwrite the model that is written there")
        for _, _, path in clashes([[report]], models):
            names = printable(str(report)), printable(str(path))
            raise Refused("the report {} would overwrite {}, which a model is read from".format(*names))
    for writer, reader, path in clashes([] if dry_run else targets, models):
        if writer != reader:
            raise Refused(
                f"the result for {printable(str(models[writer]))} would overwrite {printable(str(path))}, which "
                f"{printable(str(models[reader]))} is read from; choose another output"
            )


def _require_place(report: Path) -> None:
    folder = Path(os.path.realpath(report)).parent
    if report.is_dir():
        reason = os.strerror(errno.EISDIR)
    elif not folder.is_dir():
        reason = os.strerror(errno.ENOENT)
    elif not os.access(report if report.exists() else folder, os.W_OK):
        reason = os.strerror(errno.EACCES)
    else:
        return
    say(f"error: cannot write the report {printable(str(report))}: {reason}", err=True)
    sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
