"""Several runs in one folder: locks among processes, which end with the process that holds them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def take(handle: int, *, alone: bool, wait: bool = True) -> bool | None:
    """Lock an open file or folder, or change the kind of lock; meanwhile, and if that fails, none is held.

    Args:
        handle: the file or folder; negative for one that could not be opened.
        alone: exclusively, rather than with others.
        wait: until it is free.

    Returns:
        Whether it is locked; None where the system or the drive locks nothing.
    """
    if fcntl is None or handle < 0:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except OSError as err:
        return False if err.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def give_back(handle: int) -> None:
    """Unlock."""
    if fcntl is not None and handle >= 0:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)


def open_folder(path: Path) -> int:
    """Open a folder to lock it; negative where that cannot be done."""
    if fcntl is None:
        return -1
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return -1


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Let one process or thread at a time do something in a folder, where the system can do that."""
    handle = open_folder(path)
    try:
        take(handle, alone=True)
        yield
    finally:
        if handle >= 0:
            os.close(handle)
