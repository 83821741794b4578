"""Boxes of all locations in models that decode boxes only where they have selected.

Such a model takes the best locations of each level first, then decodes their boxes. What it does to the boxes that it
has taken is done again to all of them: the same operations, with all indices in place of the chosen ones.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np

from xai_insert.graph.along import along
from xai_insert.graph.cuts import activations
from xai_insert.graph.items import only
from xai_insert.graph.operators import Picked, Regroup
from xai_insert.graph.ops import Size, Surgeon, V
from xai_insert.graph.view import Graph, Node, Op, Shape, Value, fixed
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
    made, boxes = _all_instead(surgeon, choosing), dict[Value, V]()
    shared = set(made) - _of_images(choosing, dependent)
    for node in graph.nodes:
        if not made.keys() & set(node.operands):
            continue
        if _is_redone(node, dependent, made, local):
            is_shared = dependent.intersection(node.operands) <= shared
            shared.update(node.outputs if is_shared else ())
            made.update(zip(node.outputs, _again(surgeon, node, made, is_shared=is_shared), strict=True))
        elif (joined := _joined_sides(surgeon, node, made)) is not None:
            boxes[node.output] = joined
    return boxes | {value: handle for value, handle in made.items() if _may_be_boxes(value)}


def _is_redone(node: Node, dependent: set[Value], made: Mapping[Value, V], local: Container[Value]) -> bool:
    """Whether a node does something to what was chosen alone."""
    read = dependent.intersection(node.operands) - made.keys()
    return all(value in local for value in read) and (_takes_all(node, dependent, made) or not selects(node, dependent))


def _of_images(choosing: Sequence[Node], dependent: set[Value]) -> set[Value]:
    """What is made of each image where it is taken from, and the indices into that; anchors all images share."""
    own = [node for node in choosing if node.read(0) in dependent]
    return {value for node in own for value in (node.output, node.read(1))}


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
    if node.op is not Op.CONCAT or along(node.kind) != axis:
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


def _again(surgeon: Surgeon[V], node: Node, made: Mapping[Value, V], *, is_shared: bool) -> Sequence[V]:
    """A node's results for all rows, once where images share them."""
    if isinstance(node.kind, Regroup) and node.kind.new_axes is not None:  # holds no numbers of rows
        return surgeon.copy(node, [made[node.read(0)], *(surgeon.handle(value) for value in node.operands[1:])])
    sizes = _with_all_rows(node) if node.op is Op.RESHAPE else None
    if sizes is None:
        return rerun(surgeon, node, made)
    first: Size = sizes[0] or 1
    if sizes[0] is None and not is_shared:
        first = surgeon.ops.size(surgeon.handle(node.output), 0)
    return [surgeon.ops.reshape(made[node.read(0)], [first, *fixed(sizes[1:])])]


def _with_all_rows(node: Node) -> Shape | None:
    """The sizes that a reshape gives any number of rows; None where they may be read off what it is written with.

    An open batch stays open: as many images are decoded as before.
    """
    sizes, before = node.output.sizes, node.read(0).sizes
    if len(sizes) in (2, 3) and (width := sizes[-1]) == before[-1] and width:
        # Rows stay rows, of which it may hold the number of those chosen.
        return (*(None if size is None else 1 for size in sizes[:-2]), -1, width)
    return None if len(before) < 2 or before[-2] is None else _open_at(sizes, before[-2])


def _open_at(sizes: Shape, rows: int) -> Shape | None:
    """Sizes with the one axis of so many rows open; None if there are more such axes, or open ones but the batch."""
    if sizes.count(rows) != 1 or None in sizes[1:]:
        return None
    return tuple(-1 if size == rows else size for size in sizes)


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
    axis = node.record(Picked).axis
    count = data.sizes[axis]
    rows = op.numbers(op.size(surgeon.handle(data), axis) if count is None else op.constant(np.array([count])))
    rows = rows if index.dtype == "int64" else op.cast(rows, index.dtype)
    return rows if index.rank == 1 else op.unsqueeze(rows, [0])


def _may_be_boxes(value: Value) -> bool:
    return value.rank in (2, 3) and "float" in value.dtype and value.sizes[-1] == _BOX
