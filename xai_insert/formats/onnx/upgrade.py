"""Raising models of operator sets 7 to 10 to the oldest set that has all that the branches are made of.

Only what changed between those sets is rewritten, each to the operation that computes the same; runtimes have one
kernel for both forms. `onnx.version_converter` is not used: it leaves the coordinates of Resize at those of the newer
set, which moves predictions, and it wants the whole model, weights included, in one message.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from xai_insert.errors import ModelFileError
from xai_insert.formats.onnx.surgeon import all_names
from xai_insert.graph.names import Names

OLDEST = 7
"""Below it operands broadcast by another rule."""
NEWEST = 11
_LEAST_IR = 4  # below it every weight is listed as an input, though none can be given


def is_old(model: ir.Model) -> bool:
    """Whether `model` is to be raised."""
    return model.ir_version < _LEAST_IR or model.opset_imports.get("", NEWEST) < NEWEST


def upgrade(model: ir.Model) -> None:
    """Raise `model` to operator set 11 and IR version 4, in place.

    Raises:
        ModelFileError: a set before 7, or an operation that has no form in set 11.
    """
    _unlist_weights(model)
    version = model.opset_imports.get("", NEWEST)
    if version >= NEWEST:
        return
    if version < OLDEST:
        raise ModelFileError(
            f"the model is of operator set {version}, wanted {OLDEST} or later: convert it with onnx.version_converter"
        )
    names = Names(all_names(model))
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node.domain in ("", "ai.onnx") and (rule := _RULES.get(node.op_type)) is not None:
                rule(node, partial(_constant, model.graph, names, node))
        graph.opset_imports[""] = NEWEST
    model.opset_imports[""] = NEWEST


def _unlist_weights(model: ir.Model) -> None:
    """Drop the weights from the inputs of a model of IR version 3, where they have to stand and cannot be given."""
    if model.ir_version < _LEAST_IR:
        inputs = [value for value in model.graph.inputs if not value.is_initializer()]
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
        model.ir_version = _LEAST_IR


Constant = Callable[[npt.NDArray[Any]], ir.Value]


def _constant(graph: ir.Graph, names: Names, node: ir.Node, elements: npt.NDArray[Any]) -> ir.Value:
    name = names.unique(f"{node.name or node.op_type}/operand")
    tensor = ir.tensor(elements, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(elements.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _set_inputs(node: ir.Node, *operands: ir.Value | None) -> None:
    node.resize_inputs(len(operands))
    for index, operand in enumerate(operands):
        node.replace_input_with(index, operand)


def _pop(node: ir.Node, name: str) -> ir.Attr | None:
    return node.attributes.pop(name, None)


def _slice(node: ir.Node, constant: Constant) -> None:
    parts = [_pop(node, name) for name in ("starts", "ends", "axes")]
    if parts[0] is None or parts[1] is None:
        return
    operands = [constant(np.array(part.as_ints(), np.int64)) for part in parts if part is not None]
    _set_inputs(node, node.inputs[0], *operands)


def _top_k(node: ir.Node, constant: Constant) -> None:
    if (count := _pop(node, "k")) is not None:
        _set_inputs(node, node.inputs[0], constant(np.array([count.as_int()], np.int64)))


def _clip(node: ir.Node, constant: Constant) -> None:
    bounds = [_pop(node, name) for name in ("min", "max")]
    dtype = np.float16 if node.inputs[0] is not None and node.inputs[0].dtype is ir.DataType.FLOAT16 else np.float32
    limits = [np.finfo(dtype).min, np.finfo(dtype).max]
    numbers = [limit if part is None else part.as_float() for part, limit in zip(bounds, limits, strict=True)]
    _set_inputs(node, node.inputs[0], *(constant(np.array(number, dtype)) for number in numbers))


def _pad(node: ir.Node, constant: Constant) -> None:
    pads, filled = _pop(node, "pads"), _pop(node, "value")
    if pads is None:
        return
    operands = [constant(np.array(pads.as_ints(), np.int64))]
    if filled is not None and filled.as_float() != 0:
        dtype = np.float16 if node.inputs[0] is not None and node.inputs[0].dtype is ir.DataType.FLOAT16 else np.float32
        operands.append(constant(np.array(filled.as_float(), dtype)))
    _set_inputs(node, node.inputs[0], *operands)


def _resize(node: ir.Node, constant: Constant) -> None:
    scales = _pop(node, "scales")
    factors = node.inputs[1] if scales is None else constant(np.array(scales.as_floats(), np.float32))
    node.op_type = "Resize"
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
    if node.attributes.get_string("mode", "nearest") == "nearest":
        known = _elements(factors)
        if known is None or ((known < 1).any() and (known > 1).any()):
            raise ModelFileError(
                f"{node.op_type} {node.name!r} takes the nearest element by a rule that later sets do not have: "
                f"export the model anew, to operator set {NEWEST} or later"
            )
        rounding = "ceil" if (known < 1).any() else "floor"
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", rounding)
    elif node.attributes.get_string("mode", "") == "bilinear":
        node.attributes["mode"] = ir.AttrString("mode", "linear")
    _set_inputs(node, node.inputs[0], constant(np.zeros(0, np.float32)), factors)


def _elements(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Elements of a stored operand, an initializer or the result of a Constant."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _batch_norm(node: ir.Node, constant: Constant) -> None:
    del constant
    spatial = _pop(node, "spatial")
    if spatial is not None and spatial.as_int() != 1:
        raise ModelFileError(
            f"BatchNormalization {node.name!r} normalises position by position, which no later set can"
        )


def _scatter(node: ir.Node, constant: Constant) -> None:
    del constant
    node.op_type = "ScatterElements"


_RULES: dict[str, Callable[[ir.Node, Constant], None]] = {
    "Slice": _slice,
    "TopK": _top_k,
    "Clip": _clip,
    "Pad": _pad,
    "Upsample": _resize,
    "Resize": _resize,
    "BatchNormalization": _batch_norm,
    "Scatter": _scatter,
}
