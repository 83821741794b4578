"""Small networks built in the test, in both formats, without torch.

Each is written once as an ONNX graph; the OpenVINO variant is what OpenVINO's ONNX reader makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

CHANNELS, CLASSES, SIDE = 6, 5, 12
FORMATS = ("onnx", "openvino")


@dataclass
class Builder:
    """Collects nodes and weights; every method returns the name of a value."""

    batch: int | str = "N"
    opset: int = 17
    dtype: type = np.float32
    size: Sequence[int | str] = (SIDE, SIDE)
    channels: int = 3
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def weight(self, *shape: int, scale: float = 0.5) -> str:
        return self.const(self.rng.normal(0, scale, shape).astype(self.dtype))

    def const(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{kind.lower()}{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def backbone(self, image: str = "image") -> str:
        """Residual convolutions at stride 2: `[N, CHANNELS, 6, 6]`."""
        x = self.node("Conv", image, self.weight(CHANNELS, self.channels, 3, 3), pads=[1] * 4, strides=[2, 2])
        x = self.node("Relu", x)
        y = self.node("Conv", x, self.weight(CHANNELS, CHANNELS, 3, 3), pads=[1] * 4)
        return self.node("Relu", self.node("Add", x, y))

    def linear(self, x: str, width: int, classes: int = CLASSES) -> str:
        return self.node("Gemm", x, self.weight(classes, width), self.weight(classes), transB=1)

    def model(self, *outputs: str, inputs: Sequence[onnx.ValueInfoProto] | None = None) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        image = helper.make_tensor_value_info("image", kind, [self.batch, self.channels, *self.size])
        results = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", [image] if inputs is None else inputs, results, self.weights)
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(name, 1) for name in {node.domain for node in self.nodes} - {""}]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for result, known in zip(model.graph.output, inferred.graph.output, strict=True):
            result.CopyFrom(known)
            if not result.type.tensor_type.elem_type:
                result.type.tensor_type.elem_type = TensorProto.FLOAT
        is_old = tuple(map(int, onnx.__version__.split(".")[:2])) < (1, 19)
        if not (is_old and any(node.op_type == "Loop" for node in self.nodes)):
            onnx.checker.check_model(model)  # those versions want a shape behind a Loop, and do not infer it
        return model


Network = Callable[[Builder], str]


def pooled(kind: str) -> Network:
    """A head that begins with one of ONNX's global pools."""

    def build(b: Builder) -> str:
        return b.linear(b.node("Flatten", b.node(kind, b.backbone())), CHANNELS)

    return build


def reduced(kind: str, *, keepdims: bool) -> Network:
    """A head that begins with a reduction over height and width."""

    def build(b: Builder) -> str:
        x = b.backbone()
        if kind == "ReduceSum" or b.opset >= 18:
            x = b.node(kind, x, b.const(np.array([-1, -2])), keepdims=int(keepdims))
        else:
            x = b.node(kind, x, axes=[-1, -2], keepdims=int(keepdims))
        return b.linear(b.node("Flatten", x) if keepdims else x, CHANNELS)

    return build


def window_pooled(b: Builder) -> str:
    """AveragePool with a kernel as large as the grid."""
    return b.linear(b.node("Flatten", b.node("AveragePool", b.backbone(), kernel_shape=[6, 6])), CHANNELS)


def channels_last(b: Builder) -> str:
    """Normalised and averaged with channels last, as Swin does."""
    x = b.node("Transpose", b.backbone(), perm=[0, 2, 3, 1])
    x = b.node("LayerNormalization", x, b.weight(CHANNELS), b.weight(CHANNELS), axis=-1)
    return b.linear(b.node("ReduceMean", x, axes=[1, 2], keepdims=0), CHANNELS)


def norm_of_a_map(b: Builder) -> str:
    """Channels put last for a norm and first again for the pool, as CoAtNet and PVT do."""
    x = b.node("Transpose", b.backbone(), perm=[0, 2, 3, 1])
    x = b.node("LayerNormalization", x, b.weight(CHANNELS), b.weight(CHANNELS), axis=-1)
    x = b.node("Transpose", x, perm=[0, 3, 1, 2])
    return b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), CHANNELS)


def tokens(b: Builder) -> str:
    """Mean over tokens, as MLP-Mixer does; then a norm and the classifier."""
    x = b.node("Reshape", b.backbone(), b.const(np.array([0, CHANNELS, -1])))
    x = b.node("Transpose", x, perm=[0, 2, 1])
    x = b.node("Add", b.node("MatMul", x, b.weight(CHANNELS, CHANNELS)), b.weight(CHANNELS))
    x = b.node("ReduceMean", x, axes=[1], keepdims=0)
    x = b.node("LayerNormalization", x, b.weight(CHANNELS), b.weight(CHANNELS), axis=-1)
    return b.linear(x, CHANNELS)


def tokens_as_map(b: Builder) -> str:
    """Mean over tokens laid out as a map of one row, as torch's one-dimensional adaptive pool may be exported."""
    x = b.node("Transpose", b.node("Reshape", b.backbone(), b.const(np.array([0, CHANNELS, -1]))), perm=[0, 2, 1])
    x = b.node("Add", b.node("MatMul", x, b.weight(CHANNELS, CHANNELS)), b.weight(CHANNELS))
    x = b.node("Unsqueeze", b.node("Transpose", x, perm=[0, 2, 1]), b.const(np.array([2])))
    return b.linear(b.node("ReduceMean", x, axes=[2, 3], keepdims=0), CHANNELS)


def average_and_maximum(*, joined: bool) -> Network:
    """Both pools, concatenated or added and halved."""

    def build(b: Builder) -> str:
        x = b.backbone()
        mean, top = b.node("GlobalAveragePool", x), b.node("GlobalMaxPool", x)
        if joined:
            return b.linear(b.node("Flatten", b.node("Concat", mean, top, axis=1)), 2 * CHANNELS)
        both = b.node("Mul", b.node("Add", mean, top), b.const(np.array(0.5, b.dtype)))
        return b.linear(b.node("Flatten", both), CHANNELS)

    return build


def generalised_mean(b: Builder) -> str:
    """GeM: the mean of a power, and its root."""
    x = b.node("Clip", b.backbone(), b.const(np.array(1e-6, b.dtype)))
    x = b.node("GlobalAveragePool", b.node("Pow", x, b.const(np.array(3.0, b.dtype))))
    x = b.node("Pow", x, b.const(np.array(1 / 3, b.dtype)))
    return b.linear(b.node("Flatten", x), CHANNELS)


def flattened(b: Builder) -> str:
    """VGG: flatten, two linear layers."""
    x = b.linear(b.node("Flatten", b.backbone()), CHANNELS * 36, 8)
    return b.linear(b.node("Relu", x), 8)


def flattened_matmul(b: Builder) -> str:
    """Flatten with channels last, then MatMul and Add, as TensorFlow writes it."""
    x = b.node("Transpose", b.backbone(), perm=[0, 2, 3, 1])
    x = b.node("LayerNormalization", x, b.weight(CHANNELS), b.weight(CHANNELS), axis=-1)
    x = b.node("Reshape", x, b.const(np.array([-1, 36 * CHANNELS])))
    return b.node("Add", b.node("MatMul", x, b.weight(36 * CHANNELS, CLASSES)), b.weight(CLASSES))


def grid_convolution(b: Builder) -> str:
    """A valid convolution as large as the grid, then 1x1 convolutions, then a flatten."""
    x = b.node("Conv", b.backbone(), b.weight(8, CHANNELS, 6, 6), b.weight(8))
    x = b.node("Conv", b.node("Relu", x), b.weight(CLASSES, 8, 1, 1), b.weight(CLASSES))
    return b.node("Flatten", x)


def hidden_convolution(b: Builder) -> str:
    """MobileNetV3: pool, 1x1 convolution, activation, classifier."""
    x = b.node("GlobalAveragePool", b.backbone())
    x = b.node("HardSwish", b.node("Conv", x, b.weight(8, CHANNELS, 1, 1), b.weight(8)))
    return b.linear(b.node("Flatten", x), 8)


def class_convolution(b: Builder) -> str:
    """SqueezeNet: the classifier is a convolution before the pool."""
    x = b.node("Relu", b.node("Conv", b.backbone(), b.weight(CLASSES, CHANNELS, 1, 1), b.weight(CLASSES)))
    return b.node("Flatten", b.node("GlobalAveragePool", x))


def two_heads(b: Builder) -> str:
    """LeViT: two classifiers on one pooled vector, averaged."""
    x = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
    both = b.node("Add", b.linear(x, CHANNELS), b.linear(x, CHANNELS))
    return b.node("Div", both, b.const(np.array(2.0, b.dtype)))


def batch_in_reshape(b: Builder) -> str:
    """The dynamo exporter: the batch stands as a constant in a reshape, around a gather that does nothing."""
    x = b.node("GlobalAveragePool", b.backbone())
    assert isinstance(b.batch, int)
    x = b.node("Reshape", x, b.const(np.array([b.batch * CHANNELS])))
    x = b.node("Gather", x, b.const(np.arange(b.batch * CHANNELS).reshape(b.batch, CHANNELS, 1, 1)), axis=0)
    return b.linear(b.node("Reshape", x, b.const(np.array([b.batch, CHANNELS]))), CHANNELS)


def batch_from_image(b: Builder) -> str:
    """The legacy exporter: a reshape reads the batch off the image."""
    x = b.node("GlobalAveragePool", b.backbone())
    batch = b.node("Gather", b.node("Shape", "image"), b.const(np.array([0])), axis=0)
    shape = b.node("Concat", batch, b.const(np.array([-1])), axis=0)
    return b.linear(b.node("Reshape", x, shape), CHANNELS)


def attention_pooled(b: Builder) -> str:
    """A learned query attends over the grid: no closed form."""
    x = b.node("Reshape", b.backbone(), b.const(np.array([0, CHANNELS, -1])))
    x = b.node("Transpose", x, perm=[0, 2, 1])
    scores = b.node("MatMul", x, b.weight(CHANNELS, 1))
    share = b.node("Softmax", scores, axis=1)
    x = b.node("MatMul", b.node("Transpose", share, perm=[0, 2, 1]), x)
    return b.linear(b.node("Squeeze", x, b.const(np.array([1]))), CHANNELS)


def einsum_layer(b: Builder) -> str:
    """The last layer written as Einsum, whose result is the model's output."""
    x = b.node("Flatten", b.node("GlobalAveragePool", b.backbone()))
    return b.node("Einsum", x, b.weight(CLASSES, CHANNELS), equation="bd,kd->bk")


CLOSED: dict[str, Network] = {
    "global average pool": pooled("GlobalAveragePool"),
    "global max pool": pooled("GlobalMaxPool"),
    "mean, keepdims": reduced("ReduceMean", keepdims=True),
    "mean": reduced("ReduceMean", keepdims=False),
    "max": reduced("ReduceMax", keepdims=False),
    "sum": reduced("ReduceSum", keepdims=False),
    "window": window_pooled,
    "channels last": channels_last,
    "norm of a map": norm_of_a_map,
    "tokens": tokens,
    "tokens as a map": tokens_as_map,
    "average and maximum joined": average_and_maximum(joined=True),
    "average and maximum added": average_and_maximum(joined=False),
    "generalised mean": generalised_mean,
    "flatten": flattened,
    "flatten, channels last": flattened_matmul,
    "grid convolution": grid_convolution,
    "hidden convolution": hidden_convolution,
    "class convolution": class_convolution,
    "two heads": two_heads,
    "batch from image": batch_from_image,
    "einsum layer": einsum_layer,
}
STATIC: dict[str, Network] = {"batch in reshape": batch_in_reshape}
MASKED: dict[str, Network] = {"attention": attention_pooled}


def classifier(network: Network, **settings: Any) -> onnx.ModelProto:
    """An ONNX classifier."""
    b = Builder(**settings)
    return b.model(network(b))


def as_format(model: onnx.ModelProto, kind: str) -> Any:
    """The model as the object of a format's library."""
    return model if kind == "onnx" else ov.Core().read_model(model.SerializeToString())


def with_reader(model: onnx.ModelProto, kind: str, folder: Path) -> tuple[Any, Callable[[Any], ov.Model]]:
    """What `insert` is given, and how OpenVINO is given what it makes: an IR, or an ONNX file."""
    if kind == "openvino":
        return as_format(model, "openvino"), lambda made: made

    def read(made: onnx.ModelProto) -> ov.Model:
        onnx.save(made, folder / "model.onnx")
        return ov.Core().read_model(folder / "model.onnx")

    return model, read
