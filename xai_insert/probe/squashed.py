"""Whether a number is a squashed one, told by how it falls: scores whose logits are scaled need a longer push."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_FAR = 4096.0  # a push that any scale of a logit makes a share of one
_LITTLE = -4.0  # the logarithm of the odds of what is next to nothing
_SLACK = 0.4  # between logarithms of odds


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


def _odds(shares: Array) -> Array:
    return np.log(shares / (1 - shares))
