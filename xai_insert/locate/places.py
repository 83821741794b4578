"""Which axes of a value are a grid of the image, and where in the image the grid lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from xai_insert.graph.axes import (
    Axes,
    Axis,
    Digit,
    Kind,
    Origin,
    axis_size,
    coarse,
    has_batch,
    has_place,
    is_stored,
    parts_of,
)
from xai_insert.graph.items import only, present, summed
from xai_insert.graph.joining import without_single_batch
from xai_insert.graph.trace import Traced, trace
from xai_insert.graph.view import Graph, Shape, Value
from xai_insert.locate.inputs import frames_in_channels, image_axes, image_inputs, time_axis
from xai_insert.locate.layout import FeatureMap, Frame, Side
from xai_insert.locate.open_sides import are_lost, common_of_sizes


@dataclass(frozen=True)
class Place:
    """A grid of the image, or of a clip, in the axes of a value.

    Attributes:
        axes: the axes of the grid, or the one axis of its tokens.
        first: the origin that comes first in the value, and `second`: rows and columns or columns and rows.
        prefix: number of tokens before those of the grid; None if it is unknown.
        suffix: number of tokens behind them.
        times: of a clip, the origin that comes before both, or behind both if `times_last`.
    """

    axes: tuple[int, ...]
    first: Origin
    second: Origin
    prefix: int | None = 0
    suffix: int | None = 0
    times: Origin | None = None
    times_last: bool = False

    @property
    def rows(self) -> Origin:
        return self.first if self.first.kind is Kind.ROWS else self.second

    @property
    def columns(self) -> Origin:
        return self.second if self.first.kind is Kind.ROWS else self.first

    @property
    def grid(self) -> Shape:
        """Sizes in the order of the value."""
        sides = (self.first.size, self.second.size)
        if self.times is None:
            return sides
        return (*sides, self.times.size) if self.times_last else (self.times.size, *sides)


def grid_of(axes: Axes) -> Place | None:
    """The one grid that a value's axes hold whole and apart from all else; None if there is none, or more than one."""
    lines = {index: origin for index, axis in enumerate(axes) if (origin := _side(axis)) is not None}
    joint = [(index, axis) for index, axis in enumerate(axes) if has_place(axis) and index not in lines]
    found = [_token_grid(index, axis) for index, axis in joint]
    if lines:
        is_grid = _is_grid([*lines.values()])
        found.append(_placed(tuple(lines), [*lines.values()]) if is_grid else None)
    return only(found)


def _token_grid(index: int, axis: Axis) -> Place | None:
    """The grid of tokens that an axis holds."""
    tokens = _tokens(axis)
    if tokens is None:
        return None
    sides, prefix, suffix = tokens
    return _placed((index,), sides, prefix, suffix)


def _is_grid(sides: Sequence[Origin]) -> bool:
    """Whether origins are rows and columns in either order, or these before or behind the frames of a clip."""
    times = [origin for origin in sides if origin.kind is Kind.TIME]
    if times and (len(sides) != 3 or sides[1] in times or times[0].stride < 0 or times[0].roll):
        return False
    return sorted(origin.kind.value for origin in sides if origin not in times) == ["columns", "rows"]


def _placed(axes: tuple[int, ...], sides: Sequence[Origin], before: int | None = 0, behind: int | None = 0) -> Place:
    times = next((origin for origin in sides if origin.kind is Kind.TIME), None)
    first, second = (origin for origin in sides if origin is not times)
    return Place(axes, first, second, before, behind, times, times is not None and sides[-1] is times)


@dataclass(frozen=True)
class TokenPart:
    """One of the lists of tokens that stand end to end in an axis.

    Attributes:
        start: its first token.
        place: the grid that it is; None for tokens without one.
        strip: height and width of a grid of one row or one column that it is.
    """

    start: int
    place: Place | None
    strip: tuple[int, int] | None = None


@dataclass(frozen=True)
class Places:
    """Where the values of one model lie in its image.

    Attributes:
        traced: the axes of every value that depends on the image.
        image: the image input that rectangles are fractions of; None for regions of images.
        folded: the frames of clips that count as images, in the batch behind these.
    """

    traced: Traced
    image: Value | None = None
    folded: Origin | None = None

    def of(self, value: Value) -> Place | None:
        """The grid that a value holds, with whatever other axes; None if it has none, or more than one."""
        axes = self.traced.get(value)
        return None if axes is None else grid_of((self._images(axes[0]), *axes[1:]) if axes else axes)

    def _images(self, axis: Axis) -> Axis:
        """The first axis without the frames that count as images."""
        return tuple(digit for digit in axis if self.folded is None or coarse(digit) is not self.folded)

    def is_placed(self, value: Value) -> bool:
        """Whether a value holds anything of the image's rows or columns."""
        axes = self.traced.get(value, ())
        return any(map(has_place, (self._images(axes[0]), *axes[1:]) if axes else ()))

    def of_images(self, value: Value) -> bool:
        """Whether the first axis of a value stands for the images of a batch and nothing else."""
        axes = self.traced.get(value)
        if not axes:
            return False
        if self.image is None:  # regions, which may be chosen and put in another order
            return not has_place(axes[0])
        return all(digit.origin.kind is Kind.BATCH for digit in self._images(axes[0]))

    def has_stored(self, value: Value) -> bool:
        """Whether some rows of a value are learned, along an axis without a place: they hold none."""
        return any(is_stored(part) for axis in self.traced.get(value, ()) for part in parts_of(axis))

    def has_views(self, value: Value) -> bool:
        """Whether several batches stand end to end in the first axis of a value."""
        first = next(iter(self.traced.get(value, ())), ())
        return len(parts_of(first)) > 1 and has_batch(parts_of(first)[0])

    def beside_images(self, value: Value) -> int | None:
        """How many rows the first axis of a value has for each image of the batch: 1, or heads; None if unknown."""
        axes = self.traced.get(value)
        if not axes or not axes[0] or has_place(axes[0]):
            return None
        if axes[0][0].origin.kind is Kind.BATCH:
            return axis_size(axes[0][1:])
        # A batch of one leaves no trace in the sizes.
        is_of_one = any(digit.origin.kind is Kind.BATCH and digit.size == 1 for axis in axes for digit in axis)
        return axis_size(axes[0]) if is_of_one else None

    def map_of(self, value: Value, *, others: bool = False) -> FeatureMap | None:
        """A value as a feature map: a batch, one grid and one axis of channels; None if it is none.

        Args:
            value: of any rank.
            others: whether tokens may stand before and behind those of the grid.
        """
        place = self.of(value)
        if place is None or not self._is_of_each_image(value, place) or set(place.grid) == {1}:
            return None
        channels = [axis for axis in range(1, value.axis_count) if axis not in place.axes]
        if len(channels) != 1 or ((place.prefix or place.suffix) and not others):
            return None
        sides = self._open_sides(place)
        if sides is None:
            return None
        return FeatureMap(value, channels[0], place.axes, place.grid, place.prefix or 0, self.frame_of(place), sides)

    def any_map_of(self, value: Value) -> FeatureMap | None:
        """A value as a map, of tokens with others beside its grid too, or with the images behind them."""
        return self.map_of(value, others=True) or self._tokens_before_images(value)

    def tokens_of(self, value: Value) -> FeatureMap | None:
        """A value of three axes as a list of tokens, `[B, T, D]` or `[T, B, D]`; None if it is none."""
        found = self.any_map_of(value) if value.rank == 3 else None
        return found if found is not None and found.grid_axes in ((0,), (1,)) else None

    def _tokens_before_images(self, value: Value) -> FeatureMap | None:
        place = self._before_images(value)
        if place is None or place.axes != (0,) or None in (place.prefix, place.suffix):
            return None
        sides = self._open_sides(place)
        frame = self.frame_of(place)
        return None if sides is None else FeatureMap(value, 2, (0,), place.grid, place.prefix or 0, frame, sides)

    def _before_images(self, value: Value) -> Place | None:
        """The grid in the first axis of a list of tokens, before an axis of images: of one image that holds nothing."""
        axes = self.traced.get(value, ())
        if len(axes) != 3 or self.folded is not None:
            return None
        first, images, channels = axes
        if images == () and value.sizes[1] == 1 and (tokens := without_single_batch(first)) != first:
            return grid_of((tokens, (), channels))
        return grid_of(axes) if images and all(digit.origin.kind is Kind.BATCH for digit in images) else None

    def _is_of_each_image(self, value: Value, place: Place) -> bool:
        """Whether a grid stands behind the images, at a known place of its axis, with nothing that is stored."""
        if 0 in place.axes or None in (place.prefix, place.suffix):
            return False
        return self.of_images(value) and not self.has_stored(value)

    def _open_sides(self, place: Place) -> tuple[Side, ...] | None:
        """Where the sizes of a grid of tokens are read that follow the image; None if that is nowhere."""
        if len(place.axes) != 1 or None not in place.grid:
            return ()
        return self._sides(place)

    def sides_of(self, value: Value) -> tuple[Side, ...] | None:
        """Where the sizes of the grid of a value are read, height and width; None if that is nowhere."""
        place = self.of(value)
        return None if place is None else self._sides(place)

    def _sides(self, place: Place) -> tuple[Side, ...] | None:
        found = [self._side_of(origin) for origin in (place.first, place.second)]
        sides = tuple(present(found))
        return sides if len(sides) == len(found) and place.times is None else None

    def _side_of(self, origin: Origin) -> Side | None:
        """A value and its axis that is an origin, whole: where its size can be read while the model runs."""
        for value, axes in self.traced.items():
            for index, axis in enumerate(axes):
                if len(axis) == 1 and axis[0].origin is origin and axis[0].size == origin.size and axis[0].step == 1:
                    return Side(value, index)
        return None

    def strip_of(self, value: Value, axis: int) -> tuple[int, int] | None:
        """Height and width of a grid of one row or one column that is an axis of a value; None if it is none."""
        axes = self.traced.get(value, ())
        return _strip(axes[axis]) if axis < len(axes) else None

    def parts_of(self, value: Value, axis: int) -> list[TokenPart] | None:
        """What stands end to end in an axis of a value, in order; None where it is not known how much."""
        axes = self.traced.get(value)
        if axes is None or axis >= len(axes):
            return None
        found, start = list[TokenPart](), 0
        for part in parts_of(axes[axis]):
            size, told = axis_size(part), _part(part, axis, start)
            if size is None or told is None:
                return None
            found.append(told)
            start += size
        return found if all(part.strip is None for part in found) or any(part.place for part in found) else None

    def frame_of(self, place: Place) -> Frame:
        """How a grid lies in the image."""
        return Frame(
            transposed=place.first.kind is Kind.COLUMNS,
            rolled=(place.first.roll, place.second.roll),
            lines=((place.first.stride, place.first.offset), (place.second.stride, place.second.offset)),
            rectangle=None if self.image is None else rectangle(place, self.image),
            times=None if place.times is None else (place.times.stride, place.times.offset),
            times_last=place.times_last,
            grains=(place.first.grain, place.second.grain),
        )


_KNOWN: WeakKeyDictionary[Graph, Places] = WeakKeyDictionary()


def find_places(graph: Graph) -> Places:
    """Follow the axes of a model's images, once for each graph."""
    if graph not in _KNOWN:
        images = image_inputs(graph)
        times = {image: axis for image in images if (axis := time_axis(image)) is not None}
        packed = {image: count for image in images if (count := frames_in_channels(image))}
        sides = {image: image_axes(image) for image in images}
        traced = trace(graph, sides, times, packed)
        if not times and not packed and are_lost(graph, sides, traced):
            traced = common_of_sizes(graph, sides) or traced
        _KNOWN[graph] = Places(traced, images[0])
    return _KNOWN[graph]


def _side(axis: Axis) -> Origin | None:
    """An axis as rows or columns, rolled ones too; None for one row that was cut out, and for all else."""
    origin = coarse(axis[0]) if len(axis) == 1 and axis[0].origin.is_place else None
    return None if origin is not None and origin.size == 1 and origin.whole is not None else origin


def _strip(axis: Axis) -> tuple[int, int] | None:
    """Height and width of a grid of one row or one column."""
    origin = _side(axis)
    if origin is None or origin.size is None or origin.roll or origin.stride < 0 or origin.kind is Kind.TIME:
        return None
    return (1, origin.size) if origin.kind is Kind.COLUMNS else (origin.size, 1)


def _tokens(axis: Axis) -> tuple[Sequence[Origin], int | None, int | None] | None:
    """Rows and columns of a grid of tokens, and how many others stand before and behind them."""
    parts = parts_of(axis)
    placed = [index for index, part in enumerate(parts) if has_place(part)]
    if len(placed) != 1:
        return None
    index = placed[0]
    pair = _pair(parts[index])
    return None if pair is None else (pair, _count(parts[:index]), _count(parts[index + 1 :]))


def _count(parts: Sequence[Axis]) -> int | None:
    """How many stand in parts of an axis, if that is known of each."""
    sizes = [axis_size(part) for part in parts]
    return summed(sizes)


def _pair(digits: tuple[Digit, ...]) -> Sequence[Origin] | None:
    """The sides of a grid of tokens, that of time before them in a clip."""
    origins = [coarse(digit) for digit in digits if digit.origin.kind is not Kind.BATCH or digit.size != 1]
    sides = present(origins)
    return sides if len(sides) == len(origins) and _is_grid(sides) else None


def rectangle(place: Place, image: Value) -> tuple[float, float, float, float] | None:
    """Where the grid lies, as fractions of the image: top, left, bottom, right; None if sizes are unknown."""
    edges: list[tuple[float, float]] = []
    for origin, axis in zip((place.rows, place.columns), image_axes(image), strict=True):
        side = image.sizes[axis]
        if side is None or origin.size is None:
            return None
        ends = sorted((origin.offset, origin.offset + origin.stride * (origin.size - 1)))
        half = abs(origin.stride) / 2
        edges.append(((ends[0] - half + 0.5) / side, (ends[1] + half + 0.5) / side))
    (top, bottom), (left, right) = edges
    return top, left, bottom, right


def _part(axis: Axis, index: int, start: int) -> TokenPart | None:
    """A grid, a strip of one, or what has no place, from `start` on in an axis; None if its places are others."""
    pair = _pair(axis)
    if pair is not None:
        return TokenPart(start, _placed((index,), pair), None)
    strip = _strip(axis)
    return None if strip is None and has_place(axis) else TokenPart(start, None, strip)
