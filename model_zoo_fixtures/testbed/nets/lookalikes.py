"""Models whose outputs look like those of a detector, and none is: there is no class map that is right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model_zoo_fixtures.testbed.nets.detector_oracle import Sample
from model_zoo_fixtures.testbed.nets.finishing import SEGMENTATION, sample
from model_zoo_fixtures.testbed.nets.graph import Net
from model_zoo_fixtures.testbed.nets.pyramids import Grid, convolved, pyramid

_BOX = 4


def _start(net: Net, stride: int = 8) -> tuple[Grid, tuple[int, int]]:
    net.batch = net.pick([1, "N"])
    sides = net.pick([(64, 96), (64, 64), (32, 64)])
    return pyramid(net, *sides, 1, net.pick([8, 12]), stride)[0], sides


def _map(net: Net, grid: Grid, channels: int) -> str:
    x = convolved(net, grid.name, grid.channels, grid.channels, 3, "Relu")
    return convolved(net, x, grid.channels, channels, 1)


def _larger(net: Net, x: str) -> str:
    return net.node("Resize", x, "", net.const(np.array([1, 1, 2, 2], np.float32)), mode="linear")


def _pooled(net: Net, grid: Grid) -> str:
    return net.node("ReduceMean", grid.name, axes=[2, 3], keepdims=0)


def depth_and_pose(net: Net, seed: int) -> Sample:
    """A map of depth, and six numbers of the camera's pose, which may be explained like those of a classifier."""
    grid, sides = _start(net)
    pose = net.linear(_pooled(net, grid), grid.channels, net.pick([4, 6, 7]))
    depth = net.node(net.pick(["Sigmoid", "Relu", "Softplus"]), _map(net, grid, 1))
    outputs = [_larger(net, depth), net.node("Unsqueeze", pose, net.ints(1)) if net.chance(0.5) else pose]
    return sample(net, seed, sides, outputs if net.chance(0.5) else outputs[::-1], tasks=("classification",))


def text(net: Net, seed: int) -> Sample:
    """Letters along a line, `[N, columns, letters]`."""
    grid, sides = _start(net)
    line = net.node("Transpose", net.node("ReduceMean", grid.name, axes=[2], keepdims=0), perm=[0, 2, 1])
    letters = net.linear(line, grid.channels, net.pick([4, 5, 6, 12]))
    return sample(net, seed, sides, [net.node("Softmax", letters, axis=2) if net.chance(0.5) else letters])


def key_points(net: Net, seed: int) -> Sample:
    """Coordinates of joints, `[N, joints, 2 to 4]`, of the whole image."""
    grid, sides = _start(net)
    joints, width = net.pick([4, 5, 17]), net.pick([2, 3, 4, 4])
    x = net.linear(_pooled(net, grid), grid.channels, joints * width)
    outputs = [net.node("Reshape", x, net.ints(0, joints, width))]
    if net.chance(0.5):
        outputs.append(net.node("Sigmoid", net.linear(_pooled(net, grid), grid.channels, joints)))
        outputs[1] = net.node("Reshape", outputs[1], net.ints(0, joints, 1))
    return sample(net, seed, sides, outputs)


def heat_maps(net: Net, seed: int) -> Sample:
    """One map for each joint, raw or not."""
    grid, sides = _start(net)
    maps = _larger(net, _map(net, grid, net.pick([4, 5, 17])))
    return sample(net, seed, sides, [net.node("Sigmoid", maps) if net.chance(0.3) else maps], tasks=(SEGMENTATION,))


def segmenter(net: Net, seed: int) -> Sample:
    """Raw scores of each pixel, their softmax, or the best class `[N, H, W]`; now and then an auxiliary map."""
    grid, sides = _start(net)
    maps = _map(net, grid, net.pick([2, 4, 5, 8]))
    is_enlarged = net.chance(0.6)
    maps = _larger(net, maps) if is_enlarged else maps
    kind = net.pick(["raw", "raw", "Softmax", "best"])
    first = maps if kind == "raw" else net.node("Softmax", maps, axis=1)
    if kind == "best":
        first = net.node("ArgMax", maps, axis=1, keepdims=0)
    outputs = [first]
    if net.chance(0.4):
        width = net.pick([1, 4, 5])
        is_detector = kind == "Softmax" and width == _BOX and not is_enlarged  # as a detector of one level has them
        outputs.append(_map(net, grid, 1 if is_detector else width))
    return sample(net, seed, sides, outputs, tasks=(SEGMENTATION,))


def several_maps(net: Net, seed: int) -> Sample:
    """Depth, normals or flow, and masks, each of its own head."""
    grid, sides = _start(net)
    depth = net.node("Sigmoid", _map(net, grid, 1))
    outputs = [net.node("Squeeze", depth, net.ints(1)) if net.chance(0.5) else depth]
    outputs.append(_map(net, grid, net.pick([2, 3])))
    if net.chance(0.6):
        outputs.append(net.node("Sigmoid", _map(net, grid, net.pick([1, 3, 5]))))
    return sample(net, seed, sides, outputs, tasks=(SEGMENTATION,))


def descriptors(net: Net, seed: int) -> Sample:
    """Points and a unit vector for each cell."""
    grid, sides = _start(net)
    points = net.node("Softmax", _map(net, grid, net.pick([5, 17])), axis=1)
    vectors = _map(net, grid, net.pick([4, 8, 16]))
    length = net.node("ReduceL2", vectors, axes=[1], keepdims=1)
    return sample(net, seed, sides, [points, net.node("Div", vectors, length)])


LOOKALIKES: tuple[Callable[[Net, int], Sample], ...] = (
    depth_and_pose,
    text,
    key_points,
    heat_maps,
    segmenter,
    several_maps,
    descriptors,
)
