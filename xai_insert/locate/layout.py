"""Feature maps: which axes of a value are the grid, and how the grid lies in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import MisplacedMapError
from xai_insert.graph.axes import is_near
from xai_insert.graph.view import Shape, Value, volume

# Layers of stride 2 with a padding that keeps the size move the grid by up to half a cell (SqueezeNet's by 0.53), which
# everybody draws over the whole image; a crop or a padding of more than that is told.
DRIFT = 0.55
_CUT = 0.49  # cells missing at both ends of a side, which no shift does; layers without padding leave out less
# Coarse levels behind layers without padding leave out a margin, which resizing them to the finest level ignores: that
# of SSD300's level of 3x3 is about a cell.
_MARGIN = 1.5

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """How a grid lies in the image.

    Attributes:
        transposed: whether the first axis of the grid runs along the columns of the image.
        rolled: for the first and the second axis of the grid, by how many cells it is rolled: cell i shows the place of
            cell `i + rolled`, modulo the size.
        lines: likewise, the pixels from one cell to the next, negative where the axis runs backwards, and the pixel of
            the centre of cell 0; None where they are unknown.
        grains: likewise, the pixels between cells of a coarser grid that these were interpolated from; 0 where of none.
        rectangle: top, left, bottom and right of the grid in fractions of the image; None if sizes are unknown.
        times: of a clip, the frames from one cell to the next, and the frame in the middle of cell 0.
        times_last: whether the axis of time stands behind the other two, not before them.
    """

    transposed: bool = False
    rolled: tuple[int, int] = (0, 0)
    lines: tuple[tuple[float, float], tuple[float, float]] | None = None
    rectangle: Rectangle | None = None
    times: tuple[float, float] | None = None
    times_last: bool = False
    grains: tuple[float, float] = field(default=(0.0, 0.0), compare=False)

    @property
    def flipped(self) -> tuple[bool, bool]:
        """For the first and the second axis of the grid, whether it runs backwards."""
        (first, _), (second, _) = self.lines or ((1.0, 0.0), (1.0, 0.0))
        return first < 0, second < 0

    def agrees(self, other: Frame) -> bool:
        """Whether the cells of two grids lie at the same places of the image, to half a stride."""
        if (self.transposed, self.rolled) != (other.transposed, other.rolled) or self.lines is None or not other.lines:
            return self == other
        pairs = zip(self.lines, other.lines, strict=True)
        return all(is_near(a, b) for a, b in pairs)

    def lies_as(self, other: Frame, grid: Shape) -> bool:
        """Whether the cells of a grid lie in two images in the same way, in fractions of each."""
        if (self.transposed, self.rolled, self.flipped) != (other.transposed, other.rolled, other.flipped):
            return False
        return other.rectangle is None or self.covers(grid, other.rectangle)

    @property
    def is_upright(self) -> bool:
        """Whether the cells already stand in the order of the image."""
        return not (self.transposed or any(self.flipped) or any(self.rolled) or self.times_last)

    def order(self, index: int, size: int) -> list[int] | None:
        """For an axis of the grid, the cells in the order of the image; None if they stand so."""
        roll, flip = self.rolled[index], self.flipped[index]
        if not roll and not flip:
            return None
        cells = [(cell - roll) % size for cell in range(size)]
        return cells[::-1] if flip else cells

    def plane(self, grid: Shape) -> Shape:
        """The two sides of a grid that are not time."""
        return grid[:2] if self.times_last else grid[-2:]

    def within(self, grid: Shape, cells: float = 1.0) -> bool:
        """Whether the grid covers the image, to so many `cells` on each side; unknown sizes count as such."""
        return self.covers(grid, (0.0, 0.0, 1.0, 1.0), cells)

    def is_cut(self, grid: Shape) -> bool:
        """Whether the grid begins and ends half a cell inside of the image: convolutions shift it by so much alone."""
        if self.rectangle is None or None in grid:
            return False
        top, left, bottom, right = self.rectangle
        ends = zip((top, left), (bottom, right), self._sides(grid), strict=True)
        return any(min(low, 1 - high) > _CUT * (high - low) / size for low, high, size in ends)

    def _sides(self, grid: Shape) -> list[int]:
        """Cells down and across the image."""
        plane = self.plane(grid)
        return [size or 1 for size in (plane[::-1] if self.transposed else plane)]

    def covers(self, grid: Shape, rectangle: Rectangle, cells: float = 1.0) -> bool:
        """Likewise, a rectangle of the image."""
        if self.rectangle is None or None in grid:
            return True
        sides = self._sides(grid)
        top, left, bottom, right = self.rectangle
        room = [cells * (bottom - top) / sides[0] + 1e-6, cells * (right - left) / sides[1] + 1e-6] * 2
        return all(abs(a - b) <= most for a, b, most in zip(self.rectangle, rectangle, room, strict=True))


@dataclass(frozen=True)
class Side:
    """Where a size of a grid is read while the model runs: `(n + plus) // over`, n that of an axis of a value."""

    value: Value
    axis: int
    plus: int = 0
    over: int = 1


@dataclass(frozen=True)
class FeatureMap:
    """A value with a spatial grid.

    Attributes:
        value: `[B, C, h, w]`, `[B, h, w, C]`, `[B, N, C]`, `[B, C, N]` or `[N, B, C]`; of clips with an axis of time
            before h.
        channel_axis: the axis of the channels.
        grid_axes: the axes of the grid, or the one axis of the tokens.
        grid: height and width in cells, of clips time before or behind them; None where they follow the input.
        prefix: number of tokens before those of the grid (class, distillation, registers).
        frame: how the grid lies in the image.
        sides: of a grid that follows the input, where its height and its width are read, if not in the value itself.
    """

    value: Value
    channel_axis: int
    grid_axes: tuple[int, ...]
    grid: Shape
    prefix: int = 0
    frame: Frame = Frame()
    sides: tuple[Side, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the grid covers the image in the image's own order, so that a map of another size does as well."""
        return len(self.grid_axes) == len(self.grid) and self.frame.is_upright and self.frame.within(self.grid)

    @property
    def batch_axis(self) -> int:
        """The axis of the images: the first, but where tokens stand before them, as in PyTorch's own transformer."""
        return int(0 in self.grid_axes)

    @property
    def batch(self) -> int | None:
        return self.shape[self.batch_axis]

    def grid_first(self, value: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Of the first image, what a value holds, with the axes of the grid before the others."""
        first = value.take(0, axis=self.batch_axis).astype(np.float64)
        axes = [axis - (axis > self.batch_axis) for axis in self.grid_axes]
        return np.moveaxis(first, axes, range(len(axes)))

    @property
    def channels(self) -> int | None:
        return self.shape[self.channel_axis]

    @property
    def shape(self) -> Shape:
        return self.value.sizes

    def describe(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"name": self.value.name, "shape": self.shape, "grid": self.grid, "grid_axes": self.grid_axes}

    @property
    def positions(self) -> int | None:
        """Number of cells of the grid, or None if it follows the input."""
        return volume(self.grid)


def drawn_in(features: Sequence[FeatureMap]) -> Rectangle | None:
    """Where in the image to draw a map made of these, as `Frame.rectangle`; None if over all of it.

    Raises:
        MisplacedMapError: they lie in several parts of the image.
    """
    known = [item for item in features if item.frame.rectangle is not None and item.positions is not None]
    if not known:
        return None
    finest = max(known, key=lambda item: item.positions or 0)
    rectangle = finest.frame.rectangle
    assert rectangle is not None
    for item in known:
        if not item.frame.covers(item.grid, rectangle, _MARGIN):
            names = f"{finest.value.describe()} and {item.value.describe()}"
            raise MisplacedMapError(f"{names} show different parts of the image, so that no map of both can lie in it")
    is_whole = finest.frame.within(finest.grid, DRIFT) and not finest.frame.is_cut(finest.grid)
    return None if is_whole else rectangle


def grid_of_map(value: Value, grid_axes: tuple[int, ...]) -> tuple[int | None, int | None]:
    """Height and width of a value whose grid has two axes."""
    shape = value.shape or ()
    return shape[grid_axes[0]], shape[grid_axes[1]]
