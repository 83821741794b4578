"""Which files a model is read from, which files a result is written to, and keeping the two apart.

No format library is needed for that, so that the command line can refuse before it starts any work.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from xai_insert.locations import locations


def written(output: Path) -> list[Path]:
    """The files that a result at `output` may consist of; of external weights the first, others are numbered."""
    if output.suffix.lower() == ".xml":
        return [output, output.with_suffix(".bin")]
    return [output, output.with_name(f"{output.name}.data"), *output.parent.glob(f"{_literal(output.name)}.*.data")]


def read_with(source: Path) -> list[Path]:
    """The files beside `source`, or in it, that its content is read from as well."""
    if source.is_dir():  # a saved model
        return [source / "saved_model.pb", *sorted((source / "variables").glob("*"))]
    match source.suffix.lower():
        case ".xml":
            return [source.with_suffix(".bin")]
        case ".onnx":
            return [source.parent / name for name in sorted(locations(source))]
        case ".pdmodel":
            return [source.with_suffix(".pdiparams")]
        case ".pb" | ".pbtxt":
            return sorted((source.parent / "variables").glob("*"))
    return []


def size(source: Path) -> int:
    """Bytes of a model, with the files that it names and no other that lies beside it."""
    total = 0
    for path in {source, *read_with(source)}:
        with suppress(OSError, ValueError):  # whoever reads it says what is wrong
            info = path.stat()
            total += info.st_size if stat.S_ISREG(info.st_mode) else 0
    return total


def lost(targets: Iterable[Path], source: Path) -> tuple[Path, Path] | None:
    """The first of `targets` that is a file of the model `source`, and that file; None if writing them is safe."""
    targets = list(targets)
    return next(((targets[index], path) for index, _, path in clashes([[path] for path in targets], [source])), None)


def clashes(targets: Sequence[Sequence[Path]], sources: Iterable[Path]) -> Iterator[tuple[int, int, Path]]:
    """Which groups of written files meet files of which models: both indices, and the file of the model."""
    owners = _owners(targets)
    # Where nothing is there to be lost, no source need be read.
    endangered = any(os.path.lexists(path) for group in targets for path in group)
    for number, source in enumerate(sources):
        for path in (source, *(read_with(source) if endangered else ())):
            for owner in sorted({owner for key in identities(path) for owner in owners.get(key, ())}):
                yield owner, number, path


def _owners(targets: Sequence[Sequence[Path]]) -> dict[tuple[object, ...], list[int]]:
    """The groups in which each written file stands."""
    owners: dict[tuple[object, ...], list[int]] = {}
    for index, path in ((index, path) for index, group in enumerate(targets) for path in group):
        for key in identities(path):
            owners.setdefault(key, []).append(index)
    return owners


def identities(path: Path) -> set[tuple[object, ...]]:
    """What two names of one file have in common: links and letter case, which other systems do not tell apart."""
    found: set[tuple[object, ...]] = set()
    with suppress(OSError):
        info = path.stat()
        found.add((info.st_dev, info.st_ino))
    for name in (path, Path(os.path.realpath(path))):
        folder = os.path.realpath(name.parent)
        try:
            info = os.stat(folder)
            found.add((info.st_dev, info.st_ino, name.name.casefold()))
        except OSError:
            found.add((folder, name.name.casefold()))
    return found


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def write_whole(path: Path, content: str) -> None:
    """Write a text file whole or not at all; a device or pipe is written to, and the file behind a link is replaced.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_text(content, encoding="utf-8")
        return
    replace_whole(path, content.encode(), path.stat().st_mode & 0o777 if path.exists() else None)


def replace_whole(path: Path, content: bytes | Iterable[bytes], mode: int | None = None) -> None:
    """Write a file whole or not at all; a link of its name is replaced, not followed.

    Args:
        path: the file.
        content: what is to be in it, whole or in parts.
        mode: its permissions; None for those that new files get.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    scratch = path.with_name(f"{_prefix(os.getpid())}{secrets.token_hex(8)}.part")  # no link can lie in wait there
    try:
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(handle, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        if mode is not None:
            os.chmod(scratch, mode)
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that is gone afterwards; its name says which process made it."""
    folder = Path(tempfile.mkdtemp(prefix=_prefix(os.getpid()), dir=output.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(output: Path, process: int | None = None) -> None:
    """Remove what a process that was ended, or any of this machine that runs no more, left beside `output`."""
    try:
        left = list(output.parent.glob(f"{_SCRATCH}.*"))
    except OSError:  # whoever writes there says what is wrong
        return
    for path in left:
        if not _is_left(path, process):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _is_left(path: Path, process: int | None) -> bool:
    """Whether a process of this machine made a file, that one if it is given, or one that runs no more."""
    found = _OWN.match(path.name)
    if found is None or found[1] != _machine():
        return False
    number = int(found[2])
    return number == process if process is not None else not is_running(number)


def is_running(process: int) -> bool:
    """Whether a process of this machine runs, or may."""
    if os.name == "nt":
        return True  # there, asking would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


_SCRATCH = ".xai_insert"
_OWN = re.compile(re.escape(_SCRATCH) + r"\.([0-9a-f]{8})\.(\d{1,9})\.")


def _prefix(process: int) -> str:
    return f"{_SCRATCH}.{_machine()}.{process}."


@cache
def _machine() -> str:
    """Tells machines apart that share a folder: their processes have the same numbers."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def printable(text: str) -> str:
    """A name as it can stand in one line of any terminal."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode() for sign in text
    )
