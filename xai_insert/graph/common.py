"""What the axes of two sizes of one model have in common: a size that differs between them follows the image."""

from __future__ import annotations

from math import isclose

from xai_insert.graph.axes import Axes, Axis, Digit, Origin, elsewhere, has_place, other
from xai_insert.graph.items import present


class Common:
    """The axes that two traces agree on; origins that meet again are the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[Origin, Origin], Origin | None] = {}

    def axes(self, first: Axes, second: Axes) -> Axes:
        """Axis by axis, of values of one rank."""
        return tuple(map(self._axis, first, second))

    def _axis(self, first: Axis, second: Axis) -> Axis:
        digits = [self._digit(one, two) for one, two in zip(first, second, strict=False)]
        made = present(digits)
        if len(first) == len(second) == len(made):
            return tuple(made)
        lost = elsewhere if has_place(first) or has_place(second) else other
        return lost(None)

    def _digit(self, first: Digit, second: Digit) -> Digit | None:
        if first.step != second.step or _is_whole(first) != _is_whole(second):
            return None
        origin, size = self._origin(first.origin, second.origin), _size(first.size, second.size)
        if origin is None or (size is None and first.step == 1 and not _is_whole(first)):
            return None  # a part that would look like the whole
        return Digit(origin, first.step, size)

    def _origin(self, first: Origin, second: Origin) -> Origin | None:
        if (first, second) not in self._known:
            self._known[first, second] = self._met(first, second)
        return self._known[first, second]

    def _met(self, first: Origin, second: Origin) -> Origin | None:
        same = isclose(first.offset, second.offset, abs_tol=1e-6) and isclose(first.grain, second.grain, abs_tol=1e-6)
        if not same or not _is_as_wide(first, second):
            return None
        counted = [(item.kind, item.roll, item.order, item.start, len(item.parts)) for item in (first, second)]
        if counted[0] != counted[1] or (first.whole is None) != (second.whole is None):
            return None
        whole = None
        if first.whole is not None and second.whole is not None:
            whole = self._origin(first.whole, second.whole)
            if whole is None:
                return None
        parts = tuple(map(self._axis, first.parts, second.parts))
        size = _size(first.size, second.size)
        return Origin(
            first.kind,
            size,
            second.stride,
            first.offset,
            first.roll,
            first.grain,
            parts,
            first.order,
            whole,
            first.start,
        )


def _is_as_wide(first: Origin, second: Origin) -> bool:
    """Whether cells lie as far from one another at both sizes of the image.

    Interpolation that puts the corners of both grids on each other leaves half a coarse cell at the border, which is
    less of a larger image: the last cell may lie that much elsewhere by the stride of the other size.
    """
    is_near = first.size is not None and abs(first.stride - second.stride) * first.size <= first.grain / 2
    return is_near or isclose(first.stride, second.stride, abs_tol=1e-6)


def _is_whole(digit: Digit) -> bool:
    return digit.step == 1 and digit.size == digit.origin.size


def _size(first: int | None, second: int | None) -> int | None:
    return first if first == second else None
