"""Sizes that files declare to exhaust a machine: out of proportion to what they hold."""

from __future__ import annotations

import math

from xai_insert.errors import CheckFailedError, ModelFileError
from xai_insert.graph.view import Graph, Shape, Value

# A transformer at ten times its usual resolution stays below: attention of 8 heads over 5,000 tokens has 800 MB.
_MOST_BYTES, _PER_WEIGHT, _ELEMENT = 96 << 20, 8, 4
# That of a small image stays below too: its first layers have at most some hundred values for each of its own.
_SMALL_BYTES, _PER_INPUT = 16 << 20, 4096
_MOST_ELEMENTS = 1 << 31


def require_proportion(graph: Graph, advice: str = "it has to be run to find its parts") -> None:
    """Refuse to run a model that declares sizes which no machine holds, as a damaged or hostile one may.

    Args:
        graph: the model.
        advice: what to do about it, or why it is run.

    Raises:
        CheckFailedError: a value of the model is out of proportion to its weights and inputs.
    """
    values = graph.values
    largest = max(values, key=_bytes, default=None)
    if largest is not None and _bytes(largest) > most_bytes(graph):
        raise CheckFailedError(
            f"{largest.describe()} would take {_bytes(largest) / 2**20:,.0f} MB, out of proportion to the model's "
            f"weights and inputs; {advice}"
        )


def require_moderate_map(shape: Shape) -> None:
    """Refuse a saliency map that no runtime holds.

    Raises:
        ModelFileError: it has more than 2^31 elements for one image.
    """
    if _elements(shape) > _MOST_ELEMENTS:
        raise ModelFileError(
            f"the saliency map of an image would have {_elements(shape):,} elements; is the file whole?"
        )


def most_bytes(graph: Graph) -> int:
    """What the largest value of a model with these weights and inputs may take."""
    operands = {value for node in graph.nodes for value in node.stored}
    own = min(_MOST_BYTES, _SMALL_BYTES + _PER_INPUT * sum(map(_bytes, graph.inputs)))
    return own + _PER_WEIGHT * sum(map(_bytes, operands))


def _bytes(value: Value) -> int:
    """Bytes of a value for one image."""
    return _ELEMENT * _elements(value.shape or ())


def _elements(shape: Shape) -> int:
    return math.prod(1 if size is None else size for size in shape)
