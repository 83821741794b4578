"""What the graphs inside of an operation do to the places of what they work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as opset
from openvino.passes import ConstantFolding, Manager

from xai_insert.formats.openvino.vocabulary import OPS
from xai_insert.graph.bodies import BodyNode, flow_of, together
from xai_insert.graph.operators import ControlFlow
from xai_insert.graph.traits import WITH_BODIES
from xai_insert.graph.view import Op

_DEEPEST = 16
"""How far back the sizes are looked for by which an If decides."""


def control_flow(native: Any) -> ControlFlow:
    """What an If, a Loop or a TensorIterator may do to the places of what it reads."""
    if native.get_type_name() == "If":
        return together(_flow(body, frozenset()) for body in (native.get_then_body(), native.get_else_body()))
    sliced = [item for item in native.get_input_descriptions() if hasattr(item, "stride")]
    taken = [*sliced, *(item for item in native.get_output_descriptions() if hasattr(item, "stride"))]
    if any(item.stride < 0 for item in taken) or len({item.axis for item in taken}) > 1:
        return ControlFlow(moves=True)  # it reads backwards, or puts parts along another axis
    body = native.get_function()
    parameters = body.get_parameters()
    parts = frozenset(parameters[item.body_parameter_index].get_friendly_name() for item in sliced)
    return _flow(body, parts)


def handed_on(native: Any) -> ov.Output | None:
    """What an If gives, whatever the image: a value that it reads, or stored elements; None if that is not known.

    Exporters write one where a tensor may have an axis too many; readers keep it where they do not know the shape.
    """
    condition = _known(native.input_value(0), _DEEPEST)
    if condition is None or native.get_output_size() != 1:
        return None
    number = 0 if condition.all() else 1
    body, given = native.get_function(number).clone(), native.get_input_descriptions(number)
    parameters = body.get_parameters()
    for item in given:
        if (told := _known(native.input_value(item.input_index), _DEEPEST)) is not None:
            parameter = parameters[item.body_parameter_index].output(0)
            parameter.replace(opset.constant(told, parameter.get_element_type()).output(0))
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(body)
    result = body.get_results()[native.get_output_descriptions(number)[0].body_value_index]
    node = result.input_value(0).get_node()
    while OPS.get(node.get_type_name()) is Op.IDENTITY:
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Constant":
        return opset.constant(np.array(node.get_data())).output(0)
    if node.get_type_name() != "Parameter":
        return None
    names = [item.get_friendly_name() for item in parameters]
    read = names.index(node.get_friendly_name())
    return next((native.input_value(item.input_index) for item in given if item.body_parameter_index == read), None)


def _known(value: ov.Output, depth: int) -> npt.NDArray[Any] | None:
    """The elements of a value that is made of stored ones, of ranks and of sizes that are fixed."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return np.asarray(node.get_data())
    if node.get_type_name() == "ShapeOf":
        shape = node.input_value(0).get_partial_shape()
        return np.array(shape.to_shape()) if shape.is_static else None
    read = [_known(item, depth - 1) if depth else None for item in node.input_values()]
    if not read or any(item is None for item in read) or value.get_partial_shape().is_dynamic:
        return None
    kinds = [item.get_element_type() for item in node.input_values()]
    given = [ov.Tensor(np.array(item, kind.to_dtype(), order="C")) for item, kind in zip(read, kinds, strict=True)]
    found = ov.Tensor(value.get_element_type(), value.get_shape())
    return np.array(found.data) if node.evaluate([found], given) else None


def _flow(body: ov.Model, parts: frozenset[str]) -> ControlFlow:
    """What a body does; `parts` are its parameters that hold parts of what the operation is given."""
    nodes = [node for node in body.get_ordered_ops() if node.get_type_name() not in ("Parameter", "Result")]
    inner = [node for node in nodes if node.get_type_name() in WITH_BODIES]
    own = flow_of((_step(node, parts) for node in nodes if node not in inner), ())
    return together([own, *map(control_flow, inner)])


def _step(node: ov.Node, parts: frozenset[str]) -> BodyNode:
    op = OPS.get(node.get_type_name(), Op.OTHER)
    read = [value.get_node() for value in node.input_values()]
    is_of_first = _takes_of_first(op, read, parts) or _puts_in_first(node.get_type_name(), read)
    return BodyNode(op, [item.get_instance_id() for item in read], [node.get_instance_id()], is_of_first)


def _takes_of_first(op: Op, read: Sequence[ov.Node], parts: frozenset[str]) -> bool:
    return op is Op.GATHER and _is_zero(read[2]) and _is_given(read[0], parts)


def _puts_in_first(kind: str, read: Sequence[ov.Node]) -> bool:
    return kind == "ScatterUpdate" and _is_zero(read[3])


def _is_zero(axis: ov.Node) -> bool:
    return axis.get_type_name() == "Constant" and not axis.get_data().any()


def _is_given(node: ov.Node, parts: frozenset[str]) -> bool:
    """Whether a node is what the whole operation is given, and no part of it."""
    return node.get_type_name() == "Parameter" and node.get_friendly_name() not in parts
