"""Columns that are told to hold coordinates: a side of a box that stays in 0..1 looks like a score by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from xai_insert.probe.channels import axes_of
from xai_insert.probe.heads import Effect, Element, HeadProbe, Response
from xai_insert.probe.rivals import Watched

Column = tuple[int, Element]  # of an observed value, by its index


def without_coordinates(watched: Sequence[Watched], probe: HeadProbe) -> list[Watched]:
    """Heads, whose channels are no classes where they move a column that other channels move out of 0..1.

    Args:
        watched: all heads of a model.
        probe: what moved them.
    """
    scores, coordinates = (set(_values(watched, effect)) for effect in (Effect.CLASS, Effect.OTHER))
    axes = {index: _location_axes(watched, probe, index) for index in scores & coordinates}
    known = {
        column
        for item in watched
        for response in item.responses.values()
        if response.effect is Effect.OTHER
        for column in _columns(response, axes)
    }
    return [_settled(item, axes, known) for item in watched] if known else list(watched)


def _values(watched: Sequence[Watched], effect: Effect) -> Iterable[int]:
    """The observed values of which a channel with an effect moves one element alone."""
    for item in watched:
        for response in item.responses.values():
            if response.effect is effect:
                yield from _alone(response)


def _alone(response: Response) -> list[int]:
    return [index for index in response.elements if response.moved.get(index) == 1]


def _location_axes(watched: Sequence[Watched], probe: HeadProbe, index: int) -> Sequence[int]:
    """The axes of an observed value along which locations lie; none if no head tells."""
    for item in watched:
        cells = probe.cells(item.index)
        for channel, response in item.responses.items():
            if len(cells) > 1 and index in _alone(response):
                there = probe.rises(item.index, channel, cells[1]).get(index)
                axes = there and axes_of({channel: response.elements[index]}, {channel: there})
                return axes[1] if axes else ()
    return ()


def _columns(response: Response, axes: dict[int, Sequence[int]]) -> set[Column]:
    """The columns of which a channel moves one element alone."""
    return {
        (index, tuple(place for axis, place in enumerate(response.elements[index]) if axis not in axes[index]))
        for index in _alone(response)
        if axes.get(index)
    }


def _settled(item: Watched, axes: dict[int, Sequence[int]], known: set[Column]) -> Watched:
    responses = {
        channel: replace(response, effect=Effect.OTHER)
        if response.effect is Effect.CLASS and known & _columns(response, axes)
        else response
        for channel, response in item.responses.items()
    }
    return replace(item, responses=responses)
