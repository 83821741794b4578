"""ONNX models as they are given: read, refused if they are not safe, and brought to the form that is studied.

Nothing here takes onnxruntime, which whoever has a file written as an IR does not pay for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from xai_insert.errors import ModelFileError, UnknownNameError
from xai_insert.formats.guard import first_line, taking_apart
from xai_insert.formats.onnx import maps
from xai_insert.formats.onnx.front import Front, take_off
from xai_insert.formats.onnx.safety import require_safe
from xai_insert.formats.onnx.single import operands
from xai_insert.formats.onnx.storage import external_files
from xai_insert.formats.onnx.stored import stored_tensors, tensors
from xai_insert.formats.onnx.upgrade import is_old, upgrade
from xai_insert.graph.view import Shape


def read(path: Path) -> ir.Model:
    """The model of a file; large weights stay where they are.

    Raises:
        ModelFileError: not readable as ONNX, or not safe.
    """
    try:
        model = maps.read(path)
    except ModelFileError:
        raise
    except Exception as err:  # protobuf, onnx-ir and the file system raise unrelated kinds
        raise ModelFileError(f"not readable as ONNX: {first_line(err)}; is the file whole?") from err
    require_safe(model, path.parent)
    return model


@dataclass(frozen=True)
class GivenModel:
    """A model to be studied.

    Attributes:
        native: the model, edited in place.
        file: one that holds this very model, if there is one.
        given: the model before it was brought to a newer operator set; None if it was not.
        front: what was taken off before the image.
    """

    native: ir.Model
    file: Path | None
    given: ir.Model | None
    front: Front | None


def prepare(model: ir.Model, source: Path | None, input_shapes: Mapping[str, Shape]) -> GivenModel:
    """Bring `model`, read from the file `source`, to the form that is studied, in place.

    Raises:
        ModelFileError: it holds no graph, or one that is not whole.
        UnknownNameError: `input_shapes` names no input of it.
    """
    if not model.graph.outputs:
        raise ModelFileError("the ONNX file holds no graph; is the file whole?")
    if not _is_sorted(model.graph):
        model.graph.sort()  # runtimes take nodes in any order; the format, and what is written, does not
        source = None
    if model.functions:
        import onnx_ir.passes.common as passes  # noqa: PLC0415 - several megabytes, and few models have functions

        passes.InlinePass()(model)
        source = None
    _require_sound(model.graph)
    if _open_negative_sizes(model.graph):
        source = None
    given = model.clone() if is_old(model) else None
    if given is not None:
        upgrade(model)
    front = take_off(model.graph)
    _set_sizes(model.graph, input_shapes)
    if front is not None or input_shapes:
        source = None
    return GivenModel(model, source, given if front is None else None, front)


@dataclass(frozen=True)
class SafeFile:
    """An ONNX file that OpenVINO is to read.

    Attributes:
        content: the model with large weights by their addresses in this process; None where the file is to be read.
        kept: what lies at those addresses.
        files: those that its weights are mapped from.
    """

    content: bytes | None
    kept: Sequence[ir.TensorProtocol]
    files: set[Path]


def require_safe_file(path: Path) -> SafeFile:
    """Refuse an ONNX file that another library is to read; see `xai_insert.formats.onnx.safety`.

    Raises:
        ModelFileError: not readable as ONNX, or not safe.
    """
    with taking_apart("the ONNX graph"):
        model = read(path)
        files, stored = external_files(model), stored_tensors(tensors(model))
        content = None if files or not stored else maps.in_memory(model)
        prepare(model, path, {})
    return SafeFile(content, stored, files or {path})


def _set_sizes(graph: ir.Graph, input_shapes: Mapping[str, Shape]) -> None:
    inputs = {value.name: value for value in graph.inputs}
    for name, sizes in input_shapes.items():
        if name not in inputs:
            raise UnknownNameError("input", name, [str(known) for known in inputs])
        inputs[name].shape = ir.Shape(sizes)


def _require_sound(graph: ir.Graph) -> None:
    """Refuse names that are no text, and a graph that reads or reports what no node, input or initializer gives."""
    for node in graph.all_nodes():
        values = [*operands(node), *node.outputs]
        if any(isinstance(name, bytes) for name in (node.name, node.op_type, *(value.name for value in values))):
            raise ModelFileError(f"a name at {node.op_type} {node.name!r} is no text; is the file whole?")
        missing = _first_missing(values)
        if missing is not None:
            raise ModelFileError(f"{node.op_type} {node.name!r} reads {missing.name!r}, which nothing gives")
    missing = _first_missing(value for part in (graph, *graph.subgraphs()) for value in part.outputs)
    if missing is not None:
        raise ModelFileError(f"the output {missing.name!r} is given by no node; is the file whole?")


def _first_missing(values: Iterable[ir.Value]) -> ir.Value | None:
    return next((value for value in values if not _is_given(value)), None)


def _is_given(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def _open_negative_sizes(graph: ir.Graph) -> bool:
    """Take a size of -1 for an open one, as Paddle's exporter means it and both runtimes do; whether there was one."""
    values = [*graph.inputs, *graph.outputs, *(value for node in graph.all_nodes() for value in node.outputs)]
    found = [value for value in values if value.shape is not None and -1 in value.shape.dims]
    for value in found:
        value.shape = ir.Shape([None if size == -1 else size for size in value.shape or ()])
    return bool(found)


def _is_sorted(graph: ir.Graph) -> bool:
    """Whether every node follows those whose results it reads."""
    seen: set[ir.Node] = set()
    for node in graph:
        before = [value.producer() for value in operands(node)]
        if any(producer is not None and producer.graph is graph and producer not in seen for producer in before):
            return False
        seen.add(node)
    return True
