"""The walk back: from the derivative by some results to that by the target, one rule for each operator."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence

from xai_insert.errors import NoDerivativeError
from xai_insert.graph.cuts import activations, region
from xai_insert.graph.operators import Operator, Pointwise, rule_for
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.methods.gradients import activations as functions
from xai_insert.methods.gradients import arithmetic, linear, norms, resizing, sampling, shaping, windows
from xai_insert.methods.gradients.forward import Forward
from xai_insert.methods.gradients.step import ELSEWHERE, Rule, Step

_POINTWISE: Mapping[str, Rule] = {**arithmetic.RULES, **functions.RULES}
_RULES: Mapping[type[Operator], Rule] = {
    **linear.RULES,
    **windows.RULES,
    **norms.RULES,
    **shaping.RULES,
    **resizing.RULES,
    **sampling.RULES,
}


def pullback(
    surgeon: Surgeon[V],
    graph: Graph,
    targets: Sequence[Value],
    seeds: Mapping[Value, V],
    count: int | None = None,
    instead: Mapping[Value, V] | None = None,
) -> list[V]:
    """The derivatives of `sum(seed * result)` by the targets, float32.

    Work stops at the targets; derivatives by weights are not computed. Values of the forward pass are read, not
    computed again, but for those within what a runtime merges (see `xai_insert.methods.gradients.forward`).

    Args:
        surgeon: the model being edited.
        graph: its view.
        targets: float values that the results depend on.
        seeds: by result, what the derivative by it is: of its sizes, with an axis of `count` before them if given.
        count: how many derivatives run together, along an axis before all others; None for one without that axis.
        instead: what to read in place of values of the forward pass, of the same sizes.

    Returns:
        For each target a value of its sizes, with the axis of `count` before them if given.

    Raises:
        NoDerivativeError: an operator between has no rule, or no result depends on a target.
        ShapeUnknownError: a rule needs a size that follows the input.
    """
    reached = activations(graph, targets)
    forward = Forward(surgeon, targets, instead)
    gradients: dict[Value, V] = dict(seeds)
    for node in reversed(region(graph, targets, list(seeds))):
        given = [gradients.get(output) for output in node.outputs]
        if node.op is Op.SHAPE or all(item is None for item in given):
            continue
        step = Step(surgeon, node, given, _wanted(node, reached), _narrow(node, targets), forward, count)
        for index, gradient in _rule(node)(step).items():
            value = node.read(index)
            gradients[value] = surgeon.ops.add(gradients[value], gradient) if value in gradients else gradient
    if missing := [target for target in targets if target not in gradients]:
        raise NoDerivativeError(f"the scores have no derivative by {missing[0].describe()}")
    return [gradients[target] for target in targets]


def _wanted(node: Node, reached: Container[Value]) -> frozenset[int]:
    """The operands by which a derivative is wanted."""
    return frozenset(
        index
        for index, value in enumerate(node.inputs)
        if value is not None and value in reached and "float" in value.dtype
    )


def _narrow(node: Node, targets: Collection[Value]) -> frozenset[int]:
    """The operands that a function gave whose slope will be multiplied with the derivative, and gives it its sizes."""
    return frozenset(
        index
        for index, value in enumerate(node.inputs)
        if value is not None and value not in targets and _is_sloped(value)
    )


def _is_sloped(value: Value) -> bool:
    kind = None if value.producer is None else value.producer.kind
    return isinstance(kind, Pointwise) and kind.function in functions.WIDENS


def _rule(node: Node) -> Rule:
    kind = node.kind
    rule = _POINTWISE.get(kind.function) if isinstance(kind, Pointwise) else rule_for(_RULES, kind)
    if rule is None:
        raise NoDerivativeError(
            f"no rule for the derivative of {node.type} {node.name!r}, which stands between the target and the scores; "
            f"{ELSEWHERE}"
        )
    return rule
