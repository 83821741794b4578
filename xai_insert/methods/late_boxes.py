"""Boxes of all locations in models that decode boxes only where they have selected.

Such a model takes the best locations of each level first, then decodes their boxes. What it does to the boxes that it
has taken is done again to all of them: the same operations, with all indices in place of the chosen ones.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np

from xai_insert.graph.cuts import activations
from xai_insert.graph.items import only
from xai_insert.graph.ops import Surgeon, V
from xai_insert.graph.view import Graph, Node, Op, Shape, Value
from xai_insert.locate.frontier import find_heads
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.observed import local_values, selects
from xai_insert.methods.shaping import rerun

_BOX = 4


def boxes_everywhere(surgeon: Surgeon[V], graph: Graph) -> dict[Value, V]:
    """What values with chosen locations would be if all locations had been chosen, where they may be decoded boxes.

    Args:
        surgeon: the model being edited.
        graph: its view.
    """
    images = image_inputs(graph)
    dependent = activations(graph, images)
    local, _ = local_values(graph, dependent, find_heads(graph, images))
    choosing = _choosing(graph, dependent, local)
    made = _all_instead(surgeon, choosing)
    boxes: dict[Value, V] = {}
    for node in graph.nodes:
        if not any(value in made for value in node.operands):
            continue
        mixed = [value for value in node.operands if value in dependent and value not in made and value not in local]
        if not mixed and (_takes_all(node, dependent, made) or not selects(node, dependent)):
            made.update(zip(node.outputs, _again(surgeon, node, made), strict=True))
        elif (joined := _joined_sides(surgeon, node, made)) is not None:
            boxes[node.output] = joined
    return boxes | {value: handle for value, handle in made.items() if _may_be_boxes(value)}


def _all_instead(surgeon: Surgeon[V], choosing: Sequence[Node]) -> dict[Value, V]:
    """What is taken from, in place of what is; the numbers of all rows, in place of those chosen."""
    made = {node.output: surgeon.handle(node.read(0)) for node in choosing if node.op is Op.TAKE}
    for node in choosing:
        if node.op is Op.GATHER and node.read(1) not in made:
            made[node.read(1)] = _every_row(surgeon, node)
    return made


def _joined_sides(surgeon: Surgeon[V], node: Node, made: Mapping[Value, V]) -> V | None:
    """The four sides of boxes that a node joins with scores and labels of what was chosen; None if it does not."""
    axis = node.output.axis_count - 1
    if node.op is not Op.CONCAT or node.attrs.get("axis") != axis:
        return None
    sides = [value for value in node.operands if value in made]
    if len(sides) != _BOX or any("float" not in value.dtype or value.sizes[-1] != 1 for value in sides):
        return None
    return surgeon.ops.concat([made[value] for value in sides], axis=axis)


def _choosing(graph: Graph, dependent: set[Value], local: Container[Value]) -> list[Node]:
    """The nodes that take locations, or anchors of the locations that are taken."""
    choosing = [node for node in graph.nodes if _chooses(node, dependent)]
    ranked = {_ranking(node.read(1), dependent) for node in choosing if node.read(0) in local} - {None}
    return [
        node
        for node in choosing
        if node.read(0) in local or (node.read(0) not in dependent and _ranking(node.read(1), dependent) in ranked)
    ]


def _takes_all(node: Node, dependent: set[Value], made: Mapping[Value, V]) -> bool:
    """Whether a node takes rows, and the indices were replaced by those of all rows."""
    return _chooses(node, dependent) and node.read(1) in made and node.read(0) not in made


def _again(surgeon: Surgeon[V], node: Node, made: Mapping[Value, V]) -> Sequence[V]:
    """A node's results for all rows."""
    if "new_axes" in node.attrs:  # holds no numbers of rows
        return surgeon.copy(node, [made[node.read(0)], *(surgeon.handle(value) for value in node.operands[1:])])
    sizes = _with_all_rows(node) if node.op is Op.RESHAPE else None
    if sizes is not None:
        return [surgeon.ops.reshape(made[node.read(0)], sizes)]
    return rerun(surgeon, node, made)


def _with_all_rows(node: Node) -> list[int] | None:
    """The sizes that a reshape gives any number of rows; None where they may be read off what it is written with."""
    sizes, before = node.output.sizes, node.read(0).sizes
    if len(sizes) in (2, 3) and (width := sizes[-1]) == before[-1] and width:
        # Rows stay rows, of which it may hold the number of those chosen.
        return [*[1] * (len(sizes) - 2), -1, width]
    return None if len(before) < 2 or before[-2] is None else _open_at(sizes, before[-2])


def _open_at(sizes: Shape, rows: int) -> list[int] | None:
    """Sizes with the one axis of so many rows open; None if there are more such axes, or open ones."""
    if sizes.count(rows) != 1 or None in sizes:
        return None
    return [-1 if size == rows else size or 0 for size in sizes]


def _chooses(node: Node, dependent: set[Value]) -> bool:
    """Whether a node takes some rows of its first operand, as the image says."""
    if node.op is Op.TAKE:
        return len(node.operands) > 1 and node.read(1) in dependent and _takes_rows(node)
    return node.op is Op.GATHER and node.read(1) in dependent and node.read(1).rank in (1, 2)


def _takes_rows(node: Node) -> bool:
    """Whether elements are taken by one index for all columns of a row, so that whole rows `[N, rows, columns]` are."""
    data, index = node.read(0), node.read(1)
    if data.rank != 3 or index.sizes != node.output.sizes or index.sizes[2] is None or data.sizes[2] != index.sizes[2]:
        return False
    while (made := index.producer) is not None and made.op in (Op.CAST, Op.IDENTITY):
        index = made.read(0)
    return made is not None and made.op is Op.EXPAND and made.read(0).sizes[-1:] == (1,)


def _ranking(index: Value, dependent: set[Value]) -> Node | None:
    """The ranking that indices come from, by arithmetic and moved to where an image's rows begin as they may be."""
    found: set[Node] = set()
    stack, seen = [index], {index}
    while stack:
        node = stack.pop().producer
        if node is None:
            return None
        if node.op is Op.TOPK:
            found.add(node)
            continue
        sources = {value for value in node.operands if value in dependent} - seen
        seen |= sources
        stack += sources
    return only(found)


def _every_row(surgeon: Surgeon[V], node: Node) -> V:
    """The indices with which a node takes all rows of one image, in order."""
    op, (data, index) = surgeon.ops, (node.read(0), node.read(1))
    axis = node.attrs["axis"]
    count = data.sizes[axis]
    rows = op.numbers(op.size(surgeon.handle(data), axis) if count is None else op.constant(np.array([count])))
    rows = rows if index.dtype == "int64" else op.cast(rows, index.dtype)
    return rows if index.rank == 1 else op.unsqueeze(rows, [0])


def _may_be_boxes(value: Value) -> bool:
    return value.rank in (2, 3) and "float" in value.dtype and value.sizes[-1] == _BOX
