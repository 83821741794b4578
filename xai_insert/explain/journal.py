"""What runs have finished, kept so that the next one can go on: one JSON object per line."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from xai_insert.errors import reason
from xai_insert.explain import files
from xai_insert.explain.errors import RunError
from xai_insert.explain.sharing import give_back, open_folder, take
from xai_insert.graph.items import present

FOLDERS = ("images", "overlays", "maps", "data")
"""Where the results lie, below the output folder."""

_LONGEST = 1 << 24  # bytes of a line; longer ones are none of ours
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class Records(Mapping[str, dict[str, Any]]):
    """The last record of each name in a journal, in the order of their first; read when it is asked for.

    Memory holds where they lie, and not the records: a folder may have a million. Threads may share it.

    Attributes:
        odd: how many lines no run can have written.
        is_tidy: whether nothing but these records stands in the file.
    """

    def __init__(self, path: Path) -> None:
        self._file, self._turn = _open(path), threading.Lock()
        self._places: dict[str, int] = {}
        self.odd, self.is_tidy = 0, self._file is not None
        for at, line, record in self._lines():
            if record is not None:
                self.is_tidy &= record["name"] not in self._places and line.endswith(b"\n")
                self._places[record["name"]] = at
            else:
                self.odd += line.endswith(b"\n")  # or else cut off, or being written by another run
                self.is_tidy = False

    def __getitem__(self, name: str) -> dict[str, Any]:
        return _parsed(self.line(name))  # type: ignore[return-value]  # it was sound before

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def line(self, name: str) -> bytes:
        """A record as it stands in the file."""
        at = self._places[name]
        assert self._file is not None  # or else there are no places
        with self._turn:
            self._file.seek(at)
            return self._file.readline(_LONGEST)

    def lines(self) -> Iterator[bytes]:
        """All records as they stand in the file; afterwards it is closed, so that another can take its place."""
        yield from map(self.line, self)
        self.close()

    def odd_lines(self) -> Iterator[bytes]:
        """What no run can have written."""
        return (line for _, line, record in self._lines() if record is None and line.endswith(b"\n"))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _lines(self) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
        """Where each line begins, the line, and the record in it, if it is one."""
        at = 0
        while self._file is not None:
            self._file.seek(at)
            line = self._file.readline(_LONGEST)
            if not line:
                return
            if line.strip():
                yield at, line, _parsed(line)
            at += len(line)


class Journal:
    """Records in a file that only grows while any run has it open, so that a killed run loses one line at most.

    Opened with `with`. Any number of runs may add to it. A run that has the folder for itself puts the file in order at
    its start and end: each name keeps its last record, and lines that no run can have written go into
    `results.set-aside.txt`.

    Args:
        path: the file.
        guard: a folder beside it; a lock on it tells whether other runs are at work.

    Attributes:
        records: what there was at the start.
        odd: how many lines were set aside.
        is_guarded: whether locks work here; without them, only one run at a time may use the folder.
    """

    def __init__(self, path: Path, guard: Path) -> None:
        self._path, self._folder = path, guard
        self._guard = self._handle = -1
        self.odd, self.is_guarded = 0, True

    def __enter__(self) -> Journal:
        self._guard = open_folder(self._folder)
        try:
            if take(self._guard, alone=True, wait=False) is not False:
                self._tidy()
            self.is_guarded = take(self._guard, alone=False) is not None
            self._handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _PLAIN, 0o666)
            if not stat.S_ISREG(os.fstat(self._handle).st_mode):
                raise RunError(f"cannot write {self._path}: not a regular file")
            self.records = Records(self._path)
        except BaseException as err:
            self._close()
            if isinstance(err, OSError):
                raise RunError(f"cannot write {self._path}: {reason(err)}") from err
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.records.close()
        try:
            if take(self._guard, alone=True, wait=False) is not False:
                self._tidy()
        finally:
            self._close()

    def _close(self) -> None:
        for handle in (self._handle, self._guard):
            if handle >= 0:
                os.close(handle)
        self._handle = self._guard = -1

    def append(self, record: dict[str, Any]) -> None:
        """Add a record.

        Raises:
            RunError: it cannot be written.
        """
        line = json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"
        take(self._handle, alone=True)
        try:
            if os.fstat(self._handle).st_size and self._last() != b"\n":
                line = b"\n" + line  # another run was killed while it wrote, or had no room
            while line:
                line = line[os.write(self._handle, line) :]
        except OSError as err:
            raise RunError(f"cannot write {self._path}: {reason(err)}") from err
        finally:
            give_back(self._handle)

    def _last(self) -> bytes:
        os.lseek(self._handle, -1, os.SEEK_END)
        return os.read(self._handle, 1)

    def _tidy(self) -> None:
        records = Records(self._path)
        try:
            if records.odd:
                aside = self._path.with_name(f"{self._path.stem}.set-aside.txt")
                with suppress(OSError):  # it is a courtesy
                    handle = os.open(aside, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _PLAIN, 0o666)
                    with os.fdopen(handle, "ab") as file:
                        file.writelines(records.odd_lines())
                self.odd += records.odd
            if not records.is_tidy:
                files.write(self._path, records.lines())
        finally:
            records.close()


def _open(path: Path) -> BinaryIO | None:
    """Open a plain file; None if there is none: a link leads elsewhere, a pipe would be waited for.

    Raises:
        RunError: there is one, and it cannot be read.
    """
    if not files.is_plain(path):
        return None
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | _PLAIN), "rb")
    except OSError as err:
        raise RunError(f"cannot read {path}: {reason(err)}") from err


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # cut off when the run was killed, or no work of ours
        return None
    return record if is_sound(record) else None


def is_sound(record: Any) -> bool:
    """Whether a record is one that a run could have written: its files are its own, its facts fit."""
    if not (isinstance(record, dict) and all(is_fit(record.get(key)) for key, is_fit in _FIELDS.items())):
        return False
    if "note" in record and not _is_text(record["note"]):
        return False
    own = f"{record['name']}."
    return all(is_below(name) and name.split("/")[1].startswith(own) for name in written(record))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_score(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 53)  # others are no floats


def _are_sides(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 1 << 31 for n in value)


def _are_predictions(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_prediction, value))


def _is_prediction(item: Any) -> bool:
    return isinstance(item, dict) and _is_text(item.get("label")) and _is_score(item.get("score"))


def _are_maps(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_map, value))


def _is_map(item: Any) -> bool:
    if not isinstance(item, dict) or not _is_text(item.get("title")) or not _are_sides(item.get("grid")):
        return False
    return all(_is_file(item, key) for key in ("overlay", "raw")) and _is_score(item.get("score", 0))


def _is_file(item: Mapping[str, Any], key: str) -> bool:
    """Whether an entry says which file was written, or that none was."""
    return key in item and (item[key] is None or _is_text(item[key]))


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "source": _is_text,
    "image": _is_text,
    "data": _is_text,
    "size": _are_sides,
    "predictions": _are_predictions,
    "maps": _are_maps,
}


def written(record: Mapping[str, Any]) -> list[str]:
    """The files of a record."""
    names = [
        record.get("image"),
        record.get("data"),
        *(item[key] for item in record.get("maps", ()) for key in ("overlay", "raw")),
    ]
    return present(names)


def is_below(name: str) -> bool:
    """Whether a file lies in one of the folders that results are written to."""
    parts = name.split("/")
    is_plain = "\0" not in name and "\\" not in name and len(parts) == 2
    return is_plain and parts[0] in FOLDERS and parts[1] not in ("", ".", "..")
