"""Running ONNX models with onnxruntime on the CPU."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from xai_insert.errors import CheckFailedError, TimeLimitError
from xai_insert.formats.guard import first_line
from xai_insert.formats.onnx.front import EXTENSIONS
from xai_insert.formats.onnx.late_windows import about_late_windows
from xai_insert.formats.onnx.maps import to_proto
from xai_insert.formats.onnx.stored import StoredTensor, exchanged, stored_tensors, tensors
from xai_insert.formats.onnx.widening import holds_bfloat16, widen_bfloat16
from xai_insert.graph.view import Shape

logger = logging.getLogger(__name__)

_PROTOBUF_LIMIT = 2**31 - 2**24
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(bool)": "bool"}


class OnnxRunner:
    """One compiled model.

    Args:
        model: the model.
        source: a file with the very same model, if there is one: the runtime reads it faster than we serialise.
        is_part: whether it is a part of a model, for a few runs that need not be those of any whole model bit by bit.
    """

    def __init__(self, model: ir.Model, source: Path | None = None, *, is_part: bool = False) -> None:
        self._model = model
        options = _extended(_options(), model)
        if holds_bfloat16(model):
            model, source = widen_bfloat16(model), None
        try:
            self._session = _opened(model, source, options, is_part=is_part)
        except Exception as err:  # onnxruntime's exceptions have no common base
            raise CheckFailedError(f"onnxruntime cannot load the model: {first_line(err)}") from err

    @property
    def inputs(self) -> list[tuple[str, str, Shape]]:
        return [
            (
                arg.name,
                _TYPES.get(arg.type, arg.type[7:-1]),
                tuple(d if isinstance(d, int) else None for d in arg.shape),
            )
            for arg in self._session.get_inputs()
        ]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], seconds: float | None = None) -> list[npt.NDArray[Any]]:
        options = ort.RunOptions()
        timer = None if seconds is None else threading.Timer(seconds, setattr, (options, "terminate", True))
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            return [_array(result) for result in self._session.run(None, dict(feeds), options)]
        except Exception as err:  # see __init__
            if options.terminate:
                raise TimeLimitError.after(seconds) from err
            reason = about_late_windows(self._model) or first_line(err)
            raise CheckFailedError(f"onnxruntime cannot run the model: {reason}") from err
        finally:
            if timer is not None:
                timer.cancel()


def _extended(options: ort.SessionOptions, model: ir.Model) -> ort.SessionOptions:
    """`options` with the library of onnxruntime-extensions, if the model has operators of it.

    Raises:
        CheckFailedError: it has, and the library is not installed.
    """
    domain = next((node.domain for node in model.graph.all_nodes() if node.domain in EXTENSIONS), None)
    if domain is not None:
        try:
            from onnxruntime_extensions import get_library_path  # noqa: PLC0415 - few models need it
        except ImportError as err:
            raise CheckFailedError(
                f"the model has operators of {domain}, which onnxruntime runs with a library of its own alone: "
                "pip install onnxruntime-extensions"
            ) from err
        options.register_custom_ops_library(get_library_path())
    return options


def _opened(
    model: ir.Model, source: Path | None, options: ort.SessionOptions, *, is_part: bool
) -> ort.InferenceSession:
    """A session that maps the large weights of `model` from where they lie, as far as they lie in files."""
    weights = tensors(model)
    outside = [tensor for tensor in weights if isinstance(tensor, ir.ExternalTensor)]
    stored = stored_tensors(weights, of_part=is_part)
    file = _file_of(stored, outside)
    if outside or stored:
        # Packing the weights for speed would hold all of them in memory a second time.
        options.add_session_config_entry("session.disable_prepacking", "1")
        folder = outside[0].base_dir if file is None or outside else file.parent
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(folder or "."))
    if file is None and source is not None:
        return _session(str(source), options)

    def mapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return tensor if file is None or not isinstance(tensor, StoredTensor) else tensor.outside(file.name)

    inside = sum(tensor.nbytes for tensor in weights) - sum(tensor.nbytes for tensor in (*outside, *stored))
    if inside < _PROTOBUF_LIMIT:
        with exchanged(model, mapped):
            content = to_proto(model).SerializeToString()
        return _session(content, options)
    return _from_scratch(model, options)


def _from_scratch(model: ir.Model, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session of a model whose message would be too large, by way of files."""
    with tempfile.TemporaryDirectory(prefix="xai-insert-") as scratch:
        path = Path(scratch, "model.onnx")
        ir.save(model, path, external_data="model.onnx.data")
        return _session(str(path), options)


def _file_of(stored: Sequence[StoredTensor], outside: Sequence[ir.ExternalTensor]) -> Path | None:
    """The model's own file, where that holds large weights."""
    if not stored:
        return None
    file = stored[0].path
    return file if outside else file.resolve()  # the runtime follows no link out of the folder


def _array(result: Any) -> npt.NDArray[Any]:
    """A result as an array; of a map for each image its numbers as its keys stand, of a sequence all its elements."""
    kinds = {type(item) for item in result} if isinstance(result, list) else set()
    if kinds == {dict}:
        return np.array([list(item.values()) for item in result])
    if kinds == {np.ndarray}:
        return np.concatenate([item.ravel() for item in result])
    return np.asarray(result)


def described(content: bytes) -> tuple[dict[str, Shape], dict[str, ir.DataType]]:
    """Sizes and element types of the outputs of a model, by name; empty if onnxruntime cannot read it.

    Args:
        content: the bytes of the model.
    """
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # what depends on no input
    try:
        session = _session(content, options)
    except Exception as err:  # see OnnxRunner
        logger.debug("onnxruntime cannot read the model for its shapes: %s", first_line(err))
        return {}, {}
    results = [arg for arg in session.get_outputs() if arg.type.startswith("tensor(")]
    shapes = {arg.name: tuple(d if isinstance(d, int) else None for d in arg.shape) for arg in results if arg.shape}
    return shapes, {arg.name: ir.DataType[arg.type[7:-1].upper()] for arg in results}


def _options() -> ort.SessionOptions:
    """Settings of a session that logs nothing, and whose threads sleep while there is nothing to do for them.

    By default they spin: a session that is opened and run once takes up to three times the processor's time so, most of
    it in opening, and on a busy machine longer too.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(source: bytes | str, options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
