"""Heads of one convolution each over a grid of 8 x 8 cells, flattened to rows, and what detectors of them give."""

import numpy as np
import onnx

from model_zoo_fixtures.testbed import oracle
from model_zoo_fixtures.testbed.models import Builder
from xai_insert import Options, insert

GRID = 8


def small(**options):
    return Builder(batch=1, size=(2 * GRID, 2 * GRID), **options)


def conv(b, x, width):
    return b.node("Conv", x, b.weight(width, 6, 1, 1), b.weight(width))


def flat(b, x, width):
    """`[1, A * width, h, w]` to rows `[1, h * w * A, width]`."""
    return b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.const(np.array([1, -1, width], np.int64)))


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


def decoded(b, x):
    """Boxes around their locations."""
    return b.node("Exp", x)
