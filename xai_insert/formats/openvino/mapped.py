"""Dropping the pages of mapped weights while OpenVINO packs the weights.

OpenVINO maps the weights of an IR, and its CPU makes of every one of them a copy in the layout that its kernels want.
The pages that were read stay resident until the system needs the room, so that a model counts twice. Dropped pages
are read from the file again where they are needed again.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_LEAST_BYTES = 1 << 25  # smaller files are not worth a thread
_INTERVAL = 0.02


@contextmanager
def pages_dropped(files: Collection[Path], least: int = _LEAST_BYTES) -> Iterator[None]:
    """While the block runs, drop the pages of mapped files as they are read; on systems other than Linux, do nothing.

    Args:
        files: what is mapped.
        least: size in bytes below which nothing is dropped.
    """
    ranges = _read_only_ranges(files) if files and sys.platform == "linux" else []
    if sum(length for _, length in ranges) < least:
        yield
        return
    libc, done = ctypes.CDLL(None), threading.Event()

    def drop() -> None:
        for start, length in ranges:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)

    def keep_dropping() -> None:
        while not done.wait(_INTERVAL):
            drop()

    thread = threading.Thread(target=keep_dropping, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        drop()


def _read_only_ranges(files: Collection[Path]) -> list[tuple[int, int]]:
    """Address and length of each part of `files` that is mapped and cannot have been written to."""
    names, ranges = [[str(file.resolve())] for file in files], []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, access, _, _, _, *name = line.split(maxsplit=5)
        if name in names and "w" not in access:
            start, end = (int(address, 16) for address in addresses.split("-"))
            ranges.append((start, end - start))
    return ranges
