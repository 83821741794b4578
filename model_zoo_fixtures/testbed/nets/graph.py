"""A builder of ONNX graphs that carries along which cell of the image's grid each element of a value belongs to.

A `Feature` is the name of a value and an integer array of its shape, `labels`: the cell `row * width + column` of the
map in the frame of the image, `OTHER` for what belongs to no cell (class tokens, registers). Whatever only moves
elements (reshape, transpose, slice, roll, concat) is done to the labels as well, by NumPy. The labels' first axis is
what stands for one image, 1 except for windows and views folded into the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
OTHER = -1


@dataclass(frozen=True)
class Feature:
    """A value with places: its name, and the cell of each of its elements."""

    name: str
    labels: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.labels.shape

    def channels(self, axis: int) -> int:
        return self.shape[axis]

    def widened(self, name: str, axis: int, channels: int) -> Feature:
        """The same places with other channels."""
        return Feature(name, np.repeat(self.labels.take([0], axis), channels, axis))


@dataclass(frozen=True)
class Target:
    """Values that are masked together, and how: each cell alone, or a neighbourhood of 3x3.

    Attributes:
        features: what is multiplied by a mask.
        grid: rows and columns of the map, in the frame of the image.
        gaussian: whether a sample keeps the neighbourhood of a cell, as ViT Recipro-CAM does.
        keeps_others: whether what belongs to no cell stays.
        unmasked: names of values whose nodes go on reading the unmasked values.
    """

    features: tuple[Feature, ...]
    grid: tuple[int, int]
    gaussian: bool = False
    keeps_others: bool = True
    unmasked: frozenset[str] = frozenset()


@dataclass
class Net:
    """Collects nodes and weights, and what is right.

    Attributes:
        rng: where all choices and weights come from.
        batch: the declared one: a name, or a number.
        trunk: what may be masked for a right map.
        tags: the kinds of parts.
        region: see `Sample`.
        refusal_ok: see `Sample`.
        grid: rows and columns of the last map, in the frame of the image.
        frame: what was done to the image before the backbone.
        views: the axes along which each view of the image in the batch is flipped.
        dynamic: whether the image's sides are free, so that no size may be written into the graph.
    """

    rng: np.random.Generator
    batch: int | str = 1
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    trunk: list[Target] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    region: tuple[float, float, float, float] | None = None
    refusal_ok: bool = False
    grid: tuple[int, int] = (0, 0)
    frame: list[tuple[str, int]] = field(default_factory=list)
    views: list[tuple[int, ...]] = field(default_factory=lambda: [()])
    dynamic: bool = False

    # --- choices

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def tag(self, text: str) -> None:
        self.tags.append(text)

    # --- nodes

    def const(self, array: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return self.const((gain * self.rng.standard_normal(shape) / np.sqrt(max(fan, 1))).astype(np.float32))

    def bias(self, *shape: int, gain: float = 0.3) -> str:
        return self.const((gain * self.rng.standard_normal(shape)).astype(np.float32))

    def scalar(self, value: float) -> str:
        return self.const(np.float32(value))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def reduce(self, kind: str, x: str, axes: Sequence[int], *, keepdims: bool = False) -> str:
        """A reduction, with its axes where operator set 17 wants them."""
        if kind == "ReduceSum":
            return self.node(kind, x, self.ints(*axes), keepdims=int(keepdims))
        return self.node(kind, x, axes=list(axes), keepdims=int(keepdims))

    def linear(self, x: str, width: int, out: int, gain: float = 1.0) -> str:
        """A linear layer on the last axis, any rank."""
        return self.node("Add", self.node("MatMul", x, self.weight(width, out, gain=gain)), self.bias(out))

    # --- what moves elements

    def reshape(self, x: Feature, *sizes: int) -> Feature:
        """To `[batch or what stands for it, *sizes]`; a first size of `sizes` other than 0 or -1 is not allowed."""
        labels = x.labels.reshape(x.shape[0], *sizes)
        lead = 0 if self.dynamic or self.chance(0.5) else -1
        return Feature(self.node("Reshape", x.name, self.ints(lead, *sizes)), labels)

    def fold(self, x: Feature, *sizes: int) -> Feature:
        """Reshape that folds what stands before `sizes` into the first axis, or takes it out again."""
        return Feature(self.node("Reshape", x.name, self.ints(-1, *sizes)), x.labels.reshape(-1, *sizes))

    def transpose(self, x: Feature, *perm: int) -> Feature:
        return Feature(self.node("Transpose", x.name, perm=list(perm)), x.labels.transpose(perm))

    def cut(self, x: Feature, axis: int, start: int, stop: int, step: int = 1) -> Feature:
        name = self.node("Slice", x.name, *(self.ints(v) for v in (start, stop, axis, step)))
        index = [slice(None)] * x.labels.ndim
        index[axis] = slice(start, stop if stop >= 0 or step > 0 else None, step)
        return Feature(name, x.labels[tuple(index)])

    def reverse(self, x: Feature, axis: int) -> Feature:
        return self.cut(x, axis, -1, -(2**62), -1)

    def concat(self, axis: int, *parts: Feature) -> Feature:
        name = self.node("Concat", *(part.name for part in parts), axis=axis)
        return Feature(name, np.concatenate([part.labels for part in parts], axis))

    def roll(self, x: Feature, axis: int, shift: int) -> Feature:
        size = x.shape[axis]
        split = (size - shift) % size
        return self.concat(axis, self.cut(x, axis, split, size), self.cut(x, axis, 0, split))

    def taken(self, x: Feature, axis: int, order: Array) -> Feature:
        """Elements in another order, by Gather."""
        return Feature(self.node("Gather", x.name, self.const(order), axis=axis), x.labels.take(order, axis))

    # --- what keeps places

    def cells(self, rows: int, columns: int) -> Array:
        """`[views, rows, columns]`: the cells of a fresh grid, in the order that the backbone saw them.

        What was done to the image before (`frame`: `flip`, `turn` or `roll` with an axis, a roll always by half) is
        done to the cells as well.
        """
        turns = sum(kind == "turn" for kind, _ in self.frame) % 2
        self.grid = (columns, rows) if turns else (rows, columns)
        cells = np.arange(rows * columns).reshape(self.grid)
        for kind, axis in self.frame:
            if kind == "turn":
                cells = cells.T
            elif kind == "flip":
                cells = np.flip(cells, axis)
            else:
                cells = np.roll(cells, cells.shape[axis] // 2, axis)
        return np.stack([np.flip(cells, view) for view in self.views])

    def point(self, x: Feature, kind: str, *others: str, **attributes: Any) -> Feature:
        """An elementwise operation, or any other that leaves places and channels alone."""
        return replace(x, name=self.node(kind, x.name, *others, **attributes))

    def dense(self, x: Feature, out: int, gain: float = 1.0) -> Feature:
        """A linear layer on the last axis."""
        return x.widened(self.linear(x.name, x.shape[-1], out, gain), x.labels.ndim - 1, out)

    def norm(self, x: Feature) -> Feature:
        """A layer norm over the last axis."""
        size = x.shape[-1]
        scale = self.const((1 + 0.1 * self.rng.standard_normal(size)).astype(np.float32))
        return self.point(x, "LayerNormalization", scale, self.bias(size, gain=0.1), axis=-1)

    def conv(self, x: Feature, out: int, kernel: int = 1, group: int = 1) -> Feature:
        """A convolution that keeps the grid."""
        weight = self.weight(out, x.shape[1] // group, kernel, kernel, gain=1.4)
        pads = [kernel // 2] * 4
        return x.widened(self.node("Conv", x.name, weight, self.bias(out), pads=pads, group=group), 1, out)

    def keep(self, *features: Feature) -> None:
        """Note values through which every path goes: masking them is a right answer."""
        self.trunk.append(Target(features, self.grid))

    # --- the model

    def model(self, output: str, image: Sequence[int | str], result: Sequence[int | str]) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [self.batch, *image])]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [self.batch, *result])]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model
