"""`xai-evaluate`: measure how good a model's maps are, or compare those of two models."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from xai_insert.cli.running import run_options
from xai_insert.cli.streams import (
    EXIT_FAILED,
    Refused,
    decoders_kept_quiet,
    ended,
    open_streams,
    say,
    signals_end_cleanly,
)
from xai_insert.errors import XaiInsertError
from xai_insert.evaluate.annotations import Annotations, read_annotations
from xai_insert.evaluate.compare import Comparison
from xai_insert.evaluate.evaluation import prepared_evaluation
from xai_insert.evaluate.measure import STEPS
from xai_insert.evaluate.runs import ComparisonRun, EvaluationRun, Run, require_own
from xai_insert.evaluate.shuffled import write_shuffled
from xai_insert.evaluate.subject import Subject
from xai_insert.explain.errors import ImageFileError, RunError
from xai_insert.explain.explainer import Explainer
from xai_insert.explain.files import Source, find_images, read_image, read_labels, shown
from xai_insert.explain.ordered import opencv_in_one_thread
from xai_insert.files import printable
from xai_insert.version import __version__

EPILOG = """\b
Exit codes: 0 done, 1 the maps agree less than --fail-under, or a model, an image or the annotations cannot be used,
2 wrong usage.
\b
Examples:
  xai-evaluate model_xai.xml photos/ -o measured/
  xai-evaluate model_xai.onnx val2017/ --annotations instances_val2017.json
  xai-evaluate model_xai.xml photos/ --against model_int8_xai.xml --fail-under 0.95
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE_OR_FOLDER...")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Where to write the figures as JSON, the images from the worst on, and index.html.",
)  # fmt: skip
@click.option(
    "--annotations", type=click.Path(path_type=Path), metavar="COCO.json|VOC/",
    help="Boxes of objects, for the pointing game and the energy in the box.",
)  # fmt: skip
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="MODEL",
    help="Instead compare the maps with those of this model, image by image.",
)  # fmt: skip
@click.option(
    "--fail-under", type=click.FloatRange(-1, 1), metavar="CORRELATION",
    help="With --against: exit 1 if the mean correlation is lower.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Most images, spread over all that are found.")
@click.option(
    "--steps", type=click.IntRange(1), default=STEPS, show_default=True, metavar="N",
    help="Steps of insertion and deletion.",
)  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="Class names, one a line, in order.")
@click.option("--threshold", type=click.FloatRange(0, 1), metavar="SCORE", help="Least score of a predicted object.")
@run_options
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.version_option(__version__, prog_name="xai-evaluate")
@signals_end_cleanly()
def main(
    model: Path,
    images: tuple[Path, ...],
    output: Path | None,
    annotations: Path | None,
    against: Path | None,
    fail_under: float | None,
    limit: int | None,
    steps: int,
    labels: Path | None,
    quiet: bool,
    **preparation: Any,
) -> None:
    """Measure how faithful a model's saliency maps are, beside maps that know nothing of it.

    Runs MODEL (OpenVINO .xml or .onnx, with a saliency map or without) on images: insertion, deletion, ROAD, ADCC and
    ARCC of the predicted class, pointing game and energy in the box where there are annotations, and how much the map
    owes to what the model has learned. What each figure says: docs/evaluate.md.
    """
    open_streams()
    if fail_under is not None and against is None:
        raise Refused("--fail-under judges a comparison: give --against")
    if against is not None and annotations is not None:
        raise Refused("--against compares two models and does not go by --annotations: leave one out")
    try:
        if output is not None:
            require_own(output)
        sources = _spread(find_images(images, ()), limit)
        names = None if labels is None else read_labels(labels)

        def opened(path: Path) -> Subject:
            return _subject(path, names, **preparation)

        with decoders_kept_quiet(), opencv_in_one_thread(), TemporaryDirectory() as scratch:
            if against is not None:
                run: Run = _compared(opened(model), opened(against), model, against, fail_under)
            else:
                boxes = None if annotations is None else read_annotations(annotations)
                run = _evaluated(opened, model, sources, boxes, steps, Path(scratch))
            run.over(sources, _skip)
            text = run.text()
            if output is not None:
                run.write(output)
    except XaiInsertError as err:
        say(f"error: {' '.join(str(err).split())}", err=True)
        sys.exit(EXIT_FAILED)
    sys.exit(_ended(run, text, output, quiet))


def _ended(run: Run, text: str, output: Path | None, quiet: bool) -> int:
    """Say what was measured, and give the exit code."""
    trouble: str | None = None
    for note in run.notes():
        say(f"note: {note}", err=True)
    if not quiet:
        trouble = say(text)
        if output is not None:
            trouble = say(f"written: {output / 'index.html'}") or trouble
    code = ended(trouble, run.failed)
    verdict = run.verdict()
    if verdict is None:
        return code
    say(f"error: {verdict}", err=True)
    return EXIT_FAILED


def _evaluated(
    opened: Callable[[Path], Subject],
    model: Path,
    sources: Sequence[Source],
    annotations: Annotations | None,
    steps: int,
    scratch: Path,
) -> EvaluationRun:
    subject, first = opened(model), _readable(sources)
    shuffled, reason = None, None
    try:
        maps = np.asarray(subject.prepare(read_image(first.path)).found.saliency_map)[None]
        shuffled = opened(write_shuffled(model, maps, scratch))
    except XaiInsertError as err:
        reason = " ".join(str(err).split())
    evaluation, unknown = prepared_evaluation(subject, shuffled, annotations, sources, first, steps)
    title = f"Maps of {shown(model.name)}, measured"
    return EvaluationRun(title, _facts(model), evaluation, unknown, reason)


def _compared(first: Subject, second: Subject, model: Path, against: Path, fail_under: float | None) -> ComparisonRun:
    facts = {**_facts(model), "Against": shown(str(against))}
    title = f"Maps of {shown(model.name)} against {shown(against.name)}"
    return ComparisonRun(title, facts, Comparison(first, second), fail_under)


def _subject(model: Path, names: Sequence[str] | None, **preparation: Any) -> Subject:
    if model.suffix.lower() not in (".xml", ".onnx"):
        raise RunError(f"unknown kind of model {shown(model.name)!r}: wanted .xml (OpenVINO IR) or .onnx")
    try:
        return Subject(Explainer(model, labels=names, **preparation))
    except ValueError as err:
        raise Refused(str(err)) from None


def _readable(sources: Sequence[Source]) -> Source:
    """The first image that can be read.

    Raises:
        ImageFileError: none can.
    """
    for source in sources:
        try:
            read_image(source.path)
        except ImageFileError as err:
            last = err
        else:
            return source
    raise last


def _skip(error: str) -> None:
    say(f"error: {printable(error)}; skipped", err=True)


def _spread(sources: Sequence[Source], limit: int | None) -> Sequence[Source]:
    if limit is None or len(sources) <= limit:
        return sources
    return [sources[index * len(sources) // limit] for index in range(limit)]


def _facts(model: Path) -> dict[str, str]:
    return {
        "Model": shown(str(model)),
        "Command": shown(shlex.join(["xai-evaluate", *sys.argv[1:]])),
        "Version": f"xai-insert {__version__}",
        "Date": datetime.now(timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M %z"),
    }


if __name__ == "__main__":
    main()
