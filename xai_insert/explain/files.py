"""Finding, reading and writing files."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from xai_insert.errors import reason
from xai_insert.explain.draw import Image
from xai_insert.explain.errors import ImageFileError, RunError
from xai_insert.files import replace_whole

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_OTHER = frozenset((".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".svg"))
_JPEG_QUALITY = 85
_MOST_PIXELS = 178_000_000  # Pillow refuses more of its own accord
_MOST_BYTES, _MOST_OF_LABELS = 1 << 30, 1 << 26
_LONGEST_NAME, _LONGEST_LABEL = 100, 60  # of the 255 bytes that folders take for a name
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ufffd\\]")
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NAME_REFUSED = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_KINDS = ("BMP", "DIB", "JPEG", "PNG", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000", "SUN", "AVIF")  # that OpenCV reads too
FolderKey = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """One image to explain: its path, and the name its results go by."""

    path: Path
    name: str


def find_images(given: Sequence[Path], results: Iterable[Path]) -> list[Source]:
    """List the images: files as given, folders with everything below them, in order of their names.

    What is no plain file, or a folder that cannot be listed, is among them, and fails when it is read. Names are those
    of the files without the suffix, with the folders below the given one in front; where two would be equal, each gets
    a mark that follows from its path, so that it is the same in the next run.

    Args:
        given: files and folders.
        results: folders with results of an earlier run, which are left out.

    Raises:
        ImageFileError: a folder holds no image.
    """
    found: dict[Path, str] = {}
    own = folder_keys(results)
    for entry in given:
        if not os.path.isdir(entry):  # unlike a path's own question, it takes any name
            found.setdefault(entry, result_name(entry))
            continue
        inside = sorted(_below(entry, own))
        if not inside:
            raise ImageFileError(f"no images in {entry}: wanted files that end in {', '.join(sorted(SUFFIXES))}")
        for path in inside:
            found.setdefault(path, _plain(path, "_".join(path.relative_to(entry).with_suffix("").parts)))
    count = Counter(found.values())
    return [Source(path, _marked(path, name) if count[name] > 1 else name) for path, name in found.items()]


def _below(folder: Path, own: set[FolderKey], suffixes: Collection[str] = SUFFIXES) -> Iterator[Path]:
    unlisted: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=lambda err: unlisted.append(Path(err.filename))):
        folders[:] = [name for name in folders if not folder_keys([Path(where, name)]) & own]
        yield from (Path(where, name) for name in names if Path(name).suffix.lower() in suffixes)
    yield from unlisted


def folder_keys(paths: Iterable[Path]) -> set[FolderKey]:
    """What folders are known by, whatever link or letter case names them; those that are not there have nothing."""
    found = set()
    for path in paths:
        with suppress(OSError):
            info = os.stat(path)
            found.add((info.st_dev, info.st_ino))
    return found


def require_apart(path: Path, own: set[FolderKey]) -> None:
    """Refuse an image that lies where results are written, which would replace or remove it.

    Raises:
        ImageFileError: it does.
    """
    if folder_keys([Path(os.path.realpath(path)).parent]) & own:
        raise ImageFileError(f"cannot draw {shown(path)}: it lies among the results; give another output folder")


def require_own(output: Path, folders: Iterable[str]) -> None:
    """Refuse a folder in which others' files have the names of results, which would replace them.

    Raises:
        RunError: the first such name.
    """
    if os.path.lexists(output / "results.jsonl"):  # which every run leaves
        return
    try:
        taken = [name for name in folders if os.path.isdir(output / name) and os.listdir(output / name)]
    except OSError as err:
        raise RunError(f"cannot read the folder {err.filename}: {reason(err)}") from err
    taken += [name for name in ("index.html", "run.js", "records.js") if os.path.lexists(output / name)]
    if taken:
        raise RunError(
            f"{shown(output)} has {taken[0]} but no results.jsonl, so it is not of an earlier run and nothing in it is "
            "replaced; give another output folder, or move that away"
        )


def left_out(given: Sequence[Path], results: Iterable[Path]) -> list[Path]:
    """Pictures in the given folders that are of a kind that is not read; folders with results aside."""
    own = folder_keys(results)
    found = [path for entry in given if os.path.isdir(entry) for path in sorted(_below(entry, own, _OTHER))]
    return [path for path in found if path.suffix.lower() in _OTHER]  # without folders that cannot be listed


def _marked(path: Path, name: str) -> str:
    return f"{name}~{hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:6]}"


def result_name(path: Path) -> str:
    """What the results of a file go by: its name without the suffix, changed where folders would not take it."""
    return _plain(path, path.stem)


def _plain(path: Path, name: str) -> str:
    """A name that every folder takes, with a mark where it had to be changed."""
    plain = _cut(_UNFIT.sub("_", shown(name)), _LONGEST_NAME)
    return name if plain == name else _marked(path, plain)


def _cut(text: str, size: int) -> str:
    """The beginning of a text, in at most so many bytes."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")


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
        _require_plain(path, os.stat(path))  # before it is opened, which may change a device
        with os.fdopen(os.open(path, os.O_RDONLY | _AT_ONCE), "rb") as file:
            _require_plain(path, os.fstat(file.fileno()))
            return file.read(_MOST_BYTES)
    except (OSError, ValueError) as err:
        raise ImageFileError(f"cannot read {shown(path)}: {getattr(err, 'strerror', None) or err}") from err


def _require_plain(path: Path, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        os.listdir(path)  # which says why, if that is what is wrong
    if not stat.S_ISREG(info.st_mode):  # a pipe would be waited for
        raise ImageFileError(f"cannot read {shown(path)}: not a regular file")
    if info.st_size > _MOST_BYTES:
        raise ImageFileError(f"cannot read {shown(path)}: larger than {_MOST_BYTES >> 30} GB")


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
        PIL.Image.init()
        with PIL.Image.open(io.BytesIO(content), formats=[kind for kind in _KINDS if kind in PIL.Image.OPEN]) as header:
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


def is_plain(path: Path) -> bool:
    """Whether a plain file is there, rather than a link that may lead elsewhere."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def is_jpeg(content: bytes) -> bool:
    """Whether a file is one that every browser shows, and upright."""
    return content.startswith(b"\xff\xd8\xff")


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names, one a line.

    Raises:
        RunError: the file cannot be read or is empty.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_OF_LABELS + 1)
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as err:
        raise RunError(f"cannot read the labels {path}: {getattr(err, 'strerror', None) or 'not UTF-8 text'}") from err
    if len(content) > _MOST_OF_LABELS:
        raise RunError(f"cannot read the labels {path}: larger than {_MOST_OF_LABELS >> 20} MB")
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


def write(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file whole or not at all; a link of its name is replaced, not followed.

    Raises:
        ImageFileError: the drive does not take such names.
        RunError: it cannot be written.
    """
    try:
        replace_whole(path, content)
    except OSError as err:
        if err.errno in _NAME_REFUSED:
            raise ImageFileError(f"cannot write {shown(path)}: {err.strerror}") from err
        raise RunError(f"cannot write {path}: {reason(err)}") from err


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        RunError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        raise RunError(f"cannot remove {path}: {reason(err)}") from err


def make_folder(path: Path) -> None:
    """Create a folder and those above it.

    Raises:
        RunError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise RunError(f"cannot create the folder {path}: {reason(err)}") from err


def make_own_folder(path: Path) -> None:
    """Create a folder for results, which may not be a link to one that is elsewhere.

    Raises:
        RunError: it is a link, or cannot be created.
    """
    if path.is_symlink():
        raise RunError(f"the folder {path} is a link, and results are written nowhere else: remove it")
    make_folder(path)


def digest(paths: Iterable[Path]) -> list[str]:
    """What the content of each file is told by, empty for one that is not there.

    Raises:
        RunError: one is there and cannot be read.
    """
    found = []
    for path in paths:
        total = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
        except FileNotFoundError:
            found.append("")
            continue
        except OSError as err:
            raise RunError(f"cannot read {path}: {reason(err)}") from err
        found.append(total.hexdigest())
    return found


def slug(text: str) -> str:
    """A label as part of a file name."""
    return _cut(re.sub(r"[^\w-]+", "_", text).strip("_"), _LONGEST_LABEL) or "class"
