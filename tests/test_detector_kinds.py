"""Kinds of heads and outputs that are easily mistaken: the right class scores, in NumPy from the heads, or a refusal."""

import numpy as np
import onnx
import pytest

from tests import detection_oracle, oracle
from tests.models import Builder
from xai_insert import Options, errors, insert

GRID = 8


def small(**options):
    return Builder(batch=1, size=(2 * GRID, 2 * GRID), **options)


def conv(b, x, width):
    return b.node("Conv", x, b.weight(width, 6, 1, 1), b.weight(width))


def flat(b, x, width):
    """`[1, A * width, h, w]` to rows `[1, h * w * A, width]`."""
    return b.node(
        "Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.const(np.array([1, -1, width], np.int64))
    )


def image():
    return np.random.default_rng(3).standard_normal((1, 3, 2 * GRID, 2 * GRID), dtype=np.float32)


def watched(model, names):
    """Values of the plain model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    outputs = oracle.run(copy, image())
    return [outputs[name] for name in names]


def maps(model, **options):
    return oracle.run(insert(model, Options(output_dtype="f32", **options)).model, image())["saliency_map"]


def dense(kind):
    """Networks that give something for every place."""
    b = small()
    x = conv(b, b.backbone(), 5 if kind.startswith("argmax") else 1)
    axis = b.const(np.array([1], np.int64))
    if kind == "depth":
        return b.model(b.node("Squeeze", b.node("Relu", x), axis))
    if kind == "mask":
        return b.model(b.node("Squeeze", b.node("Sigmoid", x), axis))
    if kind == "mask_map":
        return b.model(b.node("Sigmoid", x))
    return b.model(b.node("Cast", b.node("ArgMax", x, axis=1, keepdims=0), to=onnx.TensorProto.FLOAT))


@pytest.mark.parametrize(
    ("kind", "said"), [("depth", "depth"), ("mask", "mask"), ("mask_map", "mask"), ("argmax_float", "segmenter")]
)
def test_values_for_every_place_are_no_detections(kind, said):
    with pytest.raises(errors.UnsupportedTaskError, match=said):
        insert(dense(kind))


@pytest.mark.parametrize(("width", "said"), [(3, "key points"), (40, "text")])
def test_rows_without_classes_are_no_detections(width, said):
    b = small()
    x = b.linear(b.node("Flatten", b.node("GlobalAveragePool", b.backbone())), 6, 7 * width)
    with pytest.raises(errors.UnsupportedTaskError, match=said):
        insert(b.model(b.node("Reshape", x, b.const(np.array([1, 7, width], np.int64)))))
