"""Finding, reading and writing files."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from xai_insert.explain.draw import Image
from xai_insert.explain.errors import ImageFileError, RunError
from xai_insert.files import replace_whole

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_OTHER = frozenset((".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".svg"))
_JPEG_QUALITY = 85
_MOST_PIXELS = 178_000_000  # Pillow refuses more of its own accord
_LONGEST_NAME = 100  # of the 255 bytes that folders take, in characters: class names and scores follow
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ufffd]")


@dataclass(frozen=True)
class Source:
    """One image to explain: its path, and the name its results go by."""

    path: Path
    name: str


def find_images(given: Sequence[Path], output: Path) -> list[Source]:
    """List the images: files as given, folders with everything below them, in order of their names.

    Results of an earlier run, which lie in `output`, are left out. Names are those of the files without the suffix,
    with the folders below the given one in front; where two would be equal, each gets a mark that follows from its
    path, so that it is the same in the next run.

    Raises:
        ImageFileError: a folder holds no image.
    """
    found: dict[Path, str] = {}
    own = output.resolve()
    for entry in given:
        if not os.path.isdir(entry):  # unlike a path's own question, it takes any name
            found.setdefault(entry, result_name(entry))
            continue
        inside = [path for path in sorted(entry.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
        inside = [path for path in inside if own not in path.resolve().parents]
        if not inside:
            raise ImageFileError(f"no images in {entry}: wanted files that end in {', '.join(sorted(SUFFIXES))}")
        for path in inside:
            found.setdefault(path, _plain(path, "_".join(path.relative_to(entry).with_suffix("").parts)))
    names = list(found.values())
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return [Source(path, _marked(path, name) if name in twice else name) for path, name in found.items()]


def left_out(given: Sequence[Path], output: Path) -> list[Path]:
    """Pictures in the given folders that are of a kind that is not read; results, in `output`, aside."""
    own, folders = output.resolve(), [entry for entry in given if os.path.isdir(entry)]
    found = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix.lower() in _OTHER]
    return [path for path in found if own not in path.resolve().parents]


def _marked(path: Path, name: str) -> str:
    return f"{name}~{hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:6]}"


def result_name(path: Path) -> str:
    """What the results of a file go by: its name without the suffix, changed where folders would not take it."""
    return _plain(path, path.stem)


def _plain(path: Path, name: str) -> str:
    """A name that every folder takes, with a mark where it had to be changed."""
    plain = _UNFIT.sub("_", shown(name))[:_LONGEST_NAME]
    return name if plain == name else _marked(path, plain)


def shown(name: str | Path) -> str:
    """A file name as text, bytes that are no UTF-8 replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def read_image(path: Path) -> Image:
    """Read an image as `decode` does.

    Raises:
        ImageFileError: it cannot be read.
    """
    return decode(path, read(path))


def read(path: Path) -> bytes:
    """Read a file.

    Raises:
        ImageFileError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ImageFileError(f"cannot read {shown(path)}: not a regular file")
        return path.read_bytes()
    except OSError as err:
        raise ImageFileError(f"cannot read {shown(path)}: {err.strerror or err}") from err


def decode(path: Path, content: bytes) -> Image:
    """Turn the content of an image file into uint8 RGB `[H, W, 3]`, upright as its EXIF data say.

    Raises:
        ImageFileError: it is no image, or too large a one.
    """
    name = shown(path)
    _require_moderate(name, content)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except (cv2.error, MemoryError) as err:  # it reads some kinds of headers that Pillow does not
        raise ImageFileError(f"cannot read {name}: OpenCV refuses it, too large or damaged") from err
    if image is None:
        raise ImageFileError(f"cannot read {name}: {'not an image that OpenCV knows' if content else 'empty file'}")
    if image.shape[0] * image.shape[1] > _MOST_PIXELS:
        raise _too_large(name, image.shape[1], image.shape[0])
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), np.uint8)


def _require_moderate(name: str, content: bytes) -> None:
    """Refuse a small file that says it is a huge picture, before it is unpacked."""
    try:
        with PIL.Image.open(io.BytesIO(content)) as header:
            width, height = header.size
    except PIL.Image.DecompressionBombError as err:
        raise _too_large(name) from err
    except Exception:  # its parsers raise whatever a damaged header leads to; OpenCV has a limit of its own
        return
    if width * height > _MOST_PIXELS:
        raise _too_large(name, width, height)


def _too_large(name: str, *sides: int) -> ImageFileError:
    what = f"{sides[0]}x{sides[1]} is" if sides else "it has"
    return ImageFileError(f"cannot read {name}: {what} more than {_MOST_PIXELS / 1e6:.0f} million pixels")


def is_jpeg(content: bytes) -> bool:
    """Whether a file is one that every browser shows, and upright."""
    return content.startswith(b"\xff\xd8\xff")


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names, one a line.

    Raises:
        RunError: the file cannot be read or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise RunError(f"cannot read the labels {path}: {getattr(err, 'strerror', None) or 'not UTF-8 text'}") from err
    labels = tuple(line.strip() for line in lines)
    while labels and not labels[-1]:
        labels = labels[:-1]
    if not labels:
        raise RunError(f"the file of labels is empty: {path}; wanted one class name a line")
    return labels


def encode_jpeg(*parts: Image) -> bytes:
    """Encode one picture of parts of the same width, uint8 RGB `[H, W, 3]` each, from top to bottom."""
    ends = np.cumsum([part.shape[0] for part in parts]).tolist()
    whole = np.empty((ends[-1], *parts[0].shape[1:]), np.uint8)
    for part, end in zip(parts, ends, strict=True):
        cv2.cvtColor(part, cv2.COLOR_RGB2BGR, dst=whole[end - part.shape[0] : end])
    return _encode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])


def encode_png(pixels: Image) -> bytes:
    """Encode uint8 grey `[H, W]`."""
    return _encode(".png", pixels, [])


def _encode(suffix: str, pixels: Image, how: Sequence[int]) -> bytes:
    done, content = cv2.imencode(suffix, pixels, how)
    assert done
    return bytes(content)


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a link of its name is replaced, not followed.

    Raises:
        RunError: it cannot be written.
    """
    try:
        replace_whole(path, content)
    except OSError as err:
        raise RunError(f"cannot write {path}: {err.strerror or err}") from err


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        RunError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        raise RunError(f"cannot remove {path}: {err.strerror or err}") from err


def make_folder(path: Path) -> None:
    """Create a folder and those above it.

    Raises:
        RunError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise RunError(f"cannot create the folder {path}: {err.strerror or err}") from err


def make_own_folder(path: Path) -> None:
    """Create a folder for results, which may not be a link to one that is elsewhere.

    Raises:
        RunError: it is a link, or cannot be created.
    """
    if path.is_symlink():
        raise RunError(f"the folder {path} is a link, and results are written nowhere else: remove it")
    make_folder(path)


def digest(paths: Iterable[Path]) -> str:
    """What the content of files is told by; those that are not there count as empty."""
    total = hashlib.sha256()
    for path in paths:
        total.update(b"|")
        with suppress(OSError), path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def stamp(path: Path) -> list[int]:
    """Size and time of change of a file, to notice a new version; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def slug(text: str) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^\w-]+", "_", text).strip("_")[:60] or "class"
