"""The map of an anomaly detector: how far every place of the image is from what is normal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xai_insert.graph.along import reduces
from xai_insert.graph.cuts import cut_values, makers, region
from xai_insert.graph.items import first_present
from xai_insert.graph.operators import Resized
from xai_insert.graph.pattern import before
from xai_insert.graph.traits import RANKS, ROOTS, SAME
from xai_insert.graph.view import POINTWISE, Graph, Node, Op, Value, number_of
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.layout import FeatureMap
from xai_insert.locate.places import Places

_BARE = SAME | {Op.RESHAPE}
"""What changes the type or the shape of a value alone."""


@dataclass(frozen=True)
class AnomalyMap:
    """One number for every place of the image.

    Attributes:
        feature: the map, `[B, 1, h, w]`, `[B, h, w]` or `[B, h, w, 1]`.
        unbounded: the same before it was shifted, scaled and cut off, so that a change of the image is seen in it.
        output: which of the model's outputs it is, or the mask that it is compared for.
        score: which output is the one number for the whole image; None if there is none.
        label: which output says whether that is too much; likewise.
        threshold: what the map is compared with, if the model holds that.
        is_sure: whether nothing else looks like this: the score is the maximum over the map, or its mean if that is of
            squared differences, or both are compared.
    """

    feature: FeatureMap
    unbounded: FeatureMap
    output: int
    score: int | None
    label: int | None
    threshold: float | None
    is_sure: bool


@dataclass(frozen=True)
class _Read:
    """An output: its number, what it is or is compared for, and with what."""

    index: int
    value: Value
    is_compared: bool
    threshold: float | None = None


def may_be_anomalies(graph: Graph) -> bool:
    """Whether the outputs have room for a map and a score; costs nothing, so it is asked first."""
    ranks = [value.rank for value in graph.outputs]
    return any(rank in (3, 4) for rank in ranks) and any(rank in (1, 2) for rank in ranks)


def find_anomaly_map(graph: Graph, places: Places, output: str | None) -> AnomalyMap | None:
    """The one map of one number for each place, beside which there are only its mask, scores of images, and labels.

    Args:
        graph: the model.
        places: where its values lie in the image.
        output: name of the output that is the map, where there are several.

    Raises:
        UnknownNameError: no output has that name.
    """
    wanted = {index for index, _ in graph.chosen(output)}
    read = [_read(index, value) for index, value in enumerate(graph.outputs)]
    maps = {item.index: found for item in read if (found := _placed(item.value, places)) is not None}
    others = [item for item in read if item.index not in maps]
    scores = _one_number_each(others)
    if not maps or (output is None and len(scores) < len(others)):
        return None
    masks, plain = _parted(item for item in read if item.index in maps)
    return _chosen(graph, places, maps, masks, [item for item in plain or masks if item.index in wanted], scores)


def _one_number_each(items: Iterable[_Read]) -> list[_Read]:
    return [item for item in items if _is_one_number(item.value)]


def _chosen(
    graph: Graph,
    places: Places,
    maps: Mapping[int, FeatureMap],
    masks: Sequence[_Read],
    chosen: Sequence[_Read],
    scores: Sequence[_Read],
) -> AnomalyMap | None:
    """What is known of the map that was chosen, of one alone."""
    if len(chosen) != 1 or "float" not in chosen[0].value.dtype:
        return None
    feature = maps[chosen[0].index]
    labels, numbers = _parted(scores)
    threshold = _threshold(feature.value, [(maps[item.index].value, item) for item in masks], labels)
    is_sure = bool(masks and labels) or any(_is_of_map(item.value, feature.value, places) for item in scores)
    return AnomalyMap(
        feature,
        _unbounded(graph, feature, places),
        chosen[0].index,
        _first(numbers),
        _first(labels),
        threshold,
        is_sure,
    )


def _is_of_map(score: Value, feature: Value, places: Places) -> bool:
    """Whether a score is the greatest of what there is one of for every place, or the mean of the map's distances."""
    return _is_maximum(score, places) or (is_distance(score) and _is_mean(score, feature))


def _parted(items: Iterable[_Read]) -> tuple[list[_Read], list[_Read]]:
    """Those that are compared with something, and those that are not."""
    found = list(items)
    return [item for item in found if item.is_compared], [item for item in found if not item.is_compared]


def _first(items: Iterable[_Read]) -> int | None:
    return next((item.index for item in items), None)


def is_distance(score: Value) -> bool:
    """Whether one number is made of the squares of differences, by sums, means, maxima and roots alone.

    As the scores of DFM and of autoencoders are; or of the nearest of several, as PatchCore's. A score of a class comes
    from a layer with weights.
    """
    node = score.producer
    while node is not None and not (_squares_a_difference(node) or _is_nearest(node)):
        if node.op not in _BARE | ROOTS | {Op.REDUCE} or len(node.computed) != 1:
            return False
        node = node.computed[0].producer
    return node is not None


def is_least_place(score: Value, places: Places) -> bool:
    """Whether one number is the least of a map of one number for every place, as of how normal each is."""
    node = before(score, _BARE).producer
    return node is not None and _is_nearest(node) and _placed(node.read(0), places) is not None


def _is_nearest(node: Node) -> bool:
    return reduces(node.kind, "min")


def _squares_a_difference(node: Node) -> bool:
    is_power = node.op is Op.POW and number_of(node.operand(1)) == 2
    if not is_power and not (node.op is Op.MUL and node.operand(0) is node.operand(1)):
        return False
    return before(node.read(0), _BARE).made_by(Op.SUB) is not None


def map_of_one(value: Value, places: Places) -> FeatureMap | None:
    """A value with rows and columns of the image and no other axis of more than one element; None if it is none."""
    place = places.of(value)
    if place is None or len(place.axes) != 2 or place.grid == (1, 1):
        return None
    if 0 in place.axes or not places.of_images(value):
        return None
    rest = [axis for axis in range(1, value.axis_count) if axis not in place.axes]
    if any(value.sizes[axis] != 1 for axis in rest):
        return None
    channel = rest[0] if rest else 0  # nothing reads the channels of a map that has none
    return FeatureMap(value, channel, place.axes, place.grid, 0, places.frame_of(place))


def _placed(value: Value, places: Places) -> FeatureMap | None:
    """A value as a map; of a size that follows the image, what stood before its last resize."""
    found = map_of_one(value, places)
    while found is None and (node := value.producer) is not None:
        if node.op not in _BARE and not isinstance(node.kind, Resized):
            break
        value = node.read(0)
        found = map_of_one(value, places)
    return found


def _unbounded(graph: Graph, feature: FeatureMap, places: Places) -> FeatureMap:
    found = feature
    for value in reversed(cut_values(graph, image_inputs(graph), feature.value)[:-1]):
        before = map_of_one(value, places)
        is_same = all(node.op in POINTWISE for node in region(graph, [value], [found.value]))
        if before is None or before.frame != feature.frame or not is_same:
            break
        found = before
    return found


def _read(index: int, output: Value) -> _Read:
    node = before(output, _BARE).made_by(Op.COMPARE)
    if node is None:
        return _Read(index, output, is_compared=False)
    for this, other in ((0, 1), (1, 0)):
        threshold = number_of(node.operand(other))
        if threshold is not None:
            return _Read(index, node.read(this), is_compared=True, threshold=threshold)
    return _Read(index, node.read(0), is_compared=True)


def _is_one_number(value: Value) -> bool:
    return value.rank in (1, 2) and all(size == 1 for size in value.sizes[1:])


def _is_maximum(score: Value, places: Places) -> bool:
    """Whether a score comes from the greatest of what there is one of for every place."""

    def ends(node: Node) -> bool:
        source = node.operand(0)
        if not (node.op in RANKS or _takes_greatest(node)) or source is None or places.is_placed(node.output):
            return False
        place = places.of(source)
        if place is None:
            return _placed(source, places) is not None
        return all(source.sizes[axis] == 1 for axis in range(1, source.axis_count) if axis not in place.axes)

    return bool(makers(score, ends))


def _is_mean(score: Value, feature: Value) -> bool:
    """Whether a score is the mean of the map that is an output too, as an autoencoder's error is."""
    value = before(score, _BARE)
    while (node := value.producer) is not None and reduces(node.kind, "mean"):
        value = before(node.read(0), _BARE)
        if value is before(feature, _BARE):
            return True
    return False


def _threshold(feature: Value, masks: Iterable[tuple[Value, _Read]], labels: Iterable[_Read]) -> float | None:
    """What the map is compared with, or its maximum, as it is."""
    bare = before(feature, _BARE)
    found = [item.threshold for value, item in masks if before(value, _BARE) is bare]
    found += [item.threshold for item in labels if _greatest_of(item.value) is bare]
    return first_present(found)


def _greatest_of(value: Value) -> Value:
    """What a value is the maximum of."""
    value = before(value, _BARE)
    while (node := value.producer) is not None and _takes_greatest(node):
        value = before(node.read(0), _BARE)
    return value


def _takes_greatest(node: Node) -> bool:
    return reduces(node.kind, "max")
