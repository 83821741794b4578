"""Which decoded box belongs to which location, and which outputs report boxes, watched in the model's own runtime.

The model is cut at its heads. Changing one location moves the rows of its boxes; raising one class there makes the
model report one of them, with a label that follows the class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CannotFreeBatchError, CheckFailedError, ShapeUnknownError, UnsupportedTaskError
from xai_insert.formats.backend import LoadedModel, written_beside
from xai_insert.graph.view import Graph, Value
from xai_insert.layouts.boxes import BOX_FORMATS, BoxFormat, corners
from xai_insert.locate.boxes import BoxVoters, DecodedLevel, ReportedBoxes
from xai_insert.locate.detector import ClassLevel, Detector
from xai_insert.locate.frontier import find_heads
from xai_insert.locate.inputs import image_inputs, image_size, shape_hint
from xai_insert.locate.observed import Observed, observed_values
from xai_insert.methods.late_boxes import boxes_everywhere
from xai_insert.probe.box_rows import cell_places, choices, follow_places, grid_sides, matches, orders
from xai_insert.probe.heads import Array, HeadProbe, perturb
from xai_insert.probe.spread import differs

_SILENCE = 8.0
_FARTHEST = 2.0  # cells from a location to the centre of its box, on average, while all heads are near zero
_APART = 0.25  # cells by which one reading must be better than another
_BOX = 4
_WHOLE = 0.9  # of boxes that have an area; the others lie at the edge, where they are cut off
# Of what is no class score, and of the sides of boxes as logarithms beside that. Where 0 gives empty boxes, 1 does not;
# boxes larger than the image, which are cut off to all of it whatever their location says, are to be small.
_SHIFTS = ((0.0, 0.0), (1.0, 0.0), (0.0, -3.0), (0.0, -25.0))
_WANTED = "--per-box wants a detector that decodes a box at every location and reports some of them with labels"
# How far a search has come, and what would bring it on.
_LIMITS = (
    "no boxes were found that follow the locations of the class scores",
    "no value holds boxes around the locations of the class scores; where they are decoded outside of the model, "
    "export it with decoding and suppression inside",
    "none of the outputs reports the boxes that are decoded, with labels; where all are returned, export the model "
    "with suppression inside",
    "no score was found that follows the class heads",
)


@dataclass(frozen=True)
class _Report:
    """The outputs while one class of one anchor is raised at one location.

    Attributes:
        arrays: what is observed, the outputs last.
        row: number of that box among the decoded ones.
        level: its level.
        label: the class.
    """

    arrays: Sequence[Array]
    row: int
    level: int
    label: int


def find_box_voters(loaded: LoadedModel, graph: Graph, found: Detector) -> BoxVoters:
    """Locate decoded and reported boxes.

    Args:
        loaded: the unedited model.
        graph: its view.
        found: its class scores.

    Raises:
        ShapeUnknownError: the sizes of the grids follow the input, or boxes of several images are in one list.
        UnsupportedTaskError: there are none, or the reported boxes are none of the decoded ones.
    """
    size = image_size(image_inputs(graph)[0])
    if size is None or any(item.level.cells is None for item in found.levels):
        raise ShapeUnknownError(f"--per-box needs an image size that does not change; {shape_hint(graph)}")
    heads = {head.value for head in find_heads(graph, image_inputs(graph))}
    if any(item.more or item.head.value not in heads for item in found.levels):
        raise UnsupportedTaskError(f"{_WANTED}; here several heads, or products with embeddings, score a location")
    voters = _voters(_Search(loaded, graph, found, size, {}))
    if isinstance(voters, str):
        voters = _late_voters(loaded, graph, found, size) or voters
    if isinstance(voters, str):
        raise UnsupportedTaskError(f"{_WANTED}; {voters}")
    return voters


def _late_voters(loaded: LoadedModel, graph: Graph, found: Detector, size: tuple[int, int]) -> BoxVoters | str | None:
    """The same where boxes are decoded of what is selected, as if all locations had been; None if none are so."""
    try:
        with written_beside(loaded, partial(boxes_everywhere, graph=graph)) as late:
            return _voters(_Search(loaded, graph, found, size, late)) if late else None
    except (CannotFreeBatchError, CheckFailedError):  # what follows does not take all locations
        return "this one decodes where it has selected"


def _voters(search: _Search) -> BoxVoters | str:
    """What gives each box; or what is missing, for people."""
    farthest = 0
    for shift in _SHIFTS:
        found = search.voters(*shift)
        if isinstance(found, BoxVoters):
            return found
        farthest = max(farthest, found)
    return _LIMITS[farthest]


class _Search:
    """The search in one model."""

    def __init__(
        self, loaded: LoadedModel, graph: Graph, found: Detector, size: tuple[int, int], late: Mapping[Value, Any]
    ) -> None:
        images = image_inputs(graph)
        self.found = found
        self.size = size
        self.image = images[0]
        self.heads = find_heads(graph, images)
        self.late = {replace(value, native=native): value for value, native in late.items()}
        self.decoded = observed_values(graph, images, self.heads)
        self.decoded += [Observed(value, False, False, frozenset()) for value in self.late]
        self.outputs = [value for value in graph.outputs if value.rank in (1, 2, 3)]
        outputs = [Observed(value, False, True, frozenset()) for value in self.outputs]
        self.probe = HeadProbe(loaded, self.heads, [*self.decoded, *outputs])
        self.batched = found.batch is not None and found.batch > 1

    def voters(self, shift: float, smaller: float) -> BoxVoters | int:
        """Decoded and reported boxes, looked for with all boxes moved by `shift` and their sides by `smaller` too.

        Returns:
            What was found, or how far the search came, as in `_LIMITS`.
        """
        feeds = self._silent(shift, smaller)
        quiet = self.probe.run(feeds)
        options = [list(self._level(index, feeds, quiet)) for index in range(len(self.found.levels))]
        if not all(options):
            return 0
        farthest = 1
        counts = [math.prod(grid_sides(item)) * item.channels.anchors for item in self.found.levels]
        for chosen in choices(options, counts):
            for meaning in self._formats(chosen, quiet):
                reported = self._reported(chosen, meaning, [*self._reports(chosen, feeds)])
                if reported is not None:
                    exclusive = self._is_exclusive(feeds, quiet)
                    return 3 if exclusive is None else self._told(chosen, meaning, *reported, exclusive=exclusive)
                farthest = 2
        return farthest

    def _told(
        self,
        chosen: Sequence[DecodedLevel],
        meaning: BoxFormat,
        bounds: tuple[float, float] | None,
        boxes: ReportedBoxes,
        *,
        exclusive: bool,
    ) -> BoxVoters:
        """The same in the values of the model itself, where decoding was freed of what is selected."""
        self._require_one_image(boxes)
        is_late = any(level.value in self.late for level in chosen)
        levels = tuple(replace(level, value=self.late.get(level.value, level.value)) for level in chosen)
        return BoxVoters(levels, meaning, bounds, boxes, exclusive, is_late)

    def _require_one_image(self, boxes: ReportedBoxes) -> None:
        if boxes.value.rank == 2 and self.found.batch != 1:
            raise ShapeUnknownError(
                f"the reported boxes {boxes.value.describe()} do not tell images apart: --per-box needs a batch of 1, "
                f"--input-shape {self.image.name}:1,..."
            )

    def _silent(self, shift: float, smaller: float) -> dict[int, npt.NDArray[np.floating]]:
        """Results of the heads with which nothing is found: the scores of all classes low."""
        feeds = self._shifted(shift, smaller)
        for item in self.found.levels:
            head = self._head(item)
            feeds[head] = feeds[head].astype(self.probe.fed(head).dtype)
            for anchor, label in product(range(item.channels.anchors), range(self.found.classes)):
                at = [slice(None)] * feeds[head].ndim
                at[item.head.channel_axis] = slice(c := item.channels.channel(anchor, label), c + 1)
                feeds[head][tuple(at)] = self.probe.fed(head)[tuple(at)]
                if label != self.found.background:
                    feeds[head][tuple(at)] -= _SILENCE
        return feeds

    def _shifted(self, shift: float, smaller: float) -> dict[int, npt.NDArray[np.floating]]:
        """Results of the heads moved by `shift`, and what may be the sides of boxes by `smaller` too."""
        feeds = {index: self.probe.fed(index) + np.float32(shift) for index in range(len(self.heads))}
        for index, layer in enumerate(self.heads):
            if layer.channels % _BOX == 0:
                channels = np.moveaxis(feeds[index], layer.channel_axis, 0)
                channels[np.arange(layer.channels) % _BOX >= _BOX // 2] += np.float32(smaller)
        return feeds

    def _head(self, item: ClassLevel) -> int:
        return next(index for index, head in enumerate(self.heads) if head.value is item.head.value)

    def _level(
        self, index: int, feeds: Mapping[int, npt.NDArray[np.floating]], quiet: Sequence[Array]
    ) -> Iterator[DecodedLevel]:
        """Values whose rows follow the locations of a level."""
        item = self.found.levels[index]
        height, width = grid_sides(item)
        cells, anchors = height * width, item.channels.anchors
        places = sorted({0, 1 % cells, (height // 2) * width + width // 2, cells - 1})
        after = {place: self.probe.run(self._stirred(item, feeds, place)) for place in places}
        for number, observed in enumerate(self.decoded):
            shape = quiet[number].shape
            axes = self._rows_and_columns(shape, cells * anchors)
            if not axes:
                continue
            moved = {place: differs(quiet[number], arrays[number]) for place, arrays in after.items()}
            for row, column in axes:
                others = tuple(axis for axis in range(len(shape)) if axis != row)
                rows = {place: np.flatnonzero(array.any(axis=others)) for place, array in moved.items()}
                for start, anchors_first in orders(rows, cells, anchors):
                    yield DecodedLevel(observed.value, row, column, shape, start, anchors_first)

    def _rows_and_columns(self, shape: Sequence[int], rows: int) -> list[tuple[int, int]]:
        """Which axes of a value may be its rows, of which there are so many at least, and its columns."""
        large = [axis for axis, size in enumerate(shape) if size > 1 and not (self.batched and axis == 0)]
        pairs = [(large[0], large[1]), (large[1], large[0])] if len(large) == 2 else []
        return [(row, column) for row, column in pairs if shape[column] >= _BOX and shape[row] >= rows]

    def _stirred(
        self, item: ClassLevel, feeds: Mapping[int, npt.NDArray[np.floating]], place: int
    ) -> dict[int, npt.NDArray[np.floating]]:
        """Every channel of every head moved at one location of a level."""
        grid = grid_sides(item)
        changed = dict(feeds)
        for index, head in enumerate(self.heads):
            for level in head.levels:
                if self.probe.grid(index, level) == grid:
                    changed[index] = np.array(feeds[index])
                    perturb(changed[index], self.probe.place(index, slice(None), divmod(place, grid[1]), level))
        return changed

    def _formats(self, chosen: Sequence[DecodedLevel], quiet: Sequence[Array]) -> list[BoxFormat]:
        """What four columns mean so that boxes lie around their locations; empty if that does not tell."""
        far: dict[BoxFormat, float] = {}
        for meaning, unit in product(BOX_FORMATS, ((1.0, 1.0), (float(self.size[1]), float(self.size[0])))):
            distances = [
                self._distance(self._boxes(level, item, quiet), meaning, unit, grid_sides(item))
                for item, level in zip(self.found.levels, chosen, strict=True)
            ]
            far[meaning] = min(max(distances), far.get(meaning, np.inf))
        return _nearest(far)

    def _distance(self, columns: Array, meaning: BoxFormat, unit: tuple[float, float], grid: tuple[int, int]) -> float:
        """Cells from the locations to the centres of their boxes, on average; infinite if these can be no boxes."""
        if meaning in ("cxcywh", "xywh") and follow_places(columns[..., 2:].mean(1), *grid):
            return np.inf  # they are no sizes
        boxes = corners(columns, meaning)
        with np.errstate(over="ignore", invalid="ignore"):
            if not (boxes[..., 2:] > boxes[..., :2]).mean() > _WHOLE:
                return np.inf
            centres = (boxes[..., :2] + boxes[..., 2:]) / 2 / unit * grid[::-1]
        around = cell_places(*grid)[:, None] + 0.5
        return float(np.abs(centres - around).mean())

    def _boxes(self, level: DecodedLevel, item: ClassLevel, arrays: Sequence[Array]) -> Array:
        """Boxes of a level, `[locations, anchors, 4]`."""
        rows = self._rows(level, arrays)
        count, anchors = grid_sides(item)[0] * grid_sides(item)[1], item.channels.anchors
        rows = rows[level.start : level.start + count * anchors, :4]
        if level.anchors_first:
            return rows.reshape(anchors, count, 4).swapaxes(0, 1)
        return rows.reshape(count, anchors, 4)

    def _rows(self, level: DecodedLevel, arrays: Sequence[Array]) -> Array:
        number = next(i for i, observed in enumerate(self.decoded) if observed.value is level.value)
        array = np.moveaxis(arrays[number], (level.row_axis, level.column_axis), (-2, -1))
        rows: Array = array.reshape(-1, *array.shape[-2:])[0]
        return rows

    def _reports(
        self, chosen: Sequence[DecodedLevel], feeds: Mapping[int, npt.NDArray[np.floating]]
    ) -> Iterator[_Report]:
        """What is reported for one box after another: the first anchor and the last, the first class and the last."""
        labels = [label for label in range(self.found.classes) if label != self.found.background]
        for index, (item, level) in enumerate(zip(self.found.levels, chosen, strict=True)):
            height, width = grid_sides(item)
            place, anchors = (height // 2) * width + width // 2, item.channels.anchors
            for anchor, label in ((0, labels[0]), (anchors - 1, labels[-1])):
                arrays = self.probe.run(self._raised(item, feeds, place, {anchor: [label]}))
                row = anchor * height * width + place if level.anchors_first else place * anchors + anchor
                yield _Report(arrays, level.start + row, index, label)

    def _raised(
        self,
        item: ClassLevel,
        feeds: Mapping[int, npt.NDArray[np.floating]],
        place: int,
        wanted: Mapping[int, Sequence[int]],
    ) -> dict[int, npt.NDArray[np.floating]]:
        """Classes raised at a location, by anchor."""
        head = self._head(item)
        array = np.array(feeds[head])
        for anchor, labels in wanted.items():
            for label in labels:
                cell = divmod(place, grid_sides(item)[1])
                array[self.probe.place(head, item.channels.channel(anchor, label), cell, item.level)] += 2 * _SILENCE
        return {**feeds, head: array}

    def _reported(
        self, chosen: Sequence[DecodedLevel], meaning: BoxFormat, reports: Sequence[_Report]
    ) -> tuple[tuple[float, float] | None, ReportedBoxes] | None:
        """The output that holds the box which was raised, every time, and the label beside it."""
        wanted = [corners(self._rows(chosen[r.level], r.arrays)[r.row, :4], meaning) for r in reports]
        height, width = float(self.size[0]), float(self.size[1])
        scales = ((1.0, 1.0), (width, height), (1 / width, 1 / height))
        for number, value in enumerate(self.outputs):
            arrays = self._of_one_image(reports, number, rank=2) if self._may_report(value, chosen) else []
            if not arrays or arrays[0].shape[1] < 4:
                continue
            for column, form, scale in product(range(arrays[0].shape[1] - 3), BOX_FORMATS, scales):
                reads = [corners(a[:, column : column + 4], form) * (scale * 2) for a in arrays]
                for bounds in (None, (width, height), (1.0, 1.0)):
                    found = matches(reads, wanted, bounds)
                    labels = found and self._labels(value, range(column, column + 4), arrays, reports, found)
                    if labels:
                        return bounds, ReportedBoxes(value, column, form, scale, *labels)
        return None

    def _may_report(self, value: Value, chosen: Sequence[DecodedLevel]) -> bool:
        """Whether an output may be a list of boxes, and is not the decoded ones themselves."""
        return value.rank != 1 and value not in {level.value for level in chosen}

    def _labels(
        self,
        boxes: Value,
        taken: range,
        arrays: Sequence[Array],
        reports: Sequence[_Report],
        found: Sequence[int],
    ) -> tuple[Value | None, int | None, int] | None:
        """Where the label stands that follows the class, if there are several: output, column, label of class 0."""
        if self.found.classes == 1:
            return None, None, 0
        columns = self._beside(boxes, arrays, reports)
        columns += [(boxes, c, [array[:, c] for array in arrays]) for c in range(arrays[0].shape[1]) if c not in taken]
        for value, column, lists in columns:
            offsets = {float(a[row]) - r.label for a, row, r in zip(lists, found, reports, strict=True)}
            if len(offsets) == 1 and (offset := offsets.pop()).is_integer():
                return value, column, int(offset)
        return None

    def _beside(
        self, boxes: Value, arrays: Sequence[Array], reports: Sequence[_Report]
    ) -> list[tuple[Value, int | None, list[Array]]]:
        """Outputs of one number for each reported box, in each report."""
        found: list[tuple[Value, int | None, list[Array]]] = []
        for number, value in enumerate(self.outputs):
            lists = self._of_one_image(reports, number, rank=1) if value.rank == boxes.axis_count - 1 else []
            if lists and all(len(a) == len(b) for a, b in zip(lists, arrays, strict=True)):
                found.append((value, None, lists))
        return found

    def _of_one_image(self, reports: Sequence[_Report], number: int, *, rank: int) -> list[Array]:
        """What an output says of the first image in each report, of that rank; none if one says nothing."""
        arrays = [report.arrays[len(self.decoded) + number] for report in reports]
        if any(array.ndim != self.outputs[number].rank or not len(array) for array in arrays):
            return []
        return [array[0] if array.ndim > rank else array for array in arrays]

    def _is_exclusive(self, feeds: Mapping[int, npt.NDArray[np.floating]], quiet: Sequence[Array]) -> bool | None:
        """Whether raising all classes together raises no score; None if no score follows the classes."""
        item = self.found.middle
        label = next(label for label in range(self.found.classes) if label != self.found.background)
        one = self.probe.run(self._raised(item, feeds, 0, {0: [label]}))
        every = self.probe.run(self._raised(item, feeds, 0, {0: range(self.found.classes)}))
        decoded = range(len(self.decoded))
        follows = [n for n in decoded if differs(quiet[n], one[n]).any()]
        return not any(differs(quiet[n], every[n]).any() for n in follows) if follows else None


def _nearest(far: Mapping[BoxFormat, float]) -> list[BoxFormat]:
    """The meaning with which boxes lie nearest to their locations; none where another comes as near."""
    near = {meaning: distance for meaning, distance in far.items() if distance < _FARTHEST}
    # Centres and sizes read as corners end before they start, so what passes as corners is corners.
    kinds: tuple[tuple[BoxFormat, ...], ...] = (("xyxy", "yxyx"), ("cxcywh", "xywh"))
    for kind in kinds:
        ranked = sorted((meaning for meaning in kind if meaning in near), key=lambda meaning: near[meaning])
        if ranked:
            certain = len(ranked) == 1 or near[ranked[1]] - near[ranked[0]] > _APART
            return ranked[:1] if certain else []
    return []
