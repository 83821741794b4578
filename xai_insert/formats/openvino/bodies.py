"""What the graphs inside of an operation do to the places of what they work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino as ov

from xai_insert.formats.openvino.vocabulary import OPS
from xai_insert.graph.bodies import BodyNode, flow_of, together
from xai_insert.graph.operators import ControlFlow
from xai_insert.graph.traits import WITH_BODIES
from xai_insert.graph.view import Op


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
