"""Whether numbers are squashed ones, told by how they fall: scores whose logits are scaled need a longer push."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_FAR = 4096.0  # a push that any scale of a logit makes a share of one
_LITTLE = -4.0  # the logarithm of the odds of what is next to nothing
_SLACK = 0.4  # between logarithms of odds
_PUSHES = (4.0, 1.0)  # less than what saturates
_APART, _OFF = 0.02, 0.1  # shares of one softmax; and ratios of two of them, in logarithms
_LEAST = 1e-4  # of shares whose ratio tells


def fall_as_shares(before: Array, lowered: Array, by: float, at: Callable[[float], Array]) -> bool:
    """Whether numbers fall as the sigmoid or softmax of what is lowered, times a gate, and not as sides of boxes.

    The logarithm of a share's odds is as straight a line as its logit, down to where nothing is left of it; what is
    clipped to 0..1 ends before.

    Args:
        before: numbers in 0..1.
        lowered: what they are if a channel is lowered.
        by: how much.
        at: what they are if the channel is moved by another amount.
    """
    if not (lowered < before).all():
        return False
    most = at(_FAR)
    with np.errstate(all="ignore"):
        start = _odds(before / most)
        slope = (start - _odds(lowered / most)) / by
        push = float(np.median((_LITTLE - start) / slope))
        if not np.isfinite(push) or not -_FAR < push < 0:
            return False
        gaps = np.abs(_odds(at(push) / most) - (start + slope * push))
    return bool((gaps <= _SLACK).all())


def fall_together(before: Array, after: Array, at: Callable[[float], Array]) -> bool:
    """Whether all numbers but the one that rises fall as the other shares of its softmax do: by one factor.

    Features of which several scores are made raise some and lower others, each by a weight of its own.

    Args:
        before: numbers in 0..1, the one that rises first.
        after: what they are with a channel raised.
        at: what they are if it is moved by another amount.
    """
    others, fallen = before[1:], after[1:]
    factor = float(fallen.sum() / others.sum())
    if (np.abs(fallen - factor * others) > _APART * others.max()).any():
        return False
    if len(others) > 1:
        return True
    for push in _PUSHES:
        up, down = at(push), at(-push)
        if min(up.min(), down.min(), before.min()) > _LEAST:
            rise, fall = (np.log(moved[0] / moved[1]) - np.log(before[0] / before[1]) for moved in (up, down))
            return bool(abs(rise + fall) <= _OFF)  # the odds of two shares are as much more up as less down
    return True  # nothing is left that tells


def _odds(shares: Array) -> Array:
    return np.log(shares / (1 - shares))
