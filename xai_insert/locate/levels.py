"""Levels of a feature pyramid whose locations were joined along one token axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xai_insert.graph.view import Value, volume
from xai_insert.locate.layout import FeatureMap, Frame
from xai_insert.locate.places import Place, Places, TokenPart


@dataclass(frozen=True)
class Level:
    """One grid of a head.

    Attributes:
        start: index of its first location along the token axis; 0 for a grid with two axes.
        height: None where it follows the input.
        width: likewise.
        grid_axes: axes of height and width, or the one axis of the tokens.
        frame: how the grid lies in the image.
    """

    start: int
    height: int | None
    width: int | None
    grid_axes: tuple[int, ...]
    frame: Frame = field(default_factory=Frame)

    @property
    def cells(self) -> int | None:
        return volume((self.height, self.width))


def token_levels(places: Places, tokens: Value, axis: int) -> tuple[Level, ...]:
    """Grids of the levels that stand end to end in an axis of `tokens`.

    Empty if there is none, or anything else stands among them: the tokens are queries, say.
    """
    levels: list[Level] = []
    for part in places.parts_of(tokens, axis) or []:
        if part.strip is not None:
            levels.append(Level(part.start, *part.strip, (axis,)))
            continue
        if part.place is None or None in part.place.grid:
            return ()
        frame, (height, width) = places.frame_of(part.place), part.place.grid
        levels.append(Level(part.start, height, width, (axis,), frame))
    return tuple(levels)


def coarsest_map(places: Places, value: Value) -> FeatureMap | None:
    """A value as a feature map; of several levels that were joined to one list of tokens the coarsest."""
    found = places.any_map_of(value)
    if found is not None or value.rank != 3 or not places.of_images(value):
        return found
    sized = _sized(places.parts_of(value, 1) or [])
    if not sized:
        return None
    start, place = min(sized, key=lambda item: volume(item[1].grid) or 0)
    return FeatureMap(value, 2, (1,), place.grid, start, places.frame_of(place))


def _sized(parts: Sequence[TokenPart]) -> list[tuple[int, Place]]:
    """Where each grid begins, of parts that stand end to end; none if the size of one is not known."""
    placed = [(part.start, part.place) for part in parts if part.place is not None]
    return [] if any(None in place.grid for _, place in placed) else placed
