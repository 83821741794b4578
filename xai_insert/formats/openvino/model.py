"""OpenVINO models: reading, editing, writing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openvino as ov
import openvino.opset13 as opset

from xai_insert.errors import ModelFileError, UnknownNameError, XaiInsertError
from xai_insert.formats import batches
from xai_insert.formats.backend import Removed
from xai_insert.formats.guard import RAISED, last_line, moderate, taking_apart
from xai_insert.formats.openvino.entries import entries
from xai_insert.formats.openvino.mapped import pages_dropped
from xai_insert.formats.openvino.merging import keep_apart
from xai_insert.formats.openvino.precision import mark_branch, marked
from xai_insert.formats.openvino.replace import replace_ir
from xai_insert.formats.openvino.runtime import OpenVINORunner
from xai_insert.formats.openvino.safety import require_safe
from xai_insert.formats.openvino.shapes import name_open_sizes
from xai_insert.formats.openvino.shown import Decomposed
from xai_insert.formats.openvino.shuffled import shuffle
from xai_insert.formats.openvino.strip import strip
from xai_insert.formats.openvino.surgeon import OpenVINOSurgeon
from xai_insert.formats.openvino.unrounded import unround
from xai_insert.formats.openvino.view import build_view, static_shape
from xai_insert.graph.shape import with_open
from xai_insert.graph.view import Graph, Shape, Value

_METADATA = "xai_insert"
_SECTIONS = (("framework", f"{_METADATA}."), (_METADATA, ""))
"""Where metadata stand, and how their names begin: the first is for what an ONNX file says about itself."""
_VERSION = "version"


class OpenVINOModel:
    """An `ov.Model` of our own; `weights` are the files that its constants are mapped from."""

    format_name = "OpenVINO IR"

    def __init__(self, native: ov.Model, weights: Collection[Path]) -> None:
        self.native = native
        self._weights = weights
        self.keeps_float32 = False
        self._closed: list[tuple[ov.Node, ov.PartialShape]] = []
        self.kept: object = None  # what constants may lie in
        _write_as_newest(native)
        with taking_apart("the OpenVINO graph"):
            name_open_sizes(native)
            self._products = Decomposed(native)

    def view(self) -> Graph:
        with taking_apart("the OpenVINO graph"), self._products.shown():
            graph = moderate(build_view(self.native))
            self._ask_batches(graph)
        graph.at_sizes = None if self._closed else self._at_sizes
        return graph

    def _ask_batches(self, graph: Graph) -> None:
        """Take sizes that inference with an open batch does not tell from two batches, if nothing else is open."""
        untold = [value for node in graph.nodes for value in node.outputs if not _is_told(value)]
        if not untold or not all(map(_is_told, graph.inputs)):
            return
        found = [self._with_batch(graph, untold, batch) for batch in batches.TRIED]
        for value, one, two in zip(untold, *found, strict=False):
            value.shape = value.shape if one is None else batches.common(one, two)

    def _with_batch(self, graph: Graph, values: Sequence[Value], batch: int) -> Sequence[Shape | None]:
        """Sizes of values for a batch; none if the model is for another."""
        try:
            pixels = {image: {0: batch} for image in graph.inputs if None in image.sizes}
            with self._sized(pixels):
                return [static_shape(value.native.get_partial_shape()) for value in values]
        except RAISED:
            return ()

    @contextmanager
    def _at_sizes(self, pixels: Mapping[Value, Mapping[int, int]]) -> Iterator[Graph]:
        with taking_apart("the OpenVINO graph"), self._sized(pixels), self._products.shown():
            yield build_view(self.native)

    def fix_sizes(self, sizes: Mapping[str, Shape]) -> None:
        nodes = [node for node in self.native.get_parameters() if node.get_friendly_name() in sizes]
        with self._products.shown():
            self._set_shapes([(node, ov.PartialShape([*sizes[node.get_friendly_name()]])) for node in nodes])

    def open_sizes(self, sides: Mapping[Value, Sequence[int]]) -> bool:
        axes_of = {value.native.get_node().get_instance_id(): axes for value, axes in sides.items()}
        self._closed = [(node, node.get_partial_shape()) for node in self.native.get_parameters()]
        opened = []
        for node, closed in self._closed:
            shape = ov.PartialShape(closed)
            for axis in axes_of.get(node.get_instance_id(), ()):
                shape[axis] = ov.Dimension.dynamic()
            opened.append((node, shape))
        try:
            with self._products.shown():
                self._set_shapes(opened)
        except RAISED:
            self.close_sizes()
            return False
        return True

    def close_sizes(self) -> None:
        self._set_shapes(self._closed)

    def sizes_at(self, value: Value, pixels: Mapping[Value, Mapping[int, int]]) -> Shape | None:
        try:
            with self._sized(pixels):
                return static_shape(value.native.get_partial_shape())
        except RAISED:
            return None

    @contextmanager
    def _sized(self, pixels: Mapping[Value, Mapping[int, int]]) -> Iterator[None]:
        before = [(node, node.get_partial_shape()) for node in self.native.get_parameters()]
        wanted = {image.native.get_node().get_instance_id(): sizes for image, sizes in pixels.items()}
        given = []
        for node, known in before:
            shape = ov.PartialShape(known)
            for axis, size in wanted.get(node.get_instance_id(), {}).items():
                shape[axis] = size
            given.append((node, shape))
        try:
            self._set_shapes(given)
            yield
        finally:
            self._set_shapes(before)

    def _set_shapes(self, shapes: Sequence[tuple[ov.Node, ov.PartialShape]]) -> None:
        # Not by `reshape`, which rewrites layers of the model, by names that differ from run to run.
        for node, shape in shapes:
            node.set_partial_shape(shape)
        self.native.validate_nodes_and_infer_types()

    def surgeon(self, *, keep_float32: bool = False) -> OpenVINOSurgeon:
        self.keeps_float32 |= keep_float32
        with self._products.shown():
            return OpenVINOSurgeon(self.native, keep_float32=keep_float32)

    def runner(self) -> OpenVINORunner:
        return OpenVINORunner(self.native, weights=self._weights)

    def elsewhere(self) -> None:
        return None

    def between(
        self, features: Sequence[Value], results: Sequence[ov.Output], *, is_rounded: bool = True
    ) -> OpenVINORunner:
        with self._products.shown():  # a head may be one of them
            wanted = [opset.result(result) for result in results]  # for them to be cloned, though no output reads them
            self.native.add_results(wanted)
            twin = self.native.clone()
            numbers = [node.get_instance_id() for node in self.native.get_ordered_ops()]
            twin_of = dict(zip(numbers, twin.get_ordered_ops(), strict=True))
            for result in wanted:
                self.native.remove_result(result)

        def port(output: ov.Output) -> ov.Output:
            return twin_of[output.get_node().get_instance_id()].output(output.get_index())

        outputs = [opset.result(opset.convert(port(result), ov.Type.f32)) for result in results]
        entries = []
        for source in [port(feature.native) for feature in features]:
            readers = source.get_target_inputs()
            entries.append(opset.parameter(source.get_partial_shape(), ov.Type.f32))
            entry = opset.convert(entries[-1], source.get_element_type())
            for reader in readers:
                reader.replace_source_output(entry.output(0))
        part = ov.Model(outputs, [*entries, *twin.get_parameters()], "branch")
        if not is_rounded:
            unround(part)
        keep_apart(part)  # what is compared runs on several samples at once
        return OpenVINORunner(part, weights=self._weights)

    def result_like(self, given: Any) -> ov.Model:
        del given
        return marked(self.native) if self.keeps_float32 else self.native

    def read_metadata(self) -> dict[str, str]:
        found = [(key, text, prefix) for path, prefix in _SECTIONS for key, text in entries(self.native, path).items()]
        return {key.removeprefix(prefix): text for key, text, prefix in found if key.startswith(prefix)}

    def annotate(self, entries: Mapping[str, str]) -> None:
        for key, text in entries.items():
            self.native.set_rt_info(text, [_METADATA, key])

    def strip(self, outputs: Sequence[str]) -> tuple[OpenVINOModel, Removed]:
        removed = strip(self.native, outputs)
        for path, prefix in _SECTIONS:
            others = {key: text for key, text in entries(self.native, path).items() if not key.startswith(prefix)}
            if path in self.native.rt_info:
                del self.native.rt_info[path]
            for key, text in others.items():
                self.native.set_rt_info(text, [path, key])
        return OpenVINOModel(self.native, self._weights), removed

    def shuffle(self, seed: int) -> int:
        return shuffle(self.native, seed)

    def save(self, folder: Path, name: str) -> list[Path]:
        path = (folder / name).with_suffix(".xml")  # the writer takes no other letter case
        try:
            ov.save_model(self.native, path, compress_to_fp16=False)
            if self.keeps_float32:
                mark_branch(path)
            require_safe(path)  # the writer does not say of each write that it failed
        except (*RAISED, ModelFileError) as err:
            raise ModelFileError(f"the IR cannot be written whole: {last_line(err)}; is the disk full?") from err
        return [path.with_suffix(".bin"), path]

    def install(self, files: Sequence[Path], goal: Path) -> list[Path]:
        replace_ir(files[-1], goal)
        return [goal.with_suffix(".bin"), goal]

    def versions(self) -> dict[str, str]:
        return {"openvino": ov.__version__}


def load_path(path: Path, input_shapes: Mapping[str, Shape]) -> OpenVINOModel:
    """Read an IR, or convert what OpenVINO's readers know."""
    if path.suffix.lower() == ".onnx":
        return _converted(path, input_shapes)
    if path.suffix.lower() == ".xml":
        require_safe(path)
        return _reshaped(_read(path), input_shapes, [path.with_suffix(".bin")])
    return _reshaped(_read(path), input_shapes, [])


def _converted(path: Path, input_shapes: Mapping[str, Shape]) -> OpenVINOModel:
    from xai_insert.formats.onnx.prepare import require_safe_file  # noqa: PLC0415 - an IR user does not pay for ONNX

    safe = require_safe_file(path)
    model = None
    if safe.content is not None:
        with suppress(ModelFileError), pages_dropped(safe.files):  # the file says better what is wrong
            model = _read(safe.content)
    converted = _reshaped(model or _read(path), input_shapes, safe.files)
    converted.kept = safe.kept
    return converted


def _read(source: Path | bytes) -> ov.Model:
    try:
        return ov.Core().read_model(source)
    except RAISED as err:
        raise ModelFileError(f"OpenVINO cannot read the file: {last_line(err)}; is it whole?") from err


def read_runner(path: Path) -> OpenVINORunner:
    """Compile a file that another format's adapter has written."""
    return OpenVINORunner(_read(path))


def load_model(model: Any, input_shapes: Mapping[str, Shape]) -> OpenVINOModel:
    """Copy an `ov.Model`; the weights are shared."""
    if not isinstance(model, ov.Model):
        raise ModelFileError(f"cannot read a {type(model).__name__}: wanted an ov.Model that is not compiled")
    return _reshaped(model.clone(), input_shapes, [])


def _write_as_newest(model: ov.Model) -> None:
    """Have a model that was read from IR version 10 written as version 11.

    Whoever reads version 10 gives every output as float32 or int32. What was read has those conversions as operations;
    a new output is to keep its type.
    """
    if model.has_rt_info([_VERSION]) and model.get_rt_info([_VERSION]).value == 10:
        model.set_rt_info(11, [_VERSION])


def _reshaped(model: ov.Model, input_shapes: Mapping[str, Shape], weights: Collection[Path]) -> OpenVINOModel:
    shapes = {_input_called(model, name): ov.PartialShape(with_open(sizes)) for name, sizes in input_shapes.items()}
    if shapes:
        try:
            model.reshape(shapes)
        except RAISED as err:
            raise XaiInsertError(f"the model does not take the sizes of --input-shape: {last_line(err)}") from err
    return OpenVINOModel(model, weights)


def _input_called(model: ov.Model, name: str) -> ov.Output:
    for port in model.inputs:
        if name in {*port.get_names(), port.node.get_friendly_name()}:
            return port
    raise UnknownNameError("input", name, [port.node.get_friendly_name() for port in model.inputs])


def _is_told(value: Value) -> bool:
    """Whether all sizes but the batch are known."""
    return value.shape is not None and None not in value.shape[1:]
