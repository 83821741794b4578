"""Which value holds the class scores before softmax or sigmoid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xai_insert.errors import AmbiguousModelError, UnsupportedTaskError
from xai_insert.graph.along import convolves, is_least
from xai_insert.graph.axes import has_batch, has_place
from xai_insert.graph.cuts import activations, region, walk
from xai_insert.graph.operators import Joined, Permutation, Pointwise, Reduction
from xai_insert.graph.pattern import before
from xai_insert.graph.traits import ARITHMETIC, ARRANGES, CUTS_OUT, JUDGES, LISTS_LOCATIONS, PRODUCTS, RANKS, UNCHANGED
from xai_insert.graph.view import Graph, Node, Op, Shape, Value, constant_of, volume
from xai_insert.locate.anomaly import is_distance
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.lengths import is_normalised
from xai_insert.locate.places import find_places
from xai_insert.locate.softmaxes import is_softmax, written_out

_PEELED = JUDGES | UNCHANGED
_OF_ONE_NUMBER = UNCHANGED | ARRANGES | ARITHMETIC | {Op.SELECT}
"""What makes each number of one other and of constants, where it computes with one value alone."""


_ROWS = 2
_PER_ROW = 3  # axes of what has numbers for each of several rows


@dataclass(frozen=True)
class Logits:
    """Class scores of a classifier.

    Attributes:
        value: `[B, K]`, possibly with further axes of size 1.
        output_name: the graph output they were found at.
        classes: K.
    """

    value: Value
    output_name: str
    classes: int


def is_vector(shape: Shape | None) -> bool:
    """Whether a value holds one vector per image: at most one axis beyond the first has more than one element."""
    return shape is not None and sum(size != 1 for size in shape[1:]) <= 1


def vector_size(shape: Shape) -> int | None:
    """Length of the vector per image: 1 of a value that has one number for each image of an open batch."""
    if shape == (None,):
        return 1
    sizes = [size for size in (shape[1:] if len(shape) > 1 else shape) if size != 1]
    return sizes[0] if sizes else 1


def peel(value: Value) -> Value:
    """The value under the operations that exporters put behind the class scores."""
    while (node := value.producer) is not None and (source := node.operand(0)) is not None:
        if (scores := written_out(value)) is not None:
            value = scores
            continue
        is_same = _keeps_images_apart(node) or _is_of_one(node)
        if node.op not in _PEELED and not (is_same and _are_vectors(source, value)):
            break
        value = source
    return value


def _keeps_images_apart(node: Node) -> bool:
    """Whether a node writes numbers in another shape, and its first axis stays the first."""
    if isinstance(node.kind, Permutation):
        return node.kind.perm is not None and node.kind.perm[0] == 0
    return node.op in ARRANGES


def _is_of_one(node: Node) -> bool:
    """Whether a mean is of one element each, as where a video network pools positions behind its softmax."""
    kind = node.kind
    axes = kind.axes if isinstance(kind, Reduction) and kind.mode == "mean" else None
    return axes is not None and all(node.read(0).sizes[axis] == 1 for axis in axes)


def _are_vectors(source: Value, result: Value) -> bool:
    """Whether a vector of numbers is written in another shape, which may be unknown."""
    return is_vector(source.shape) and source.rank != 0 and (result.shape is None or is_vector(result.shape))


def takes_least(graph: Graph, scores: Value) -> bool:
    """Whether the model itself takes the least of some scores and never the greatest, as of distances."""
    same = tuple(UNCHANGED)
    ranking = [node for node in graph.nodes if node.op in RANKS or is_least(node.kind)]
    ranked = [node for node in ranking if before(node.read(0), same) is before(scores, same)]
    return bool(ranked) and all(is_least(node.kind) for node in ranked)


def find_logits(graph: Graph, images: list[Value], output: str | None, *, as_embedding: bool = False) -> Logits:
    """The class scores, at the output named `output` if given; of several, the only one that is a softmax.

    A vector of a fixed length beside others is an embedding, taken only where one is asked for.

    Raises:
        UnknownNameError: no output has that name.
        UnsupportedTaskError: no output gives one score per class and image.
        AmbiguousModelError: several do, and none was chosen.
    """
    candidates = scored_outputs(graph, images, output, as_embedding=as_embedding)
    if not candidates:
        raise UnsupportedTaskError(no_class_scores(graph))
    normalised = [item for item in candidates if is_softmax(_output(graph, item.output_name))]
    if len(normalised) == 1:  # boxes and marks that are regressed beside the scores are no softmax
        candidates = normalised
    candidates = [item for item in candidates if is_normalised(item.value) is as_embedding] or candidates
    if len(candidates) > 1:
        listed = ", ".join(_describe(item.output_name, item.value) for item in candidates)
        raise AmbiguousModelError(
            f"{len(candidates)} outputs may hold the class scores: {listed}; choose with --output NAME"
        )
    return candidates[0]


def scored_outputs(
    graph: Graph, images: list[Value], output: str | None, *, as_embedding: bool = False
) -> list[Logits]:
    """The outputs, or that named `output`, that give one score per class and image.

    Of a vector and what is computed from it by layers the latter, or the vector itself where an embedding is asked for.

    Raises:
        UnknownNameError: no output has that name.
    """
    reached = activations(graph, images)
    found: dict[Value, Logits] = {}
    for index, value in graph.chosen(output):
        scores = peel(value)
        classes = vector_size(scores.sizes) if _may_be_scores(scores, reached, graph) else None
        if classes is not None and (output is not None or not _is_of_rows(value, graph)):
            found.setdefault(scores, Logits(scores, graph.output_names[index], classes))
    own = {value: item for value, item in found.items() if not _is_derived(graph, item, found)}
    feeds = {value: _feeds_another(graph, item, own) for value, item in own.items()}
    return [item for value, item in own.items() if feeds[value] is (as_embedding and any(feeds.values()))]


def beside_scores(graph: Graph, scores: Value) -> list[str]:
    """Outputs that are computed from the image, and neither from the scores nor on the way to them, for people."""
    aside = activations(graph, image_inputs(graph)) - activations(graph, [scores])
    outputs = zip(graph.output_names, graph.outputs, strict=True)
    return [_describe(*item) for item in outputs if item[1] in aside and scores not in activations(graph, [item[1]])]


def _may_be_scores(value: Value, reached: set[Value], graph: Graph) -> bool:
    """Whether a value is a vector of numbers for each image that some operation has made of it."""
    if value not in reached or value.producer is None or "float" not in value.dtype:
        return False
    if _is_of_locations(value, reached) or _is_line(value, graph) or _has_images_behind(graph, value):
        return False
    if _is_of_steps(value, graph) or _yes_or_no(value) is not None:
        return False
    return is_vector(value.shape) and not _is_of_another_batch(value, graph)


def _is_of_rows(value: Value, graph: Graph) -> bool:
    """Whether an output `[N, K, 1]` is of the rows of another, `[N, K, D]`: how sure each key point or box is."""
    if value.rank != _PER_ROW or value.sizes[2] != 1 or value.sizes[1] == 1:
        return False
    others = [other for other in graph.outputs if other is not value and other.rank == _PER_ROW]
    return any(other.sizes[1] == value.sizes[1] and other.sizes[2] != 1 for other in others)


def why_no_scores(graph: Graph, output: Value) -> str:
    """Why an output of one vector for each image holds no scores of classes; empty where nothing tells."""
    if output.rank != _ROWS:
        return ""
    judged = _yes_or_no(output)
    return _of_one_line(graph, output) if judged is None else _thresholded(output, judged)


def _yes_or_no(value: Value) -> Node | None:
    """The comparison or the sign of which a vector says no more than yes or no of each number; None if of neither."""
    node = value.producer
    while node is not None and node.op is not Op.COMPARE and not _is_sign(node):
        varying = node.computed
        node = varying[0].producer if node.op in _OF_ONE_NUMBER and len(varying) == 1 else None
    return node


def _is_sign(node: Node) -> bool:
    return isinstance(node.kind, Pointwise) and node.kind.function == "sign"


def _thresholded(output: Value, judged: Node) -> str:
    compared = judged.computed[0].describe()
    if _is_sign(judged):
        return (
            f"{output.describe()} says which of the numbers {compared} are above nothing, not how far, as codes for "
            "retrieval do (hashing): insert into the model without that sign, as an embedding (--reference self)"
        )
    return (
        f"{output.describe()} says which of the numbers {compared} pass a threshold, not by how much: insert into the "
        "model without that comparison"
    )


def _of_one_line(graph: Graph, output: Value) -> str:
    if not _is_line(peel(output), graph):
        return ""
    return (
        f"{output.describe()} is, as far as its axes can be followed, of one frame, row or column of the image alone: "
        "no map shows what the others do to it"
    )


def no_class_scores(graph: Graph) -> str:
    """What is said of a model without an output of class scores."""
    listed = ", ".join(_describe(name, value) for name, value in zip(graph.output_names, graph.outputs, strict=True))
    return (
        f"not a classifier: wanted an output [N, classes], found {listed}; what was asked for is for "
        "classifiers: --method auto tries other tasks"
    )


def _output(graph: Graph, name: str) -> Value:
    return graph.outputs[list(graph.output_names).index(name)]


def _is_of_locations(value: Value, reached: set[Value]) -> bool:
    """Whether a value lists what convolutions say at each location, as detectors do, of one class `[B, L, 1]`."""
    makers = [value.producer for value in walk([value], lambda value: reached.intersection(_listed(value.producer)))]
    return all(node is not None and (_listed(node) or _gives_locations(node)) for node in makers)


def _listed(node: Node | None) -> Sequence[Value]:
    """What a node puts into one list."""
    lists = node is not None and (node.op in LISTS_LOCATIONS or node.type == "DepthToSpace")
    return node.operands if node is not None and lists else ()


def _gives_locations(node: Node) -> bool:
    return convolves(node.kind) and node.output.rank == 4 and volume(node.output.sizes[2:]) != 1


def _is_line(value: Value, graph: Graph) -> bool:
    """Whether the numbers of a vector are those of one map of a single row or column, as of a detector's last level."""
    return any(map(has_place, find_places(graph).traced.get(value, ())))


def _has_images_behind(graph: Graph, scores: Value) -> bool:
    """Whether the images of a batch stand in another axis than the first, as in the scores of prompts for them."""
    holds = [has_batch(axis) for axis in find_places(graph).traced.get(scores, ())]
    return any(holds) and not holds[0]


def _is_of_steps(value: Value, graph: Graph) -> bool:
    """Whether scores `[T, B, K]` are those of T steps, as a reader of text has them for each character."""
    images = {image.sizes[0] for image in image_inputs(graph)}
    return value.axis_count > _ROWS and None not in images and value.sizes[0] not in {None, *images}


def _is_of_another_batch(value: Value, graph: Graph) -> bool:
    """Whether a value of one axis is neither a number for each image of an open batch nor the scores of one image."""
    if value.rank != 1 or value.sizes[0] == 1:
        return False
    return (value.sizes[0] is None) is not find_places(graph).of_images(value)


def _describe(name: str, value: Value) -> str:
    return Value(name, value.shape, value.dtype).describe()


def _feeds_another(graph: Graph, item: Logits, found: Mapping[Value, Logits]) -> bool:
    """A pooled feature that is an output as well: other scores are computed from it."""
    downstream = activations(graph, [item.value])
    others = [other for value, other in found.items() if value is not item.value and value in downstream]
    return any(not _is_rearranged(graph, other, item) for other in others)


def _is_rearranged(graph: Graph, item: Logits, scores: Logits) -> bool:
    """Whether scores are those of the same classes in another order, or turned round: either may be meant."""
    if item.classes != scores.classes or not _is_computed_of(graph, item.value, scores.value):
        return False
    return any(map(_rearranges, region(graph, [scores.value], [item.value])))


def _rearranges(node: Node) -> bool:
    if node.op in CUTS_OUT or isinstance(node.kind, Joined):
        return True
    if not isinstance(node.kind, Pointwise):
        return False
    factor = constant_of(node.operand(1)) if node.kind.function in ("mul", "div") else None
    is_negative = factor is not None and bool((factor < 0).any())
    return node.kind.function == "neg" or is_negative or (node.op is Op.SUB and node.read(0).is_constant)


def _is_derived(graph: Graph, item: Logits, found: Mapping[Value, Logits]) -> bool:
    """A number computed, without a layer's weights, from the scores of several classes: the best, their entropy."""
    if item.classes != 1 or is_distance(item.value):
        return False
    return any(other.classes > 1 and _is_computed_of(graph, item.value, other.value) for other in found.values())


def _is_computed_of(graph: Graph, value: Value, scores: Value) -> bool:
    """Whether a value is computed from `scores` alone, without a layer's weights."""
    reached = activations(graph, image_inputs(graph))

    def before(value: Value) -> list[Value]:
        node = None if value is scores else value.producer
        return [] if node is None else [operand for operand in node.operands if operand in reached]

    way = [item for item in walk([value], before) if item is not scores]
    return value in activations(graph, [scores]) and all(
        (node := item.producer) is not None and node.op not in PRODUCTS for item in way
    )
