"""Timing variants of one computation against each other on a machine that is not quiet."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Ratio:
    """Ratios of paired measurements.

    Attributes:
        median: the middle ratio.
        lower: first quartile.
        upper: third quartile.
    """

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        digits = 3 if self.median < 2 else 1
        return f"{self.median:.{digits}f} ({self.lower:.{digits}f}..{self.upper:.{digits}f})"


def alternate(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    fewest: int = 7,
    most: int = 5000,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Time calls in turn (a, b, a, b, ...), so that whatever slows the machine slows all of them.

    Args:
        calls: what to time.
        seconds: time to spend, beside the warm-up.
        fewest: rounds to measure even if they take longer.
        most: rounds after which to stop.
        warm_up: rounds at least that are not measured.
        clock: what tells the time; by default that on the wall.

    Returns:
        Seconds `[rounds, calls]`.
    """
    _rounds(calls, seconds * _WARM_UP_SHARE, warm_up, most, clock)
    gc.collect()
    gc.disable()
    try:
        return _rounds(calls, seconds, fewest, most, clock)
    finally:
        gc.enable()


def paired_ratio(times: Seconds, reference: Seconds) -> Ratio:
    """Ratio of two measurements taken in the same rounds, each of shape `[rounds]`."""
    lower, median, upper = np.percentile(times / reference, [25, 50, 75])
    return Ratio(float(median), float(lower), float(upper))


def _rounds(
    calls: Sequence[Callable[[], object]], seconds: float, fewest: int, most: int, clock: Callable[[], float]
) -> Seconds:
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < fewest or (len(rounds) < most and time.perf_counter() < end):
        row = []
        for call in calls:
            start = clock()
            call()
            row.append(clock() - start)
        rounds.append(row)
    return np.array(rounds)
