"""`xai-explain`: draw what a model looked at."""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from click.core import ParameterSource

from xai_insert.cli.rows import facts, opened, tell, write_rows
from xai_insert.cli.running import run_options
from xai_insert.cli.streams import (
    EXIT_FAILED,
    Refused,
    decoders_kept_quiet,
    ended,
    open_streams,
    say,
    signals_end_cleanly,
    tallied,
)
from xai_insert.errors import XaiInsertError
from xai_insert.explain import page
from xai_insert.explain.columns import FORMATS
from xai_insert.explain.detect import THRESHOLD
from xai_insert.explain.draw import BACKGROUNDS, COLORMAPS
from xai_insert.explain.files import Source, find_images, left_out, read_labels
from xai_insert.explain.journal import FOLDERS
from xai_insert.explain.listing import Shard
from xai_insert.explain.memory import keep_freed_memory
from xai_insert.explain.outputs import Array
from xai_insert.explain.picture import Look
from xai_insert.explain.run import RAW_KINDS, DrawOptions, FolderRun, Outcome
from xai_insert.explain.scale import SCALES
from xai_insert.explain.setup import Setup
from xai_insert.explain.video import explain_video, split
from xai_insert.files import printable
from xai_insert.version import __version__

HTML, RAY = "html", "ray"

EPILOG = """\b
Exit codes: 0 done, 1 the model cannot be run or an image cannot be read, 2 wrong usage.
\b
Examples:
  xai-explain model_xai.xml photos/ -o explained/
  xai-explain model_xai.xml photos/ -o rows/ --format parquet --shard 1/4
  xai-explain model.onnx cat.jpg -o out/ --mean 123.7,116.3,103.5 --scale 58.4,57.1,57.4 --classes top5
"""


def _arrays(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for item in value:
        name, _, path = item.partition("=")
        if not name or not path:
            raise click.BadParameter(f"{item!r} is not NAME=FILE.npy", ctx, param)
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as err:
            raise click.BadParameter(f"cannot read {path!r}: {err}", ctx, param) from None
        if not isinstance(array, np.ndarray):
            raise click.BadParameter(f"{path!r} holds several arrays", ctx, param)
        found[name] = array
    return found


def _shard(ctx: click.Context, param: click.Parameter, value: str | None) -> Shard:
    if value is None:
        return Shard()
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value)
    if not match or int(match[1]) > int(match[2]):
        raise click.BadParameter(f"{value!r} is not I/N, for example 1/4", ctx, param)
    return Shard(int(match[1]), int(match[2]))


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("model", type=click.Path(path_type=Path))
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE_VIDEO_OR_FOLDER..."
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Where to write overlays, maps and index.html.",
)  # fmt: skip
@click.option(
    "--classes", default="predictions", show_default=True, metavar="predictions|all|top5|3,17|cat,dog",
    help="Classes to draw, by number or name.",
)  # fmt: skip
@click.option(
    "--threshold", type=click.FloatRange(0, 1), metavar="SCORE",
    help=f"Least score of an object or key point ({THRESHOLD}) or of a class among independent ones (the model's).",
)  # fmt: skip
@click.option(
    "--labels", type=click.Path(path_type=Path), metavar="FILE", help="Class names, one a line, in order of classes."
)
@click.option(
    "--opacity", type=click.FloatRange(0, 1), default=Look.opacity, show_default=True,
    help="Weight of the map over the image where it is at its highest; less where it is lower.",
)  # fmt: skip
@click.option("--colormap", type=click.Choice(COLORMAPS), default=Look.colormap, show_default=True)
@click.option(
    "--background", type=click.Choice(BACKGROUNDS), default=Look.background, show_default=True,
    help="Whether the image keeps its colours below the map.",
)  # fmt: skip
@click.option(
    "--map-scale", type=click.Choice(SCALES), default=DrawOptions.scale, show_default=True,
    help="shared: one scale for the maps of an image, weak classes stay pale; each: every map by its own range.",
)  # fmt: skip
@click.option(
    "--raw", type=click.Choice(RAW_KINDS), default=DrawOptions.raw, show_default=True,
    help="Also write the map as the model gave it.",
)  # fmt: skip
@click.option(
    "--beside", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Results of an earlier run of another model on the same images: the page shows both side by side.",
)  # fmt: skip
@click.option(
    "--frames", type=click.IntRange(1), metavar="N", help="Most frames of a video or camera; a camera has no end."
)
@click.option("--overwrite", is_flag=True, help="Draw again what an earlier run has drawn.")
@click.option(
    "--feed", callback=_arrays, multiple=True, metavar="NAME=FILE.npy",
    help="Array for another input than the image: token ids of prompts, a reference. Repeatable.",
)  # fmt: skip
@click.option(
    "--format", "kind", type=click.Choice((HTML, *FORMATS)), default=HTML, show_default=True,
    help="html: pictures and a page; jsonl, parquet: a row for each image, maps among its columns, no pictures.",
)  # fmt: skip
@click.option("--shard", callback=_shard, metavar="I/N", help="Only the I-th of N parts of the images, by their paths.")
@click.option("--engine", type=click.Choice((RAY,)), help="Run on a cluster; with --format jsonl or parquet.")
@click.option("--address", metavar="HOST:PORT", help="Of the cluster; none starts one on this machine.")
@run_options
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.version_option(__version__, prog_name="xai-explain")
@signals_end_cleanly()
def main(
    model: Path,
    images: tuple[Path, ...],
    output: Path,
    classes: str,
    threshold: float | None,
    labels: Path | None,
    opacity: float,
    colormap: str,
    background: str,
    map_scale: str,
    raw: str,
    beside: Path | None,
    frames: int | None,
    overwrite: bool,
    kind: str,
    shard: Shard,
    engine: str | None,
    address: str | None,
    runtime: str | None,
    device: str,
    mean: tuple[float, ...] | None,
    scale: tuple[float, ...] | None,
    channels: str | None,
    layout: str | None,
    resize: str | None,
    input_size: tuple[int, int] | None,
    feed: dict[str, Array],
    quiet: bool,
) -> None:
    """Draw what a classifier, a detector or an instance segmenter looked at.

    Runs MODEL (OpenVINO .xml or .onnx, with a saliency map or without) on images and writes an overlay per
    predicted class, with the boxes or outlines of its objects, the raw maps and a page, index.html; of a video, or of
    camera:0, a video. How to prepare an image is read from the model's metadata (Model API's model_info) unless
    options say otherwise. Run again, it draws only what is missing.
    """
    open_streams()
    keep_freed_memory()
    look = Look(opacity, colormap, background)  # type: ignore[arg-type]  # checked by click
    options = DrawOptions(look, map_scale, raw, overwrite)  # type: ignore[arg-type]
    _require_fitting(kind, engine, address)
    trouble: str | None = None
    try:
        bgr = None if channels is None else channels == "bgr"
        chosen = {"mean": mean, "scale": scale, "resize": resize, "bgr": bgr}
        names = None if labels is None else read_labels(labels)
        setup = Setup(model, runtime, device, classes, threshold, names, chosen, layout, input_size, feed)  # type: ignore[arg-type]
        videos, pictures = split(images)
        if kind != HTML and videos:
            raise Refused(f"--format {kind} is for images, not for videos")
        if kind != HTML:
            sys.exit(write_rows(setup, pictures, output, kind, shard, engine == RAY, address, quiet))  # type: ignore[arg-type]
        results = [output / name for name in FOLDERS]
        sources = deque(shard.of(find_images(pictures, results)))
        ready, content = opened(setup)
        if not quiet:
            trouble = tell(setup, ready)
        identity = [str(model.resolve()), content, type(ready.engine).__name__, device, *setup.told_by]
        way = None if beside is None else page.beside(beside, output)
        run = FolderRun(ready, output, options, identity, facts(setup, ready), way)
        with decoders_kept_quiet():
            for video in videos:
                for drawn in explain_video(video, output, ready, options, frames):
                    trouble = trouble if quiet else say(f"video: {drawn}") or trouble
            tally = _run(run, sources, quiet)
    except XaiInsertError as err:
        say(f"error: {' '.join(str(err).split())}", err=True)
        sys.exit(EXIT_FAILED)
    for note in (*_notes(left_out(pictures, results), run), *tally.notes):
        say(f"note: {note}", err=True)
    if not quiet:
        trouble = say(tally.text(output)) or trouble
    sys.exit(ended(trouble, tally.failed))


def _notes(skipped: Sequence[Path], run: FolderRun) -> Iterator[str]:
    if skipped:
        listed = ", ".join(printable(str(path)) for path in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        yield f"{len(skipped)} pictures of kinds that are not read were left out: {listed}"
    if run.journal.odd:
        yield f"{run.journal.odd} lines of an earlier results.jsonl were set aside"
    if not run.journal.is_guarded:
        yield "the drive of the output folder has no locks: let one run at a time write into it"


@dataclass
class _Tally:
    """What became of the images so far; there may be a million."""

    drawn: int = 0
    kept: int = 0
    failed: int = 0
    notes: dict[str, None] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.failed += 1
            say(f"error: {printable(outcome.error)}; skipped", err=True)
            return
        self.kept += outcome.skipped
        self.drawn += not outcome.skipped
        if outcome.record is not None and "note" in outcome.record:
            self.notes[outcome.record["note"]] = None

    def text(self, output: Path) -> str:
        counts = {"drawn": self.drawn, "already there": self.kept, "not readable": self.failed}
        return f"{tallied(counts)}: {output / 'index.html'}"


_OF_PICTURES = ("opacity", "colormap", "background", "map_scale", "raw", "beside", "frames", "overwrite")


def _require_fitting(kind: str, engine: str | None, address: str | None) -> None:
    """Refuse options that would do nothing."""
    context = click.get_current_context()
    if kind != HTML:
        _require_none_of_pictures(context, kind)
    elif engine is not None:
        raise Refused(f"--engine {engine} writes rows: give --format jsonl or parquet")
    if context.params["frames"] is not None and not split(context.params["images"])[0]:
        raise Refused("--frames counts those of videos and cameras, and none is given: leave it out")
    if address is not None and engine is None:
        raise Refused("--address is that of a cluster: give --engine ray")


def _require_none_of_pictures(context: click.Context, kind: str) -> None:
    typed = [name for name in _OF_PICTURES if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if typed:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in typed)
        raise Refused(f"--format {kind} writes no pictures and does not go by {flags}: leave it out")


def _emptied(sources: deque[Source]) -> Iterator[Source]:
    """Hand out the images and keep none: their paths grow when they are used."""
    while sources:
        yield sources.popleft()


def _run(run: FolderRun, sources: deque[Source], quiet: bool) -> _Tally:
    """Run with a progress bar, on a terminal only."""
    tally = _Tally()
    if quiet or not sys.stderr.isatty():
        run.run(_emptied(sources), tally.add)
        return tally
    start = time.monotonic()

    def rate(_: object) -> str:
        return f"{(tally.drawn + tally.failed) / max(time.monotonic() - start, 1e-3):.1f} images/s"

    with click.progressbar(length=len(sources), file=sys.stderr, show_pos=True, item_show_func=rate) as bar:

        def done(outcome: Outcome) -> None:
            tally.add(outcome)
            bar.update(1, outcome)

        run.run(_emptied(sources), done)
    return tally


if __name__ == "__main__":
    main()
