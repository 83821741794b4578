"""A model in one of ONNX's operator sets 7 to 10, as the exporters of their time wrote it.

onnx's own converter does not go below set 14. Constants are folded first (by onnxruntime), so that no sum of shapes is
left; an operator that came later is written in those there were, or the model is refused by onnx's checker, which names
it. What one may read in inputs only since a later set stands in attributes, and axes count from the front.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

Array = np.ndarray
_AXES = ("Concat", "Flatten", "Gather", "Split", "TopK")
_PAST = {"allowzero", "ceil_mode", "dilations", "storage_order", "largest", "sorted"}
"""Attributes that came later; where they say something, what they say cannot be written."""


class Lowered:
    """Writes the nodes of a model anew.

    Args:
        model: in set 17 at most, constants folded.
        version: operator set to write.
    """

    def __init__(self, model: onnx.ModelProto, version: int) -> None:
        self.version, self.nodes = version, []
        self._model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = self._model.graph
        self._shapes = {
            item.name: [size.dim_value for size in item.type.tensor_type.shape.dim]
            for item in [*graph.input, *graph.value_info, *graph.output]
        }
        self._stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self._shapes |= {name: list(array.shape) for name, array in self._stored.items()}
        self._count = 0

    def model(self) -> onnx.ModelProto:
        """The whole model."""
        graph = self._model.graph
        for node in graph.node:
            rule = _RULES.get(node.op_type, Lowered.plain)
            rule(self, node, {item.name: helper.get_attribute_value(item) for item in node.attribute})
        read = {name for node in self.nodes for name in node.input}
        weights = [numpy_helper.from_array(array, name) for name, array in self._stored.items() if name in read]
        new = helper.make_graph(self.nodes, graph.name, graph.input, graph.output, weights)
        made = helper.make_model(new, opset_imports=[helper.make_opsetid("", self.version)], ir_version=4)
        onnx.checker.check_model(made)
        return made

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """One node more; its result."""
        self._count += 1
        output = output or f"old_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], f"{kind}_old_{self._count}", **attributes))
        return output

    def store(self, array: Array) -> str:
        """A constant more."""
        self._count += 1
        self._stored[name := f"old_{self._count}"] = array
        return name

    def constant(self, node: NodeProto, index: int) -> Array | None:
        """An input of a node that is stored; None if there is none."""
        if index >= len(node.input) or not node.input[index]:
            return None
        if node.input[index] not in self._stored:
            raise ValueError(f"{node.op_type} took no computed operands before set 10")
        return self._stored[node.input[index]]

    def shape(self, name: str) -> list[int]:
        """Sizes of a value."""
        return self._shapes[name]

    def plain(self, node: NodeProto, said: dict[str, Any]) -> None:
        """The same node, its axes counted from the front."""
        if "axis" in said and node.op_type in _AXES and said["axis"] < 0:
            said["axis"] += len(self.shape(node.input[0]))
        if "axes" in said:
            said["axes"] = self.axes(node, said["axes"])
        late = {name for name in said if name in _PAST and not np.any(np.asarray(said[name]) - (name == "dilations"))}
        self.nodes.append(
            helper.make_node(
                node.op_type, node.input, node.output, node.name, **{k: v for k, v in said.items() if k not in late}
            )
        )

    def axes(self, node: NodeProto, axes: Any) -> list[int]:
        """Axes of a node's first input, or of its result where it adds some, from the front."""
        rank = len(self.shape(node.output[0] if node.op_type == "Unsqueeze" else node.input[0]))
        return [int(axis) % rank for axis in axes]

    def conv(self, node: NodeProto, said: dict[str, Any]) -> None:
        """Convolutions have had dilations from the start."""
        self.nodes.append(node)

    def with_axes(self, node: NodeProto, said: dict[str, Any]) -> None:
        """Squeeze, Unsqueeze, ReduceSum: axes are an attribute."""
        if (axes := self.constant(node, 1)) is not None:
            said["axes"] = self.axes(node, axes)
        said.pop("noop_with_empty_axes", None)
        self.add(node.op_type, node.input[0], output=node.output[0], **said)

    def sizes(self, node: NodeProto, said: dict[str, Any]) -> None:
        """Shape, of all axes and cut."""
        if not said:
            self.nodes.append(node)
            return
        rank = len(self.shape(node.input[0]))
        ends = [said.get("start", 0), said.get("end", rank)]
        starts, ends = ([int(np.clip(end + rank * (end < 0), 0, rank))] for end in ends)
        whole = self.add("Shape", node.input[0])
        if self.version == 10:
            stored = (self.store(np.array(part, np.int64)) for part in (starts, ends))
            self.add("Slice", whole, *stored, output=node.output[0])
        else:
            self.add("Slice", whole, output=node.output[0], starts=starts, ends=ends)

    def split(self, node: NodeProto, said: dict[str, Any]) -> None:
        axis = said.get("axis", 0) % len(self.shape(node.input[0]))
        sizes = [self.shape(name)[axis] for name in node.output]
        self.nodes.append(helper.make_node("Split", node.input[:1], node.output, node.name, axis=axis, split=sizes))

    def slice(self, node: NodeProto, said: dict[str, Any]) -> None:
        if self.version == 10 and any(name and name not in self._stored for name in node.input[1:]):
            self.nodes.append(node)  # its axes count from the front, as exporters write them, or the checker complains
            return
        starts, ends, axes, steps = (self.constant(node, index) for index in range(1, 5))
        assert starts is not None
        assert ends is not None
        axes = np.array(self.axes(node, range(len(starts)) if axes is None else axes))
        if self.version == 10:
            more = [] if steps is None else [self.store(steps.astype(np.int64))]
            parts = [self.store(array.astype(np.int64)) for array in (starts, ends, axes)]
            self.add("Slice", node.input[0], *parts, *more, output=node.output[0])
            return
        if steps is not None and np.any(steps != 1):
            raise ValueError("Slice has no steps before set 10")
        self.add(
            "Slice",
            node.input[0],
            output=node.output[0],
            **{name: array.tolist() for name, array in (("starts", starts), ("ends", ends), ("axes", axes))},
        )

    def clip(self, node: NodeProto, said: dict[str, Any]) -> None:
        given = {"min": self.constant(node, 1), "max": self.constant(node, 2)}
        bounds = {name: float(array) for name, array in given.items() if array is not None}
        self.add("Clip", node.input[0], output=node.output[0], **bounds)

    def pad(self, node: NodeProto, said: dict[str, Any]) -> None:
        pads, value = self.constant(node, 1), self.constant(node, 2)
        assert pads is not None
        number = 0.0 if value is None else float(value)
        self.add("Pad", node.input[0], output=node.output[0], pads=pads.tolist(), value=number, **said)

    def norm(self, node: NodeProto, said: dict[str, Any]) -> None:
        """LayerNormalization, over the last axis."""
        x, last = node.input[0], [len(self.shape(node.input[0])) - 1]
        assert said.get("axis", -1) in (-1, last[0])
        apart = self.add("Sub", x, self.add("ReduceMean", x, axes=last, keepdims=1))
        squares = self.add("ReduceMean", self.add("Mul", apart, apart), axes=last, keepdims=1)
        epsilon = self.store(np.float32(said.get("epsilon", 1e-5)))
        scaled = self.add(
            "Mul", self.add("Div", apart, self.add("Sqrt", self.add("Add", squares, epsilon))), node.input[1]
        )
        bias = node.input[2] if len(node.input) > 2 else self.store(np.float32(0))
        self.add("Add", scaled, bias, output=node.output[0])

    def hard_swish(self, node: NodeProto, said: dict[str, Any]) -> None:
        gate = self.add("HardSigmoid", node.input[0], alpha=1 / 6, beta=0.5)
        self.add("Mul", node.input[0], gate, output=node.output[0])

    def softmax(self, node: NodeProto, said: dict[str, Any]) -> None:
        """Over the last axis, as before set 13 all axes from its own on are one."""
        rank = len(self.shape(node.input[0]))
        axis = said.get("axis", -1) % rank
        if axis == rank - 1:
            self.add("Softmax", node.input[0], output=node.output[0], axis=axis)
            return
        order = list(range(rank))
        order[axis], order[-1] = order[-1], order[axis]
        turned = self.add("Softmax", self.add("Transpose", node.input[0], perm=order), axis=rank - 1)
        self.add("Transpose", turned, perm=order, output=node.output[0])

    def gather(self, node: NodeProto, said: dict[str, Any]) -> None:
        indices, axis = self._stored.get(node.input[1]), said.get("axis", 0) % len(self.shape(node.input[0]))
        name = node.input[1]
        if indices is not None and np.any(indices < 0):
            name = self.store(np.where(indices < 0, indices + self.shape(node.input[0])[axis], indices))
        self.add("Gather", node.input[0], name, output=node.output[0], axis=axis)

    def resize(self, node: NodeProto, said: dict[str, Any]) -> None:
        """Upsample until set 9: of the nearest only, as its corners lie elsewhere otherwise."""
        before, after = self.shape(node.input[0]), self.shape(node.output[0])
        if said["mode"] != b"nearest":
            raise ValueError("Resize interpolated otherwise before set 11")
        scales = [b / a for a, b in zip(before, after, strict=True)]
        if self.version < 9:
            self.add("Upsample", node.input[0], output=node.output[0], mode="nearest", scales=scales)
            return
        kind = "Upsample" if self.version == 9 else "Resize"
        self.add(kind, node.input[0], self.store(np.float32(scales)), output=node.output[0], mode="nearest")

    def top_k(self, node: NodeProto, said: dict[str, Any]) -> None:
        axis = said.get("axis", -1) % len(self.shape(node.input[0]))
        if not said.get("largest", 1):
            raise ValueError("TopK was of the largest before set 11")
        inputs, more = list(node.input), {}
        if self.version < 10:
            count = self.constant(node, 1)
            assert count is not None
            inputs, more = inputs[:1], {"k": int(count[0])}
        self.nodes.append(helper.make_node("TopK", inputs, node.output, node.name, axis=axis, **more))


_RULES: dict[str, Callable[[Lowered, NodeProto, dict[str, Any]], None]] = {
    "Conv": Lowered.conv,
    "Squeeze": Lowered.with_axes,
    "Unsqueeze": Lowered.with_axes,
    "ReduceSum": Lowered.with_axes,
    "Shape": Lowered.sizes,
    "Split": Lowered.split,
    "Slice": Lowered.slice,
    "Clip": Lowered.clip,
    "Pad": Lowered.pad,
    "LayerNormalization": Lowered.norm,
    "HardSwish": Lowered.hard_swish,
    "Softmax": Lowered.softmax,
    "Gather": Lowered.gather,
    "Resize": Lowered.resize,
    "TopK": Lowered.top_k,
}
