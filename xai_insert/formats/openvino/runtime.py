"""Running OpenVINO models on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from xai_insert.errors import CheckFailedError
from xai_insert.formats.openvino.view import dtype_name, static_shape
from xai_insert.graph.view import Shape


class OpenVINORunner:
    """One compiled model; computes in float32 unless told otherwise.

    Args:
        model: the model.
        precision: `INFERENCE_PRECISION_HINT`; None leaves the device's default.
    """

    def __init__(self, model: ov.Model, precision: str | None = "f32") -> None:
        config: dict[str, Any] = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        if precision == "f32":
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # or what compressed weights meet is rounded to 8 bits
        try:
            self._compiled = ov.Core().compile_model(model, "CPU", config)
        except RuntimeError as err:
            raise CheckFailedError(f"OpenVINO cannot compile the model: {last_line(err)}") from err
        self._inputs = self._compiled.inputs

    @property
    def inputs(self) -> list[tuple[str, str, Shape]]:
        return [
            (str(index), dtype_name(port.get_element_type()), static_shape(port.get_partial_shape()) or ())
            for index, port in enumerate(self._inputs)
        ]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        try:
            results = self._compiled({int(name): array for name, array in feeds.items()})
        except RuntimeError as err:
            raise CheckFailedError(f"OpenVINO cannot run the model: {last_line(err)}") from err
        return [np.array(results[index]) for index in range(len(self._compiled.outputs))]


def last_line(err: Exception) -> str:
    """The line of an OpenVINO error that says what is wrong: the last one, after the trace of source files."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[-1] if lines else type(err).__name__
