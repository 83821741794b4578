"""What a run has finished, kept so that the next one can go on: one JSON object per line."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from xai_insert.explain import files
from xai_insert.explain.errors import RunError

FOLDERS = ("images", "overlays", "maps", "data")
"""Where the results lie, below the output folder."""


class Journal:
    """Records by their `name`, in a file that only grows while it is open, so that a killed run loses one line at most.

    Opened with `with`; at the end each name keeps its last record only.

    Attributes:
        records: the last record of each name.
        odd: how many lines were set aside: cut off, or none that a run could have written.
    """

    def __init__(self, path: Path) -> None:
        self.records, self.odd = _read(path)
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
    return json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    try:
        is_plain = stat.S_ISREG(path.lstat().st_mode)  # a link leads elsewhere, a pipe would be waited for
        lines = path.read_bytes() if is_plain else b""
    except OSError:
        lines = b""
    records, odd = {}, 0
    for line in lines.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # cut off when the run was killed, or no work of ours
            record = None
        if is_sound(record):
            records[record["name"]] = record
        else:
            odd += 1
    return records, odd


def is_sound(record: Any) -> bool:
    """Whether a record is one that a run could have written: its files are its own, its facts fit."""
    if not (_has(record, name=str, source=str, image=str, data=str, size=list, predictions=list, maps=list)):
        return False
    if not (len(record["size"]) == 2 and all(isinstance(n, int) and 0 < n < 1 << 31 for n in record["size"])):
        return False
    if not all(_has(item, label=str, score=(int, float)) for item in record["predictions"]):
        return False
    if not all(_is_map(item) for item in record["maps"]):
        return False
    own = f"{record['name']}."
    return all(is_below(file) and file.split("/")[1].startswith(own) for file in written(record))


def _has(item: Any, **kinds: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(key), kind) for key, kind in kinds.items())


def _is_map(item: Any) -> bool:
    texts = (str, type(None))
    if not _has(item, title=str, overlay=texts, raw=texts, grid=list):
        return False
    is_scored = "score" not in item or isinstance(item["score"], (int, float))
    return is_scored and len(item["grid"]) == 2 and all(isinstance(n, int) for n in item["grid"])


def written(record: dict[str, Any]) -> list[str]:
    """The files of a record."""
    names = [
        record.get("image"),
        record.get("data"),
        *(item[key] for item in record.get("maps", ()) for key in ("overlay", "raw")),
    ]
    return [name for name in names if name is not None]


def is_below(name: str) -> bool:
    """Whether a file lies in one of the folders that results are written to."""
    parts = name.split("/")
    is_plain = "\0" not in name and "\\" not in name and len(parts) == 2
    return is_plain and parts[0] in FOLDERS and parts[1] not in ("", ".", "..")
