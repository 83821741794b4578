"""Blocks of an image that are changed to see which cells of a map answer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.feeds import feeds_of
from xai_insert.formats.backend import Runner
from xai_insert.graph.view import Value
from xai_insert.locate.inputs import image_axes
from xai_insert.locate.layout import FeatureMap

Floats = npt.NDArray[np.float64]
Cell = tuple[int, int]
Block = tuple[Cell, Cell]
"""First and last row, and first and last column, of cells."""
Window = tuple[tuple[float, float], tuple[float, float]]

_SEED = 1
_SIZE = 224  # where the model leaves it open
FEWEST_CELLS = 5  # along a side of a grid whose cells may be the blocks of finer ones too
WIDE, INSIDE = 0.6, 0.45  # cells from the middle of a block to its edge; inside, the cells beside it see none of it
_BESIDE = 0.35  # cells from the edge of a block to the middle of a cell that answers to it
_LEAST = 0.03  # likewise, in parts of the grid
AT_ONCE = ((0.36, 0.36), (0.64, 0.93), (0.93, 0.07))
"""Blocks that are changed together, rows and columns in parts of the grid. No transpose, turn, mirror or half roll puts
them, or cells beside them, onto one another."""
_RING = 5  # cells along a side for each cell around a block that may answer as well
_FEWEST = 16  # cells away from all blocks
DEAF, HALF = 0.1, 0.5  # of the largest change: cells that change less do not lie at a block; or that may not
_OVER_ALL, _OVER_MEDIAN = 1.5, 3.0  # change at each block over the largest and the median one away from all


@dataclass(frozen=True)
class Stimulus:
    """An image, and how a block of it is changed.

    Attributes:
        base: how strong the noise of the image is.
        kept: how much of it stays in the block.
        added: how strong the noise is that is added there.
    """

    base: float
    kept: float
    added: float

    @property
    def is_loud(self) -> bool:
        """Whether it is above what a model in eight bits rounds away."""
        return self.added > 1

    def picture(self, noise: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The image, of noise of its shape and type."""
        return noise if self.base == 1 else (noise * self.base).astype(noise.dtype)

    def changed(self, part: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
        """Other pixels for a part of the image."""
        noise = rng.standard_normal(part.shape)
        if "float" in part.dtype.name:
            return (self.kept * part + self.added * noise).astype(part.dtype)
        return np.clip(self.kept * part + self.added * 85 * np.abs(noise), 0, 255).astype(part.dtype)


STIMULI = (Stimulus(0, 0, 0.3), Stimulus(1, 0, 3), Stimulus(1, 1, 0.1), Stimulus(40, 0, 120))
"""Quiet blocks in an even image, which most networks answer sharply; then loud ones, and traces, in noise; then such as
images of 0 to 255 hold, below which a model in eight bits may round all away."""


def input_name(runner: Runner, image: Value, number: int = 0) -> str:
    """Name of the image among the inputs of a runner, which may have names of its own; empty if it is not there.

    Args:
        runner: a compiled model.
        image: the image input.
        number: of that among the inputs of its size and type.
    """
    if any(name == image.name for name, _, _ in runner.inputs):
        return image.name
    alike = [name for name, dtype, shape in runner.inputs if shape == image.shape and dtype == image.dtype]
    return next(iter(alike[number:]), "")


def block_windows(
    features: Sequence[FeatureMap],
    grids: Sequence[Sequence[int]],
    image: Sequence[int],
    places: Sequence[tuple[float, float]],
    reach: float = WIDE,
) -> Iterator[Window]:
    """Blocks of the image in pixels: each a cell of the coarsest map that has enough of them.

    Args:
        features: the maps.
        grids: sizes of each in cells.
        image: height and width of the image.
        places: rows and columns of the blocks, in parts of the grid.
        reach: cells from the middle of a block to its edge.
    """
    fine = [index for index, grid in enumerate(grids) if min(grid) >= FEWEST_CELLS] or range(len(features))
    anchor = max(fine, key=lambda index: max(abs(stride) for stride, _ in features[index].frame.lines or ()))
    frame = features[anchor].frame
    lengths = image[::-1] if frame.transposed else image
    for fractions in places:
        lines = zip(frame.lines or (), fractions, grids[anchor], lengths, strict=True)
        sides = [_pixels(*line, reach) for line in lines]
        yield (sides[1], sides[0]) if frame.transposed else (sides[0], sides[1])


def _pixels(line: tuple[float, float], part: float, size: int, length: int, reach: float) -> tuple[float, float]:
    """The first and the last pixel of a block at a part of the cells of a line that lie in the image."""
    stride, offset = line
    half = max(abs(stride) * max(reach, _LEAST * size), 1.0)
    ends = sorted((-offset / stride, (length - 1 - offset) / stride))  # cells at the edges of the image
    first, last = max(round(ends[0]), 0), min(round(ends[1]), size - 1)
    centre = stride * min(first + int(part * (last - first + 1)), last) + offset
    return centre - half, centre + half


def change_block(
    pixels: npt.NDArray[Any], image: Value, window: Window, stimulus: Stimulus, rng: np.random.Generator
) -> bool:
    """Write other pixels into a block; whether it lies in the image."""
    place = [slice(None)] * pixels.ndim
    for axis, (first, last) in zip(image_axes(image), window, strict=True):
        low, high = max(int(np.ceil(first)), 0), min(int(np.floor(last)) + 1, pixels.shape[axis])
        if low >= high:
            return False
        place[axis] = slice(low, high)
    pixels[tuple(place)] = stimulus.changed(pixels[tuple(place)], rng)
    return True


def cells_at(window: Window, feature: FeatureMap, grid: Sequence[int]) -> Block:
    """First and last cell, along each axis of a grid, whose middle lies in or beside a block; else the nearest."""
    found = []
    sides = window[::-1] if feature.frame.transposed else window
    for (stride, offset), side, size in zip(feature.frame.lines or (), sides, grid, strict=True):
        low, high = sorted((end - offset) / stride for end in side)
        first, last = int(np.ceil(low - _BESIDE)), int(np.floor(high + _BESIDE))
        if first > last:
            first = last = round((low + high) / 2)
        found.append((min(max(first, 0), size - 1), min(max(last, 0), size - 1)))
    return found[0], found[1]


def averaged(change: Floats, block: Block) -> Floats:
    """Means over windows as large as a block."""
    sizes = [high - low + 1 for low, high in block]
    if sizes == [1, 1]:
        return change
    padded = np.pad(change, [((size - 1) // 2, size // 2) for size in sizes], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, sizes)
    means: Floats = windows.mean(axis=(2, 3))
    return means


def change_blocks(
    pixels: npt.NDArray[Any],
    image: Value,
    features: Sequence[FeatureMap],
    grids: Sequence[Sequence[int]],
    stimulus: Stimulus,
    rng: np.random.Generator,
) -> list[Window]:
    """Change all blocks of `AT_ONCE` in an image; those that lie in it."""
    windows = block_windows(features, grids, [pixels.shape[axis] for axis in image_axes(image)], AT_ONCE)
    return [window for window in windows if change_block(pixels, image, window, stimulus, rng)]


def away_from(blocks: Sequence[Block], grid: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which cells are away from all blocks; none where they are too few to tell."""
    away = np.ones(grid, dtype=bool)
    for block in blocks:
        away[_around(block, _ring(grid))] = False
    return away & bool(np.count_nonzero(away) >= _FEWEST)


def stand_out(change: Floats, blocks: Sequence[Block]) -> bool:
    """Whether the cells at every block changed more than those around it, and than all that are away from all blocks.

    Args:
        change: of each cell, `[h, w]`.
        blocks: the cells at the blocks that were changed at once.
    """
    change = averaged(change, blocks[0])
    rest = change[away_from(blocks, change.shape)]
    if not len(rest):
        return False
    most = [float(change[_around(block, (1, 1))].max()) for block in blocks]
    own = [float(change[_around(block, (0, 0))].max()) for block in blocks]
    for block, at, top in zip(blocks, own, most, strict=True):
        if change[_around(block, _ring(change.shape))].max() > top or at < HALF * top:
            return False
    least = min(own)
    return least > 0 and least >= max(_OVER_ALL * float(rest.max()), _OVER_MEDIAN * float(np.median(rest)))


def _ring(grid: Sequence[int]) -> list[int]:
    """How many rows and columns around a block may answer as well."""
    return [side // _RING for side in grid]


def _around(block: Block, reach: Sequence[int]) -> tuple[slice, ...]:
    """The cells of a block and those around it."""
    return tuple(slice(max(low - far, 0), high + far + 1) for (low, high), far in zip(block, reach, strict=True))


@dataclass(frozen=True)
class Scene:
    """An image, its maps, and what the pixels of changed blocks are drawn from."""

    pixels: npt.NDArray[Any]
    maps: list[Floats]
    rng: np.random.Generator


class Scenes:
    """The images that blocks are changed in, each run once for all that is changed in it one after another.

    Args:
        runner: gives the values of the maps, each once.
        image: the image input.
        features: the maps.
        number: of the image input among those of its size and type.

    Attributes:
        name: that of the image among the inputs of the runner; empty if it is not there.
    """

    def __init__(self, runner: Runner, image: Value, features: Sequence[FeatureMap], number: int) -> None:
        self.name = input_name(runner, image, number)
        self.image = image
        self.features = features
        self._runner = runner
        self._rng = np.random.default_rng(_SEED)
        self._feeds = feeds_of(runner.inputs, self._rng, size=_SIZE)
        self._last: tuple[float, npt.NDArray[Any], list[Floats]] | None = None

    def of(self, stimulus: Stimulus) -> Scene:
        """The image of a stimulus; the same pixels are drawn in it each time."""
        if self._last is None or self._last[0] != stimulus.base:
            self._last = None  # no maps of two images at a time in memory
            pixels = stimulus.picture(self._feeds[self.name])
            self._last = stimulus.base, pixels, self.maps_of(pixels)
        return Scene(*self._last[1:], copy.deepcopy(self._rng))

    def maps_of(self, pixels: npt.NDArray[Any]) -> list[Floats]:
        """Feature maps of the first image as `[h, w, C]`, in the order in which their cells lie in the image."""
        values = dict.fromkeys(feature.value for feature in self.features)
        results = self._runner.run({**self._feeds, self.name: pixels})
        arrays = dict(zip(values, results, strict=True))
        return [_cells(arrays[feature.value], feature) for feature in self.features]


def _cells(value: npt.NDArray[Any], feature: FeatureMap) -> Floats:
    first: Floats = feature.grid_first(value)
    if len(feature.grid_axes) == 1:
        sides = [size or 1 for size in feature.grid]
        first = first[feature.prefix : feature.prefix + math.prod(sides)].reshape(*sides, -1)
    if len(feature.grid) > 2:  # what a block changes at any time
        first = first if feature.frame.times_last else np.moveaxis(first, 0, 2)
    return np.roll(first.reshape(*first.shape[:2], -1), feature.frame.rolled, axis=(0, 1))
