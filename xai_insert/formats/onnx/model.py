"""ONNX models: reading, editing, writing."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from xai_insert.errors import ModelFileError
from xai_insert.formats.backend import Removed, Runner
from xai_insert.formats.guard import first_line, moderate, taking_apart
from xai_insert.formats.onnx import maps
from xai_insert.formats.onnx.decompositions import Decomposed
from xai_insert.formats.onnx.front import Front
from xai_insert.formats.onnx.prepare import GivenModel, prepare, read
from xai_insert.formats.onnx.replace import replace_onnx
from xai_insert.formats.onnx.runtime import OnnxRunner
from xai_insert.formats.onnx.shapes import Inferred, infer, ranks
from xai_insert.formats.onnx.shuffled import shuffle
from xai_insert.formats.onnx.stale import forget_declared
from xai_insert.formats.onnx.storage import save
from xai_insert.formats.onnx.stored import StoredTensor, exchange
from xai_insert.formats.onnx.strip import strip
from xai_insert.formats.onnx.surgeon import OnnxSurgeon
from xai_insert.formats.onnx.unrounded import unround
from xai_insert.formats.onnx.view import build_view
from xai_insert.graph.view import Graph, Shape, Value

_PREFIX = "xai_insert."


class OnnxModel:
    """An `onnx_ir.Model` of our own."""

    format_name = "ONNX"
    keeps_float32 = False  # onnxruntime computes in the types that the model names

    def __init__(
        self,
        native: ir.Model,
        source: Path | None,
        input_shapes: Mapping[str, Shape],
        given: ir.Model | None = None,
        front: Front | None = None,
    ) -> None:
        self.native = native
        self._front = front
        self._source = source
        self._given = given  # as it was before it was brought to another form; what it gives must not move
        self._input_shapes = input_shapes
        self._inferred = Inferred({}, {})
        self._surgeon: OnnxSurgeon | None = None
        self._closed: dict[ir.Value, ir.Shape | None] = {}
        with taking_apart("the ONNX graph"):
            self._decomposed = Decomposed(native, lambda: ranks(native), lambda: infer(native, input_shapes).shapes)

    def view(self) -> Graph:
        with taking_apart("the ONNX graph"), self._decomposed.shown(), weights_unlisted(self.native.graph):
            self._inferred = infer(self.native, self._input_shapes, by_runtimes=not self._closed)
            if self._inferred.is_stale:
                forget_declared(self.native)
            graph = moderate(build_view(self.native, self._inferred, self._decomposed.hidden, self._decomposed.fused))
        graph.at_sizes = None if self._closed else self._at_sizes
        return graph

    @contextmanager
    def _at_sizes(self, pixels: Mapping[Value, Mapping[int, int]]) -> Iterator[Graph]:
        before = {image.native: image.native.shape for image in pixels}
        with taking_apart("the ONNX graph"), self._decomposed.shown(), weights_unlisted(self.native.graph):
            try:
                for image, sizes in pixels.items():
                    known = enumerate(before[image.native])
                    image.native.shape = ir.Shape([sizes.get(axis, size) for axis, size in known])
                inferred = infer(self.native, {})
                yield build_view(self.native, inferred, self._decomposed.hidden, self._decomposed.fused)
            finally:
                for native, shape in before.items():
                    native.shape = shape

    def fix_sizes(self, sizes: Mapping[str, Shape]) -> None:
        for value in self.native.graph.inputs:
            if value.name is not None and value.name in sizes:
                value.shape = ir.Shape(sizes[value.name])
        self._input_shapes = {**self._input_shapes, **sizes}
        self._source = None

    def open_sizes(self, sides: Mapping[Value, Sequence[int]]) -> bool:
        # OpenVINO reads the file too, and may be given another size there.
        given = [value for node in self.native.graph.all_nodes() for value in node.outputs]
        given += [value for graph in (self.native.graph, *self.native.graph.subgraphs()) for value in graph.outputs]
        self._closed = {value: value.shape for value in [*given, *(image.native for image in sides)]}
        for value in given:  # what the file says of it is for one size
            value.shape = None
        for image, axes in sides.items():
            dims = list(self._closed[image.native] or ())
            image.native.shape = ir.Shape([None if axis in axes else dim for axis, dim in enumerate(dims)])
        return True

    def close_sizes(self) -> None:
        for value, shape in self._closed.items():
            value.shape = shape
        self._closed = {}

    def sizes_at(self, value: Value, pixels: Mapping[Value, Mapping[int, int]]) -> Shape | None:
        del value, pixels
        return None

    def surgeon(self, *, keep_float32: bool = False) -> OnnxSurgeon:
        del keep_float32
        self._source = self._given = None  # from here on the file is another model
        self._surgeon = OnnxSurgeon(self.native, self._inferred, self._decomposed.nodes, self._decomposed.fused)
        return self._surgeon

    def runner(self) -> OnnxRunner:
        return OnnxRunner(self._given or self.native, self._source)

    def elsewhere(self) -> Runner | None:
        if self._front is not None or importlib.util.find_spec("openvino") is None:
            return None
        from xai_insert.formats.openvino.model import read_runner  # noqa: PLC0415 - for those who ask for it alone

        with TemporaryDirectory() as folder:
            return read_runner(self.save(Path(folder), "model.onnx")[-1])

    def between(self, features: Sequence[Value], results: Sequence[ir.Value], *, is_rounded: bool = True) -> OnnxRunner:
        entries = [feature.native for feature in features]
        inputs = [v for v in self.native.graph.inputs if not v.is_initializer() and v not in entries]
        with self._decomposed.shown():
            part = ir.convenience.extract(self.native.graph, [*entries, *inputs], results)
        for entry, feature in zip(part.inputs, features, strict=False):
            kind = self._inferred.type_of(feature.native) or ir.DataType.FLOAT
            entry.type, entry.shape = ir.TensorType(kind), ir.Shape(list(feature.sizes))
        for value in part.outputs:
            kind = self._inferred.type_of(value) or ir.DataType.FLOAT
            value.type = ir.TensorType(kind)
        if not is_rounded:
            unround(part)
        functions = list(self.native.functions.values())
        return OnnxRunner(ir.Model(part, ir_version=self.native.ir_version, functions=functions), is_part=True)

    def result_like(self, given: Any) -> Any:
        self._finish()
        exchange(self.native, lambda tensor: tensor.copied() if isinstance(tensor, StoredTensor) else tensor)
        return self.native if isinstance(given, (str, Path, ir.Model)) else maps.to_proto(self.native)

    def read_metadata(self) -> dict[str, str]:
        entries = self.native.metadata_props.items()
        return {key[len(_PREFIX) :]: text for key, text in entries if key.startswith(_PREFIX)}

    def annotate(self, entries: Mapping[str, str]) -> None:
        self.native.metadata_props.update({_PREFIX + key: text for key, text in entries.items()})

    def strip(self, outputs: Sequence[str]) -> tuple[OnnxModel, Removed]:
        kinds = dict(self._inferred.types or infer(self.native, self._input_shapes).types)
        self.surgeon().prune()  # what was only shown
        removed = strip(self.native, outputs, kinds)
        for key in [key for key in self.native.metadata_props if key.startswith(_PREFIX)]:
            del self.native.metadata_props[key]
        return OnnxModel(self.native, None, {}, front=self._front), removed

    def shuffle(self, seed: int) -> int:
        self._source = self._given = None  # from here on the file is another model
        return shuffle(self.native, seed)

    def save(self, folder: Path, name: str) -> list[Path]:
        self._finish()
        try:
            return save(self.native, folder, name)
        except ir.serde.SerdeError as err:
            raise ModelFileError(f"the ONNX graph is damaged: it cannot be written: {first_line(err)}") from err

    def install(self, files: Sequence[Path], goal: Path) -> list[Path]:
        if len(files) == 1:
            os.replace(files[0], goal)
        else:
            replace_onnx(files[-1], files[:-1], goal)
        return [goal.with_name(path.name) for path in files]

    def _finish(self) -> None:
        if self._surgeon is not None:
            self._surgeon.prune()
        if self._front is not None:
            self._front.put_back(self.native.graph)

    def versions(self) -> dict[str, str]:
        return {"onnx_ir": ir.__version__, "onnxruntime": ort.__version__}


def load_path(path: Path, input_shapes: Mapping[str, Shape]) -> OnnxModel:
    """Read an ONNX file; large weights stay where they are until they are needed."""
    with taking_apart("the ONNX graph"):
        return _studied(prepare(read(path), path, input_shapes), input_shapes)


def load_model(model: Any, input_shapes: Mapping[str, Shape]) -> OnnxModel:
    """Copy an `onnx_ir.Model` or `onnx.ModelProto`; the weights are shared."""
    if isinstance(model, ir.Model):
        return _studied(prepare(model.clone(), None, input_shapes), input_shapes)
    try:
        return _studied(prepare(maps.from_proto(model), None, input_shapes), input_shapes)
    except (TypeError, ValueError, NotImplementedError) as err:
        raise ModelFileError(f"cannot read a {type(model).__name__}: {first_line(err)}") from err


def _studied(prepared: GivenModel, input_shapes: Mapping[str, Shape]) -> OnnxModel:
    return OnnxModel(prepared.native, prepared.file, input_shapes, prepared.given, prepared.front)


@contextmanager
def weights_unlisted(graph: ir.Graph) -> Iterator[None]:
    """Show `graph` without the weights that it lists as inputs too, for a time.

    Old exporters list every weight. Nobody gives them when the model runs, so they are constants.
    """
    inputs = list(graph.inputs)
    graph.inputs[:] = [value for value in inputs if not value.is_initializer()]
    try:
        yield
    finally:
        graph.inputs[:] = inputs
