"""Which output of a two-stage detector reports boxes, and how, watched in the model's own runtime.

The model is cut behind its region head. With the refinement of boxes at zero, a region that is given a score is
reported where it lies: its coordinates and the score tell boxes, their format and scale, and scores from other outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from xai_insert.errors import ShapeUnknownError, UnsupportedTaskError
from xai_insert.feeds import feeds_of
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph, Value
from xai_insert.layouts.boxes import BOX_FORMATS, BoxFormat, corners, overlap
from xai_insert.locate.boxes import ReportedBoxes
from xai_insert.locate.inputs import image_inputs, image_size, shape_hint
from xai_insert.locate.region_head import RegionHead, RegionReport, may_be_boxes

Array = npt.NDArray[np.float64]

_SCORE = 0.96875  # exact in half precision
_NEAR = 1e-3
_SAME = 0.98  # intersection over union of a reported box with the region that it is
_REGIONS = 4  # to be reported, one after another
_WANTED = "--per-box wants a two-stage detector that reports the boxes of its regions with their scores"


@dataclass(frozen=True)
class _Reported:
    """The outputs while one region has a score for one class, and where in `scores` that score is."""

    arrays: Sequence[Array]
    region: Array
    scores: int
    place: tuple[int, ...]


def find_region_report(loaded: LoadedModel, graph: Graph, head: RegionHead) -> RegionReport:
    """Locate reported boxes and scores.

    Args:
        loaded: the unedited model.
        graph: its view.
        head: what classifies the regions.

    Raises:
        ShapeUnknownError: the size of the image is open, or boxes of several images are in one list.
        UnsupportedTaskError: no output reports the boxes of regions, or several formats fit.
    """
    image = image_inputs(graph)[0]
    if image_size(image) is None:
        raise ShapeUnknownError(f"--per-box needs an image size that does not change; {shape_hint(graph)}")
    found = _Search(loaded, graph, head).report()
    if found.boxes.value.rank == 2 and image.sizes[0] != 1:
        raise ShapeUnknownError(
            f"the reported boxes {found.boxes.value.describe()} do not tell images apart: --per-box needs a batch of "
            f"1, --input-shape {image.name}:1,..."
        )
    return found


class _Search:
    """The search in one model."""

    def __init__(self, loaded: LoadedModel, graph: Graph, head: RegionHead) -> None:
        self.head = head
        self.outputs = [value for value in graph.outputs if may_be_boxes(value) or value in head.scored]
        cuts = [head.scores, head.logits, head.regions, *head.refiners]  # before which nothing has to run again
        before = loaded.between([], [value.native for value in (head.map, *cuts)])
        self.behind = loaded.between(cuts, [value.native for value in self.outputs])
        rng = np.random.default_rng(0)
        noise = feeds_of(before.inputs, rng)
        map_, scores, logits, regions, *refined = before.run(noise)
        self.grid = (map_.shape[2], map_.shape[3])
        self.regions = regions.astype(np.float64)
        fed = [np.zeros_like(scores), logits, regions, *map(np.zeros_like, refined), *noise.values()]
        names = [name for name, _, _ in self.behind.inputs]
        self.feeds, self.scores = dict(zip(names, fed, strict=True)), names[0]
        if len(regions) == 0 or scores.size != len(regions) * scores.shape[-1]:
            raise UnsupportedTaskError(
                f"{_WANTED}; its regions {head.regions.describe()} are not those that are scored"
            )

    def report(self) -> RegionReport:
        """Boxes and scores of the regions that are reported if they have a score."""
        reported = [*self._reports()]
        holding = [number for number in range(len(self.outputs)) if self._holds_rows(number, reported)]
        for number in holding:
            value, places = self.outputs[number], self._places(number, reported)
            arrays = [item.arrays[number].reshape(-1, item.arrays[number].shape[-1]) for item in reported]
            rows = [array[row] for array, (row, _) in zip(arrays, places, strict=True) if row < len(array)]
            fitting = [*_fitting(np.array(rows), np.array([item.region for item in reported]))]
            if len(fitting) > 1:
                raise UnsupportedTaskError(f"--per-box: the format of the boxes {value.describe()} cannot be told")
            if fitting:
                (column, form, scale), (_, score_column) = fitting[0], places[0]
                boxes = ReportedBoxes(value, column, form, scale, None, None, 0)
                return RegionReport(self.head, self.grid, boxes, self.outputs[reported[0].scores], score_column)
        problem = "the boxes of the regions" if holding else "just the score of the region that has one"
        raise UnsupportedTaskError(f"{_WANTED}; no output holds {problem}")

    def _holds_rows(self, number: int, reported: Sequence[_Reported]) -> bool:
        """Whether an output may hold the boxes that were reported, with each score in one column or elsewhere."""
        if not reported or not may_be_boxes(self.outputs[number]) or reported[0].arrays[number].shape[-1] < 4:
            return False
        return len({column for _, column in self._places(number, reported)}) == 1

    def _places(self, number: int, reported: Sequence[_Reported]) -> list[tuple[int, int | None]]:
        return [_row_and_column(item, self.outputs[number], self.outputs[item.scores]) for item in reported]

    def _reports(self) -> Iterator[_Reported]:
        """Regions far apart, each with a score for a class that is reported."""
        classes = self.feeds[self.scores].shape[-1]
        tried = sorted({0, 1 % classes, max(classes - 2, 0), classes - 1})
        chosen = _far_apart(self.regions)
        labels = [label for label in tried if self._report(chosen[0], label) is not None]
        for index, region in enumerate(chosen if labels else []):
            found = self._report(region, labels[-1 if index % 2 else 0])
            if found is not None:
                yield found

    def _report(self, region: int, label: int) -> _Reported | None:
        scores = np.array(self.feeds[self.scores])
        scores.reshape(-1, scores.shape[-1])[region, label] = _SCORE
        arrays = [a.astype(np.float64) for a in self.behind.run({**self.feeds, self.scores: scores})]
        for number, value in enumerate(self.outputs):
            places = np.argwhere(np.abs(arrays[number] - _SCORE) < _NEAR)
            if value in self.head.scored and len(places) == 1:
                place = tuple(int(index) for index in places[0])
                return _Reported(arrays, self.regions[region], number, place)
        return None


def _row_and_column(item: _Reported, boxes: Value, scores: Value) -> tuple[int, int | None]:
    """Row of the reported region in a list of boxes, and column of its score if that stands in the same output."""
    if scores is boxes:
        *lead, column = item.place
        return _flat(lead, item.arrays[item.scores].shape[:-1]), column
    return _flat(item.place, item.arrays[item.scores].shape), None


def _flat(place: Sequence[int], shape: Sequence[int]) -> int:
    return int(np.ravel_multi_index(tuple(place), tuple(shape))) if place else 0


def _far_apart(boxes: Array) -> list[int]:
    """Numbers of a few boxes that differ as much as can be, empty ones left out."""
    usable = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).min(1) > 0)
    if not len(usable):
        raise UnsupportedTaskError(f"{_WANTED}; a sample image has no region")
    chosen = [int(usable[0])]
    for _ in range(min(_REGIONS, len(usable)) - 1):
        far = np.abs(boxes[usable][:, None] - boxes[chosen][None]).sum(-1).min(1)
        if far.max() == 0:
            break
        chosen.append(int(usable[far.argmax()]))
    return chosen


def _fitting(rows: Array, regions: Array) -> Iterator[tuple[int, BoxFormat, tuple[float, float]]]:
    """Columns, formats and scales with which every reported row is its region."""
    if len(rows) < len(regions):
        return
    for column, form in product(range(rows.shape[1] - 3), BOX_FORMATS):
        boxes = corners(rows[:, column : column + 4], form)
        scale = []
        for axis in (0, 1):
            one, other = boxes[:, axis::2], regions[:, axis::2]
            factor = float((one * other).sum() / max((one**2).sum(), 1e-12))
            scale.append(1.0 if abs(factor - 1) < _NEAR else factor)
        boxes = boxes * np.array(scale * 2)
        if all(overlap(box[None], region)[0] > _SAME for box, region in zip(boxes, regions, strict=True)):
            yield column, form, (scale[0], scale[1])
