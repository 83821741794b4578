"""Finding images one after another, however many there are, and sharing them out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from xai_insert.errors import reason
from xai_insert.explain.errors import ImageFileError
from xai_insert.explain.files import SUFFIXES, Source, shown


@dataclass(frozen=True)
class Shard:
    """One of several runs that share the images among them, `index` of `count`, counted from 1.

    Which one an image belongs to follows from its path alone, so that all agree, whatever else lies in the folders.
    """

    index: int = 1
    count: int = 1

    def has(self, path: Path) -> bool:
        """Whether an image is of this run."""
        digest = blake2b(os.fsencode(os.path.abspath(path)), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1

    def of(self, sources: Iterable[Source]) -> Iterator[Source]:
        """Those that are of this run."""
        return (source for source in sources if self.has(source.path))


def stream_images(given: Sequence[Path]) -> Iterator[Source]:
    """Find images while they are used: files as given, and all below folders, in no order.

    Each goes by its absolute path. Memory holds the folders that are open, and none of the images.

    Args:
        given: files and folders; what lies in another given folder is not found twice.

    Raises:
        ImageFileError: there is no image, or a folder cannot be listed.
    """
    is_empty = True
    for entry in _apart(given):
        found = _below(entry) if entry.is_dir() else iter([entry])
        for path in found:
            is_empty = False
            yield Source(path, shown(path))
    if is_empty:
        places = ", ".join(shown(path) for path in given)
        raise ImageFileError(f"no images in {places}: wanted files that end in {', '.join(sorted(SUFFIXES))}")


def _apart(given: Sequence[Path]) -> list[Path]:
    """Absolute paths, without those that another one holds."""
    paths = list(dict.fromkeys(Path(os.path.abspath(path)) for path in given))
    folders = {path for path in paths if path.is_dir()}
    return [path for path in paths if not folders.intersection(path.parents)]


def _below(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _below(Path(entry.path))
                elif Path(entry.name).suffix.lower() in SUFFIXES:
                    yield Path(entry.path)
    except OSError as err:
        raise ImageFileError(f"cannot list {shown(folder)}: {reason(err)}") from err
