"""Compiled models that can be run again and again without a copy on Python's side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xai_insert.feeds import random_array

Array = NDArray[Any]
Port = tuple[str, str, tuple[int | None, ...]]
"""Name, NumPy dtype and sizes of a model input; an open size is None."""

_SEED = 0
_ROUNDS = 4


class Runner(Protocol):
    """A compiled model with its inputs in place."""

    @property
    def inputs(self) -> list[Port]:
        """The model's inputs."""

    @property
    def precision(self) -> str:
        """What the runtime computes in."""

    def feed(self, feeds: Sequence[Array]) -> None:
        """Put the inputs in place, in the model's order."""

    def __call__(self) -> None:
        """Run the model once."""

    def outputs(self) -> list[Array]:
        """Copies of the outputs of the last run."""


def open_runner(
    path: Path,
    precision: str | None = "f32",
    reshape_to: int | None = None,
    *,
    throughput: bool = False,
    threads: int | None = None,
) -> Runner:
    """Compile a model for the CPU in the runtime of its own format.

    Args:
        path: `.xml` or `.onnx`.
        precision: OpenVINO's `INFERENCE_PRECISION_HINT`; None leaves the device's default. onnxruntime has
            no such choice.
        reshape_to: batch size for the inputs whose batch is 1 in the file; IR only.
        throughput: run several requests at once, as many as the device likes best, under OpenVINO's throughput hint;
            IR only. One call is then four rounds of them.
        threads: how many to run on; None leaves it to the runtime.

    Raises:
        RuntimeError: OpenVINO cannot reshape, compile or (when run) execute the model.
    """
    if path.suffix == ".onnx":
        return OnnxRunner(path, threads)
    return (OpenVINOQueue if throughput else OpenVINORunner)(path, precision, reshape_to, threads)


def precisions(path: Path) -> list[str | None]:
    """The precisions in which a model is worth measuring: float32, and the device's default where that is another."""
    if path.suffix == ".onnx":
        return ["f32"]
    import openvino as ov  # noqa: PLC0415 - not needed for ONNX

    default = ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return ["f32"] if default.get_type_name() == "f32" else ["f32", None]


def random_feeds(inputs: Sequence[Port], batch: int) -> list[Array]:
    """The same random inputs on every call; `batch` stands for an open batch size."""
    rng = np.random.default_rng(_SEED)
    return [random_array(rng, shape, dtype, batch=batch) for _, dtype, shape in inputs]


class OpenVINORunner:
    """An OpenVINO infer request; arguments as in `open_runner`."""

    hint = "LATENCY"

    def __init__(self, path: Path, precision: str | None, reshape_to: int | None, threads: int | None = None) -> None:
        import openvino as ov  # noqa: PLC0415 - not needed for ONNX

        core = ov.Core()
        model = core.read_model(path)
        if reshape_to is not None:
            model.reshape({port: _with_batch(port.get_partial_shape(), reshape_to) for port in model.inputs})
        config: dict[str, str | int] = {"PERFORMANCE_HINT": self.hint}
        config |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        config |= {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        self._compiled = core.compile_model(model, "CPU", config)
        self._request = self._compiled.create_infer_request()
        self._feeds: dict[int, Array] = {}

    @property
    def inputs(self) -> list[Port]:
        return [
            (
                min(port.get_names(), default=port.get_node().get_friendly_name()),
                np.dtype(port.get_element_type().to_dtype()).name,
                tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()),
            )
            for port in self._compiled.inputs
        ]

    @property
    def precision(self) -> str:
        name: str = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return name

    def feed(self, feeds: Sequence[Array]) -> None:
        self._feeds = dict(enumerate(feeds))

    def __call__(self) -> None:
        self._request.infer(self._feeds, share_inputs=True, share_outputs=True)

    def outputs(self) -> list[Array]:
        return [np.array(tensor.data) for tensor in self._request.output_tensors]


class OpenVINOQueue(OpenVINORunner):
    """Several requests at once; arguments as in `open_runner`."""

    hint = "THROUGHPUT"

    def feed(self, feeds: Sequence[Array]) -> None:
        import openvino as ov  # noqa: PLC0415 - not needed for ONNX

        super().feed(feeds)
        super().__call__()  # so that there are outputs to compare
        self._queue = ov.AsyncInferQueue(self._compiled)

    def __call__(self) -> None:
        for _ in range(_ROUNDS * len(self._queue)):
            self._queue.start_async(self._feeds, share_inputs=True)
        self._queue.wait_all()


class OnnxRunner:
    """An onnxruntime session with bound inputs; the outputs stay in the runtime's memory."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime as ort  # noqa: PLC0415 - not needed for IR

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4
        # Otherwise the threads of the session that ran last spin on for a while and slow the one that runs now.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._bound: list[Any] = []
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cpu")

    @property
    def inputs(self) -> list[Port]:
        return [
            (arg.name, _numpy_name(arg.type), tuple(size if isinstance(size, int) else None for size in arg.shape))
            for arg in self._session.get_inputs()
        ]

    @property
    def precision(self) -> str:
        return "f16" if "float16" in self._session.get_inputs()[0].type else "f32"

    def feed(self, feeds: Sequence[Array]) -> None:
        import onnxruntime as ort  # noqa: PLC0415 - not needed for IR

        self._bound = [ort.OrtValue.ortvalue_from_numpy(array) for array in feeds]
        for (name, _, _), tensor in zip(self.inputs, self._bound, strict=True):
            self._binding.bind_ortvalue_input(name, tensor)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[Array]:
        return [np.array(array) for array in self._binding.copy_outputs_to_cpu()]


def _with_batch(shape: Any, batch: int) -> list[int]:
    sizes = [-1 if size.is_dynamic else size.get_length() for size in shape]
    return [batch, *sizes[1:]] if sizes[:1] == [1] else sizes


def _numpy_name(kind: str) -> str:
    """`tensor(float)` and the like as NumPy calls them."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)
