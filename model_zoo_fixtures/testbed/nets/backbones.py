"""From the image to a map `[N, C, h, w]` or tokens `[N, T, D]`, with the cell of every element."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model_zoo_fixtures.testbed.nets.graph import Feature, Net

Image = tuple[str, int, int]  # name, rows, columns; three channels first


def _strided(net: Net, x: str, size: tuple[int, int], into: int, out: int) -> tuple[str, tuple[int, int]]:
    """One convolution that shrinks, of the kinds that differ in kernel, stride and padding."""
    kinds = [(3, 2, 1, 1), (2, 2, 0, 0), (3, 2, 0, 1), (5, 2, 2, 2), (3, 1, 1, 1)]
    if not net.frame and not net.dynamic and net.region is None:
        kinds.append((3, 2, 0, 0))
    kernel, stride, before, behind = net.pick(kinds)
    x = net.node(
        "Conv",
        x,
        net.weight(out, into, kernel, kernel, gain=1.4),
        net.bias(out),
        strides=[stride] * 2,
        pads=[before, before, behind, behind],
    )
    rows, columns = ((n + before + behind - kernel) // stride + 1 for n in size)
    return net.node(net.pick(["Relu", "Sigmoid", "Relu", "Tanh"]), x), (rows, columns)


def labelled(net: Net, name: str, channels: int, rows: int, columns: int) -> Feature:
    """A fresh map, cell by cell in the order of the image that the backbone saw."""
    cells = net.cells(rows, columns)
    net.trunk.clear()
    return Feature(name, np.repeat(cells[:, None], channels, 1))


def stack(net: Net, image: Image, channels: int) -> Feature:
    """Strided convolutions of different kernels and paddings."""
    x, size, into = image[0], image[1:], 3
    for out in (6, channels):
        x, size = _strided(net, x, size, into, out)
        into = out
    return labelled(net, x, channels, *size)


def patches(net: Net, image: Image, channels: int) -> Feature:
    """Patch embedding: one convolution whose kernel is its stride, square or not."""
    high, wide = net.pick([(4, 4), (4, 4), (2, 4), (4, 2)])
    rows, columns = image[1] // high, image[2] // wide
    x = net.node(
        "Conv", image[0], net.weight(channels, 3, high, wide, gain=1.4), net.bias(channels), strides=[high, wide]
    )
    return labelled(net, x, channels, rows, columns)


def residual(net: Net, image: Image, channels: int) -> Feature:
    """A stem, a pool and residual convolutions."""
    x, size = _strided(net, image[0], image[1:], 3, channels)
    if net.chance(0.5):
        x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        size = (size[0] // 2, size[1] // 2)
    feature = labelled(net, x, channels, *size)
    for _ in range(net.pick([1, 2])):
        inner = net.conv(net.point(net.conv(feature, channels, 3), "Relu"), channels, 3)
        feature = net.point(net.point(inner, "Add", feature.name), "Relu")
        net.keep(feature)
    return feature


def depthwise(net: Net, image: Image, channels: int) -> Feature:
    """Depthwise and pointwise convolutions, with squeeze and excitation."""
    x, size = _strided(net, image[0], image[1:], 3, channels)
    stride = net.pick([1, 2])
    weight = net.weight(channels, 1, 3, 3, gain=2.0)
    x = net.node("Conv", x, weight, net.bias(channels), group=channels, strides=[stride] * 2, pads=[1] * 4)
    feature = labelled(net, x, channels, *((n - 1) // stride + 1 for n in size))
    feature = net.point(net.conv(feature, channels), "Relu")
    if net.chance(0.5):
        gate = net.node("Conv", net.node("GlobalAveragePool", feature.name), net.weight(channels, channels, 1, 1))
        feature = net.point(feature, "Mul", net.node("Sigmoid", gate))
        net.tag("excitation")
    return feature


def last_channels(net: Net, image: Image, channels: int) -> Feature:
    """Convolutions between transposes, as exporters of channels-last frameworks leave them."""
    x, size, into = image[0], image[1:], 3
    for out in (5, channels):
        x, size = _strided(net, x, size, into, out)
        x = net.node("Transpose", x, perm=[0, 2, 3, 1])
        x = net.node("Transpose", net.node("Add", x, net.bias(out)), perm=[0, 3, 1, 2])
        into = out
    return labelled(net, x, channels, *size)


def focus(net: Net, image: Image, channels: int) -> Feature:
    """Every second row and column as channels (Focus), or the operator for it."""
    x, rows, columns = image
    if net.chance(0.5):
        parts = []
        for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
            part = net.node("Slice", x, net.ints(row), net.ints(2**62), net.ints(2), net.ints(2))
            parts.append(net.node("Slice", part, net.ints(column), net.ints(2**62), net.ints(3), net.ints(2)))
        x = net.node("Concat", *parts, axis=1)
    else:
        x = net.node("SpaceToDepth", x, blocksize=2)
    x, size = _strided(net, x, (rows // 2, columns // 2), 12, channels)
    return labelled(net, x, channels, *size)


def cut_patches(net: Net, image: Image, channels: int) -> Feature:
    """Patches cut by reshape and transpose, embedded by a product, laid out as a map again."""
    x, rows, columns = image
    side = 4
    h, w = rows // side, columns // side
    x = net.node("Reshape", x, net.ints(-1, 3, h, side, w, side))
    order = net.pick([[0, 2, 4, 3, 5, 1], [0, 2, 4, 1, 3, 5]])
    x = net.node("Reshape", net.node("Transpose", x, perm=order), net.ints(-1, h * w, side * side * 3))
    x = net.linear(x, side * side * 3, channels, 1.4)
    x = net.node("Reshape", net.node("Transpose", x, perm=[0, 2, 1]), net.ints(-1, channels, h, w))
    return labelled(net, x, channels, h, w)


BACKBONES: tuple[Callable[[Net, Image, int], Feature], ...] = (
    stack,
    patches,
    residual,
    depthwise,
    last_channels,
    focus,
    cut_patches,
)
FREE_BACKBONES = (stack, patches, residual, depthwise, last_channels)  # with no size in the graph
