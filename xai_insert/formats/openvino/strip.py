"""Taking outputs off an `ov.Model`, with all that feeds them alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import openvino as ov

from xai_insert.formats.backend import Removed
from xai_insert.formats.openvino.view import dtype_name
from xai_insert.formats.openvino.vocabulary import UNFOLDS

_ROUNDING = ("FakeQuantize", "FakeConvert")
_MARK = "DisablePrecisionConversion_0"


def strip(model: ov.Model, names: Sequence[str]) -> Removed:
    """Remove the outputs called `names` from `model`, in place."""
    gone = [result for result in model.get_results() if result.input_value(0).get_names() & set(names)]
    before = _instances(model)
    for result in gone:
        model.remove_result(result)
    unreached = before - _instances(model)
    own = [node for node in _makers(gone) if node.get_instance_id() in unreached]
    for output in (result.input_value(0) for result in gone):
        output.set_names(output.get_names() - set(names))  # where an output of the model is the map itself
    _drop_parameters(model, own)
    return _removed(own)


def _removed(own: Sequence[ov.Node]) -> Removed:
    """What is said of nodes that fed the outputs alone, those inside their loops counted too."""
    inner = [*own, *(part for node in own if node.get_type_name() == "Loop" for part in node.get_function().get_ops())]
    return Removed(
        operations=len(own),
        floats=_floats_of(inner),
        rounding=sum(node.get_type_name() in _ROUNDING and _is_computed(node) for node in inner),
        is_marked=any(_MARK in node.get_rt_info() for node in own),
    )


def _floats_of(nodes: Iterable[ov.Node]) -> frozenset[str]:
    """The floating-point types in which nodes compute."""
    types = {output.get_element_type() for node in nodes for output in node.outputs()}
    return frozenset(dtype_name(kind) for kind in types if kind.is_real())


def _drop_parameters(model: ov.Model, own: Sequence[ov.Node]) -> None:
    """Remove the inputs of the model that nothing else reads."""
    for parameter in {port.get_node() for node in own for port in node.input_values()} & set(model.get_parameters()):
        if all(reader.get_node() in own for reader in parameter.output(0).get_target_inputs()):
            model.remove_parameter(parameter)


def _instances(model: ov.Model) -> set[int]:
    return {node.get_instance_id() for node in model.get_ordered_ops()}


def _makers(results: Iterable[ov.Node]) -> Iterator[ov.Node]:
    """The operations that results are computed by, stored constants apart."""
    seen: set[int] = set()
    stack = [result.input_value(0).get_node() for result in results]
    while stack:
        node = stack.pop()
        if node.get_instance_id() in seen or node.get_type_name() in ("Constant", "Parameter"):
            continue
        seen.add(node.get_instance_id())
        yield node
        stack += [port.get_node() for port in node.input_values()]


def _is_computed(node: ov.Node) -> bool:
    """Whether what a node rounds is no stored weight."""
    source = node.input_value(0).get_node()
    while source.get_type_name() in UNFOLDS:
        source = source.input_value(0).get_node()
    return str(source.get_type_name()) != "Constant"
