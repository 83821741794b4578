"""Models of key points built by hand: heat maps, what is read off them, and bins."""

from __future__ import annotations

import numpy as np
import onnx

from model_zoo_fixtures.testbed import models

JOINTS, HEIGHT, WIDTH = 5, 64, 48


def ints(b, *values):
    return b.const(np.array(values, np.int64))


def conv(b, x, count, side=1, **more):
    pads = [side // 2] * 4
    return b.node("Conv", x, b.weight(count, models.CHANNELS, side, side), b.weight(count), pads=pads, **more)


def feature(b, stride=4):
    x = b.backbone()
    while stride > 2:
        x = b.node("Relu", conv(b, x, models.CHANNELS, 3, strides=[2, 2]))
        stride //= 2
    return x


def flat(b, maps):
    return b.node("Reshape", maps, ints(b, 0, JOINTS, -1))


def grid(b):
    return b.size[0] // 4, b.size[1] // 4


def hrnet(b):
    """Heat maps at a quarter of an upright image."""
    maps = conv(b, feature(b), JOINTS)
    return maps, [maps]


def with_sigmoid(b):
    maps = b.node("Sigmoid", conv(b, feature(b), JOINTS))
    return maps, [maps]


def simple_baseline(b):
    """The grid is widened by a transposed convolution."""
    widened = b.node(
        "ConvTranspose", feature(b, 8), b.weight(models.CHANNELS, models.CHANNELS, 4, 4), strides=[2, 2], pads=[1] * 4
    )
    maps = conv(b, b.node("Relu", widened), JOINTS)
    return maps, [maps]


def greatest(b):
    """Coordinates of the greatest place and its score, as exports with their decoder give."""
    maps = flat(b, conv(b, feature(b), JOINTS))
    place, wide = b.node("ArgMax", maps, axis=2, keepdims=0), b.const(np.int64(grid(b)[1]))
    parts = [b.node("Div", place, wide), b.node("Mod", place, wide)]
    parts = [b.node("Cast", part, to=onnx.TensorProto.FLOAT) for part in parts]
    parts.append(b.node("ReduceMax", maps, axes=[2], keepdims=0))
    return maps, [b.node("Concat", *(b.node("Unsqueeze", part, ints(b, 2)) for part in parts), axis=2)]


def movenet(b):
    """The greatest place of each map, weighed by how near it is to the centre of one person; channels last."""
    height, width = grid(b)
    x = feature(b)
    centre = b.node("Reshape", b.node("Sigmoid", conv(b, x, 1)), ints(b, 0, -1))
    person = b.node("ArgMax", centre, axis=1, keepdims=0)
    wide = b.const(np.int64(width))
    at = [b.node("Cast", b.node(kind, person, wide), to=onnx.TensorProto.FLOAT) for kind in ("Div", "Mod")]
    rows, columns = np.mgrid[:height, :width].reshape(2, 1, -1).astype(np.float32)
    apart = [
        b.node("Sub", b.const(line), b.node("Unsqueeze", place, ints(b, 1)))
        for line, place in zip((rows, columns), at, strict=True)
    ]
    distance = b.node("Sqrt", b.node("Add", *(b.node("Mul", part, part) for part in apart)))
    weight = b.node("Unsqueeze", b.node("Add", distance, b.const(np.float32(1.8))), ints(b, 2))
    last = b.node("Transpose", b.node("Sigmoid", conv(b, x, JOINTS)), perm=[0, 2, 3, 1])
    maps = b.node("Div", b.node("Reshape", last, ints(b, 0, height * width, JOINTS)), weight)
    best = b.node("ArgMax", maps, axis=1, keepdims=0)
    parts = [b.node("Cast", b.node(kind, best, wide), to=onnx.TensorProto.FLOAT) for kind in ("Div", "Mod")]
    return maps, [b.node("Concat", *(b.node("Unsqueeze", part, ints(b, 1, 3)) for part in parts), axis=3)]


def mean_place(b):
    """Integral pose: a softmax over all places, and the mean of their coordinates."""
    height, width = grid(b)
    maps = b.node("Softmax", flat(b, conv(b, feature(b), JOINTS)), axis=2)
    places = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2).astype(np.float32)
    return maps, [b.node("MatMul", maps, b.const(places))]


def centre_and_offsets(b):
    """CenterNet's and MoveNet's heads as they are, decoded elsewhere."""
    x = feature(b)
    maps = b.node("Sigmoid", conv(b, x, JOINTS))
    heads = [b.node("Sigmoid", conv(b, x, 1)), conv(b, x, 2), conv(b, x, 2 * JOINTS), conv(b, x, 2)]
    return maps, [*heads, maps]


NETWORKS = {
    item.__name__: item
    for item in (hrnet, with_sigmoid, simple_baseline, greatest, movenet, mean_place, centre_and_offsets)
}


def build(name, size=(HEIGHT, WIDTH), **more):
    b = models.Builder(size=size, **more)
    maps, outputs = NETWORKS[name](b)
    return b.model(*outputs), maps


def simcc(b, per_pixel=2, softmax=False, order=(0, 1)):
    """RTMPose's head: each joint's map as a token, bins along columns and rows."""
    x = conv(b, feature(b, 8), JOINTS, 7)
    tokens = b.node("MatMul", flat(b, x), b.weight(b.size[0] // 8 * (b.size[1] // 8), 16, scale=0.02))
    shared = b.node("Relu", tokens)
    bins = [b.node("MatMul", shared, b.weight(16, per_pixel * side, scale=0.1)) for side in (b.size[1], b.size[0])]
    outputs = [b.node("Softmax", one, axis=2) for one in bins] if softmax else bins
    return bins, [outputs[index] for index in order]
