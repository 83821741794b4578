"""Sizes that an ONNX file declares of its values although the values have others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from xai_insert.graph.view import Shape

if TYPE_CHECKING:
    import onnx

_IMAGE_RANK = 4
_ODD = (3, 320, 352, 416)
"""Sizes by axis, at which layers of usual strides come out even: of a batch, and of the sides of an image."""


def forget_declared(model: ir.Model) -> None:
    """Drop what a model declares of the sizes of its values, by which onnxruntime computes in advance."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = value.shape if value.is_graph_output() else None


def contradict(inferred: Mapping[str, Shape], declared: Mapping[str, Shape]) -> bool:
    """Whether values have other sizes than those that are declared, where both are known."""
    return any(name in declared and _differ(shape, declared[name]) for name, shape in inferred.items())


def _differ(inferred: Shape, declared: Shape) -> bool:
    pairs = zip(inferred, declared, strict=False)
    return len(inferred) != len(declared) or any(a != b and None not in (a, b) for a, b in pairs)


def at_odd_sizes(light: onnx.ModelProto) -> onnx.ModelProto | None:
    """The message with sizes that nobody exports a model for where those of its inputs are open; None if none is."""
    import onnx  # noqa: PLC0415 - see `maps`

    twin = onnx.ModelProto()
    twin.CopyFrom(light)
    opened = [pair for value in twin.graph.input for pair in _open_sizes(value.type.tensor_type.shape.dim)]
    for axis, size in opened:
        size.dim_value = _ODD[min(axis, len(_ODD) - 1)]
    return twin if opened else None


def _open_sizes(sizes: Sequence[onnx.TensorShapeProto.Dimension]) -> list[tuple[int, onnx.TensorShapeProto.Dimension]]:
    """The open sizes of an image, or the batch of another input, with their axes."""
    every = [(axis, size) for axis, size in enumerate(sizes) if not size.HasField("dim_value")]
    return every if len(sizes) >= _IMAGE_RANK else [pair for pair in every if pair[0] == 0]
