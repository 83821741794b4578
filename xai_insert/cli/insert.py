"""`xai-insert`: put a saliency map into exported models."""

from __future__ import annotations

import errno
import os
import sys
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from xai_insert.cli.existing import Existing
from xai_insert.cli.parsing import CLASSES, COUNT, INPUT_SHAPE, SIZE
from xai_insert.cli.streams import EXIT_FAILED, Refused, open_streams, say, signals_end_cleanly
from xai_insert.cli.worker import Job, Runner, configure_logging
from xai_insert.cli.workers import Workers
from xai_insert.files import clashes, identities, printable, write_whole, written
from xai_insert.options import METHODS, OPTIONS, Option, Options, flag
from xai_insert.report import Report, to_json
from xai_insert.version import __version__

_METHODS = textwrap.fill(f"Methods: {', '.join(METHODS)}", 76, subsequent_indent="  ", break_on_hyphens=False)
EPILOG = f"""\b
{_METHODS}
Exit codes: 0 done, 1 a model could not be inserted into, 2 wrong usage.
Examples: xai-insert model.xml -o model_xai.xml
  xai-insert exported/*.onnx -o explained/ --report report.json
"""


_Function = TypeVar("_Function", bound=Callable[..., None])
_TYPES = {
    "count": COUNT,
    "share": click.FloatRange(0, 1),
    "size": SIZE,
    "shapes": INPUT_SHAPE,
    "name": click.STRING,
    "classes": CLASSES,
}


def _choices(function: _Function) -> _Function:
    """Give a command the options of an insertion, in their order."""
    for name, option in reversed(OPTIONS.items()):
        function = _as_click(name, option)(function)
    return function


def _as_click(name: str, option: Option) -> Callable[[_Function], _Function]:
    if option.kind == "flag":
        return click.option(flag(name), name, is_flag=True, help=option.help)
    kind = click.Choice(option.choices) if option.choices else _TYPES[option.kind]
    several = option.kind == "shapes"
    return click.option(
        flag(name), name, type=kind, metavar=option.metavar, help=option.help, show_default=option.show_default,
        multiple=several, default=None if several else getattr(Options, name),
    )  # fmt: skip


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@click.option(
    "-o", "--output-model", type=click.Path(path_type=Path), metavar="FILE|DIR",
    help="File or folder to write; .onnx may become .xml.",
)  # fmt: skip
@_choices
@click.option("--dry-run", is_flag=True, help="Print what would be done; write nothing.")
@click.option("--verify", "action", flag_value="verify", help="Instead judge MODEL, an inserted one.")
@click.option("--strip", "action", flag_value="strip", help="Instead take the map off MODEL again.")
@click.option("--layers", "action", flag_value="layers", help="Instead list what --target-layer can name.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), metavar="FILE.json", help="Write a report.")
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
    help="Processor time to read a model, at most.",
)  # fmt: skip
@click.option("--skip-existing", is_flag=True, help="Leave out a model whose output is there.")
@click.option("--jobs", type=COUNT, default=1, metavar="N", help="Models at once.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", count=True, help="Print what happens inside; -vv: all.")
@click.version_option(__version__, prog_name="xai-insert")
@click.pass_obj
def main(
    run: Runner | None,
    /,
    models: tuple[Path, ...],
    output_model: Path | None,
    dry_run: bool,
    action: str | None,
    report_path: Path | None,
    time_limit: float | None,
    skip_existing: bool,
    jobs: int,
    quiet: bool,
    verbose: int,
    **chosen: Any,
) -> None:
    """Put a saliency map into MODEL (.xml or .onnx), whose predictions stay."""
    open_streams()
    configure_logging(verbose)
    options, output_model = _options(chosen, output_model)
    writes_nothing = _writes_nothing(action, output_model, dry_run, options) or dry_run
    goals = _outputs(models, output_model, writes_nothing)
    _require_apart(models, goals, report_path, writes_nothing)
    if skip_existing and writes_nothing:
        raise click.UsageError("--skip-existing goes by what is written, and nothing is: leave it out")
    work = [Job(model, goal, options, dry_run, action or "insert") for model, goal in zip(models, goals, strict=True)]
    existing = Existing(work if skip_existing else [], report_path)
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
            write_whole(report_path, to_json(existing.kept(reports)))
        except OSError as err:
            troubles[f"cannot write the report {printable(str(report_path))}: {err.strerror}"] = None

    with signals_end_cleanly(), Workers(min(jobs, len(work)), verbose, time_limit) as workers:
        reports = _done(work, existing.beside(workers if run is None else lambda jobs: map(run, jobs)), show, keep)
    sys.exit(_ended(reports, troubles))


def _options(chosen: Mapping[str, Any], output_model: Path | None) -> tuple[Options, Path | None]:
    """The options that were given, and the file to write, which some call `--output`."""
    values: dict[str, Any] = {name: not chosen[name] if name == "check" else chosen[name] for name in OPTIONS}
    values["input_shapes"] = dict(values["input_shapes"])
    given = [name for name in OPTIONS if _was_typed(name)]
    if output_model is None and Path(values["output"] or "").suffix.lower() in (".onnx", ".xml"):
        say(f"note: --output is for an output of the model; taken as -o {printable(values['output'])}", err=True)
        output_model, values["output"] = Path(values["output"]), None
        given.remove("output")
    return Options(**values, given=tuple(given)), output_model


def _ended(reports: Sequence[Report], troubles: Iterable[str]) -> int:
    """Say what went wrong, and give the exit code."""
    known = list(troubles)
    for text in known:
        say(f"error: {text}", err=True)
    failed = sum(report.error is not None for report in reports)
    if failed and len(reports) > 1:
        say(f"{failed} of {len(reports)} models failed", err=True)
    return EXIT_FAILED if failed or known else 0


def _writes_nothing(action: str | None, output: Path | None, dry_run: bool, options: Options) -> bool:
    """Whether what is done instead of inserting writes no model; refuses what it would not go by."""
    if action is None:
        return False
    used = {"layers": {"output", "input_shapes"}}.get(action, set())
    spare = [flag(name) for name in sorted(options.on_purpose - used)]
    spare += ["--output-model"] if output is not None and action != "strip" else []
    spare += ["--dry-run"] if dry_run else []
    if spare:
        raise click.UsageError(f"--{action} does not go by {', '.join(spare)}: leave it out")
    return action != "strip"


def _was_typed(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _done(
    jobs: Sequence[Job],
    run: Callable[[Sequence[Job]], Iterator[Report]],
    show: Callable[[Report], None],
    keep: Callable[[list[Report]], None],
) -> list[Report]:
    """Do all jobs, and keep the reports after each.

    An option that does nothing for one model is refused only if it does nothing for all others too.
    """
    reports: dict[int, Report] = {}
    for index, report in enumerate(run(jobs)):
        reports[index] = report
        keep(list(reports.values()))
        if len(jobs) == 1 or not report.unused_options:
            show(report)
    used = {name for index, job in enumerate(jobs) for name in _used(job, reports[index])}
    put_off = [index for index, report in reports.items() if len(jobs) > 1 and report.unused_options]
    for index in put_off:
        unused = reports[index].unused_options
        if used.issuperset(unused):
            (reports[index],) = run([_without(jobs[index], unused)])
            keep(list(reports.values()))
        show(reports[index])
    return list(reports.values())


def _without(job: Job, unused: Iterable[str]) -> Job:
    """The same job with some options not set on purpose."""
    return replace(job, options=replace(job.options, given=tuple(sorted(job.options.on_purpose - set(unused)))))


def _used(job: Job, report: Report) -> frozenset[str]:
    """The options that did something for a model, as far as it came to that."""
    if report.error is not None and not report.unused_options:
        return frozenset()
    return job.options.on_purpose - set(report.unused_options)


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
    seen = _writers(targets)
    if report is not None:
        _require_place(report)
        _require_own(report, models, seen)
    for writer, reader, path in clashes([] if dry_run else targets, models):
        if writer != reader:
            raise Refused(
                f"the result for {printable(str(models[writer]))} would overwrite {printable(str(path))}, which "
                f"{printable(str(models[reader]))} is read from; choose another output"
            )


def _writers(targets: Sequence[Sequence[Path]]) -> dict[tuple[object, ...], int]:
    """Each file that is written, and for which model; refuses one that is written for several."""
    seen: dict[tuple[object, ...], int] = {}
    for index, path in ((index, path) for index, group in enumerate(targets) for path in group):
        if any(seen.setdefault(key, index) != index for key in identities(path)):
            raise Refused(f"several models would be written to {printable(str(path))}")
    return seen


def _require_own(report: Path, models: Sequence[Path], seen: Container[tuple[object, ...]]) -> None:
    """Refuse a report where a model is written or read."""
    if any(key in seen for key in identities(report)):
        raise Refused(f"the report {printable(str(report))} would overwrite the model that is written there")
    for _, _, path in clashes([[report]], models):
        names = printable(str(report)), printable(str(path))
        raise Refused("the report {} would overwrite {}, which a model is read from".format(*names))


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
