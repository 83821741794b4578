"""Columns that are told to hold coordinates: a side of a box that stays in 0..1 looks like a score by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from xai_insert.probe.channels import axes_of
from xai_insert.probe.heads import Effect, HeadProbe, Response
from xai_insert.probe.rivals import Watched
from xai_insert.probe.spread import Element

Column = tuple[int, Element]  # of an observed value, by its index


def without_coordinates(watched: Sequence[Watched], probe: HeadProbe) -> list[Watched]:
    """Heads, whose channels are no classes where they move a column that other channels move out of 0..1.

    Args:
        watched: all heads of a model.
        probe: what moved them.
    """
    axes = {index: _location_axes(watched, probe, index) for index in _ambiguous(watched)}
    known = frozenset().union(*(_columns(response, axes) for response in _with(watched, Effect.OTHER)))
    return [_settled(item, axes, known) for item in watched] if known else list(watched)


def _ambiguous(watched: Sequence[Watched]) -> set[int]:
    """The observed values of which one channel moves an element as a score, and another one out of 0..1."""
    scores, coordinates = (
        {index for response in _with(watched, effect) for index in _alone(response)}
        for effect in (Effect.CLASS, Effect.OTHER)
    )
    return scores & coordinates


def _with(watched: Sequence[Watched], effect: Effect) -> Iterable[Response]:
    """What channels with an effect do."""
    return (response for item in watched for response in item.responses.values() if response.effect is effect)


def _alone(response: Response) -> list[int]:
    """The observed values of which one element alone moves."""
    return [index for index in response.elements if response.moved.get(index) == 1]


def _location_axes(watched: Sequence[Watched], probe: HeadProbe, index: int) -> Sequence[int]:
    """The axes of an observed value along which locations lie; none if no head tells."""
    found = (_moved_axes(item, channel, probe, index) for item in watched for channel in item.responses)
    return next(filter(None, found), ())


def _moved_axes(item: Watched, channel: int, probe: HeadProbe, index: int) -> Sequence[int]:
    """The axes along which the one element that a channel moves is another if the location is."""
    here, cells = item.responses[channel], probe.cells(item.index)
    if len(cells) < 2 or index not in _alone(here):
        return ()
    there = probe.rises(item.index, channel, cells[1])
    axes = axes_of({channel: here.elements[index]}, {channel: there[index]}) if index in there else None
    return axes[1] if axes else ()


def _columns(response: Response, axes: Mapping[int, Sequence[int]]) -> set[Column]:
    """The columns of which a channel moves one element alone."""
    return {(index, _without(axes[index], response.elements[index])) for index in _alone(response) if axes.get(index)}


def _without(axes: Sequence[int], element: Element) -> Element:
    return tuple(place for axis, place in enumerate(element) if axis not in axes)


def _settled(item: Watched, axes: Mapping[int, Sequence[int]], known: frozenset[Column]) -> Watched:
    """A head with those of its channels as coordinates that move a column of them."""
    coordinates = {
        channel: replace(response, effect=Effect.OTHER)
        for channel, response in item.responses.items()
        if response.effect is Effect.CLASS and known & _columns(response, axes)
    }
    return replace(item, responses={**item.responses, **coordinates})
