"""Reading values of the forward pass without moving it.

A runtime merges operations (an attention, a norm written in parts, an activation with what it reads) where nothing
else reads what is between them. A rule that reads such a value would take the merging away, and the predictions would
move in their last digits. So what lies between the joints of the model is computed once more, from the joints.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Generic

import numpy as np

from xai_insert.graph.operators import (
    AFFINE,
    LIGHT,
    Norm,
    Pointwise,
    Product,
    Softmax,
    Window,
)
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Node, Value
from xai_insert.methods.shaping import scalar

_ENDS = ("relu", "clip")
_NARROW, _LANES = 128, 16  # numbers that a layer sums, and that a processor adds at once


class Forward(Generic[V]):
    """Values of the forward pass.

    Args:
        surgeon: the model being edited.
        sources: values that are read where they are, the target among them.
        instead: what to read in place of some values.
    """

    def __init__(
        self, surgeon: Surgeon[V], sources: Collection[Value], instead: Mapping[Value, V] | None = None
    ) -> None:
        self._surgeon = surgeon
        self._sources = sources
        self._instead = instead or {}
        self._made: dict[Value, V] = dict(self._instead)

    def read(self, value: Value) -> V:
        """A value that is not stored, float32 where it is a float."""
        if value in self._instead:
            return self._instead[value]
        return self._surgeon.handle(value) if self._is_joint(value) else self._again(value)

    def _is_joint(self, value: Value) -> bool:
        node = value.producer
        if node is None or value in self._sources or value.is_constant or "float" not in value.dtype:
            return True
        if isinstance(node.kind, Softmax) or _is_product_of_activations(node) or _is_normalised_alone(value):
            return False
        if _is_narrow(_layer(node)):
            return False
        return not isinstance(node.kind, LIGHT) or _joins(node) or _enters_layer(value)

    def _again(self, value: Value) -> V:
        if value in self._made:
            return self._made[value]
        node = value.producer
        if node is None or self._is_joint(value):
            # Apart from the model's own reader, or a runtime would find the same computation in both and keep one.
            op = self._surgeon.ops
            handle = self._surgeon.handle(value)
            is_float = "float" in value.dtype
            self._made[value] = op.maximum(handle, scalar(op, float(np.finfo(np.float32).min))) if is_float else handle
            return self._made[value]
        operands = [self._operand(value) for value in node.inputs]
        self._made.update(zip(node.outputs, self._surgeon.copy(node, operands), strict=True))
        return self._made[value]

    def _operand(self, value: Value | None) -> V | None:
        if value is None:
            return None
        return self._surgeon.handle(value) if value.is_constant else self._again(value)


def _is_product_of_activations(node: Node) -> bool:
    return isinstance(node.kind, Product) and not node.read(1).is_constant and not node.read(0).is_constant


def _is_normalised_alone(value: Value) -> bool:
    """Whether nothing but a norm reads a sum of two values, which onnxruntime merges with it."""
    node = value.producer
    return node is not None and _is_sum(node) and len(value.uses) == 1 and isinstance(value.uses[0].node.kind, Norm)


def _is_sum(node: Node) -> bool:
    return isinstance(node.kind, Pointwise) and node.kind.function == "add" and len(node.computed) > 1


def _joins(node: Node) -> bool:
    """Whether a node ends what runtimes merge: a residual sum, the bias of a layer behind its scale, a rectifier.

    A scale alone may be merged with what reads it, as that of queries is.
    """
    function = node.kind.function if isinstance(node.kind, Pointwise) else ""
    return _is_sum(node) or function in _ENDS or (function == "add" and _is_of_layer(node))


def _is_of_layer(node: Node) -> bool:
    return _layer(node) is not None


def _layer(node: Node) -> Node | None:
    """The node if it is a layer, or the one whose results it scales or shifts, as a layer scale and its bias do."""
    if isinstance(node.kind, Pointwise) and node.kind.function in AFFINE and len(node.computed) == 1:
        before = node.computed[0].producer
        return None if before is None else _layer(before)
    return node if isinstance(node.kind, (Window, Product)) and not _is_product_of_activations(node) else None


def _is_narrow(layer: Node | None) -> bool:
    """Whether OpenVINO rounds a linear layer otherwise when it cannot merge it with the activation behind it.

    Its two kernels take the summands beyond the last multiple of a vector in another order, if the weight is small.
    """
    if layer is None or not isinstance(layer.kind, Product) or layer.kind.transpose_a:
        return False
    summands = layer.read(0).sizes[-1]
    return summands is not None and summands < _NARROW and summands % _LANES != 0


def _enters_layer(value: Value) -> bool:
    """Whether a layer with weights reads a value."""
    return any(use.index == 0 and isinstance(use.node.kind, (Window, Product)) for use in value.uses)
