"""Which label a detector reports for which class of its heads, watched in the model's own runtime.

All class scores are held low but those of one class, everywhere: what is reported then bears its label.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CheckFailedError, TimeLimitError
from xai_insert.feeds import random_array
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.items import only, present
from xai_insert.graph.view import Graph, Value
from xai_insert.locate.detector import ClassLevel, Detector
from xai_insert.locate.frontier import Head, find_heads
from xai_insert.locate.inputs import image_inputs
from xai_insert.locate.observed import Observed, observed_values
from xai_insert.probe.heads import Array, HeadProbe

logger = logging.getLogger(__name__)

_SILENCE = 8.0
_BOX = 4
_RANKS = (1, 2, 3, 4)
_MOSTLY = 0.5  # of the rows: some are padding
_SCORES = {6: 4, 7: 2}  # column of the score, by width of the rows; rows of score 0 are padding
_MOST = 0.9  # of the places, and of the score
_DETECTION_OUTPUT = 7  # image, label, score, corners
_LABEL = 1
_FEWEST_ROWS = 2


@dataclass(frozen=True)
class Labels:
    """How a detector names the classes that it reports.

    Attributes:
        first: the label of class 0 as the heads count them; None where no output follows the class by a count.
        background: the class that is never reported; None where every class is.
        table: the label of each class, where they are not counted, as those of a data set that leaves some out.
    """

    first: int | None = None
    background: int | None = None
    table: tuple[int, ...] | None = None


def labels_of(loaded: LoadedModel, graph: Graph, found: Detector) -> Labels:
    """The labels of the classes as the heads count them, and the class that is never reported.

    Args:
        loaded: the unedited model.
        graph: its view.
        found: its class scores.
    """
    images = image_inputs(graph)
    heads = find_heads(graph, images)
    outputs = [value for value in graph.outputs if value.rank in _RANKS]
    if not {head.value for head in heads}.issuperset(part.head.value for part in found.parts) or not outputs:
        return Labels(None, found.background)
    everywhere = {item.value for item in observed_values(graph, images, heads)}  # these hold scores, and no labels
    reporting = [value for value in outputs if value not in everywhere]
    if not reporting:
        return Labels(None, _background(loaded, images[0], found, set()))
    offsets, silent, table = _tried(loaded, heads, reporting, found)
    background = _background(loaded, images[0], found, silent)
    return Labels(only(offsets), background, table)


def _background(loaded: LoadedModel, image: Value, found: Detector, silent: set[int]) -> int | None:
    """The class that is never reported: known, silent at one end of the classes, or told by an image of nothing."""
    if found.background is not None:
        return found.background
    if len(silent) == 1 and silent <= {0, found.classes - 1}:
        return min(silent)
    return _of_nothing(loaded, image, found) if found.is_exclusive else None


def _tried(
    loaded: LoadedModel, heads: Sequence[Head], reporting: Sequence[Value], found: Detector
) -> tuple[set[int], set[int], tuple[int, ...] | None]:
    """How much larger than a class its label may be, the classes that are not reported, of a few that are raised.

    And the labels of all, where those of the few are no count.

    Args:
        loaded: the unedited model.
        heads: its heads.
        reporting: the outputs that report what was selected.
        found: the class scores.
    """
    values = {head.value: index for index, head in enumerate(heads)}
    probe = HeadProbe(loaded, heads, [Observed(value, False, True, frozenset(values)) for value in reporting])
    tried = sorted({0, min(1, found.classes - 1), found.classes // 2, found.classes - 1} - {found.background})
    runs = _reports(probe, [_with_class(probe, values, found, label) for label in tried])
    offsets, silent = set[int](), set[int]()
    for value, arrays in zip(reporting, zip(*runs, strict=True), strict=True):
        reported = _reported(value, tried, arrays)
        offsets.update(_offsets(value, reported))
        silent.update(set(tried) - reported.keys() if reported else ())
    if offsets or silent or not any(map(_are_told, reporting, zip(*runs, strict=True))):
        return offsets, silent, None
    every = _reports(probe, [_with_class(probe, values, found, label) for label in range(found.classes)])
    return offsets, silent, _table(reporting, every)


def _reports(probe: HeadProbe, changes: Sequence[Mapping[int, npt.NDArray[np.floating]]]) -> list[list[Array]]:
    """What is reported with each change; no rows where a runtime gives up because none are left (MatrixNms)."""
    runs: list[list[Array] | None] = []
    for change in changes:
        try:
            runs.append(probe.run(change))
        except TimeLimitError:
            raise
        except CheckFailedError as err:
            logger.info("nothing is reported: %s", err)
            runs.append(None)
    nothing = [array[:0] for array in next(filter(None, runs), None) or probe.run(changes[0])]
    return [nothing if run is None else run for run in runs]


def _table(reporting: Sequence[Value], every: Sequence[Sequence[Array]]) -> tuple[int, ...] | None:
    """The label of each class, given what is reported of each; None if no column or several follow it."""
    tables = map(_tables, reporting, zip(*every, strict=True))
    found = [table for of_output in tables for table in of_output]
    return only(found)


def _are_told(value: Value, arrays: Sequence[Array]) -> bool:
    """Whether some column of an output has another whole number for each class."""
    return len(arrays) > 1 and bool(_tables(value, arrays))


def _tables(value: Value, arrays: Sequence[Array]) -> list[tuple[int, ...]]:
    """For each column that has another whole number for each class these numbers."""
    rows = [_rows(value, array) for array in arrays]
    if min(map(len, rows)) < _FEWEST_ROWS:  # a single number may count them
        return []
    found = [_column_of(rows, column) for column in range(rows[0].shape[1])]
    return [table for table in found if len({*table}) == len(arrays)]


def _column_of(rows: Sequence[Array], column: int) -> tuple[int, ...]:
    """The whole number that most rows have in a column, of each class that has one."""
    numbers = [_offset(0, array[:, column]) for array in rows]
    return tuple(present(numbers))


def _of_nothing(loaded: LoadedModel, image: Value, found: Detector) -> int | None:
    """The first or the last class, where it has nearly all of the score of an image of nothing; None else.

    One of the classes that exclude one another stands for places with nothing; a trained model tells which.
    """
    parts = found.parts
    values = list(dict.fromkeys(part.head.value for part in parts))
    runner = loaded.between([], [value.native for value in values])
    votes: set[int | None] = set()
    for feeds in _of_no_scene(runner, image):
        arrays = dict(zip(values, runner.run(feeds), strict=True))
        votes |= {_winner(arrays[part.head.value], part, found.classes) for part in parts}
    return only(votes)


def _of_no_scene(runner: Runner, image: Value) -> list[dict[str, npt.NDArray[Any]]]:
    """An even image and one of noise, as the inputs of a model."""
    noise = {name: random_array(np.random.default_rng(0), shape, dtype) for name, dtype, shape in runner.inputs}
    images = [name for name, dtype, shape in runner.inputs if shape == image.shape and dtype == image.dtype]
    grey = 0 if "float" in image.dtype else 127
    return [{**noise, **{name: np.full_like(noise[name], grey) for name in images}}, noise]


def _winner(array: npt.NDArray[np.floating], part: ClassLevel, classes: int) -> int | None:
    """The first or the last class, if it has nearly all of the score at nearly every place."""
    scores = np.moveaxis(array.astype(np.float64), part.head.channel_axis, -1)
    order = part.channels
    for background in (0, classes - 1):
        for anchor in range(order.anchors):
            logits = scores[..., [order.channel(anchor, label) for label in range(classes)]]
            powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
            if np.quantile(powers[..., background] / powers.sum(axis=-1), 1 - _MOST) < _MOST:
                break
        else:
            return background
    return None


def _with_class(
    probe: HeadProbe, values: Mapping[Value, int], found: Detector, raised: int | None
) -> dict[int, npt.NDArray[np.floating]]:
    """Results of the heads in which all classes are low but one, at every location."""
    feeds: dict[int, npt.NDArray[np.floating]] = {}
    moved = [label for label in range(found.classes) if label == raised or label != found.background]
    for part in found.parts:
        index = values[part.head.value]
        array = feeds.setdefault(index, probe.fed(index))
        if part.level is not part.head.levels[0]:
            continue  # tokens of all levels share their channels
        channels = np.moveaxis(array, part.head.channel_axis, 0)
        for anchor, label in product(range(part.channels.anchors), moved):
            channels[part.channels.channel(anchor, label)] += _SILENCE if label == raised else -_SILENCE
    return feeds


def _reported(value: Value, tried: Sequence[int], arrays: Sequence[Array]) -> dict[int, Array]:
    """What an output reported of the classes that were tried, by class; those of which it reported anything."""
    rows = {label: _rows(value, array) for label, array in zip(tried, arrays, strict=True)}
    return {label: array for label, array in rows.items() if len(array)}


def _rows(value: Value, array: Array) -> Array:
    """What is reported, `[M, columns]`; rows of score 0 are padding."""
    width = array.shape[-1]
    if array.ndim == 1 or width <= _BOX or "float" not in value.dtype:
        return array.reshape(-1, 1)
    rows = array.reshape(-1, width)
    return rows[rows[:, _SCORES[width]] > 0] if width in _SCORES else rows


def _offsets(value: Value, reports: Mapping[int, Array]) -> list[int]:
    """How much larger than the class a whole number of the reported rows is; one for each column that follows."""
    if not reports:
        return []
    columns = range(next(iter(reports.values())).shape[1])
    is_output = value.rank == _RANKS[-1] and len(columns) == _DETECTION_OUTPUT
    return [
        offset
        for column in ([_LABEL] if is_output else columns)
        for offset in _of_column(
            [(label, array[:, column]) for label, array in reports.items()], value, is_label=is_output
        )
    ]


def _of_column(columns: Sequence[tuple[int, Array]], value: Value, *, is_label: bool = False) -> list[int]:
    """The offset of the numbers that most rows have; of one class alone only where the numbers can be nothing else."""
    offsets = {_offset(label, numbers) for label, numbers in columns}
    follows = len(offsets) == 1 and (len(columns) > 1 or is_label or "float" not in value.dtype)
    return [offset for offset in offsets if follows and offset is not None and abs(offset) <= 1]


def _offset(label: int, numbers: Array) -> int | None:
    """How much larger than the class the whole number is that most rows have; None if they have no such number."""
    if not len(numbers) or not np.isfinite(numbers).all() or not np.array_equal(numbers, np.floor(numbers)):
        return None
    distinct, counts = np.unique(numbers, return_counts=True)
    best = int(counts.argmax())
    return int(distinct[best]) - label if counts[best] >= _MOSTLY * len(numbers) else None
