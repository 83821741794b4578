"""Anomaly detectors built by hand: what the best known families leave in a graph, and what looks like them."""

from __future__ import annotations

import numpy as np
import onnx

from model_zoo_fixtures.testbed import models

SIDE, CELLS = 32, 8


def feature(b):
    """`[N, 8, 8, 8]`."""
    x = b.node("Conv", b.backbone(), b.weight(8, models.CHANNELS, 3, 3), pads=[1] * 4, strides=[2, 2])
    return b.node("Relu", x)


def resized(b, x, times=4.0):
    scales = b.const(np.array([1, 1, times, times], np.float32))
    return b.node("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")


def squared(b, x):
    return b.node("Mul", x, x)


def ints(b, *values):
    return b.const(np.array(values, np.int64))


def number(b, value):
    return b.const(np.float32(value))


def distance(b, x, keepdims=1):
    """Mean square of the difference to what is normal at each place, as PaDiM with a diagonal covariance."""
    normal = b.const(b.rng.random((1, 8, CELLS, CELLS)).astype(np.float32))
    return b.node("ReduceMean", squared(b, b.node("Sub", x, normal)), axes=[1], keepdims=keepdims)


def greatest(b, x, keepdims=0):
    return b.node("ReduceMax", x, axes=[1, 2, 3], keepdims=keepdims)


def four(b, maps, score, threshold=0.8):
    label, mask = b.node("Greater", score, number(b, threshold)), b.node("Greater", maps, number(b, threshold))
    return [score, label, maps, mask]


def padim(b):
    maps = resized(b, distance(b, feature(b)))
    return four(b, maps, greatest(b, maps)), maps, 0.8


def smoothed(b):
    """A blur behind the resize, and numbers moved so that the threshold becomes 0.5, cut off at 0 and 1."""
    maps = resized(b, distance(b, feature(b)))
    blur = b.const(np.full((1, 1, 3, 3), 1 / 9, np.float32))
    raw = b.node("Conv", maps, blur, pads=[1] * 4)

    def normal(x):
        share = b.node("Div", b.node("Sub", x, number(b, 0.7)), number(b, 1.5))
        return b.node("Clip", b.node("Add", share, number(b, 0.5)), number(b, 0), number(b, 1))

    maps = normal(raw)
    return four(b, maps, normal(greatest(b, raw)), 0.5), maps, 0.5


def nearest(b, x):
    """`[B, cells]`: each patch's distance to the nearest of a bank."""
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1]), ints(b, -1, 8))
    bank = b.rng.random((10, 8)).astype(np.float32)
    product = b.node("MatMul", x, b.const(bank.T.copy()))
    squares = b.node("ReduceSum", squared(b, x), ints(b, 1), keepdims=1)
    both = b.node("Sub", b.node("Add", squares, b.const((bank**2).sum(1))), b.node("Mul", product, number(b, 2)))
    return b.node("Reshape", b.node("ReduceMin", both, axes=[1], keepdims=0), ints(b, -1, CELLS * CELLS))


def patchcore(b):
    """The score is the greatest of the patches' distances, of its own neighbourhood."""
    patches = nearest(b, feature(b))
    score = b.node("ReduceMax", patches, axes=[1], keepdims=0)
    maps = resized(b, b.node("Reshape", patches, ints(b, -1, 1, CELLS, CELLS)))
    return four(b, maps, b.node("Mul", score, number(b, 0.5))), maps, 0.8


def student_and_teacher(b):
    """Products of the distances at two scales, `[N, H, W]`, as STFPM and reverse distillation have it."""
    x = feature(b)
    fine = b.node("Relu", b.node("Conv", b.backbone(), b.weight(8, models.CHANNELS, 1, 1)))
    student = b.node("Relu", b.node("Conv", fine, b.weight(8, 8, 3, 3), pads=[1] * 4))
    first = b.node("ReduceSum", squared(b, b.node("Sub", fine, student)), ints(b, 1), keepdims=1)
    both = b.node("Mul", resized(b, first, 2.0), resized(b, distance(b, x)))
    maps = b.node("Squeeze", both, ints(b, 1))
    score = b.node("ReduceMax", maps, axes=[1, 2], keepdims=0)
    return [maps, b.node("Unsqueeze", score, ints(b, 1))], maps, None


def three_levels(b):
    """Distances at strides 4, 8 and 16, laid over the image corners on corners and added up: reverse distillation."""
    x, maps = feature(b), None
    for level in range(3):
        if level:
            x = b.node("Relu", b.node("Conv", x, b.weight(8, 8, 3, 3), pads=[1] * 4, strides=[2, 2]))
        student = b.node("Relu", b.node("Conv", x, b.weight(8, 8, 3, 3), pads=[1] * 4))
        apart = b.node("ReduceSum", squared(b, b.node("Sub", x, student)), ints(b, 1), keepdims=1)
        scales = b.const(np.array([1, 1, 4 << level, 4 << level], np.float32))
        laid = b.node("Resize", apart, "", scales, mode="linear", coordinate_transformation_mode="align_corners")
        weighed = b.node("Mul", laid, b.const(np.float32(0.05**level)))
        maps = weighed if maps is None else b.node("Add", maps, weighed)
    return [greatest(b, maps), maps], maps, None


def without_channels(b):
    """A map that never had an axis of channels, and the score beside it."""
    x = feature(b)
    maps = distance(b, x, keepdims=0)
    score = b.node("ReduceMax", maps, axes=[1, 2], keepdims=0)
    return [score, maps, b.node("Greater", score, number(b, 0.8))], maps, 0.8


def channels_last(b):
    maps = b.node("Transpose", resized(b, distance(b, feature(b))), perm=[0, 2, 3, 1])
    return four(b, maps, greatest(b, maps)), maps, 0.8


def mask_alone(b):
    """The map is compared and not given; labels are bytes."""
    maps = resized(b, distance(b, feature(b)))
    mask = b.node("Cast", b.node("Less", number(b, 0.8), maps), to=onnx.TensorProto.UINT8)
    return [greatest(b, maps), mask], maps, 0.8


def below_zero(b):
    """A log-likelihood, of which the threshold is negative."""
    maps = resized(b, b.node("Neg", distance(b, feature(b))))
    return four(b, maps, greatest(b, maps), -0.5), maps, -0.5


def averaged(b):
    """Squared differences at each place, and their mean as the score, as an autoencoder's."""
    maps = distance(b, feature(b))
    return [maps, b.node("ReduceMean", b.node("Flatten", maps), axes=[1], keepdims=0)], maps, None


NETWORKS = {
    item.__name__: item
    for item in (
        padim, smoothed, patchcore, student_and_teacher, three_levels, without_channels, channels_last, mask_alone,
        below_zero, averaged,
    )
}  # fmt: skip


def build(name, **more):
    b = models.Builder(size=(SIDE, SIDE), **more)
    outputs, maps, threshold = NETWORKS[name](b)
    return b.model(*outputs), maps, threshold


def of_pooled(b):
    """The squared distance of the pooled feature, one number `[N]` for each image, as DFM's."""
    x = feature(b)
    pooled = b.node("Flatten", b.node("GlobalAveragePool", x))
    apart = b.node("Sub", pooled, b.weight(1, 8))
    return b.node("ReduceSum", squared(b, apart), ints(b, 1), keepdims=0), x


def of_greatest(b):
    maps = distance(b, feature(b))
    return greatest(b, maps), maps


def of_nearest(b):
    """PatchCore without its map."""
    x = feature(b)
    return b.node("ReduceMax", nearest(b, x), axes=[1], keepdims=0), x


def of_linear(b):
    x = feature(b)
    return b.node("Squeeze", b.linear(b.node("Flatten", b.node("GlobalAveragePool", x)), 8, 1), ints(b, 1)), x
