"""Writing a model where it is wanted, whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xai_insert.errors import ModelFileError, reason
from xai_insert.files import lost, scratch_folder, sweep, written
from xai_insert.formats.backend import LoadedModel


def require_writable(source: Path, output: Path) -> None:
    """Refuse before any work what could not be written after it.

    Raises:
        ModelFileError: of another kind, in no folder, or a file that `source` is read from.
    """
    if output.suffix.lower() not in (".xml", ".onnx"):
        raise ModelFileError(f"unknown kind of output {output.name!r}: wanted .xml (OpenVINO IR) or .onnx")
    if source.suffix.lower() == ".xml" and output.suffix.lower() == ".onnx":
        raise ModelFileError("an OpenVINO IR cannot become ONNX: give an output that ends in .xml")
    require_folder(output.parent)
    hit = lost(written(output), source)
    if hit is None:
        return
    if hit == (output, source):
        raise ModelFileError(f"input and output are the same file: {output}; choose another output")
    raise ModelFileError(
        f"writing {hit[0]} would overwrite {hit[1]}, which the model is read from; choose another output"
    )


def require_folder(folder: Path) -> None:
    """Refuse a folder that nothing can be written into.

    Raises:
        ModelFileError: there is none, or it is closed.
    """
    if not folder.is_dir():
        raise ModelFileError(f"the output folder does not exist: {folder}")
    if not os.access(folder, os.W_OK):
        raise ModelFileError(f"the output folder cannot be written: {folder}")


def write_model(loaded: LoadedModel, output: Path) -> list[Path]:
    """Write beside the goal and move into place, so that the goal is never half a model."""
    sweep(output)
    try:
        with scratch_folder(output) as scratch:
            files = loaded.save(scratch, output.name)
            with _alone_in(output.parent):
                return loaded.install(files, output)
    except OSError as err:
        raise ModelFileError(f"cannot write {output}: {reason(err)}") from err


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process or thread at a time move its files into a folder, where the system locks folders."""
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415 - not everywhere

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network drives lock nothing
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # frees it, as a kill does
