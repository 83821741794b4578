"""What ends the grid, and what comes behind it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model_zoo_fixtures.testbed.nets.bodies import to_tokens
from model_zoo_fixtures.testbed.nets.graph import Feature, Net

Vector = tuple[str, int]  # name and width of a value [N, width]


# --- collapses of a map [N, C, h, w]


def average(net: Net, x: Feature) -> Vector:
    kind = net.pick(["op", "reduce"] if net.dynamic else ["op", "reduce", "window"])
    if kind == "reduce":
        return net.reduce("ReduceMean", x.name, net.pick([[2, 3], [-1, -2], [3, 2]])), x.shape[1]
    if kind == "window":
        pooled = net.node("AveragePool", x.name, kernel_shape=list(x.shape[2:]))
        return net.node("Flatten", pooled), x.shape[1]
    return net.node("Flatten", net.node("GlobalAveragePool", x.name)), x.shape[1]


def maximum(net: Net, x: Feature) -> Vector:
    return net.node("Flatten", net.node("GlobalMaxPool", x.name)), x.shape[1]


def axis_by_axis(net: Net, x: Feature) -> Vector:
    """Rows first, then columns, or the other way."""
    kind = net.pick(["ReduceMean", "ReduceMean", "ReduceSum"])
    first = net.pick([2, 3])
    if net.chance(0.5):
        return net.reduce(kind, net.reduce(kind, x.name, [first]), [2]), x.shape[1]
    kept = net.reduce(kind, x.name, [first], keepdims=True)
    return net.reduce(kind, kept, [2, 3]), x.shape[1]


def total(net: Net, x: Feature) -> Vector:
    cells = net.scalar(1 / 40)
    return net.node("Mul", net.reduce("ReduceSum", x.name, [2, 3]), cells), x.shape[1]


def flattened(net: Net, x: Feature) -> Vector:
    width = int(np.prod(x.shape[1:]))
    return net.linear(net.node("Flatten", x.name), width, 12), 12


def power_mean(net: Net, x: Feature) -> Vector:
    """GeM."""
    clipped = net.point(x, "Clip", net.scalar(1e-3))
    net.keep(clipped)
    powers = net.point(clipped, "Pow", net.scalar(3.0))
    net.keep(powers)
    y = net.node("GlobalAveragePool", powers.name)
    return net.node("Flatten", net.node("Pow", y, net.scalar(1 / 3))), x.shape[1]


def joined(net: Net, x: Feature) -> Vector:
    """Mean and maximum side by side."""
    both = [net.node("GlobalAveragePool", x.name), net.node("GlobalMaxPool", x.name)]
    return net.node("Flatten", net.node("Concat", *both, axis=1)), 2 * x.shape[1]


def last_mean(net: Net, x: Feature) -> Vector:
    """Channels last, then a norm and the mean of rows and columns, together or one by one."""
    y = net.transpose(x, 0, 2, 3, 1)
    if net.chance(0.5):
        y = net.norm(y)
    net.keep(y)
    if net.chance(0.5):
        return net.reduce("ReduceMean", y.name, [1, 2]), x.shape[1]
    return net.reduce("ReduceMean", net.reduce("ReduceMean", y.name, [net.pick([1, 2])]), [1]), x.shape[1]


def token_mean(net: Net, x: Feature) -> Vector:
    kind = net.pick(["ReduceMean", "ReduceMean", "ReduceMax"])
    y = to_tokens(net, x)
    net.keep(y)
    if net.chance(0.5):
        y = net.norm(y)
        net.keep(y)
    return net.reduce(kind, y.name, [1]), x.shape[1]


def channel_tokens_mean(net: Net, x: Feature) -> Vector:
    """`[N, D, T]`, mean over the last axis."""
    y = net.reshape(x, x.shape[1], int(np.prod(x.shape[2:])))
    net.keep(y)
    return net.reduce("ReduceMean", y.name, [2]), x.shape[1]


def sequence_pool(net: Net, x: Feature) -> Vector:
    """Tokens weighted by a softmax over them of a learned layer (CCT)."""
    y = net.norm(to_tokens(net, x))
    net.keep(y)
    shares = net.node("Softmax", net.linear(y.name, x.shape[1], 1), axis=1)
    pooled = net.node("MatMul", net.node("Transpose", shares, perm=[0, 2, 1]), y.name)
    return net.node("Squeeze", pooled, net.ints(1)), x.shape[1]


def query_pool(net: Net, x: Feature) -> Vector:
    """Attention by one learned query."""
    y = net.norm(to_tokens(net, x))
    net.keep(y)
    width = x.shape[1]
    keys = net.node("Transpose", net.linear(y.name, width, width), perm=[0, 2, 1])
    shares = net.node("Softmax", net.node("MatMul", net.weight(1, 1, width, gain=2.0), keys), axis=-1)
    return net.node("Squeeze", net.node("MatMul", shares, net.linear(y.name, width, width)), net.ints(1)), width


def bilinear(net: Net, x: Feature) -> Vector:
    """Products of all pairs of channels, summed over the grid (B-CNN)."""
    cells, channels = int(np.prod(x.shape[2:])), x.shape[1]
    y = net.reshape(x, channels, cells)
    net.keep(y)
    gram = net.node("MatMul", y.name, net.transpose(y, 0, 2, 1).name)
    return net.node("Flatten", net.node("Mul", gram, net.scalar(1 / cells))), channels * channels


def log_sum(net: Net, x: Feature) -> Vector:
    """The logarithm of the sum of exponentials, each as a step of its own."""
    powers = net.point(x, "Exp")
    net.keep(powers)
    return net.node("Log", net.reduce("ReduceSum", powers.name, [2, 3])), x.shape[1]


def pyramid(net: Net, x: Feature) -> Vector:
    """Pools of the whole and of parts, side by side (spatial pyramid)."""
    rows, columns = x.shape[2:]
    sizes = [(rows, columns), *((rows // 2, columns // 2) for _ in [0] if not rows % 2 and not columns % 2)]
    kind = net.pick(["AveragePool", "MaxPool"])
    pools = [net.node("Flatten", net.node(kind, x.name, kernel_shape=[*s], strides=[*s])) for s in sizes]
    width = x.shape[1] * (1 if len(sizes) == 1 else 5)
    return (net.node("Concat", *pools, axis=1) if len(pools) > 1 else pools[0]), width


def stripes(net: Net, x: Feature) -> Vector:
    """Rows pooled in a few parts, a layer on each, and their mean (part-based models)."""
    rows, columns = x.shape[2:]
    high = net.pick([d for d in (1, 2, 3, 4) if rows % d == 0])
    y = net.node("AveragePool", x.name, kernel_shape=[high, columns], strides=[high, columns])
    y = net.node("Relu", net.node("Conv", y, net.weight(10, x.shape[1], 1, 1), net.bias(10)))
    return net.reduce("ReduceMean", y, [2, 3]), 10


COLLAPSES: tuple[Callable[[Net, Feature], Vector], ...] = (
    average,
    average,
    maximum,
    axis_by_axis,
    total,
    flattened,
    power_mean,
    joined,
    last_mean,
    token_mean,
    channel_tokens_mean,
    sequence_pool,
    query_pool,
    bilinear,
    log_sum,
    pyramid,
    stripes,
)
FREE_COLLAPSES = (average, maximum, axis_by_axis, total, power_mean, joined, last_mean, token_mean, sequence_pool)


# --- heads on a vector


def linear(net: Net, x: Vector, classes: int) -> str:
    return net.linear(*x, classes, 2.0)


def perceptron(net: Net, x: Vector, classes: int) -> str:
    return net.linear(net.node(net.pick(["Relu", "Tanh"]), net.linear(*x, 9, 2.0)), 9, classes)


def ensemble(net: Net, x: Vector, classes: int) -> str:
    """Members side by side, averaged: as one layer, or as stored products."""
    members, width = net.pick([2, 4, 9]), x[1]
    if net.chance(0.6):
        order = net.pick([0, 1])
        sizes = (members, classes) if order == 0 else (classes, members)
        y = net.node("Reshape", net.linear(*x, members * classes, 2.0), net.ints(-1, *sizes))
        return net.reduce("ReduceMean", y, [1 + order])
    y = net.node("Unsqueeze", x[0], net.ints(1, 2))
    y = net.node("MatMul", y, net.weight(members, width, classes, gain=2.0 * width**0.5))
    return net.reduce("ReduceMean", net.node("Squeeze", y, net.ints(2)), [1])


def voted(net: Net, x: Vector, classes: int) -> str:
    """Members whose probabilities are averaged."""
    members = net.pick([2, 4, 9])
    y = net.node("Reshape", net.linear(*x, members * classes, 3.0), net.ints(-1, members, classes))
    return net.reduce("ReduceMean", net.node("Softmax", y, axis=-1), [1])


def experts(net: Net, x: Vector, classes: int) -> str:
    """A mixture of experts, weighted by a gate."""
    members = net.pick([2, 4, 9, 16])
    gate = net.node("Softmax", net.linear(*x, members, 2.0), axis=-1)
    each = net.node("Reshape", net.linear(*x, members * classes, 2.0), net.ints(-1, members, classes))
    return net.reduce("ReduceSum", net.node("Mul", each, net.node("Unsqueeze", gate, net.ints(2))), [1])


def capsules(net: Net, x: Vector, classes: int) -> str:
    """The length of a vector for each class."""
    size = net.pick([4, 9, 16])
    y = net.node("Reshape", net.linear(*x, classes * size, 2.0), net.ints(-1, classes, size))
    if net.chance(0.5):
        return net.reduce("ReduceL2", y, [2])
    return net.node("Sqrt", net.reduce("ReduceSum", net.node("Mul", y, y), [2]))


def dropped(net: Net, x: Vector, classes: int) -> str:
    """Samples with stored dropout masks, averaged."""
    samples = net.pick([4, 9, 16])
    kept = net.const((2 * (net.rng.random((1, samples, x[1])) > 0.5)).astype(np.float32))
    y = net.linear(net.node("Mul", net.node("Unsqueeze", x[0], net.ints(1)), kept), x[1], classes, 2.0)
    return net.reduce("ReduceMean", y, [1])


def distance(net: Net, x: Vector, classes: int) -> str:
    """Minus the squared distance to a prototype of each class."""
    y = net.node("Sub", net.node("Unsqueeze", x[0], net.ints(1)), net.bias(1, classes, x[1]))
    y = net.node("Mul", y, y) if net.chance(0.5) else net.node("Pow", y, net.scalar(2.0))
    return net.node("Neg", net.reduce("ReduceSum", y, [2]))


def cosine(net: Net, x: Vector, classes: int) -> str:
    """The angle to a stored direction of each class."""
    length = net.node("Add", net.reduce("ReduceL2", x[0], [1], keepdims=True), net.scalar(1e-2))
    return net.node("MatMul", net.node("Div", x[0], length), net.weight(x[1], classes, gain=3.0))


HEADS: tuple[Callable[[Net, Vector, int], str], ...] = (
    linear,
    linear,
    perceptron,
    ensemble,
    voted,
    experts,
    capsules,
    dropped,
    distance,
    cosine,
)


# --- both at once: from a map [N, C, h, w] to scores


def class_queries(net: Net, x: Feature, classes: int) -> str:
    """A query for each class (Query2Label): attention, then a product and a sum over channels."""
    tokens = net.norm(to_tokens(net, x))
    net.keep(tokens)
    width = x.shape[1]
    keys = net.linear(tokens.name, width, width) if net.chance(0.5) else tokens.name
    values = net.linear(tokens.name, width, width) if net.chance(0.5) else tokens.name
    queries = net.weight(1, classes, width, gain=2.0)
    shares = net.node("Softmax", net.node("MatMul", queries, net.node("Transpose", keys, perm=[0, 2, 1])), axis=-1)
    y = net.node("MatMul", shares, values)
    if net.chance(0.5):
        y = net.node("Add", y, queries)
    y = net.reduce("ReduceSum", net.node("Mul", y, net.bias(1, classes, width, gain=1.0)), [2])
    return net.node("Add", y, net.bias(classes))


def class_map(net: Net, x: Feature, classes: int) -> str:
    """Scores at each place, then their mean, mean and maximum (CSRA), or mean weighted by a softmax over places."""
    y = net.conv(x, classes)
    net.keep(y)
    kind = net.pick(["mean", "csra", "softmax"])
    if kind == "mean":
        return net.node("Flatten", net.node("GlobalAveragePool", y.name))
    if kind == "csra":
        top = net.node("Mul", net.node("GlobalMaxPool", y.name), net.scalar(0.4))
        return net.node("Flatten", net.node("Add", net.node("GlobalAveragePool", y.name), top))
    flat = net.reshape(y, classes, int(np.prod(y.shape[2:])))
    net.keep(flat)
    weighted = net.point(net.point(flat, "Softmax", axis=2), "Mul", flat.name)
    net.keep(weighted)
    return net.reduce("ReduceSum", weighted.name, [2])


WHOLE_HEADS: tuple[Callable[[Net, Feature, int], str], ...] = (class_queries, class_map)
