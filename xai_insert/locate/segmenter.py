"""Class scores of a semantic segmenter: before softmax or argmax, and before the last resize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xai_insert.errors import UnknownNameError
from xai_insert.graph.operators import Product, Resized, Window
from xai_insert.graph.view import Graph, Op, Value
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.places import Places

_THROUGH = (Op.IDENTITY, Op.CAST, Op.QUANTIZE, Op.TRANSPOSE, Op.RESHAPE, Op.SIGMOID)
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
        compares: whether a softmax or an argmax compares them.
        enlarged: whether a resize follows.
    """

    output: int
    class_axis: int | None
    scores: FeatureMap
    classes: int
    source: Value | None
    compares: bool
    enlarged: bool

    @property
    def is_sure(self) -> bool:
        """Whether nothing else looks like this.

        Values that are compared are of classes. So are four and more from a linear layer, unless they are boxes', whose
        heads are coarser; fewer may be colours, normals, a flow, a depth.
        """
        lines = self.scores.frame.lines
        is_fine = lines is not None and max(abs(stride) for stride, _ in lines) <= _COARSEST
        return self.compares or (self.source is not None and self.classes >= _FEWEST and (self.enlarged or is_fine))


def find_segmenter(graph: Graph, places: Places, output: str | None) -> Segmenter | None:
    """The class scores that every output comes from, or the output of that name; None if there are none.

    Args:
        graph: the model.
        places: where its values lie in the image.
        output: name of the output to read alone.

    Raises:
        UnknownNameError: no output has that name.
    """
    names = list(graph.output_names)
    if output is not None and output not in names:
        raise UnknownNameError("output", output, names)
    chosen = [(index, value) for index, value in enumerate(graph.outputs) if output in (None, names[index])]
    read = [_peeled(index, value, places) for index, value in chosen]
    found = [item for item in read if item is not None]
    if len(found) < len(read) or len({item.scores.value for item in found}) > 1:
        return None
    with_classes = [item for item in found if item.class_axis is not None]
    first = (with_classes or found)[0]
    compares, enlarged = any(item.compares for item in found), any(item.enlarged for item in found)
    return replace(first, compares=compares, enlarged=enlarged)


def may_segment(values: Sequence[Value]) -> bool:
    """Whether all outputs have room for a grid; costs nothing, so it is asked first."""
    return all(value.rank in (3, 4) for value in values)


def _peeled(index: int, output: Value, places: Places) -> Segmenter | None:
    value, compares, chooses, enlarged = output, False, False, False
    scores = _map_of(output, places)
    while (node := value.producer) is not None and (source := node.operand(0)) is not None:
        if node.op in (Op.SOFTMAX, Op.ARGMAX, Op.TOPK):
            if _class_axis(source, places) != node.attrs["axis"] % (source.rank or 1):
                break
            compares, chooses = True, chooses or node.op is not Op.SOFTMAX
        elif isinstance(node.kind, Resized):
            enlarged = enlarged or _is_finer(value, source, places)
        elif node.op not in _THROUGH:
            break
        value = source
        scores = _map_of(value, places) or scores
    if scores is None or scores.channels is None or "float" not in scores.value.dtype:
        return None
    axis = None if chooses else _class_axis(output, places)
    if axis is None and not chooses and scores.channels > 1:
        return None  # rows of places, as detectors give them
    return Segmenter(index, axis, scores, scores.channels, _linear_source(scores.value), compares, enlarged)


def _map_of(value: Value, places: Places) -> FeatureMap | None:
    found = places.map_of(value)
    return found if found is not None and len(found.grid_axes) == 2 else None


def _is_finer(value: Value, source: Value, places: Places) -> bool:
    after, before = places.of(value), places.of(source)
    return after is not None and before is not None and abs(after.rows.stride) < abs(before.rows.stride)


def _class_axis(value: Value, places: Places) -> int | None:
    found = _map_of(value, places)
    return None if found is None or found.channels == 1 else found.channel_axis


def _linear_source(value: Value) -> Value | None:
    """What a layer with weights reads, its bias aside."""
    node = value.producer
    if node is not None and node.op is Op.ADD:
        operands = [operand for operand in node.inputs if operand is not None and not operand.is_constant]
        node = operands[0].producer if len(operands) == 1 else None
    is_linear = node is not None and isinstance(node.kind, (Window, Product))
    return node.operand(0) if node is not None and is_linear else None
