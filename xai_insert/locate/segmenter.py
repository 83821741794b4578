"""Class scores of a semantic segmenter: before softmax or argmax, and before the last resize."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from xai_insert.graph.along import along, is_least, reduces
from xai_insert.graph.items import only
from xai_insert.graph.operators import Blocks, Padded, Permutation, Resized
from xai_insert.graph.pattern import before, layer_of
from xai_insert.graph.traits import ARRANGES, CUTS_OUT, RANKS, SAME, SQUASHES, UNCHANGED
from xai_insert.graph.view import POINTWISE, Graph, Node, Op, Value, constant_of, number_of, volume
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.places import Places
from xai_insert.locate.probabilities import are_probabilities
from xai_insert.locate.softmaxes import is_softmax, shares_along, written_out

_COMPARES = RANKS | {Op.SOFTMAX}
_THROUGH = UNCHANGED | ARRANGES | SQUASHES | RANKS
_GONE = -1
_FLAT = 3
_FEWEST = 4
_COARSEST = 4.0
"""Pixels from one cell of class scores to the next, at most, where no resize follows: heads of boxes are coarser."""


@dataclass(frozen=True)
class Segmenter:
    """Class scores for every place of the image.

    Attributes:
        output: which of the model's outputs they lead to.
        class_axis: its axis of the classes; None behind an argmax.
        scores: the map of the scores.
        classes: their number.
        source: what the linear layer reads that gives them; None if they come of none.
        bias: what that layer adds, a constant; None if nothing.
        judged: what tells the class of each pixel: the scores behind the resizes, or the scores themselves.
        compares: whether a softmax or an argmax compares them.
        enlarged: whether a resize follows.
        is_scored: whether a linear layer gives them, or a sum of such.
        sees_all: whether what they are made of joins each place with the mean of the image, as ASPP and PSP do.
        takes_least: whether the model takes the least of them at each place, as of distances.
        first_label: what the output calls the class of the first map.
        labels: what it calls each, where a table tells; empty where they are counted.
    """

    output: int
    class_axis: int | None
    scores: FeatureMap
    classes: int
    source: Value | None
    bias: Value | None
    judged: FeatureMap
    compares: bool
    enlarged: bool
    is_scored: bool
    sees_all: bool
    takes_least: bool = False
    first_label: int = 0
    labels: tuple[int, ...] = ()

    @property
    def is_sure(self) -> bool:
        """Whether nothing else looks like this.

        Values that are compared are of classes. So are four and more from a linear layer, unless they are boxes', whose
        heads are coarser and read no mean of the image; fewer may be colours, normals, a flow, a depth.
        """
        lines = self.scores.frame.lines
        is_fine = lines is not None and max(abs(stride) for stride, _ in lines) <= _COARSEST
        shows_places = self.enlarged or self.sees_all or is_fine
        return self.compares or (self.is_scored and self.classes >= _FEWEST and shows_places)


def find_segmenter(graph: Graph, places: Places, output: str | None) -> Segmenter | None:
    """The class scores that every output comes from, or the output of that name; None if there are none.

    Args:
        graph: the model.
        places: where its values lie in the image.
        output: name of the output to read alone.

    Raises:
        UnknownNameError: no output has that name.
    """
    found, told = list[Segmenter](), list[Segmenter]()
    for index, value in graph.chosen(output):
        under = _under_greatest(value, places)
        read = _peeled(index, under, places)
        if read is None:
            return None
        found.append(read)
        told += [read] if under is value else []
    if not told or len({item.scores.value for item in found}) > 1:
        return None  # nothing is told, or how sure it is at each place and not of what
    first = next((item for item in told if item.class_axis is not None), told[0])
    compares, enlarged = any(item.compares for item in found), any(item.enlarged for item in found)
    return replace(first, compares=compares, enlarged=enlarged)


def may_segment(values: Sequence[Value]) -> bool:
    """Whether all outputs have room for a grid; costs nothing, so it is asked first."""
    return all(value.rank in (3, 4) for value in values)


def _peeled(index: int, output: Value, places: Places) -> Segmenter | None:
    before_table, table = _looked_up(output)
    labels, first_label = _labels(before_table)
    mask = _thresholded(output)
    scores, behind = _first_map(mask or labels, places)
    if scores is None or scores.channels is None or "float" not in scores.value.dtype:
        return None
    found = _axis_behind(behind, scores.channel_axis, places)
    if found is None or _has_other_rows(labels, scores, found, places):
        return None
    if mask is not None and (scores.channels == 1 or found == _GONE):
        return None  # a mask of one class may be of anomalies as well
    resizes = [node for node in behind if isinstance(node.kind, Resized)]
    source, bias = _linear(scores.value)
    return Segmenter(
        index,
        None if found == _GONE else found,
        scores,
        scores.channels,
        source,
        bias,
        judged=_judged(scores, behind, places),
        compares=mask is not None or _are_compared(scores, behind, places),
        enlarged=any(_enlarges(node, places) for node in resizes),
        is_scored=_are_scored(scores.value, places),
        sees_all=_sees_all(scores.value, places),
        takes_least=any(is_least(node.kind) for node in behind),
        first_label=first_label,
        labels=table,
    )


def _are_scored(value: Value, places: Places) -> bool:
    """Whether a linear layer makes the scores, or a sum of several, before they are made finer."""
    return _linear(_coarse(value, places))[0] is not None or _sums_layers(value)


def _are_compared(scores: FeatureMap, behind: Sequence[Node], places: Places) -> bool:
    """Whether classes are compared with one another, behind the scores or before."""
    return any(map(_compares, behind)) or are_probabilities(scores, places)


def _compares(node: Node) -> bool:
    """Whether a node ranks what it reads, or gives its shares of one."""
    return node.op in _COMPARES or written_out(node.output) is not None


def _has_other_rows(output: Value, scores: FeatureMap, axis: int, places: Places) -> bool:
    """Whether an output has rows of a line, as readers of text give them, or of places, as detectors do.

    Where a softmax of classes is in each row, `[N, h * w, K]` or `[N, K, h * w]`, it is a segmenter's.
    """
    if output.rank != _FLAT:
        return False
    if 1 in scores.grid or axis == _GONE or scores.value.rank == _FLAT:
        return 1 in scores.grid
    found = places.map_of(output)
    return found is None or len(found.grid_axes) > 1 or not is_softmax(before(output, ARRANGES))


def _judged(scores: FeatureMap, behind: Sequence[Node], places: Places) -> FeatureMap:
    """The scores behind the last resize before a class is told; of several, what a squash has made of them by then."""
    found = scores
    for node in reversed(behind):
        if node.op in RANKS:
            break
        if isinstance(node.kind, Resized):
            found = _map_of(node.output, places) or found
    return found


def _labels(output: Value) -> tuple[Value, int]:
    """The best class of each place under what counts from another number or ignores places, and the first number."""
    value, first = output, 0
    while (step := _counted(value)) is not None:
        value, added = step
        first += added
    node = before(value, UNCHANGED | ARRANGES).producer
    return (value, first) if node is not None and node.op in RANKS else (output, 0)


def _counted(value: Value) -> tuple[Value, int] | None:
    """What is read by a node that counts from another number or ignores places, and what it adds; None for others."""
    node = value.producer
    if node is None or node.op not in SAME | {Op.ADD, Op.SELECT}:
        return None
    read = [item for item in node.operands[node.op is Op.SELECT :] if not item.is_constant]
    if len(read) != 1:
        return None
    added = _whole_number(node.stored[0]) if node.op is Op.ADD else 0
    return None if added is None else (read[0], added)


def _whole_number(value: Value) -> int | None:
    """The one element of a constant; None if there are others, or it is a fraction."""
    number = number_of(value)
    return None if number is None or number % 1 else int(number)


def _looked_up(output: Value) -> tuple[Value, tuple[int, ...]]:
    """The best class of each place under a table of what classes are called, and the table; empty if there is none."""
    node = output.made_by(Op.GATHER)
    table = None if node is None or not node.read(0).is_constant else constant_of(node.read(0))
    if node is None or table is None or table.ndim != 1 or table.dtype.kind not in "iu":
        return output, ()
    best = before(_labels(node.read(1))[0], UNCHANGED | ARRANGES).producer
    if best is None or best.op not in RANKS:
        return output, ()  # a table of other things
    return node.read(1), tuple(int(label) for label in table)


def _thresholded(output: Value) -> Value | None:
    """What an output is compared with one number, a mask for each class; None if it is not."""
    node = output.made_by(Op.COMPARE)
    if node is None or len(node.computed) != 1 or any(volume(item.sizes) != 1 for item in node.stored):
        return None
    return node.computed[0]


def _under_greatest(output: Value, places: Places) -> Value:
    """What an output is the greatest of at each place; the output itself if it is not."""
    node, place = output.made_by(Op.REDUCE), places.of(output)
    is_of_places = place is not None and len(place.axes) == 2
    return node.read(0) if node is not None and reduces(node.kind, "max") and is_of_places else output


def _axis_behind(behind: Sequence[Node], axis: int, places: Places) -> int | None:
    """Where the axis of the classes is behind nodes, the last of them first; None if that is lost.

    `_GONE` where one class is left of each place.
    """
    for node in reversed(behind):
        if _compares(node) and _compared_along(node) != axis:
            return None  # a comparison of places
        if node.op in RANKS:
            best = node.outputs[-1]
            return None if best.rank == node.read(0).rank and best.sizes[axis] != 1 else _GONE
        moved = _moved(node, axis, places)
        if moved is None:
            return _GONE if _drops(node, axis) else None
        axis = moved
    return axis


def _compared_along(node: Node) -> int | None:
    return along(node.kind) if node.op in RANKS else shares_along(node.output)


def _drops(node: Node, axis: int) -> bool:
    """Whether a reshape takes away the axis of one class, as a mask or a depth is given without it."""
    given = node.read(0).sizes
    left = (*given[:axis], *given[axis + 1 :])
    return node.op is Op.RESHAPE and given[axis] == 1 and node.output.rank == len(left)


def _first_map(output: Value, places: Places) -> tuple[FeatureMap | None, list[Node]]:
    """The first map from which an output comes, and what lies between, the last first."""
    scores = _map_of(output, places)
    behind: list[Node] = []
    passed: list[Node] = []
    for node, source in _on_the_way(output):
        passed.append(node)
        found = _map_of(source, places)
        if found is None:
            continue
        is_judged = any(step.op in RANKS for step in passed[len(behind) :])
        if scores is not None and found.channels != scores.channels and not is_judged:
            break  # a sub-pixel layer, which makes finer cells of channels
        scores, behind = found, list(passed)
    return scores, behind


def _on_the_way(value: Value) -> Iterator[tuple[Node, Value]]:
    """The nodes that bring a value where it is, the last first, with what they read."""
    while (node := value.producer) is not None and (source := node.operand(0)) is not None:
        scores = written_out(value)
        if scores is None and node.op not in _THROUGH and not isinstance(node.kind, Resized):
            return
        yield node, scores or source
        value = scores or source


def _moved(node: Node, axis: int, places: Places) -> int | None:
    """The axis of the classes behind a node; None where it is lost."""
    if isinstance(node.kind, Permutation):
        return None if node.kind.perm is None else node.kind.perm.index(axis)
    if node.op is Op.RESHAPE:
        found = _map_of(node.output, places)
        return _kept(node, axis, places) if found is None else found.channel_axis
    return axis


def _kept(node: Node, axis: int, places: Places) -> int | None:
    """The axis of the classes behind a reshape that makes one of rows and columns, as Keras' segmenters have it."""
    before, after = (places.traced.get(value, ()) for value in (node.read(0), node.output))
    found = [index for index, item in enumerate(after) if item and item == before[axis]]
    return only(found)


def _map_of(value: Value, places: Places) -> FeatureMap | None:
    found = places.map_of(value)
    return found if found is not None and len(found.grid_axes) == 2 else None


def _enlarges(node: Node, places: Places) -> bool:
    """Whether a resize makes more cells; of unknown sizes it is taken to, as last ones do."""
    after, before = places.of(node.output), places.of(node.read(0))
    return after is None or before is None or abs(after.rows.stride) < abs(before.rows.stride)


def _sums_layers(value: Value) -> bool:
    """Whether a value adds what several linear layers give, resized or not, as in LR-ASPP and FCN-8s."""
    node, add = value.producer, value.made_by(Op.ADD)
    if node is not None and isinstance(node.kind, Resized):
        return _sums_layers(node.read(0)) or _linear(node.read(0))[0] is not None
    if add is None or len(add.computed) < 2:
        return False
    return all(_linear(operand)[0] is not None or _sums_layers(operand) for operand in add.computed)


def _coarse(value: Value, places: Places) -> Value:
    """A value before a sub-pixel layer made finer cells of its channels, or places were cut off; else itself."""
    while (node := value.producer) is not None:
        if node.op not in ARRANGES and not isinstance(node.kind, Blocks) and not _cuts_places(node, places):
            break
        value = node.read(0)
    return value


def _cuts_places(node: Node, places: Places) -> bool:
    """Whether a node takes a part of the rows and columns, and every channel."""
    maps = [_map_of(value, places) for value in (node.output, node.read(0))] if node.op in CUTS_OUT else [None]
    return all(found is not None for found in maps) and len({found.channels for found in maps if found}) == 1


def _sees_all(value: Value, places: Places) -> bool:
    """Whether layers read the mean of the whole image at each place, joined with what lies there."""
    while (node := value.producer) is not None and node.op is not Op.CONCAT and node.operands:
        if node.op not in POINTWISE | UNCHANGED | {Op.CONV} and not isinstance(node.kind, Padded):
            return False
        value = next((item for item in node.operands if not item.is_constant), node.read(0))
    return node is not None and any(_is_mean_of_all(item, places) for item in node.computed)


def _is_mean_of_all(value: Value, places: Places) -> bool:
    """Whether a value is the mean over the grid, through layers, laid over the grid again."""
    is_laid = False
    while (node := value.producer) is not None and node.computed:
        source = node.computed[0]
        place = places.of(source)
        if place is not None and len(place.axes) == 2:
            return is_laid and node.op in {Op.REDUCE, Op.POOL}
        is_laid = is_laid or isinstance(node.kind, Resized) or node.op is Op.EXPAND
        value = source
    return False


def _linear(value: Value) -> tuple[Value | None, Value | None]:
    """What a layer with weights reads, and the bias that it adds."""
    layer, add = layer_of(value), value.made_by(Op.ADD)
    if layer is None:
        return None, None
    return layer.operand(0), layer.operand(2) if add is None else next(iter(add.stored), None)
