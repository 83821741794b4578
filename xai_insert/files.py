"""Which files a model is read from, which files a result is written to, and keeping the two apart.

No format library is needed for that, so that the command line can refuse before it starts any work.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCATION = b"\x0a\x08location\x12"
"""How an ONNX file writes that the content of a tensor lies in the file whose name follows, with its length before."""


def written(output: Path) -> list[Path]:
    """The files that a result at `output` may consist of; of external weights the first, others are numbered."""
    if output.suffix.lower() == ".xml":
        return [output, output.with_suffix(".bin")]
    return [output, output.with_name(f"{output.name}.data"), *output.parent.glob(f"{_literal(output.name)}.*.data")]


def read_with(source: Path) -> list[Path]:
    """The files beside `source` that its content is read from as well."""
    match source.suffix.lower():
        case ".xml":
            return [source.with_suffix(".bin")]
        case ".onnx":
            return [source.parent / name for name in sorted(_locations(source))]
        case ".pdmodel":
            return [source.with_suffix(".pdiparams")]
        case ".pb" | ".pbtxt":
            return sorted((source.parent / "variables").glob("*"))
    return []


def lost(targets: Iterable[Path], source: Path) -> tuple[Path, Path] | None:
    """The first of `targets` that is a file of the model `source`, and that file; None if writing them is safe."""
    targets = list(targets)
    for target in targets:
        if same(target, source):
            return target, source
    endangered = [target for target in targets if os.path.lexists(target)]
    if not endangered:
        return None  # nothing is there to be lost, and nothing need be read
    pairs = ((target, path) for path in read_with(source) for target in endangered)
    return next((pair for pair in pairs if same(*pair)), None)


def same(one: Path, other: Path) -> bool:
    """Whether two names may mean one file: by links, or by letter case, which other systems do not tell apart."""
    with suppress(OSError):
        if one.samefile(other):
            return True
    for left, right in ((one, other), (Path(os.path.realpath(one)), Path(os.path.realpath(other)))):
        folders = [Path(os.path.realpath(path.parent)) for path in (left, right)]
        if left.name.casefold() == right.name.casefold() and (folders[0] == folders[1] or _are_one(*folders)):
            return True
    return False


def _are_one(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _locations(model: Path) -> set[str]:
    """Names of the files that an ONNX file has its tensors in, found without taking the file apart."""
    names = set()
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.find(_LOCATION)
            while at >= 0:
                at += len(_LOCATION)
                size, *more = content[at : at + 2]
                if size >= 128 and more:  # seven bits a byte, the low ones first
                    size, at = size - 128 + 128 * more[0], at + 1
                name = content[at + 1 : at + 1 + size]
                if b"\0" not in name:
                    names.add(os.fsdecode(name))
                at = content.find(_LOCATION, at)
    except (OSError, ValueError):
        return names  # whoever reads the model says what is wrong; an empty file cannot be mapped
    return names - {""}


def write_whole(path: Path, content: str) -> None:
    """Write a text file whole or not at all; a device or pipe is written to, and the file behind a link is replaced.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_text(content, encoding="utf-8")
        return
    handle, scratch = tempfile.mkstemp(prefix=".xai_insert.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(scratch, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that is gone afterwards; its name says which process made it."""
    folder = Path(tempfile.mkdtemp(prefix=_prefix(os.getpid()), dir=output.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(output: Path, process: int) -> None:
    """Remove what a process that was ended left beside `output`."""
    for folder in output.parent.glob(f"{_prefix(process)}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(process: int) -> str:
    return f".xai_insert.{process}."


def printable(text: str) -> str:
    """A name as it can stand in one line of any terminal."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode() for sign in text
    )
