"""Layers by their number from the end, for those who do not know the names: `LAST`, -1, -2, ...

A stage of a network ends where the grid changes its size: -1 is the last map, -2 the last of twice the size, and so
on. Where the grid keeps its size, as in most transformers, a stage is a block with attention, and the layer is what the
block reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from xai_insert.errors import TargetNotFoundError
from xai_insert.graph.cuts import region
from xai_insert.graph.operators import FusedAttention, Padded, Pointwise, Product, Softmax, Window
from xai_insert.graph.view import Graph, Node, Value
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.layout import FeatureMap

LAST = "LAST"
_DEEP = 5  # layers behind it
_NUMBER = re.compile(r"-[1-9]")


def stage_number(name: str) -> int | None:
    """How many stages from the end a name means, 1 for the last; None if it is the name of a layer."""
    if name == LAST:
        return 1
    return -int(name) if _NUMBER.fullmatch(name) else None


def stage(
    graph: Graph,
    cuts: Sequence[Value],
    map_of: Callable[[Value], FeatureMap | None],
    number: int,
    *,
    reads_token: bool,
) -> FeatureMap:
    """The map of a stage.

    Args:
        graph: the model.
        cuts: values on every path from the image to the scores, the first first, made by weights.
        map_of: a value as a feature map; None if it is none.
        number: of the stage, 1 for the last.
        reads_token: whether the head takes a class token.

    Raises:
        TargetNotFoundError: there are not as many.
    """
    maps = [found for value in cuts if not _is_padded(value) and (found := map_of(value)) is not None]
    stages = _stages(graph, maps, reads_token=reads_token)
    if number > len(stages):
        grids = ", ".join(f"-{place} {found.value.describe()}" for place, found in enumerate(stages, 1))
        raise TargetNotFoundError(
            f"there is no stage -{number} on every path from image to scores; found {grids or 'none'}"
        )
    return stages[number - 1]


def _stages(graph: Graph, maps: Sequence[FeatureMap], *, reads_token: bool) -> list[FeatureMap]:
    """The map of each stage, the last first: one for each size of the grid, or one for each block with attention."""
    stages = _of_each_size(maps)
    last = [found for found in maps if _grain(found) == _grain(stages[0])]
    blocks = _blocks(graph, last)
    if blocks and not _blocks(graph, maps[: -len(last)]):  # all of its attention is on one grid
        first = [] if reads_token else stages[:1]
        return [*first, *(found for found in blocks if found not in stages), *stages[1:]]
    return [blocks[0], *stages[1:]] if blocks and reads_token else stages


def _of_each_size(maps: Sequence[FeatureMap]) -> list[FeatureMap]:
    """The last map before each change of the grid, the last first."""
    found: list[FeatureMap] = []
    for item in reversed(maps):
        if not found or _grain(item) != _grain(found[-1]):
            found.append(item)
    return found


def _grain(found: FeatureMap) -> object:
    """What tells the grids of two stages apart: their sizes, or where these follow the image, pixels between cells."""
    lines = found.frame.lines if None in found.grid else None
    return found.grid if lines is None else [abs(stride) for stride, _ in lines]


def _is_padded(value: Value) -> bool:
    """Whether a value is another with a margin: as a grid of its own it would count as a stage."""
    return value.producer is not None and isinstance(value.producer.kind, Padded)


def _blocks(graph: Graph, maps: Sequence[FeatureMap]) -> list[FeatureMap]:
    """What each block with attention reads, the last block first."""
    joints = [found for found in maps if found.value.producer is None or is_sum(found.value.producer)]
    ends = [*joints[1:], maps[-1]] if maps else []
    return [
        found
        for found, end in reversed(list(zip(joints, ends, strict=False)))
        if any(isinstance(node.kind, (Softmax, FusedAttention)) for node in region(graph, [found.value], [end.value]))
    ]


def is_early(graph: Graph, target: Value, scores: Value) -> bool:
    """Whether a value is what the first layer of a deep model makes of the image: of parts, and not of objects."""
    layers = [
        sum(isinstance(node.kind, (Window, Product)) for node in nodes)
        for nodes in (region(graph, image_inputs(graph), [target]), region(graph, [target], [scores]))
    ]
    return layers[0] == 1 and layers[1] >= _DEEP


def is_sum(node: Node) -> bool:
    """Whether a node adds two values, as a residual connection does, and no bias, which has one axis."""
    adds = isinstance(node.kind, Pointwise) and node.kind.function == "add"
    return adds and not any(value is None or _is_bias(value) for value in node.inputs)


def _is_bias(value: Value) -> bool:
    """Whether a constant has one number for each channel; OpenVINO gives it as many axes as the other operand."""
    return value.is_constant and sum(size != 1 for size in value.sizes) <= 1
