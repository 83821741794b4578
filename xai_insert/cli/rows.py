"""Opening a model for `xai-explain`, and its runs that write rows instead of pictures."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from xai_insert.cli.streams import Refused, decoders_kept_quiet, ended, say, tallied
from xai_insert.explain.columns import FormatName
from xai_insert.explain.files import shown
from xai_insert.explain.listing import Shard, stream_images
from xai_insert.explain.on_ray import RayTask, explain_on_ray
from xai_insert.explain.preprocessing import PREPROCESSING_KEYS
from xai_insert.explain.setup import ReadyModel, Setup
from xai_insert.explain.stream import PartFiles, explain_all, settings_of
from xai_insert.files import printable
from xai_insert.version import __version__

_INTERVAL = 1.0  # seconds between two lines of progress
_MOST_NOTES = 20


def opened(setup: Setup) -> tuple[ReadyModel, Sequence[str]]:
    """See `Setup.open`; classes that are none are wrong usage."""
    try:
        return setup.open()
    except ValueError as err:
        raise Refused(f"--classes: {err}") from None


def tell(setup: Setup, model: ReadyModel) -> str | None:
    """Say how images are prepared, since a wrong guess is the commonest reason for a strange picture."""
    trouble = say(f"{printable(str(setup.path))}: input {model.feeder.text()}")
    is_told = any(value is not None for value in setup.prepared.values())
    if not is_told and not PREPROCESSING_KEYS.intersection(model.engine.info):
        say("note: the model's metadata does not say how to prepare images; see --mean and --scale", err=True)
    return trouble


def facts(setup: Setup, model: ReadyModel) -> dict[str, str]:
    """What the results say about the run."""
    engine, about = model.engine, model.engine.about
    method = ", ".join(about[key] for key in ("method", "form", "task") if about.get(key))
    runtime = f"{engine.runtime} {sys.modules[engine.runtime].__version__} on {setup.device}"
    versions = [f"xai-insert {__version__}", runtime]
    if "version" in about:
        versions.append(f"inserted by {about['version']}")
    return {
        "Model": shown(setup.path.name),
        "Method": method,
        "Preprocessing": model.feeder.text(),
        "Command": shown(shlex.join(["xai-explain", *sys.argv[1:]])),
        "Versions": ", ".join(versions),
        "Date": datetime.now(timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M %z"),
    }


def write_rows(
    setup: Setup,
    images: Sequence[Path],
    output: Path,
    kind: FormatName,
    shard: Shard,
    on_ray: bool,
    address: str | None,
    quiet: bool,
) -> int:
    """Run on images and write a row for each; gives the exit code.

    Raises:
        XaiInsertError: nothing can be run, or written.
    """
    model, content = opened(setup)
    trouble = None if quiet else tell(setup, model)
    parts = PartFiles.made(output, kind, settings_of(setup, model, content), facts(setup, model))
    sources = shard.of(stream_images(images))
    progress = _Progress(quiet)
    with decoders_kept_quiet():
        if on_ray:
            setup = Setup(**{**vars(setup), "path": setup.path.resolve()})
            counts = explain_on_ray(RayTask(setup, output.resolve(), kind), parts, sources, address, progress.add)
        else:
            counts = explain_all(model, parts, sources, progress.add)
    progress.end()
    if not quiet:
        words = {"explained": counts.done, "already there": counts.known, "not readable": counts.failed}
        trouble = say(f"{tallied(words)}: {output / f'part-*.{kind}'}") or trouble
    return ended(trouble, counts.failed)


class _Progress:
    """What is said while a run goes on, and the notes to say at its end."""

    def __init__(self, quiet: bool) -> None:
        self._count, self._start, self._last = 0, time.monotonic(), 0.0
        self._notes: dict[str, None] = {}
        self._is_shown = not quiet and sys.stderr.isatty()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row in."""
        self._count += 1
        if row["error"] is not None:
            say(f"error: {printable(row['error'])}", err=True)
        if row["note"] is not None and len(self._notes) < _MOST_NOTES:
            self._notes[row["note"]] = None
        now = time.monotonic()
        if self._is_shown and now - self._last >= _INTERVAL:
            self._last = now
            print(f"\r{self._count} images, {self._count / (now - self._start):.1f} a second", end="", file=sys.stderr)  # noqa: T201

    def end(self) -> None:
        """Say what is left to say."""
        if self._is_shown and self._last:
            say("", err=True)
        for note in self._notes:
            say(f"note: {note}", err=True)
