"""What a run has finished, kept so that the next one can go on: one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from xai_insert.explain import files
from xai_insert.explain.errors import RunError


class Journal:
    """Records by their `name`, in a file that only grows while it is open, so that a killed run loses one line at most.

    Opened with `with`; at the end each name keeps its last record only.

    Attributes:
        records: the last record of each name.
    """

    def __init__(self, path: Path) -> None:
        self.records = _read(path)
        self._path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> Journal:
        self._compact()  # a line that was cut off would spoil the next one
        try:
            self._file = self._path.open("ab", buffering=0)
        except OSError as err:
            raise RunError(f"cannot write {self._path}: {err.strerror or err}") from err
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()
        self._compact()

    def append(self, record: dict[str, Any]) -> None:
        """Add a record.

        Raises:
            RunError: it cannot be written.
        """
        assert self._file is not None
        self.records[record["name"]] = record
        try:
            self._file.write(_line(record))
        except OSError as err:
            raise RunError(f"cannot write {self._path}: {err.strerror or err}") from err

    def _compact(self) -> None:
        files.write(self._path, b"".join(_line(record) for record in self.records.values()))


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    records = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut off when the run was killed
            continue
        if isinstance(record, dict) and isinstance(record.get("name"), str):
            records[record["name"]] = record
    return records
