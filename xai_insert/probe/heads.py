"""What each channel of a detector's heads does, watched in the model's own runtime.

The model is cut at its heads; everything before them is left out. With all heads near zero no score is saturated;
then one channel at one location is raised and lowered. A class channel moves one score between 0 and 1, a gate
(objectness, centerness) moves several, a box channel moves coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.feeds import feeds_of, random_array
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.view import Shape, Value
from xai_insert.locate.frontier import Head
from xai_insert.locate.levels import Level
from xai_insert.locate.observed import Observed
from xai_insert.probe.spread import MOVED, Element, Listed, Stirred, differs, places_of, spread_of
from xai_insert.probe.squashed import fall_as_shares, fall_together

Array = npt.NDArray[np.float64]
Place = tuple[int | slice, ...]

_PUSH = 12.0
_SIZE = 256  # of images whose size is open


class Effect(Enum):
    """What raising one channel at one location does."""

    CLASS = auto()
    """One score rises."""
    GATE = auto()
    """Several scores rise."""
    FALLING = auto()
    """Scores fall and none rises: the background of a softmax."""
    SILENT = auto()
    """Nothing that is selected or returned moves."""
    RAW = auto()
    """An output moves by what was added: it is not decoded."""
    CARRIED = auto()
    """A value inside the model moves by what was added: no box is decoded."""
    OTHER = auto()
    """Coordinates or coefficients move."""


@dataclass(frozen=True)
class Response:
    """Effect of one channel, and where.

    Attributes:
        effect: what happens.
        elements: the one element that rises, by index of the observed value.
        touched: all elements that move, `[count, rank]`, by index of the observed value.
        raised: those that rise.
    """

    effect: Effect
    elements: Mapping[int, Element] = field(default_factory=dict)
    touched: Mapping[int, npt.NDArray[np.intp]] = field(default_factory=dict)
    raised: Mapping[int, npt.NDArray[np.intp]] = field(default_factory=dict)

    @property
    def moved(self) -> dict[int, int]:
        """How many elements move, by index of the observed value."""
        return {index: len(elements) for index, elements in self.touched.items()}


class HeadProbe:
    """A model cut between its heads and what is observed.

    Args:
        loaded: the unedited model.
        heads: where values are fed.
        observed: what is watched.
    """

    def __init__(self, loaded: LoadedModel, heads: Sequence[Head], observed: Sequence[Observed]) -> None:
        self._observed = observed
        # One quantiser for boxes in pixels and scores leaves nothing of the scores.
        results = [item.value.native for item in observed]
        self._runner = loaded.between([head.value for head in heads], results, is_rounded=False)
        shapes: Sequence[Shape] = [head.value.sizes for head in heads]
        if any(None in shape[1:] for shape in shapes):
            shapes = _shapes_of(loaded, [head.value for head in heads])
        rng = np.random.default_rng(0)
        self._names = [name for name, _, _ in self._runner.inputs[: len(heads)]]
        self._feeds = {}
        for (name, dtype, _), shape in zip(self._runner.inputs, shapes, strict=False):
            self._feeds[name] = (0.1 * random_array(rng, shape, dtype)).astype(dtype)
        self._feeds |= feeds_of(self._runner.inputs[len(heads) :], rng, size=_SIZE)
        self._heads = heads
        self._moved: dict[int, dict[int, Stirred]] = {}
        self._base = self._outputs({})

    def grid(self, head: int, level: Level | None = None) -> tuple[int, int]:
        """Height and width of one of a head's levels, as run; the first if none is given."""
        level = level or self._heads[head].levels[0]
        shape = self._feeds[self._names[head]].shape
        if len(level.grid_axes) == 2:
            return shape[level.grid_axes[0]], shape[level.grid_axes[1]]
        return level.height or 1, level.width or 1

    def cells(self, head: int) -> list[tuple[int, int]]:
        """Two locations near the middle of a head's first level; one where there is only one."""
        height, width = self.grid(head)
        row, column = height // 2, width // 2
        other = (row, column - 1) if column else (row - 1, column)
        return [(row, column), other] if height * width > 1 else [(row, column)]

    def respond(self, head: int, channel: int, cell: tuple[int, int]) -> Response:
        """Raise and lower one channel at one location."""
        place, known = self.place(head, channel, cell), dict[float, list[npt.NDArray[Any]]]()

        def at(index: int, push: float) -> npt.NDArray[Any]:  # of most boxes nobody asks
            if push not in known:
                known[push] = self._pushed(head, place, push)
            return known[push][index]

        found: dict[int, Effect] = {}
        touched, raised = {}, {}
        for index, (base, high) in enumerate(zip(self._base, self._pushed(head, place, _PUSH), strict=True)):
            if self._heads[head].value not in self._observed[index].heads:
                continue
            if base.shape != high.shape:  # more or fewer are selected, and no row is what it was
                found[index] = Effect.OTHER
                continue
            found[index], rising, moved = _effect(self._observed[index], base, high, partial(at, index))
            if len(moved):
                touched[index], raised[index] = moved, rising
        told = _foremost(self._telling(found))
        if told is Effect.SILENT:
            return Response(told)
        elements = {index: element for index, ups in raised.items() if (element := _only(ups)) is not None}
        return Response(told, elements, touched, raised)

    def _telling(self, found: Mapping[int, Effect]) -> set[Effect]:
        """The effects but for what the best of scores, and their labels, do where a channel is seen to be a class."""
        seen = [self._observed[index].behind for index, effect in found.items() if effect is Effect.CLASS]
        behind = frozenset[Value]().union(*seen)
        return {effect for index, effect in found.items() if self._observed[index].value not in behind}

    def rises(self, head: int, channel: int, cell: tuple[int, int]) -> dict[int, Element]:
        """The one element that rises in each observed value if a channel does; half of what `respond` takes."""
        raised, found = self._pushed(head, self.place(head, channel, cell), _PUSH), dict[int, Element]()
        for index, (base, high) in enumerate(zip(self._base, raised, strict=True)):
            if self._heads[head].value in self._observed[index].heads and base.shape == high.shape:
                element = _only(places_of(differs(base, high) & (high > base)))
                if element is not None:
                    found[index] = element
        return found

    def is_pooled(self, head: int, channel: int, responses: Mapping[int, Response]) -> bool:
        """Whether a channel raises the same numbers from two locations, as of a feature that is averaged."""
        here, (_, *others) = responses[channel].elements, self.cells(head)
        return any(here and self.rises(head, channel, cell).items() >= here.items() for cell in others)

    def _pushed(self, head: int, place: Place, push: float) -> list[npt.NDArray[Any]]:
        """What is observed with one element of a head raised or lowered."""
        changed = self.fed(head)
        changed[place] += push
        return self._outputs({head: changed})

    def moved_at(self, head: int) -> dict[int, tuple[int, int, int]]:
        """What moves in each observed value if every channel at one location does.

        Returns:
            By index of the value: how many elements, how many of them differ along axes that have nothing to do with
            the location, and how many along the others; rows that say the same, as boxes that are repeated for each
            class, count once.
        """
        return {
            index: (spread.count, len(spread.columns), spread.single) for index, spread in self._spreads(head).items()
        }

    def lists_of(self, head: int) -> list[Listed]:
        """What moves at one location in each observed list of all of them."""
        lists = [(index, at) for index, at in self._spreads(head).items() if len(at.axes) == 1]
        return [
            Listed(index, self._base[index].shape[at.axes[0]], frozenset(row for (row,) in at.rows), at.columns)
            for index, at in lists
        ]

    def _spreads(self, head: int) -> dict[int, Stirred]:
        if head not in self._moved:
            runs = [self._stirred(head, cell) for cell in self.cells(head)]
            spreads = map(spread_of, self._base, runs[0], runs[-1])
            self._moved[head] = {index: spread for index, spread in enumerate(spreads) if spread is not None}
        return self._moved[head]

    def is_placed(self, value: Value) -> bool:
        """Whether rows of an observed value differ although all locations are alike, as boxes do that lie on a grid."""
        alike = {index: np.full_like(self.fed(index), 0.1) for index in range(len(self._heads))}
        arrays = dict(zip((item.value for item in self._observed), self.run(alike), strict=True))
        return value in arrays and float(np.ptp(arrays[value][0], axis=0).max()) > MOVED

    def moved_by(self, head: int, channel: int, cell: tuple[int, int]) -> frozenset[int]:
        """The observed values of which anything moves if one channel at one location does."""
        raised = self._pushed(head, self.place(head, channel, cell), _PUSH)
        return frozenset(i for i, (a, b) in enumerate(zip(self._base, raised, strict=True)) if differs(a, b).any())

    def _stirred(self, head: int, cell: tuple[int, int]) -> list[npt.NDArray[Any]]:
        """What is observed with every channel at one location moved."""
        changed = self.fed(head)
        perturb(changed, self.place(head, slice(None), cell))
        return self._outputs({head: changed})

    def place(self, head: int, channel: int | slice, cell: tuple[int, int], level: Level | None = None) -> Place:
        """Index of a channel at a location in the first image; of the first of the head's levels if none is given."""
        item = self._heads[head]
        level = level or item.levels[0]
        index: list[int | slice] = [0] * self._feeds[self._names[head]].ndim
        index[item.channel_axis] = channel
        if len(level.grid_axes) == 2:
            index[level.grid_axes[0]], index[level.grid_axes[1]] = cell
        else:
            index[level.grid_axes[0]] = level.start + cell[0] * self.grid(head, level)[1] + cell[1]
        return tuple(index)

    def fed(self, head: int) -> npt.NDArray[np.floating]:
        """A copy of what is fed as a head's result."""
        return np.array(self._feeds[self._names[head]])

    def run(self, changes: Mapping[int, npt.NDArray[np.floating]]) -> list[Array]:
        """What is observed with other results of some heads."""
        return [result.astype(np.float64) for result in self._outputs(changes)]

    def _outputs(self, changes: Mapping[int, npt.NDArray[np.floating]]) -> list[npt.NDArray[Any]]:
        """The same in the types of the model: large values of which little moves."""
        return self._runner.run({**self._feeds, **{self._names[head]: array for head, array in changes.items()}})


def _foremost(effects: Set[Effect]) -> Effect:
    """The one of several effects that says what a channel is."""
    known = effects - {Effect.CARRIED} if Effect.CLASS in effects else effects
    # Without the raw scores on their way to where the best are looked up.
    order = (Effect.OTHER, Effect.CARRIED, Effect.GATE, Effect.CLASS, Effect.RAW, Effect.FALLING)
    return next((effect for effect in order if effect in known), Effect.SILENT)


def _effect(
    observed: Observed, base: npt.NDArray[Any], high: npt.NDArray[Any], at: Callable[[float], npt.NDArray[Any]]
) -> tuple[Effect, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """What happened to one observed value, the elements that rose, and all that moved."""
    moves = differs(base, high)
    before, raised = (array[moves].astype(np.float64) for array in (base, high))
    touched = places_of(moves)
    count = len(touched)
    if not count:
        return Effect.SILENT, touched, touched
    rises = raised > before
    ups = touched[rises]
    scores = _scores_of(observed, before, raised)
    raised = scores(raised)
    bounded = _is_bounded(raised)
    if not bounded and (len(ups) != 1 or count > 1):
        return Effect.OTHER, ups, touched
    if at(-_PUSH).shape != base.shape:
        return Effect.OTHER, ups, touched

    def share_at(push: float) -> Array:
        return np.asarray(scores(at(push)[moves].astype(np.float64)))

    lowered = share_at(-_PUSH)
    bounded = bounded and _is_bounded(lowered)
    falls = bool((lowered[rises] <= 20 * MOVED).all())
    if bounded and not falls:
        falls = fall_as_shares(scores(before)[rises], lowered[rises], _PUSH, lambda push: share_at(push)[rises])
    if bounded and falls and len(ups) == 1 < count:
        order = np.argsort(~rises, kind="stable")  # the one that rises first
        falls = fall_together(scores(before)[order], raised[order], lambda push: share_at(push)[order])
    is_same = len(ups) == 1 == count and _is_passed_on(before[0], raised[0], lowered[0])
    otherwise = _passed_on(observed) if is_same else Effect.OTHER
    return _named(len(ups), bounded=bounded, falls=falls, otherwise=otherwise), ups, touched


def _named(rising: int, *, bounded: bool, falls: bool, otherwise: Effect) -> Effect:
    """The effect of a channel with which so many elements rise."""
    if bounded and not rising:
        return Effect.FALLING
    if bounded and falls:
        return Effect.CLASS if rising == 1 else Effect.GATE
    return otherwise


def _scores_of(observed: Observed, *arrays: npt.NDArray[Any]) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """What makes scores of such numbers, which may be their logarithms, or counted in per cent or bytes."""
    if observed.counted_in != 1 and not all(map(_is_bounded, arrays)):
        return lambda numbers: numbers / observed.counted_in
    return np.exp if all(map(_are_logs, arrays)) else np.asarray


def _passed_on(observed: Observed) -> Effect:
    """What it is to move by as much as the channel."""
    if observed.by_magnitude:
        return Effect.CLASS
    return Effect.RAW if observed.is_output else Effect.CARRIED


def _only(elements: npt.NDArray[np.intp]) -> Element | None:
    """The element, if there is one alone."""
    return tuple(int(index) for index in elements[0]) if len(elements) == 1 else None


def _is_passed_on(before: float, raised: float, lowered: float) -> bool:
    """Whether a number moved by what its channel was moved by, up and down."""
    return np.allclose([raised - before, before - lowered], _PUSH, rtol=1e-2)


def _are_logs(numbers: Array) -> bool:
    """Whether numbers are the logarithms of shares, as LogSoftmax gives them."""
    return len(numbers) > 1 and bool((numbers <= 0).all()) and abs(float(np.exp(numbers).sum()) - 1) < MOVED


def _is_bounded(scores: Array) -> bool:
    return bool((scores >= -MOVED).all() and (scores <= 1 + MOVED).all())


def perturb(array: npt.NDArray[np.floating], place: Place) -> None:
    """Move the elements at a place, each by another amount."""
    array[place] += np.random.default_rng(1).uniform(0.5, 1.5, array[place].shape).astype(array.dtype)


def _shapes_of(loaded: LoadedModel, values: Sequence[Value]) -> list[Shape]:
    """Sizes of values whose shape follows the input, for one image."""
    runner: Runner = loaded.between([], [value.native for value in values])
    rng = np.random.default_rng(0)
    return [tuple(result.shape) for result in runner.run(feeds_of(runner.inputs, rng, size=_SIZE))]
