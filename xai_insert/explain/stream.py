"""Explaining any number of images into files of rows: memory stays as it is, and no image is lost or written twice.

A folder of results holds `run.json`, which tells model and settings, and parts, `part-*.jsonl` or `part-*.parquet`, a
row for each image. A part is there whole or not at all. Any number of runs may write into a folder, each a shard of
the images; what is there is not done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.explain import files
from xai_insert.explain.columns import FormatName, failed_row, packed, row, sources_in
from xai_insert.explain.errors import ImageFileError, RunError
from xai_insert.explain.files import Source, shown
from xai_insert.explain.ordered import opencv_in_one_thread, side_by_side
from xai_insert.explain.runtime import threads_for
from xai_insert.explain.setup import ReadyModel, Setup
from xai_insert.files import sweep
from xai_insert.version import __version__

PART = 256
"""Most images of a part."""
_MOST_BYTES = 1 << 26  # of maps in a part
_RUN = "run.json"
_BATCH = 1 << 14

Rows = Sequence[Mapping[str, Any]]


@dataclass
class Counts:
    """What became of the images; there may be a million, so that nothing else is kept."""

    done: int = 0
    known: int = 0
    failed: int = 0


class PartFiles:
    """A folder of rows.

    Args:
        folder: the folder.
        kind: format of the parts.
    """

    def __init__(self, folder: Path, kind: FormatName) -> None:
        self._folder, self._kind = folder, kind
        self._known = np.zeros(0, np.uint64)

    @classmethod
    def made(cls, folder: Path, kind: FormatName, settings: str, about: Mapping[str, str]) -> PartFiles:
        """Open a folder, or make it, and see which images have a row.

        Args:
            folder: the folder.
            kind: format of the parts.
            settings: tells model and settings from others.
            about: what a reader may want to know of the run.

        Raises:
            RunError: it holds rows of another model, of other settings or in another format; or cannot be written.
        """
        packed([], kind)  # says if a package is missing, before any work
        files.make_folder(folder)
        own = {"format": kind, "settings": settings}
        parts = sorted(folder.glob("part-*.*"))  # first: whoever wrote one had written the other before
        found = _read_run(folder / _RUN)
        if found is None:
            if parts or (folder / "results.jsonl").exists():
                raise RunError(f"{shown(folder)} holds results of another kind of run; give another folder")
            files.write(folder / _RUN, json.dumps({**own, "about": dict(about)}, indent=1).encode())
        elif {key: found.get(key) for key in own} != own:
            raise RunError(
                f"{shown(folder)} holds rows of another model, other settings or another format; give another folder"
            )
        sweep(folder / "any")  # what killed runs have left half written
        opened = cls(folder, kind)
        opened._known = _keys(source for part in parts for source in sources_in(part))
        return opened

    def has(self, source: Source) -> bool:
        """Whether an earlier run has written a row for an image."""
        key = _key(source.name)
        at = int(np.searchsorted(self._known, key))
        return at < len(self._known) and bool(self._known[at] == key)

    def write(self, rows: Rows) -> None:
        """Write a part. The same images make a part of the same name, whoever writes it."""
        name = hashlib.blake2b("\n".join(item["source"] for item in rows).encode(errors="replace"), digest_size=12)
        files.write(self._folder / f"part-{name.hexdigest()}.{self._kind}", packed(rows, self._kind))


def settings_of(setup: Setup, model: ReadyModel, content: Sequence[str]) -> str:
    """Tells a model and its settings from others."""
    facts = [__version__, *content, model.engine.runtime, setup.device, *map(repr, model.settings), *setup.told_by]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def explained_row(model: ReadyModel, source: Source) -> dict[str, Any]:
    """The row of an image; one that cannot be read has a row that says so.

    Raises:
        XaiInsertError: the model cannot be run.
    """
    try:
        image = files.read_image(source.path)
    except ImageFileError as err:
        return failed_row(source.name, str(err))
    return row(source.name, (image.shape[1], image.shape[0]), model.explain(image))


def explain_all(
    model: ReadyModel,
    parts: PartFiles,
    sources: Iterable[Source],
    done: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> Counts:
    """Explain every image that has no row yet.

    Args:
        model: the model.
        parts: where the rows go.
        sources: the images, each of a name of its own.
        done: called with each row.

    Raises:
        XaiInsertError: the model cannot be run or a part cannot be written; what was done is written first.
    """
    counts, waiting, size = Counts(), list[Mapping[str, Any]](), 0
    workers = threads_for(model.engine)
    with opencv_in_one_thread():
        rows = side_by_side(lambda source: explained_row(model, source), unknown(parts, sources, counts), workers)
        try:
            for item in rows:
                counts.done += item["error"] is None
                counts.failed += item["error"] is not None
                waiting.append(item)
                size += sum(len(entry["data"]) for entry in item["maps"])
                done(item)
                if len(waiting) >= PART or size >= _MOST_BYTES:
                    parts.write(waiting)
                    waiting, size = [], 0
        finally:
            if waiting:
                parts.write(waiting)
    return counts


def unknown(parts: PartFiles, sources: Iterable[Source], counts: Counts) -> Iterator[Source]:
    """The images that have no row yet; the others are counted."""
    for source in sources:
        if parts.has(source):
            counts.known += 1
        else:
            yield source


def _read_run(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise RunError(f"cannot read {shown(path)}: {err}") from err
    return found if isinstance(found, dict) else {}


def _key(name: str) -> np.uint64:
    """Eight bytes for a name: of a million, two are alike once in ten million folders."""
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest(), "little"))


def _keys(names: Iterator[str]) -> npt.NDArray[np.uint64]:
    blocks = []
    while block := [_key(name) for name in islice(names, _BATCH)]:
        blocks.append(np.array(block, np.uint64))
    return np.unique(np.concatenate(blocks)) if blocks else np.zeros(0, np.uint64)
