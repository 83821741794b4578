"""Running OpenVINO models on the CPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from xai_insert.errors import CheckFailedError, TimeLimitError
from xai_insert.formats.guard import RAISED, last_line
from xai_insert.formats.openvino.mapped import pages_dropped
from xai_insert.formats.openvino.view import dtype_name, static_shape
from xai_insert.graph.view import Shape

_ENDLESS: list[ov.InferRequest] = []
"""Requests inside an operation that does not end. Destroying one would wait for it."""


class OpenVINORunner:
    """One compiled model; computes in float32 unless told otherwise.

    Args:
        model: the model.
        precision: `INFERENCE_PRECISION_HINT`; None leaves the device's default.
        weights: the files that its constants are mapped from.
    """

    def __init__(self, model: ov.Model, precision: str | None = "f32", weights: Collection[Path] = ()) -> None:
        config: dict[str, Any] = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        if precision == "f32":
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # or what compressed weights meet is rounded to 8 bits
        try:
            with pages_dropped(weights):
                self._compiled = ov.Core().compile_model(model, "CPU", config)
        except RAISED as err:
            raise CheckFailedError(f"OpenVINO cannot compile the model: {last_line(err)}") from err
        self._inputs = self._compiled.inputs

    @property
    def inputs(self) -> list[tuple[str, str, Shape]]:
        return [
            (str(index), dtype_name(port.get_element_type()), static_shape(port.get_partial_shape()) or ())
            for index, port in enumerate(self._inputs)
        ]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], seconds: float | None = None) -> list[npt.NDArray[Any]]:
        try:
            request = self._compiled.create_infer_request()
            request.start_async({int(name): array for name, array in feeds.items()})
            if seconds is not None and not request.wait_for(int(1000 * seconds)):
                request.cancel()  # takes effect between two operations
                if not request.wait_for(1000):
                    _ENDLESS.append(request)
                raise TimeLimitError.after(seconds)
            request.wait()  # which says what went wrong; waiting for a time does not
            return [np.array(tensor.data) for tensor in request.output_tensors]
        except RAISED as err:
            raise CheckFailedError(f"OpenVINO cannot run the model: {last_line(err)}") from err
