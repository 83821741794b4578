"""What a graph may do to the image before its backbone, and where the map lies then."""

from __future__ import annotations

from model_zoo_fixtures.testbed.nets.backbones import Image
from model_zoo_fixtures.testbed.nets.graph import Net


def prepared(net: Net, rows: int, columns: int) -> tuple[Image, tuple[int, ...]]:
    """The image that the backbone sees, and the sizes of the model's input."""
    kind = net.pick(["last", "flip", "flip", "turn", "turn", "roll", "crop", "crop", "pad", "normalised"])
    net.tag(f"image {kind}")
    if kind == "last":
        return (net.node("Transpose", "image", perm=[0, 3, 1, 2]), rows, columns), (rows, columns, 3)
    sizes = (3, rows, columns)
    if kind == "normalised":
        x = net.node("Sub", "image", net.bias(1, 3, 1, 1))
        return (net.node("Mul", x, net.scalar(0.8)), rows, columns), sizes
    if kind == "flip":
        return (_flipped(net, "image"), rows, columns), sizes
    if kind == "turn":
        net.frame.append(("turn", 0))
        x = net.node("Transpose", "image", perm=[0, 1, 3, 2])
        return (_flipped(net, x) if net.chance(0.5) else x, columns, rows), sizes
    if kind == "roll":
        axis = net.pick([0, 1])
        net.frame.append(("roll", axis))
        half = (rows, columns)[axis] // 2
        parts = [
            net.node("Slice", "image", net.ints(start), net.ints(stop), net.ints(2 + axis))
            for start, stop in ((half, 2 * half), (0, half))
        ]
        return (net.node("Concat", *parts, axis=2 + axis), rows, columns), sizes
    net.refusal_ok = True
    top, left, down, right = (net.pick([0, 4, 8, 16]) for _ in range(4))
    high, wide = rows + top + down, columns + left + right
    if not top + left + down + right:
        top, high = 8, rows + 8
    if kind == "crop":
        x = net.node("Slice", "image", net.ints(top, left), net.ints(top + rows, left + columns), net.ints(2, 3))
        net.region = (top / high, left / wide, (top + rows) / high, (left + columns) / wide)
        return (x, rows, columns), (3, high, wide)
    x = net.node("Pad", "image", net.ints(0, 0, top, left, 0, 0, down, right))
    net.region = (-top / rows, -left / columns, (high - top) / rows, (wide - left) / columns)
    return (x, high, wide), sizes


def _flipped(net: Net, x: str) -> str:
    axis = net.pick([0, 1])
    net.frame.append(("flip", axis))
    return net.node("Slice", x, net.ints(-1), net.ints(-(2**62)), net.ints(2 + axis), net.ints(-1))
