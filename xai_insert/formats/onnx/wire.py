"""ONNX files as bytes: taking the content of large tensors out of a file's messages, and putting it in.

A protobuf message is a row of fields, each a key (number and type of content) and its content; a message inside of
another is content with its length before it. So a file can be rewritten around the bytes of its weights, which are
neither parsed nor copied; https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Bytes = bytes | memoryview
Kind = str

_CHILDREN: Mapping[Kind, Mapping[int, Kind]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
"""Which fields of onnx.proto hold messages with tensors inside."""
DIMS, DATA_TYPE, FLOAT_DATA, RAW_DATA, DOUBLE_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 4, 9, 10, 13, 14
"""Fields of a TensorProto."""
_CONTENT = frozenset({FLOAT_DATA, 5, 6, 7, RAW_DATA, DOUBLE_DATA, 11})
"""Those that hold elements."""
LARGE = 1 << 14
"""Bytes of content below which a tensor is parsed with the rest of the model."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 100  # protobuf's own limit


@dataclass(frozen=True)
class Field:
    """One field: `content[begin:end]` with its key, of which `start` is where what follows key and length begins."""

    number: int
    wire: int
    begin: int
    start: int
    end: int


def fields(content: Bytes, start: int, end: int) -> Iterator[Field]:
    """The fields of the message `content[start:end]`.

    Raises:
        ValueError: it is none.
    """
    at = start
    while at < end:
        begin = at
        key, at = varint(content, at, end)
        wire, first = key & 7, at
        if wire == _VARINT:
            _, at = varint(content, at, end)
        elif wire == _BYTES:
            length, first = varint(content, at, end)
            at = first + length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"a field of type {wire}")
        if at > end:
            raise ValueError("a field ends behind its message")
        yield Field(key >> 3, wire, begin, first, at)


def varint(content: Bytes, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, the low ones first, and where it ends."""
    number = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        number |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return number, at
        shift += 7
    raise ValueError("a number without end")


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def length_delimited(number: int, parts: Sequence[Bytes]) -> list[Bytes]:
    """A field that holds `parts`, one behind the other."""
    return [_varint(number << 3 | _BYTES) + _varint(sum(len(part) for part in parts)), *parts]


def rewritten(
    content: memoryview,
    change: Callable[[int, int], Sequence[Bytes] | None],
    may_hold: Callable[[int, int], bool],
) -> list[Bytes]:
    """The bytes of a model, in parts, with other tensors.

    Args:
        content: a ModelProto.
        change: the fields of the tensor at `content[start:end]`; None to leave it as it is.
        may_hold: whether the message at `content[start:end]` may hold a tensor to change; others are not looked into.

    Raises:
        ValueError: `content` is no message.
    """

    def walk(kind: Kind, start: int, end: int, depth: int) -> list[Bytes] | None:
        if depth > _DEEPEST:
            raise ValueError("messages inside of messages without end")
        parts: list[Bytes] = []
        done = start
        for field in fields(content, start, end):
            child = _CHILDREN[kind].get(field.number)
            if child is None or field.wire != _BYTES or not may_hold(field.start, field.end):
                continue
            if child == "tensor":
                inner = change(field.start, field.end)
            else:
                inner = walk(child, field.start, field.end, depth + 1)
            if inner is not None:
                parts += [content[done : field.begin], *length_delimited(field.number, inner)]
                done = field.end
        return [*parts, content[done:end]] if parts else None

    return walk("model", 0, len(content), 0) or [content]


def without_content(model: mmap.mmap) -> bytes:
    """The bytes of a model but for the content of large tensors, which is not touched; all of what is no model."""
    with memoryview(model) as content:

        def small(start: int, end: int) -> list[Bytes]:
            found = fields(content, start, end)
            return [bytes(content[item.begin : item.end]) for item in found if item.number not in _CONTENT]

        try:
            parts = rewritten(content, small, lambda start, end: end - start >= LARGE)
        except ValueError:
            parts = []
        whole = b"".join(parts) if parts else bytes(content)
        for part in parts:
            if isinstance(part, memoryview):
                part.release()
    return whole


def holding(content: bytes, marker: bytes) -> Callable[[int, int], bool]:
    """Whether `marker` lies in a part of `content`."""
    places, at = [], content.find(marker)
    while at >= 0:
        places.append(at)
        at = content.find(marker, at + 1)

    def may_hold(start: int, end: int) -> bool:
        index = bisect.bisect_left(places, start)
        return index < len(places) and places[index] < end

    return may_hold
