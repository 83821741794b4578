"""Maps of the best classes of each image alone, so that the output stays small whatever the number of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from xai_insert.graph.operators import Product
from xai_insert.graph.ops import Size, Surgeon, V
from xai_insert.graph.view import Node, Op, Shape, Value, fixed, number_of, volume
from xai_insert.methods.shaping import reshape, scalar


@dataclass(frozen=True)
class ClassChoice(Generic[V]):
    """The classes whose maps are wanted.

    Attributes:
        indices: int64 `[B, K]`.
        count: K.
    """

    indices: V
    count: int


def best_classes(surgeon: Surgeon[V], logits: Value, classes: int, count: int) -> ClassChoice[V]:
    """The `count` classes of the largest logits of each image, the best first; all of them if there are fewer."""
    op = surgeon.ops
    count = min(count, classes)
    return ClassChoice(op.largest(op.reshape(surgeon.handle(logits), [-1, classes]), count), count)


def named_classes(surgeon: Surgeon[V], logits: Value, classes: int, wanted: Sequence[int]) -> ClassChoice[V]:
    """The classes that a user named, the same for each image."""
    op = surgeon.ops
    rows = op.reshape(surgeon.handle(logits), [-1, classes])
    nothing = op.largest(op.slice(rows, 1, 0, 1), 1)  # the index of the only one is 0: `[B, 1]`, whatever the batch
    numbers = op.add(op.cast(nothing, "float32"), op.constant(np.array([wanted], np.float32)))  # `Ops` adds floats
    return ClassChoice(op.cast(numbers, "int64"), len(wanted))


@dataclass(frozen=True)
class LastLayer:
    """The linear layer that gives the logits.

    Attributes:
        node: the product.
        source: what it reads, `[B, C]`.
        weight: `[C, K]`, or `[K, C]` where `is_transposed`.
        bias: `[K]`, or with leading axes of size 1; None if there is none.
        is_transposed: whether the classes come first in the weight.
    """

    node: Node
    source: Value
    weight: Value
    bias: Value | None
    is_transposed: bool


def last_layer(surgeon: Surgeon[V], logits: Value, classes: int) -> LastLayer | None:
    """The linear layer behind `logits`, if nothing but its bias stands between; None otherwise.

    Scores of a few classes are then products with a few rows of its weight. Not where the layer reads what was
    quantised: OpenVINO computes the whole layer in integers, and fails on a part of it.
    """
    node, bias = _without_bias(logits.producer, classes)
    node = _without_factor(node)
    if node is None or not isinstance(node.kind, Product) or node.kind.transpose_a:
        return None
    if _is_rounded(surgeon, node.read(0)):
        return None
    own = node.operand(2)
    if own is not None and bias is not None:
        return None
    layer = LastLayer(node, node.read(0), node.read(1), own or bias, node.kind.transpose_b)
    return layer if _is_plain(layer, classes) else None


def _is_plain(layer: LastLayer, classes: int) -> bool:
    """Whether weight and bias are stored, with a column and a number for each class."""
    weight, bias = layer.weight, layer.bias
    if not weight.is_constant or weight.rank != 2 or layer.source.rank != 2 or layer.node.record(Product).is_scaled:
        return False
    if bias is not None and not (bias.is_constant and volume(bias.sizes) == classes):
        return False
    return weight.sizes[0 if layer.is_transposed else 1] == classes


def _without_bias(node: Node | None, classes: int) -> tuple[Node | None, Value | None]:
    """What an addition of one number for each class adds to, and those numbers; any other node as it is."""
    if node is None or node.op is not Op.ADD:
        return node, None
    constants = node.stored
    others = node.computed
    if len(constants) != 1 or len(others) != 1 or constants[0].sizes[-1:] != (classes,):
        return None, None
    return others[0].producer, constants[0]


def _without_factor(node: Node | None) -> Node | None:
    """What is multiplied by 1, as OpenVINO's reader writes a Gemm; any other node as it is."""
    if node is None or node.op is not Op.MUL or len(node.stored) != 1:
        return node
    return node.computed[0].producer if number_of(node.stored[0]) == 1 else node


def _is_rounded(surgeon: Surgeon[V], source: Value) -> bool:
    """Whether a quantiser gave the value, or what was pooled or reshaped to it."""
    before = source.producer
    while before is not None and before.op in (Op.RESHAPE, Op.REDUCE) and not surgeon.rounds(before):
        operand = before.operand(0)
        before = None if operand is None else operand.producer
    return before is not None and surgeon.rounds(before)


def chosen_scores(
    surgeon: Surgeon[V], layer: LastLayer, choice: ClassChoice[V], rows: V, sizes: Sequence[Size], classes: int
) -> V:
    """Scores `[B, K, P]` of the chosen classes alone.

    Args:
        surgeon: the model being edited.
        layer: the layer that gives the logits.
        choice: the classes.
        rows: what the layer reads, one row per image and position, `[B*P, C]`.
        sizes: B and P; -1 for one that is to be inferred.
        classes: number of all classes.
    """
    op = surgeon.ops
    width = fixed(layer.weight.sizes)[1 if layer.is_transposed else 0]
    weight = surgeon.handle(layer.weight)
    if not layer.is_transposed:
        weight = op.transpose(weight, (1, 0))
    chosen = op.gather(weight, choice.indices)
    scores = op.matmul_transposed(chosen, reshape(op, rows, [*sizes, width]), 3)
    if layer.bias is None:
        return scores
    bias = op.gather(op.reshape(surgeon.handle(layer.bias), [classes]), choice.indices)
    return op.add(scores, op.reshape(bias, [-1, choice.count, 1]))


def choose_maps(surgeon: Surgeon[V], maps: V, choice: ClassChoice[V], shape: Shape) -> V:
    """The maps `[B, K, h, w]` of the chosen classes out of those of all.

    A product with rows of one 1 each: a gather that differs between the images of a batch has no form that every
    version of both formats knows.

    Args:
        surgeon: the model being edited.
        maps: the maps of all classes.
        choice: the classes.
        shape: `[B, classes, h, w]`, sizes of `maps`; the number of classes is known.
    """
    op = surgeon.ops
    (classes,), sides = fixed(shape[1:2]), shape[2:]
    if None in sides:
        batch, *open_sides = (op.size(maps, axis) for axis in (0, *range(2, len(shape))))
        flat, result = [batch, classes, -1], [batch, choice.count, *open_sides]
    else:
        flat, result = [-1, classes, volume(sides)], [-1, choice.count, *sides]
    wanted = op.cast(op.reshape(choice.indices, [-1, choice.count, 1]), "float32")
    selectors = op.equal(wanted, op.constant(np.arange(classes, dtype=np.float32).reshape(1, 1, classes)))
    return op.reshape(op.matmul(selectors, op.reshape(maps, flat)), result)


def best_maps(surgeon: Surgeon[V], maps: V, scores: V, count: int, shape: Shape) -> tuple[V, V]:
    """The maps of the largest scores of each image.

    Args:
        surgeon: the model being edited.
        maps: the maps of all, `shape`.
        scores: `[B, P]`.
        count: how many are wanted; all P where there are fewer.
        shape: `[B, P, h, w]`; of P alone it may be told while the model runs how many there are.

    Returns:
        Those maps, and the int64 indices `[B, count]` of what they are maps of.
    """
    op = surgeon.ops
    if shape[1] is not None:
        count = min(count, shape[1])
        choice = ClassChoice(op.largest(scores, count), count)
        return choose_maps(surgeon, maps, choice, shape), choice.indices
    sides = fixed(shape[2:])
    batch, number = op.size(maps, 0), op.size(maps, 1)
    more = op.maximum(op.sub(op.cast(number, "float32"), scalar(op, float(count))), scalar(op, 0.0))
    fewer = op.sub(op.cast(number, "float32"), more)
    taken = op.reshape(op.cast(fewer, "int64"), [1])
    indices = op.top(scores, taken)[1]
    every = op.reshape(op.cast(op.numbers(number), "float32"), [1, 1, -1])
    selectors = op.equal(op.unsqueeze(op.cast(indices, "float32"), [2]), every)
    flat = op.reshape(maps, [batch, number, math.prod(sides)])
    return op.reshape(op.matmul(selectors, flat), [batch, taken, *sides]), indices
