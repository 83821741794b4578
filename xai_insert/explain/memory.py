"""Keeping the memory of one picture for the next."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MOST_KEPT, _LARGEST_KEPT = 1 << 28, 1 << 25


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, for this whole process; does nothing where it is not glibc.

    By default glibc hands the pages of a picture back to the system and fetches them again for the next one, which
    took a fifth of the time that `xai-explain` spends beside the model.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        library.mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
