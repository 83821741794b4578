"""Whether a vector is an embedding, which is compared with others, or scores of classes."""

from __future__ import annotations

from xai_insert.graph.pattern import maker
from xai_insert.graph.traits import JUDGES, PRODUCTS
from xai_insert.graph.view import Graph, Node, Op, Value
from xai_insert.locate.lengths import ARRANGED, is_normalised
from xai_insert.locate.logits import Logits, vector_size
from xai_insert.locate.softmaxes import is_softmax

_BOX = 4


def holds_direction(value: Value) -> bool:
    """Whether a vector is joined of parts of which one, not all, is divided by its length: a pose, no classes."""
    node = maker(value, ARRANGED)
    if node is None or node.op is not Op.CONCAT:
        return False
    return 0 < sum(is_normalised(part) for part in node.operands) < len(node.operands)


def parts_with_a_box(value: Value) -> list[int]:
    """How many numbers each part of a vector has, if it is joined of four and of others, as of a box and classes."""
    node = maker(value, ARRANGED)
    parts = [] if node is None or node.op is not Op.CONCAT else [vector_size(part.sizes) or 0 for part in node.operands]
    return parts if _BOX in parts and len(set(parts)) > 1 else []


def may_be_embedding(graph: Graph, logits: Logits) -> bool:
    """Whether structure leaves open what a vector is: nothing compares its elements, and no bias is added to each."""
    given = graph.outputs[list(graph.output_names).index(logits.output_name)]
    if is_softmax(given):
        return False
    node: Node | None = given.producer
    while node is not None and node.output is not logits.value:
        if node.op in JUDGES:
            return False
        source = node.operand(0)
        node = None if source is None else source.producer
    made = maker(logits.value, ARRANGED)
    if made is None:
        return False
    if made.op in PRODUCTS:
        return made.operand(2) is None
    return made.op is not Op.ADD or not made.stored
