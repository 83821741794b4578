"""Tensors whose content stays in the model's own file, which is mapped: it is neither parsed nor copied.

For a parser, and for runtimes, such a tensor is one with its content in another file. Small ones are parsed with the
rest of the model.
"""

from __future__ import annotations

import math
import mmap
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from xai_insert.errors import ModelFileError
from xai_insert.formats.onnx import wire
from xai_insert.formats.onnx.names import name_of
from xai_insert.formats.onnx.single import bodies

_WORTHWHILE = 1 << 24
"""Bytes of all content below which runtimes may read it as they are used to."""
LARGEST = (1 << 31) - 1
"""Bytes of the largest message that protobuf reads."""
_NAMED = {wire.FLOAT_DATA: ir.DataType.FLOAT, wire.DOUBLE_DATA: ir.DataType.DOUBLE}
"""Fields that hold elements as `raw_data` does, for one type each."""


class StoredTensor(ir.Tensor[npt.NDArray[Any]]):
    """A tensor of the file `path`, with its content at `offset`.

    Args:
        path: the file.
        file: the whole of it, mapped.
        given: the tensor, as one whose content lies in another file.
    """

    def __init__(self, path: Path, file: memoryview, given: ir.ExternalTensor) -> None:
        sizes, self.path, self.offset = given.shape.numpy(), path, given.offset or 0
        dtype = np.dtype(given.dtype.numpy()).newbyteorder("<")
        self.content = file[self.offset : self.offset + math.prod(sizes) * dtype.itemsize]
        super().__init__(
            np.frombuffer(self.content, dtype).reshape(sizes),
            given.dtype,
            shape=given.shape,
            name=given.name,
            doc_string=given.doc_string,
            metadata_props=dict(given.metadata_props),
        )

    @property
    def address(self) -> int:
        """Where the content lies in this process."""
        return self.numpy().ctypes.data

    def outside(self, location: str, offset: int | None = None) -> ir.ExternalTensor:
        """The same, for whoever finds the content in `location`, by default that of the whole file."""
        return ir.ExternalTensor(
            location,
            self.offset if offset is None else offset,
            self.nbytes,
            self.dtype,
            shape=self.shape,
            name=name_of(self),
            doc_string=self.doc_string,
            metadata_props=dict(self.metadata_props),
        )

    def copied(self) -> ir.Tensor[npt.NDArray[Any]]:
        """The same in memory of its own."""
        return ir.Tensor(
            self.numpy().copy(),
            self.dtype,
            shape=self.shape,
            name=self.name,
            doc_string=self.doc_string,
            metadata_props=dict(self.metadata_props),
        )


def parse(path: Path, from_proto: Callable[[bytes], ir.Model]) -> ir.Model:
    """Read a file; the content of large tensors, and of those in other files, stays where it is.

    Args:
        path: the file.
        from_proto: makes a model of the bytes of a ModelProto.

    Raises:
        ModelFileError: it is too large for an ONNX file.
    """
    content = _mapped(path)
    if len(content) > LARGEST:
        raise ModelFileError(
            f"the file has {len(content) / 1e9:.1f} GB, and an ONNX file holds 2.1 at most: export the model with its "
            "weights in a file of their own (external data)"
        )
    marker = secrets.token_hex(16)  # no file can name it
    try:
        parts = wire.rewritten(
            content, partial(_emptied, content, marker), lambda start, end: end - start >= wire.LARGE
        )
    except ValueError:
        parts = [content]  # whoever parses it says what is wrong
    model = from_proto(b"".join(parts))
    ir.external_data.set_base_dir(model.graph, path.parent)

    def stored(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.ExternalTensor) and tensor.location == marker:
            return StoredTensor(path, content, tensor)
        return tensor

    exchange(model, stored)
    return model


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        if not path.stat().st_size:  # cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _emptied(content: memoryview, marker: str, start: int, end: int) -> list[wire.Bytes] | None:
    """The fields of a tensor with its content in the file `marker`; None if it has none to be left where it is."""
    kept: list[wire.Bytes] = []
    sizes: list[int] = []
    kind, found = 0, []
    for field in wire.fields(content, start, end):
        if field.number in (wire.RAW_DATA, *_NAMED):
            found.append(field)
            continue
        if field.number == wire.DATA_LOCATION and content[field.start] == 0:
            continue  # here, said in so many words
        if field.number in (wire.EXTERNAL_DATA, wire.DATA_LOCATION):
            return None
        if field.number == wire.DIMS:
            sizes += _sizes(content, field)
        elif field.number == wire.DATA_TYPE:
            kind = wire.varint(content, field.start, field.end)[0]
        kept.append(content[field.begin : field.end])
    if len(found) != 1 or not _may_be_left(found[0], kind, sizes):
        return None
    length = found[0].end - found[0].start
    for key, value in (("location", marker), ("offset", str(found[0].start)), ("length", str(length))):
        entry = [*wire.length_delimited(1, [key.encode()]), *wire.length_delimited(2, [value.encode()])]
        kept += wire.length_delimited(wire.EXTERNAL_DATA, entry)
    return [*kept, _OUTSIDE]


def _sizes(content: memoryview, field: wire.Field) -> list[int]:
    """The sizes in a field of them: one, or several packed."""
    sizes, at = [], field.start
    while at < field.end:
        size, at = wire.varint(content, at, field.end)
        sizes.append(size)
        if field.wire == 0:
            break
    return sizes


def _may_be_left(field: wire.Field, kind: int, sizes: Sequence[int]) -> bool:
    """Whether a field holds all elements of a tensor, and enough of them."""
    length = field.end - field.start
    if length < wire.LARGE or field.wire != 2 or kind not in _KINDS or _NAMED.get(field.number, kind) != kind:
        return False
    return math.prod(sizes) * ir.DataType(kind).itemsize == length


_OUTSIDE = bytes([wire.DATA_LOCATION << 3, 1])
_KINDS = frozenset(
    kind.value
    for kind in ir.DataType
    if kind not in (ir.DataType.UNDEFINED, ir.DataType.STRING) and kind.bitwidth % 8 == 0
)
"""Types whose elements are whole bytes."""


def written(model: ir.Model, serialised: Callable[[ir.Model], bytes]) -> Iterator[wire.Bytes]:
    """The bytes of a model, in parts, with the content of its stored tensors inside; each part is to be used at once.

    Args:
        model: the model.
        serialised: makes bytes of it.

    Raises:
        ModelFileError: they are more than an ONNX file holds.
    """
    marker = secrets.token_hex(16)
    tensors: list[StoredTensor] = []

    def outside(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, StoredTensor):
            return tensor
        tensors.append(tensor)
        return tensor.outside(f"{marker}{len(tensors) - 1}")

    with exchanged(model, outside):
        content = serialised(model)
    filled = partial(_filled, memoryview(content), len(marker), tensors)
    parts = wire.rewritten(memoryview(content), filled, wire.holding(content, marker.encode()))
    total = sum(len(part) for part in parts)
    if total > LARGEST:
        raise ModelFileError(
            f"the result has {total / 1e9:.1f} GB, and an ONNX file holds 2.1 at most: give the model with its weights "
            "in a file of their own (external data)"
        )
    files = {cast("mmap.mmap", tensor.content.obj) for tensor in tensors if hasattr(mmap, "MADV_DONTNEED")}
    for part in parts:
        yield part
        if len(part) >= wire.LARGE:
            for file in files:  # what was read counts as memory of this process until it is dropped
                file.madvise(mmap.MADV_DONTNEED)


def _filled(content: memoryview, skipped: int, tensors: list[StoredTensor], start: int, end: int) -> list[wire.Bytes]:
    """The fields of a tensor, in their order, with its content inside."""
    before: list[wire.Bytes] = []
    behind: list[wire.Bytes] = []
    location = b""
    for field in wire.fields(content, start, end):
        if field.number == wire.EXTERNAL_DATA:
            key, value = (
                bytes(content[part.start : part.end]) for part in wire.fields(content, field.start, field.end)
            )
            location = value if key == b"location" else location
        elif field.number != wire.DATA_LOCATION:
            (before if field.number < wire.RAW_DATA else behind).append(content[field.begin : field.end])
    raw = tensors[int(location[skipped:])].content
    return [*before, *wire.length_delimited(wire.RAW_DATA, [raw]), *behind]


@contextmanager
def exchanged(model: ir.Model, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> Iterator[None]:
    """Let `change(tensor)` stand in the place of each tensor, for a time."""
    undo = exchange(model, change)
    try:
        yield
    finally:
        for step in undo:
            step()


def exchange(model: ir.Model, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> list[Callable[[], None]]:
    """Put `change(tensor)` in the place of each tensor, in subgraphs and functions too; returns what takes it back."""
    undo: list[Callable[[], None]] = []
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    while graphs:
        graph = graphs.pop()
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            old = value.const_value
            if old is not None and (new := change(old)) is not old:
                value.const_value = new
                undo.append(partial(setattr, value, "const_value", old))
        for node in graph:
            graphs += bodies(node)
            for attribute in list(node.attributes.values()):
                if (other := _exchanged(attribute, change)) is not None:
                    node.attributes[attribute.name] = other
                    undo.append(partial(node.attributes.__setitem__, attribute.name, attribute))
    return undo


def _exchanged(attribute: ir.Attr, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> ir.Attr | None:
    """The attribute with other tensors; None where it holds none, or `change` leaves them."""
    if attribute.type not in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS) or attribute.is_ref():
        return None
    single = attribute.type == ir.AttributeType.TENSOR
    # Not by `as_tensor`, whose question whether it is one takes longer than all else here.
    before = [attribute.value] if single else list(attribute.value)
    after = [change(tensor) for tensor in before]
    if all(new is old for new, old in zip(after, before, strict=True)):
        return None
    return ir.Attr(attribute.name, attribute.type, after[0] if single else after)


def tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    """Every tensor of the model: initializers and attributes, in subgraphs and functions as well."""
    found: list[ir.TensorProtocol] = []

    def note(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        found.append(tensor)
        return tensor

    exchange(model, note)
    return found


def stored_tensors(found: Iterable[ir.TensorProtocol], *, of_part: bool = False) -> list[StoredTensor]:
    """The stored ones of a model's tensors; none where they are so small that a runtime may as well read the file.

    A part of a model is in no file: whatever is not mapped is copied for it.
    """
    stored = [tensor for tensor in found if isinstance(tensor, StoredTensor)]
    return stored if of_part or sum(tensor.nbytes for tensor in stored) >= _WORTHWHILE else []
