"""What one image costs a model by arithmetic: multiplications, weights that are read, values that are moved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xai_insert.formats.backend import load
from xai_insert.graph.operators import Product, Regroup, Window
from xai_insert.graph.view import Node, Op, Value


@dataclass(frozen=True)
class Work:
    """Of one run with a batch as the file has it, or of one image where the batch is open.

    Attributes:
        flops: two for each multiplication of convolutions, matrix products and attention.
        weights: bytes of stored operands, once for each layer that reads them.
        values: bytes that layers read and write beside them, reshapes left out.
    """

    flops: int = 0
    weights: int = 0
    values: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.weights + other.weights, self.values + other.values)

    def __sub__(self, other: Work) -> Work:
        return Work(self.flops - other.flops, self.weights - other.weights, self.values - other.values)

    @property
    def bytes(self) -> int:
        """All that is moved."""
        return self.weights + self.values


def work_of(path: Path) -> Work:
    """Count a model file. Runtimes merge layers, so that what they move is less; more for neither of two models."""
    graph = load(path, {}).view()
    opened = {value.name: value.sizes for value in graph.inputs if None in value.sizes}
    if opened:  # or an axis of images and positions would count as one of each
        graph = load(path, {name: tuple(size or 1 for size in sizes) for name, sizes in opened.items()}).view()
    return sum(map(_work, graph.nodes), Work())


def bound(plain: Work, inserted: Work) -> float:
    """Time of `inserted` over that of `plain`, if what was added goes at the rate of what was there."""
    added = inserted - plain
    return 1 + max(added.flops / plain.flops, added.bytes / plain.bytes)


def _work(node: Node) -> Work:
    if isinstance(node.kind, Regroup):
        return Work()
    moved = sum(_bytes(value) for value in (*node.computed, *node.outputs))
    return Work(_flops(node), sum(_bytes(value) for value in node.stored), moved)


def _flops(node: Node) -> int:
    if node.op is Op.CONV and isinstance(node.kind, Window):
        data = node.read(0) if node.kind.transposed else node.output
        return 2 * _elements(data) * _elements(node.read(1)) // (data.sizes[1] or 1)
    if node.op is Op.MATMUL:
        left = node.read(0).sizes
        is_turned = isinstance(node.kind, Product) and node.kind.transpose_a
        return 2 * _elements(node.output) * ((left[-2] if is_turned else left[-1]) or 1)
    if node.op is Op.ATTENTION:
        return 2 * (node.read(1).sizes[-2] or 1) * (_elements(node.read(0)) + _elements(node.output))
    return 0


def _elements(value: Value) -> int:
    return math.prod(1 if size is None else size for size in value.shape or ())


def _bytes(value: Value) -> int:
    width = 2 if value.dtype == "bfloat16" else np.dtype(value.dtype).itemsize
    return _elements(value) * width
