"""Whether the graphs inside of an operation arrange or cut what they work on."""

from __future__ import annotations

from typing import Any

import openvino as ov

from xai_insert.formats.openvino.vocabulary import OPS
from xai_insert.graph.bodies import Step, moves_values
from xai_insert.graph.traits import WITH_BODIES
from xai_insert.graph.view import Op


def moves_places(native: Any) -> bool:
    """Whether an If, a Loop or a TensorIterator may put what it gives in another order than what it reads."""
    if native.get_type_name() == "If":
        return any(map(_moves, (native.get_then_body(), native.get_else_body())))
    return _takes_otherwise(native) or _moves(native.get_function())


def _takes_otherwise(native: Any) -> bool:
    """Whether it reads parts backwards, or puts them along another axis than it takes them from."""
    taken = [*native.get_input_descriptions(), *native.get_output_descriptions()]
    sliced = [item for item in taken if hasattr(item, "stride")]
    return any(item.stride < 0 for item in sliced) or len({item.axis for item in sliced}) > 1


def _moves(body: ov.Model) -> bool:
    nodes = [node for node in body.get_ordered_ops() if node.get_type_name() not in ("Parameter", "Result")]
    inner = [node for node in nodes if node.get_type_name() in WITH_BODIES]
    return any(map(moves_places, inner)) or moves_values((_step(node) for node in nodes if node not in inner), ())


def _step(node: ov.Node) -> Step:
    op = OPS.get(node.get_type_name(), Op.OTHER)
    return op, [value.get_node().get_instance_id() for value in node.input_values()], [node.get_instance_id()]
