"""An ONNX file computed on numbers of 64 bits: what the graph says, apart from the rounding of a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch.nn import functional

Array = np.ndarray


def _padded(x: Array, pads: Any, fill: float) -> Any:
    """A tensor of `x` with cells around it, which PyTorch's own layers have on both sides alike."""
    count = x.ndim - 2
    pads = list(pads or [0] * (2 * count))
    sides = [side for axis in reversed(range(count)) for side in (pads[axis], pads[count + axis])]
    return functional.pad(torch.from_numpy(np.ascontiguousarray(x)), sides, value=fill)


class Conv(OpRun):
    """The evaluator's own takes minutes."""

    op_domain = ""

    def _run(self, x, weight, bias=None, **how):
        assert how.get("auto_pad") in (None, "NOTSET")
        name = ("conv1d", "conv2d", "conv3d")[x.ndim - 3]
        given = [None if item is None else torch.from_numpy(np.ascontiguousarray(item)) for item in (weight, bias)]
        lies = {"stride": how.get("strides") or 1, "dilation": how.get("dilations") or 1, "groups": how.get("group", 1)}
        return (getattr(functional, name)(_padded(x, how.get("pads"), 0.0), *given, **lies).numpy(),)


class ConvTranspose(OpRun):
    """Likewise."""

    op_domain = ""

    def _run(self, x, weight, bias=None, **how):
        name = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")[x.ndim - 3]
        count = x.ndim - 2
        pads, more = list(how.get("pads") or [0] * (2 * count)), list(how.get("output_padding") or [0] * count)
        given = [None if item is None else torch.from_numpy(np.ascontiguousarray(item)) for item in (x, weight, bias)]
        lies = {"stride": how.get("strides") or 1, "dilation": how.get("dilations") or 1, "groups": how.get("group", 1)}
        made = getattr(functional, name)(*given, **lies)
        sides = [cell for axis in reversed(range(count)) for cell in (0, more[axis])]
        made = functional.pad(made, sides).numpy()
        return (made[(..., *(slice(pads[i], made.shape[2 + i] - pads[count + i]) for i in range(count)))],)


class MaxPool(OpRun):
    """Likewise; without indices."""

    op_domain = ""

    def _run(self, x, **how):
        assert how.get("auto_pad") in (None, "NOTSET")
        name = ("max_pool1d", "max_pool2d", "max_pool3d")[x.ndim - 3]
        lies = {"stride": how.get("strides") or 1, "dilation": how.get("dilations") or 1}
        whole = _padded(x, how.get("pads"), -np.inf)
        made = getattr(functional, name)(whole, how["kernel_shape"], **lies, ceil_mode=bool(how.get("ceil_mode")))
        return (made.numpy(),)


class AveragePool(OpRun):
    """Likewise."""

    op_domain = ""

    def _run(self, x, **how):
        assert how.get("auto_pad") in (None, "NOTSET")
        assert not how.get("ceil_mode")
        kernel = how["kernel_shape"]
        weight = torch.ones(x.shape[1], 1, *kernel, dtype=torch.float64)
        name = ("conv1d", "conv2d", "conv3d")[x.ndim - 3]
        lies = {"stride": how.get("strides") or 1, "groups": x.shape[1]}
        cells = np.ones_like(x)
        counted = _padded(cells, how.get("pads"), float(how.get("count_include_pad") or 0))
        total, counts = (
            getattr(functional, name)(item, weight, **lies) for item in (_padded(x, how.get("pads"), 0.0), counted)
        )
        return ((total / counts).numpy(),)


class Erf(OpRun):
    """The evaluator's own rounds to 32 bits."""

    op_domain = ""

    def _run(self, x):
        return (torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy(),)


class Gelu(OpRun):
    """Likewise."""

    op_domain = ""

    def _run(self, x, approximate=None):
        made = functional.gelu(torch.from_numpy(np.ascontiguousarray(x)), approximate=approximate or "none")
        return (made.numpy(),)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        exact = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))


def outputs(path: Path, image: Array) -> dict[str, Array]:
    """Every output of a file for one image, which is read as float64."""
    model = onnx.load(path)
    graph = model.graph
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    runner = ReferenceEvaluator(model, new_ops=[Conv, ConvTranspose, MaxPool, AveragePool, Erf, Gelu])
    found = runner.run(None, {graph.input[0].name: image.astype(np.float64)})
    return dict(zip([value.name for value in graph.output], found, strict=True))
