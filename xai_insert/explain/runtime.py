"""Running a model on one image at a time, from several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, get_args

import numpy as np

from xai_insert.errors import ModelFileError, UnknownNameError, UnsupportedTaskError, XaiInsertError
from xai_insert.explain.errors import RunError
from xai_insert.explain.files import digest
from xai_insert.explain.outputs import SALIENCY_MAP, Array, Outputs
from xai_insert.explain.shown import ImageInput, ShownOutputs
from xai_insert.files import read_with
from xai_insert.formats.guard import first_line, last_line
from xai_insert.graph.shape import format_shape
from xai_insert.layouts.record import Layout

RuntimeName = Literal["openvino", "onnxruntime"]

RUNTIMES: tuple[str, ...] = get_args(RuntimeName)
_PREFIXES = ("model_info ", "model_info.")
_INSERTION = "xai_insert"
_TRIES = 5
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class Engine(Protocol):
    """A compiled model."""

    @property
    def image_input(self) -> ImageInput:
        """The input of the image; others are fed with the same for every image."""

    @property
    def info(self) -> Mapping[str, str]:
        """Metadata, without the prefix of Model API."""

    @property
    def about(self) -> Mapping[str, str]:
        """What was written when the map was inserted: task, method and more."""

    @property
    def layout(self) -> Layout:
        """What its outputs mean, as far as that was written."""

    @property
    def by_model_api(self) -> bool:
        """Whether the metadata is Model API's own."""

    @property
    def runtime(self) -> RuntimeName:
        """What runs it."""

    @property
    def parallel(self) -> int:
        """How many inferences run at once at best."""

    def infer(self, feed: Array) -> Outputs:
        """Run on one input; may be called from several threads."""


def threads_for(engine: Engine) -> int:
    """As many as keep it busy while every processor prepares and draws."""
    return engine.parallel + (os.cpu_count() or 1)


def model_files(path: Path) -> list[Path]:
    """A model and the files that hold its weights."""
    if path.suffix.lower() != ".onnx":
        return [path, path.with_suffix(".bin")]
    from xai_insert.formats.onnx.prepare import require_safe_file  # noqa: PLC0415 - an IR user does not pay for ONNX

    return [path, *sorted(require_safe_file(path).files - {path})]


def load_engine(
    path: Path, runtime: RuntimeName | None = None, device: str = "CPU", fed: Mapping[str, Array] = MappingProxyType({})
) -> Engine:
    """Read a model, insert a saliency map if it has none, and compile it.

    Args:
        path: `.xml` or `.onnx`.
        runtime: None takes OpenVINO for IR and onnxruntime for ONNX.
        device: OpenVINO's name of a device; onnxruntime knows `CPU` and `GPU`.
        fed: what other inputs than the image get, by name.

    Raises:
        XaiInsertError: the model cannot be read, inserted into or compiled, or has an input that is not fed.
    """
    suffix = path.suffix.lower()
    if suffix not in (".xml", ".onnx"):
        raise ModelFileError(f"unknown kind of model {path.name!r}: wanted .xml (OpenVINO IR) or .onnx")
    if not path.is_file():
        raise ModelFileError(f"no such file: {path}")
    runtime = runtime or ("openvino" if suffix == ".xml" else "onnxruntime")
    if runtime == "openvino":
        return OpenVINOEngine(path, device, fed)
    if suffix == ".xml":
        raise RunError("onnxruntime cannot run an OpenVINO IR: give the .onnx file or --runtime openvino")
    return OnnxEngine(path, device, fed)


def load_settled(
    path: Path, runtime: RuntimeName | None = None, device: str = "CPU", fed: Mapping[str, Array] = MappingProxyType({})
) -> tuple[Engine, list[str]]:
    """Load a model that another program may be replacing meanwhile; see `load_engine`.

    Returns:
        The compiled model, and what the content of its files is told by.

    Raises:
        XaiInsertError: see `load_engine`; or its files were not the same before and after, several times.
    """
    for _ in range(_TRIES):
        before = _stamps(path)
        try:
            engine = load_engine(path, runtime, device, fed)
            content = digest(model_files(path))
        except XaiInsertError:
            if _stamps(path) == before:
                raise
            continue  # half of it was of another model
        if _stamps(path) == before:
            return engine, content
    raise RunError(f"{path} was replaced while it was read, {_TRIES} times; wait until it is finished")


def _stamps(path: Path) -> list[tuple[int, ...]]:
    """What changes when a model's files are replaced or written."""
    found: list[tuple[int, ...]] = []
    for file in (path, *read_with(path)):
        with suppress(OSError, ValueError):
            info = file.stat()
            found.append((info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns))
    return found


class OpenVINOEngine:
    """A model in OpenVINO: each thread has a request of its own, so that more of them wait than there are streams.

    No callback of Python's is needed so, which would hold a stream up until it gets the interpreter's lock.
    """

    runtime: RuntimeName = "openvino"

    def __init__(self, path: Path, device: str, fed: Mapping[str, Array]) -> None:
        import openvino as ov  # noqa: PLC0415 - heavy, and not needed for ONNX

        from xai_insert.formats.openvino.compressed import has_compressed_products  # noqa: PLC0415
        from xai_insert.formats.openvino.model import load_path  # noqa: PLC0415

        model = load_path(path, {}).native
        if not any(SALIENCY_MAP in output.get_names() for output in model.outputs):
            model = _insert(model)
        self.info, self.by_model_api = _openvino_info(model)
        self.about = _openvino_about(model)
        inputs = [_openvino_input(port) for port in model.inputs]
        self.image_input = _image_input(inputs, fed)
        names = [min(port.get_names(), default=f"output_{n}") for n, port in enumerate(model.outputs)]
        self._reader = ShownOutputs.of(self.image_input, inputs, fed, names, self.about)
        self._fed, self.layout = self._reader.fed, self._reader.layout
        try:
            how = {"NUM_STREAMS": "1"} if has_compressed_products(model) else {"PERFORMANCE_HINT": "THROUGHPUT"}
            self._compiled = ov.Core().compile_model(model, device, how)
        except RuntimeError as err:
            raise RunError(f"OpenVINO cannot compile the model for {device}: {last_line(err)}") from err
        self._own = threading.local()
        self.parallel = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

    def infer(self, feed: Array) -> Outputs:
        try:
            request = getattr(self._own, "request", None) or self._compiled.create_infer_request()
            self._own.request = request
            request.infer({self.image_input.name: feed, **self._fed}, share_inputs=True)
            return self._reader([tensor.data.copy() for tensor in request.output_tensors])
        except RuntimeError as err:
            raise RunError(f"OpenVINO cannot run the model: {first_line(err)}") from err


class OnnxEngine:
    """A model in onnxruntime, whose sessions may be run from several threads."""

    runtime: RuntimeName = "onnxruntime"
    by_model_api: bool
    parallel = 1

    def __init__(self, path: Path, device: str, fed: Mapping[str, Array]) -> None:
        import onnxruntime as ort  # noqa: PLC0415 - heavy, and not needed for IR

        provider = {"CPU": "CPUExecutionProvider", "GPU": "CUDAExecutionProvider"}.get(device.upper(), "")
        available = ort.get_available_providers()
        if provider not in available:
            raise RunError(f"onnxruntime has no device {device!r} here: it offers {', '.join(available)}")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = _session(ort, str(path), options, provider)
        if SALIENCY_MAP not in [item.name for item in session.get_outputs()]:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent.resolve()))
            session = _session(ort, _insert(path, to_bytes=True), options, provider)
        self._session = session
        entries = session.get_modelmeta().custom_metadata_map
        self.info, self.by_model_api = _flat_info(entries)
        self.about = _about(entries)
        inputs = [
            ImageInput(
                item.name,
                tuple(size if isinstance(size, int) else None for size in item.shape),
                _DTYPES.get(item.type, item.type),
            )
            for item in session.get_inputs()
        ]
        self.image_input = _image_input(inputs, fed)
        names = [item.name for item in session.get_outputs()]
        self._reader = ShownOutputs.of(self.image_input, inputs, fed, names, self.about)
        self._fed, self.layout = self._reader.fed, self._reader.layout

    def infer(self, feed: Array) -> Outputs:
        try:
            return self._reader(self._session.run(None, {self.image_input.name: feed, **self._fed}))
        except Exception as err:  # onnxruntime's exceptions have no common base
            raise RunError(f"onnxruntime cannot run the model: {first_line(err)}") from err


def _session(ort: Any, source: bytes | str, options: Any, provider: str) -> Any:
    try:
        return ort.InferenceSession(source, options, providers=[provider])
    except Exception as err:  # onnxruntime's exceptions have no common base
        raise ModelFileError(f"onnxruntime cannot load the model: {first_line(err)}") from err


def _insert(model: Any, to_bytes: bool = False) -> Any:
    from xai_insert.pipeline import insert  # noqa: PLC0415 - only for plain models

    try:
        inserted = insert(model).model
    except XaiInsertError as err:
        raise XaiInsertError(f"the model has no saliency map and none could be inserted: {err}") from err
    if not to_bytes:
        return inserted
    import onnx_ir  # noqa: PLC0415 - only for plain ONNX models

    return onnx_ir.to_proto(inserted).SerializeToString()


def _image_input(inputs: Sequence[ImageInput], fed: Mapping[str, Array]) -> ImageInput:
    """The one input that is not fed, an image."""
    known = {item.name for item in inputs}
    if unknown := [name for name in fed if name not in known]:
        raise UnknownNameError("input", unknown[0], sorted(known))
    found, others = _images_and_others([item for item in inputs if item.name not in fed])
    if len(found) != 1:
        raise UnsupportedTaskError(f"wanted a model with one input of images, or of clips, found {_listed(inputs)}")
    if others:
        raise UnsupportedTaskError(
            f"the model also reads {_listed(others)}: give an array for each, --feed {others[0].name}=FILE.npy"
        )
    return found[0]


def _images_and_others(inputs: Sequence[ImageInput]) -> tuple[list[ImageInput], list[ImageInput]]:
    images = [item for item in inputs if len(item.shape) in (4, 5)]
    return images, [item for item in inputs if item not in images]


def _listed(items: Sequence[ImageInput]) -> str:
    return ", ".join(f"{item.name} {format_shape(item.shape)}" for item in items) or "none"


def _openvino_input(port: Any) -> ImageInput:
    from openvino import layout_helpers  # noqa: PLC0415 - see OpenVINOEngine

    layout = layout_helpers.get_layout(port)
    text = None if layout.empty else layout.to_string().strip("[]").replace(",", "")
    shape = tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())
    return ImageInput(port.get_any_name(), shape, np.dtype(port.get_element_type().to_dtype()).name, text)


def _openvino_info(model: Any) -> tuple[dict[str, str], bool]:
    from xai_insert.formats.openvino.entries import entries  # noqa: PLC0415 - see OpenVINOEngine

    if model.has_rt_info(["model_info"]):
        return entries(model, "model_info"), True
    return _flat_info(entries(model, "framework"))  # metadata of a model that was read from ONNX


def _openvino_about(model: Any) -> dict[str, str]:
    from xai_insert.formats.openvino.entries import entries  # noqa: PLC0415 - see OpenVINOEngine

    if model.has_rt_info([_INSERTION]):
        return entries(model, _INSERTION)
    return _about(entries(model, "framework"))


def _about(entries: Mapping[str, str]) -> dict[str, str]:
    prefix = f"{_INSERTION}."
    return {key[len(prefix) :]: text for key, text in entries.items() if key.startswith(prefix)}


def _flat_info(entries: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """Take away the prefix that Model API writes into ONNX metadata."""
    for prefix in _PREFIXES:
        info = {key[len(prefix) :]: text for key, text in entries.items() if key.startswith(prefix)}
        if info:
            return info, True
    return dict(entries), False
