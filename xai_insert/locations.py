"""Which files the tensors of an ONNX file lie in, from its bytes: nothing of it is loaded, and no library needed.

The file is a message of protobuf. Its fields are walked as any reader of protobuf would, in whatever order and form
they stand, so that no reader finds a name that is not found here.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from xai_insert.formats.onnx.wire import without_content

# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: fields by number, of those messages on the way to a tensor.
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2
_LOCATION = b"location"
_FIXED = {1: 8, 5: 4}  # bytes of numbers, by the wire's type


def locations(model: Path) -> set[str]:
    """Names of the files that an ONNX file has its tensors in, relative to its folder."""
    try:
        if not stat.S_ISREG(model.stat().st_mode):  # a pipe would be waited for
            return set()
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return set(_walk(content)) - {""} if _LOCATION in without_content(content) else set()
    except (OSError, ValueError):
        return set()  # whoever reads the model says what is wrong; an empty file cannot be mapped


def _walk(content: mmap.mmap) -> Iterator[str]:
    messages = [("model", 0, len(content))]
    while messages:
        kind, at, end = messages.pop()
        if kind == "entry":
            yield from _place(content, at, end)
            continue
        inside = _FIELDS[kind]
        found = _fields(content, at, end)
        messages += [(inside[number], start, stop) for number, start, stop in found if number in inside]


def _place(content: mmap.mmap, at: int, end: int) -> Iterator[str]:
    """The name of a file, if this is the entry for it."""
    fields = [(number, content[start:stop]) for number, start, stop in _fields(content, at, end)]
    if (_KEY, _LOCATION) in fields:
        yield from (os.fsdecode(text) for number, text in fields if number == _VALUE and b"\0" not in text)


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, beginning and end of each field that has a length, up to where the message is damaged."""
    while at < end:
        tag, at = _number(content, at, end)
        wire = tag & 7
        if wire == 2:
            size, at = _number(content, at, end)
            if at + size > end:
                return
            yield tag >> 3, at, at + size
            at += size
        elif wire == 0:
            _, at = _number(content, at, end)
        else:
            at += _FIXED.get(wire, 0)  # what opens and closes a group stands alone


def _number(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, the low ones first, and where the next thing begins."""
    found = shift = 0
    while at < end:
        byte = content[at]
        at += 1
        found |= (byte & 127) << shift
        shift += 7
        if byte < 128 or shift >= 70:
            break
    return found & (1 << 64) - 1, at
