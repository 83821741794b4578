"""Records of images, the worst first: all on the disk, the few that are shown in memory."""

from __future__ import annotations

import heapq
import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from xai_insert.explain import files

SHOWN = 24


class Worst:
    """Keeps records of images by how bad they are.

    Args:
        value: what a record is judged by; the lower the worse.
    """

    def __init__(self, value: Callable[[Mapping[str, Any]], float]) -> None:
        self._value = value
        self._file = TemporaryFile()  # noqa: SIM115 - it lives as long as this
        self._values, self._places = array("d"), array("q")  # eight bytes an image; there may be a million
        self._heap: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Take one in."""
        value = self._value(record)
        self._places.append(self._file.tell())
        self._values.append(value)
        self._file.write(json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n")
        entry = (-value, -len(self._values), record)
        (heapq.heappush if len(self._heap) < SHOWN else heapq.heappushpop)(self._heap, entry)

    def shown(self) -> list[dict[str, Any]]:
        """The worst, the very worst first."""
        return [record for *_, record in sorted(self._heap, reverse=True)]

    def write(self, path: Path) -> None:
        """Write all, a line of JSON each, the worst first.

        Raises:
            RunError: the file cannot be written.
        """

        def lines() -> Iterator[bytes]:
            for index in np.argsort(self._values, kind="stable"):
                self._file.seek(self._places[index])
                yield self._file.readline()
            self._file.seek(0, 2)

        files.write(path, lines())
