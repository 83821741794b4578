"""Models in the forms in which they are deployed, made from the bundled trained ones without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import openvino.opset13 as opset
import pytest
from onnx import TensorProto, helper, numpy_helper
from openvino.preprocess import ColorFormat, PrePostProcessor, ResizeAlgorithm

from model_zoo_fixtures.shapes.dataset import classification_scene

_INTEGER = ("QLinear", "QGemm", "QAttention", "DynamicQuantizeM", "DynamicQuantizeL", "MatMulNBits")

SHAPES = Path(__file__).parents[1] / "shapes"
HELD_OUT = 1_000_000
SIZE = 96


def scenes(count: int, first: int = HELD_OUT) -> np.ndarray:
    """Images of the bundled models, float32 `[count, 3, 96, 96]`."""
    return np.concatenate([classification_scene(first + index).model_input() for index in range(count)])


def plain(name: str, suffix: str) -> Any:
    """A bundled model, `onnx.ModelProto` or `ov.Model`."""
    path = SHAPES / f"{name}{suffix}"
    return onnx.load(path) if suffix == ".onnx" else ov.Core().read_model(path)


class Calibration:
    """Images `[1, 3, h, w]` for onnxruntime's static quantisation, the last first."""

    def __init__(self, images: Iterable[np.ndarray], name: str = "image") -> None:
        self._left = [{name: image} for image in images]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None

    def set_range(self, start_index: int, end_index: int) -> None:
        """Wanted by onnxruntime's interface."""


def quantised(
    model: str | onnx.ModelProto,
    path: Path,
    *,
    per_channel: bool = True,
    qdq: bool = True,
    ignored: Sequence[str] = (),
) -> onnx.ModelProto:
    """Static INT8 by onnxruntime, QDQ or QOperator, of a bundled model or one in memory."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(SHAPES / f"{model}.onnx") if isinstance(model, str) else model,
        str(path),
        Calibration(scenes(24, 5000)[:, None]),
        nodes_to_exclude=list(ignored),
        quant_format=QuantFormat.QDQ if qdq else QuantFormat.QOperator,
        per_channel=per_channel,
        activation_type=QuantType.QInt8 if per_channel else QuantType.QUInt8,
    )
    return onnx.load(path)


def runs_since(*version: int) -> bool:
    """Whether onnxruntime is of this version at least."""
    return tuple(map(int, ort.__version__.split(".")[:2])) >= version


def dynamically_quantised(name: str, path: Path, *, per_channel: bool = False) -> onnx.ModelProto:
    """Dynamic INT8 by onnxruntime."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if per_channel and not runs_since(1, 24):
        pytest.skip("onnxruntime convolves with signed integer weights from 1.24 on")
    kind = QuantType.QInt8 if per_channel else QuantType.QUInt8
    quantize_dynamic(str(SHAPES / f"{name}.onnx"), str(path), weight_type=kind, per_channel=per_channel)
    return onnx.load(path)


def weights_quantised(name: str) -> onnx.ModelProto:
    """Weights in INT8, channel by channel, dequantised where they are read; activations in float32."""
    model: onnx.ModelProto = plain(name, ".onnx")
    model.opset_import[0].version = max(model.opset_import[0].version, 13)
    stored = {item.name: item for item in model.graph.initializer}
    for node in list(model.graph.node):
        tensor = stored.get(node.input[1]) if node.op_type in ("MatMul", "Gemm", "Conv") else None
        if tensor is None:
            continue
        weight = numpy_helper.to_array(tensor)
        axis = weight.ndim - 1 if node.op_type == "MatMul" else 0
        others = tuple(index for index in range(weight.ndim) if index != axis)
        scale = np.abs(weight).max(others, keepdims=True) / 127
        parts = {"bytes": np.rint(weight / scale).astype(np.int8), "scale": scale.reshape(-1).astype(np.float32)}
        names = [f"{tensor.name}_{part}" for part in parts]
        model.graph.initializer.extend(map(numpy_helper.from_array, parts.values(), names))
        node.input[1] = f"{tensor.name}_float"
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", names, [node.input[1]], axis=axis))
        model.graph.initializer.remove(tensor)
    return model


def halved(name: str) -> onnx.ModelProto:
    """float16 inside, float32 at its borders."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: onnx.ModelProto = convert_float_to_float16(plain(name, ".onnx"), keep_io_types=True)
    return converted


def brain_halved(name: str) -> onnx.ModelProto:
    """bfloat16 inside, float32 at its borders."""
    model: onnx.ModelProto = plain(name, ".onnx")
    tensors = [*model.graph.initializer]
    for node in model.graph.node:
        tensors += [attribute.t for attribute in node.attribute if attribute.type == onnx.AttributeProto.TENSOR]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.BFLOAT16
        for names, old, new in ((node.input, "image", "image_half"), (node.output, "logits", "logits_half")):
            names[:] = [new if name == old else name for name in names]
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            content = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16).tobytes()
            dims, tensor_name = list(tensor.dims), tensor.name
            tensor.Clear()
            tensor.MergeFrom(TensorProto(name=tensor_name, data_type=TensorProto.BFLOAT16, dims=dims, raw_data=content))
    del model.graph.value_info[:]
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["image_half"], to=TensorProto.BFLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["logits_half"], ["logits"], to=TensorProto.FLOAT))
    return model


def resized_input(model: Any, sizes: Sequence[int | str]) -> Any:
    """Another shape of the input: an int fixes a size, a name leaves it open."""
    if isinstance(model, ov.Model):
        model.reshape([-1 if isinstance(size, str) else size for size in sizes])
        return model
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
        dim.Clear()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size
    for dim in model.graph.output[0].type.tensor_type.shape.dim[:1]:
        dim.Clear()
        dim.dim_param = "rows"
    del model.graph.value_info[:]
    return model


def channels_last(model: Any) -> Any:
    """An input `[N, H, W, 3]` of bytes."""
    if isinstance(model, ov.Model):
        steps = PrePostProcessor(model)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        return steps.build()
    for node in model.graph.node:
        node.input[:] = ["image_floats" if name == "image" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["image_cast"], to=TensorProto.FLOAT))
    transpose = helper.make_node("Transpose", ["image_cast"], ["image_floats"], perm=[0, 3, 1, 2])
    model.graph.node.insert(1, transpose)
    given = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    model.graph.input[0].CopyFrom(given)
    del model.graph.value_info[:]
    return model


def preprocessing_alone() -> ov.Model:
    """The steps of `preprocessed`, with their result as output."""
    image = opset.parameter([1, 3, SIZE, SIZE], ov.Type.f32)
    return preprocessed(ov.Model([opset.result(opset.multiply(image, np.float32(1)))], [image]))


def preprocessed(model: ov.Model) -> ov.Model:
    """Bytes, channels last, another size and order of channels: converted, scaled and resized in the graph."""
    steps = PrePostProcessor(model)
    tensor = steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    tensor.set_color_format(ColorFormat.BGR).set_spatial_static_shape(120, 160)
    steps.input().model().set_layout(ov.Layout("NCHW"))
    chain = steps.input().preprocess().convert_element_type(ov.Type.f32).convert_color(ColorFormat.RGB)
    chain.resize(ResizeAlgorithm.RESIZE_LINEAR).mean([1.0, 2.0, 3.0]).scale([1.5, 1.0, 1.0])
    return steps.build()


def with_metadata_input(model: Any) -> Any:
    """A second input `[N, 8]` that is added to the logits."""
    if isinstance(model, ov.Model):
        extra = opset.parameter([-1, 8], ov.Type.f32, name="bias")
        extra.output(0).set_names({"bias"})
        logits = model.get_results()[0].input_value(0)
        total = opset.add(logits, extra)
        total.output(0).set_names({"total"})
        return ov.Model([opset.result(total)], [*model.get_parameters(), extra])
    model.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["batch", 8]))
    model.graph.node.append(helper.make_node("Add", ["logits", "bias"], ["total"]))
    model.graph.output[0].name = "total"
    return model


def integer_kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Types of the integer operations that onnxruntime makes of a model's own layers, and how many."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdqisint8allowed", "1")  # or signed activations are float32 on x64
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    own = [node for node in onnx.load(folder / "optimised.onnx").graph.node if not node.name.startswith("xai/")]
    return Counter(node.op_type for node in own if "Integer" in node.op_type or node.op_type.startswith(_INTEGER))
