"""What stands between backbone and collapse: layouts, blocks and re-ordered grids. All keep the cells apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model_zoo_fixtures.testbed.nets.graph import OTHER, Feature, Net, Target


def to_tokens(net: Net, x: Feature) -> Feature:
    """`[N, C, h, w]` to `[N, T, C]`."""
    _, channels, rows, columns = x.shape
    if net.dynamic or net.chance(0.3):
        flat = net.node("Reshape", x.name, net.ints(0, channels, -1))
        return net.transpose(Feature(flat, x.labels.reshape(x.shape[0], channels, -1)), 0, 2, 1)
    return net.transpose(net.reshape(x, channels, rows * columns), 0, 2, 1)


def to_map(net: Net, x: Feature, rows: int, columns: int) -> Feature:
    """`[N, T, C]` back to `[N, C, h, w]`."""
    return net.reshape(net.transpose(x, 0, 2, 1), x.shape[-1], rows, columns)


def attention(net: Net, x: Feature, *, mask: bool = False) -> Feature:
    """A transformer block over tokens `[N, T, D]`; `mask` notes its ViT Recipro-CAM as a target."""
    _, tokens, width = x.shape
    heads = net.pick([h for h in (1, 2, 4) if width % h == 0])
    inner = net.norm(x)
    parts = []
    for _ in range(3):
        part = net.node(
            "Reshape", net.linear(inner.name, width, width, 1.5), net.ints(-1, tokens, heads, width // heads)
        )
        parts.append(net.node("Transpose", part, perm=[0, 2, 1, 3]))
    scores = net.node("MatMul", parts[0], net.node("Transpose", parts[1], perm=[0, 1, 3, 2]))
    shares = net.node("Softmax", net.node("Mul", scores, net.scalar((width // heads) ** -0.5)), axis=-1)
    out = net.node("Transpose", net.node("MatMul", shares, parts[2]), perm=[0, 2, 1, 3])
    out = net.linear(net.node("Reshape", out, net.ints(-1, tokens, width)), width, width)
    if mask:
        target = Target((inner, x), net.grid, gaussian=True, unmasked=frozenset({inner.name}))
        net.trunk[:] = [target]
    x = net.point(x, "Add", out)
    y = net.norm(x)
    hidden = net.node("Relu", net.linear(y.name, width, 2 * width))
    return net.point(x, "Add", net.linear(hidden, 2 * width, width))


def transformer(net: Net, x: Feature) -> Feature:
    """To tokens, a position, a block, and back."""
    rows, columns = x.shape[2:]
    tokens = to_tokens(net, x)
    tokens = net.point(tokens, "Add", net.bias(1, *tokens.shape[1:]))
    return to_map(net, attention(net, tokens), rows, columns)


def mixer(net: Net, x: Feature) -> Feature:
    """A residual product over tokens and one over channels (MLP-Mixer)."""
    rows, columns = x.shape[2:]
    tokens = to_tokens(net, x)
    count, width = tokens.shape[1:]
    across = net.node("Transpose", net.norm(tokens).name, perm=[0, 2, 1])
    across = net.node("Transpose", net.linear(across, count, count), perm=[0, 2, 1])
    tokens = net.point(tokens, "Add", across)
    tokens = net.point(tokens, "Add", net.node("Relu", net.linear(net.norm(tokens).name, width, width)))
    return to_map(net, tokens, rows, columns)


def split_heads(net: Net, x: Feature) -> Feature:
    """Channels as heads and back, on tokens: a grid of heads x width for whoever matches numbers."""
    rows, columns = x.shape[2:]
    tokens = to_tokens(net, x)
    count, width = tokens.shape[1:]
    heads = net.pick([h for h in (1, 2, 3, 4, 6, 8) if width % h == 0])
    y = net.point(net.reshape(tokens, count, heads, width // heads), "Relu")
    return to_map(net, net.dense(net.reshape(y, count, width), width), rows, columns)


def windows(net: Net, x: Feature) -> Feature:
    """Channels last, rolled, cut into windows, a layer in each, put back and rolled back (Swin)."""
    _, _, rows, columns = x.shape
    high = net.pick([d for d in (1, 2, 3, 4) if rows % d == 0])
    wide = net.pick([d for d in (1, 2, 3, 4) if columns % d == 0])
    x = net.transpose(x, 0, 2, 3, 1)
    shifts = (high // 2, wide // 2) if net.chance(0.5) else (0, 0)
    for axis, shift in zip((1, 2), shifts, strict=True):
        x = net.roll(x, axis, -shift) if shift else x
    width = x.shape[-1]
    x = net.reshape(x, rows // high, high, columns // wide, wide, width)
    x = net.fold(net.transpose(x, 0, 1, 3, 2, 4, 5), high * wide, width)
    x = attention(net, x) if high * wide > 1 else net.dense(x, width)
    x = net.fold(x, rows // high, columns // wide, high, wide, width)
    x = net.reshape(net.transpose(x, 0, 1, 3, 2, 4, 5), rows, columns, width)
    for axis, shift in zip((1, 2), shifts, strict=True):
        x = net.roll(x, axis, shift) if shift else x
    return net.transpose(x, 0, 3, 1, 2)


def turned(net: Net, x: Feature) -> Feature:
    """Columns before rows from here on."""
    return net.point(net.transpose(x, 0, 1, 3, 2), "Relu")


def mirrored(net: Net, x: Feature) -> Feature:
    """One or both axes backwards from here on."""
    x = net.reverse(x, net.pick([2, 3]))
    return net.reverse(x, 2) if net.chance(0.3) else x


def rolled(net: Net, x: Feature) -> Feature:
    """Shifted by some cells, what falls off coming back on the other side."""
    axis = net.pick([2, 3])
    return net.roll(x, axis, net.pick([1, -1, 2])) if x.shape[axis] > 2 else x


def backwards(net: Net, x: Feature) -> Feature:
    """All tokens in reverse order, a layer on them, as a map: turned by half."""
    rows, columns = x.shape[2:]
    return to_map(net, net.dense(net.reverse(to_tokens(net, x), 1), x.shape[1]), rows, columns)


def shuffled(net: Net, x: Feature) -> Feature:
    """Channels shuffled by groups (ShuffleNet)."""
    _, channels, rows, columns = x.shape
    groups = net.pick([g for g in (1, 2, 3, 4) if channels % g == 0])
    y = net.transpose(net.reshape(x, groups, channels // groups, rows, columns), 0, 2, 1, 3, 4)
    return net.reshape(y, channels, rows, columns)


def scanned(net: Net, x: Feature) -> Feature:
    """Tokens in another order by Gather (column by column, or any), a layer on them; perhaps put back."""
    rows, columns = x.shape[2:]
    tokens = to_tokens(net, x)
    order = np.arange(rows * columns).reshape(rows, columns).T.ravel()
    if net.chance(0.5):
        order = net.rng.permutation(rows * columns)
    tokens = net.dense(net.taken(tokens, 1, order), x.shape[1])
    if net.chance(0.7):
        tokens = net.taken(tokens, 1, np.argsort(order))
    return to_map(net, tokens, rows, columns)


def gated(net: Net, x: Feature) -> Feature:
    """A gate for each place, from the mean of its channels."""
    mean = net.node("ReduceMean", x.name, axes=[1], keepdims=1)
    gate = net.node("Conv", mean, net.weight(1, 1, 3, 3, gain=3.0), pads=[1] * 4)
    return net.point(x, "Mul", net.node("Sigmoid", gate))


def merged(net: Net, x: Feature) -> Feature:
    """Four neighbours joined (Swin's patch merging), where that makes whole cells of a grid half as fine."""
    rows, columns = net.grid
    if any(size % 2 for size in (*net.grid, *x.shape[2:])):
        return x
    coarse = x.labels // columns // 2 * (columns // 2) + x.labels % columns // 2
    parts, labels = [], []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        part = net.node("Slice", x.name, net.ints(row), net.ints(2**62), net.ints(2), net.ints(2))
        parts.append(net.node("Slice", part, net.ints(column), net.ints(2**62), net.ints(3), net.ints(2)))
        labels.append(coarse[:, :, row::2, column::2])
    if any((other != labels[0]).any() for other in labels):
        return x
    net.grid = (rows // 2, columns // 2)
    net.trunk.clear()
    joined = Feature(net.node("Concat", *parts, axis=1), np.concatenate(labels, 1))
    return net.conv(joined, x.shape[1])


def prefixed(net: Net, tokens: Feature, before: int, behind: int = 0) -> Feature:
    """Class tokens and registers, before or behind the patches."""
    parts = [tokens]
    for count, at in ((before, 0), (behind, 1)):
        if count:
            extra = net.bias(1, count, tokens.shape[-1], gain=1.0)
            if net.batch != 1 or len(net.views) > 1:
                ones = net.node("Slice", net.node("Shape", tokens.name), net.ints(0), net.ints(1))
                extra = net.node("Expand", extra, net.node("Concat", ones, net.ints(1, 1), axis=0))
            labels = np.full((tokens.shape[0], count, tokens.shape[-1]), OTHER)
            parts.insert(len(parts) if at else 0, Feature(extra, labels))
    return net.concat(1, *parts)


BODIES: tuple[Callable[[Net, Feature], Feature], ...] = (
    transformer,
    mixer,
    split_heads,
    windows,
    turned,
    mirrored,
    rolled,
    backwards,
    shuffled,
    scanned,
    gated,
    merged,
)
FREE_BODIES = (turned, mirrored, gated)  # with no size in the graph
