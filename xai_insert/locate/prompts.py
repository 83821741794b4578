"""Models of images and text: the product of an image's embedding with those of prompts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from xai_insert.graph.cuts import activations
from xai_insert.graph.operators import Permutation, Product
from xai_insert.graph.pattern import before
from xai_insert.graph.traits import ARITHMETIC, JUDGES, SAME
from xai_insert.graph.view import Graph, Node, Op, Value, volume
from xai_insert.locate.logits import is_vector

_RANK = 2


@dataclass(frozen=True)
class Prompts:
    """Scores of prompts.

    Attributes:
        output_name: the graph output that they were found at.
        scores: `[N, P]`, or `[P, N]` where `scores_transposed`; before a softmax or sigmoid.
        scores_transposed: see `scores`.
        image: the embedding of the image, `[N, D]`.
        text: those of the prompts, `[P, D]`, or `[D, P]` where `text_transposed`.
        text_transposed: see `text`.
        product: of both.
        tail: the operations from there to `scores`.
    """

    output_name: str
    scores: Value
    scores_transposed: bool
    image: Value
    text: Value
    text_transposed: bool
    product: Value
    tail: tuple[Node, ...]


def find_prompts(graph: Graph, images: Collection[Value], output: str | None) -> Prompts | None:
    """Scores by the product of what depends on the images alone with what depends on other inputs alone.

    Stored vectors do for the latter where the scores have the images last: no classifier has. Of several outputs with
    such scores the one is taken that has the images first.

    Raises:
        UnknownNameError: no output is called `output`.
    """
    seen = activations(graph, list(images))
    read = activations(graph, [value for value in graph.inputs if value not in images])
    found = [
        item
        for index, value in graph.chosen(output)
        if (item := _scores_at(value, graph.output_names[index], seen, read)) is not None
    ]
    return min(found, key=lambda item: item.scores_transposed, default=None)


def _scores_at(value: Value, name: str, seen: set[Value], read: set[Value]) -> Prompts | None:
    scores = before(value, JUDGES | SAME)
    tail = _behind_product(scores, seen, read)
    if tail is None:
        return None
    value = next(operand for operand in tail[0].operands if operand in seen) if tail else scores
    node = value.producer
    if node is None or value.rank != 2 or not _is_plain(node):
        return None
    index = 0 if node.read(0) in seen - read else 1
    image_last = (index == 0) != (sum(map(_is_flip, tail)) % 2 == 0)
    are_prompts = _may_be_prompts(node.read(1 - index), read - seen, image_last=image_last)
    image, upright = _upright(node, index)
    text, text_upright = _upright(node, 1 - index)
    if not are_prompts or node.read(index) not in seen - read or not (upright and _is_embedding(image)):
        return None
    return Prompts(name, scores, image_last, image, text, not text_upright, value, tuple(tail))


def _may_be_prompts(vectors: Value, texts: set[Value], *, image_last: bool) -> bool:
    """Whether vectors are computed from texts, or stored ones that come first."""
    return vectors in texts or (vectors.is_constant and image_last)


def _is_embedding(value: Value) -> bool:
    """Whether a value is one vector for each image."""
    return value.rank == 2 and is_vector(value.shape)


def _behind_product(scores: Value, seen: set[Value], read: set[Value]) -> list[Node] | None:
    """What stands between a product and the scores, in order; None if that is more than scaling and turning them."""
    tail, value = list[Node](), scores
    while (node := value.producer) is not None and node.op is not Op.MATMUL:
        varying = [operand for operand in node.operands if operand in seen]
        if not varying or not (_is_flip(node) or node.op in SAME or _scales(node, seen, read)):
            return None
        tail.insert(0, node)
        value = varying[0]
    return tail


def _is_flip(node: Node) -> bool:
    """Whether a node exchanges rows and columns; where there is one of them, OpenVINO reshapes."""
    if isinstance(node.kind, Permutation):
        return node.kind.perm == (1, 0)
    sizes = node.read(0).sizes if node.op is Op.RESHAPE and node.read(0).rank == _RANK else ()
    return 1 in sizes and node.output.sizes == sizes[::-1] != sizes


def _scales(node: Node, seen: set[Value], read: set[Value]) -> bool:
    """Whether a node does the same to every score: arithmetic with one number that no input of the model gives."""
    others = [operand for operand in node.operands if operand not in seen]
    is_one = all(operand not in read and volume(operand.sizes) == 1 for operand in others)
    return node.op in ARITHMETIC and len(node.operands) == len(others) + 1 and is_one


def _is_plain(product: Node) -> bool:
    return product.operand(2) is None and not product.record(Product).is_scaled


def _upright(product: Node, index: int) -> tuple[Value, bool]:
    """An operand with its vectors as rows, from before a transpose that lays them out otherwise, and whether it is."""
    value = product.read(index)
    kind = product.record(Product)
    upright = (kind.transpose_a, kind.transpose_b)[index] != (index == 0)
    while (node := value.producer) is not None and (node.op in SAME or _is_flip(node)):
        upright ^= node.op not in SAME
        value = node.read(0)
    return value, upright
