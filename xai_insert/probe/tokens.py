"""What a model's own runtime tells about the token projections of an attention, before anything is edited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.feeds import feeds_of
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.cuts import region
from xai_insert.graph.operators import Pointwise
from xai_insert.graph.proportion import require_proportion
from xai_insert.graph.traits import BENDS
from xai_insert.graph.view import Graph, Node, Shape, Value
from xai_insert.locate.attention import Attention
from xai_insert.locate.transformer import Readout
from xai_insert.methods.vit_recipro_cam import ZeroTokens

# Rounding of half a token's projection; a norm on the keys is off by tenths.
_AFFINE_TOLERANCE = 1e-3


def probe_zero_tokens(
    model: LoadedModel, graph: Graph, readout: Readout, wanted: Sequence[Any]
) -> dict[Attention, ZeroTokens]:
    """Keys and values of zero tokens for each attention, and whether keys and values are affine in the token.

    Half a token must give the midpoint of the whole and the zero token, and nothing on the way may bend elsewhere, as
    a clip does that these numbers do not reach. `wanted` are handles of `readout.projected`, without their rounding.
    """
    masked = readout.entries
    require_proportion(graph)
    found = {}
    for index, item in enumerate(readout.attentions):
        # One after another: a runtime packs the weights of each beside those that are stored.
        asked = [_of_tokens(model, graph, readout, result) for result in wanted[2 * index : 2 * index + 2]]
        way = region(graph, masked, [item.key, item.value])
        is_affine = not any(map(_bends, way)) and all(_is_midpoint(*runs) for runs in asked)
        key, value = (zero for _, _, zero in asked)
        found[item] = ZeroTokens(
            _without_repeats(key, item.key_axis), _without_repeats(value, value.ndim - 2), is_affine
        )
    return found


def _of_tokens(
    model: LoadedModel, graph: Graph, readout: Readout, result: Any
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """`result` of whole tokens, of half of each, and of zero tokens."""
    runner = model.between(readout.entries, [result])
    sizes = [_of_one_image(value, readout) for value in readout.entries]
    feeds = feeds_of(_as_long(runner.inputs, graph, sizes), np.random.default_rng(0))
    names = [name for name, _, _ in runner.inputs[: len(sizes)]]
    whole, half, zero = (
        runner.run(feeds | {name: (feeds[name] * factor).astype(feeds[name].dtype) for name in names})[0]
        for factor in (1, 0.5, 0)
    )
    return whole, half, zero


def _of_one_image(tokens: Value, readout: Readout) -> Shape:
    """Sizes of tokens; of one image, if their number is open."""
    return tuple(1 if size is None and axis == readout.batch_axis else size for axis, size in enumerate(tokens.sizes))


def _as_long(
    inputs: Sequence[tuple[str, str, Shape]], graph: Graph, masked: Sequence[Shape]
) -> list[tuple[str, str, Shape]]:
    """Inputs with the sizes that the view gives them, where the model itself leaves them open."""
    known = {value.name: value.shape for value in graph.inputs if value.shape is not None}
    sizes = [*masked, *(known.get(name, size) for name, _, size in inputs[len(masked) :])]
    return [(name, dtype, size) for (name, dtype, _), size in zip(inputs, sizes, strict=True)]


def _bends(node: Node) -> bool:
    return node.op in BENDS and not (isinstance(node.kind, Pointwise) and node.kind.function == "neg")


def _is_midpoint(whole: npt.NDArray[Any], half: npt.NDArray[Any], zero: npt.NDArray[Any]) -> bool:
    middle = (whole.astype(np.float64) + zero.astype(np.float64)) / 2
    scale = float(np.abs(whole).max()) or 1.0
    return float(np.abs(half - middle).max()) <= _AFFINE_TOLERANCE * scale


def _without_repeats(array: npt.NDArray[Any], token_axis: int) -> npt.NDArray[Any]:
    """One image's tokens; one token where all agree."""
    axes: Sequence[int] = (0, token_axis) if array.ndim == 4 else (token_axis,)
    for axis in axes:
        first = np.take(array, [0], axis)
        if np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return array
