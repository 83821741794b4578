"""Whether another runtime that reads the same file gives the same predictions and maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.check import relative_difference
from xai_insert.errors import CheckFailedError, ModelFileError
from xai_insert.formats.backend import LoadedModel

Array = npt.NDArray[Any]
LEAST_BETWEEN_RUNTIMES = 0.999
_SAME_PREDICTIONS = 1e-3
_MAP = "saliency_map"


def correlation_elsewhere(
    loaded: LoadedModel, feeds: Sequence[Mapping[str, Array]], outputs: Sequence[Mapping[str, Array]], saliency: str
) -> float | None:
    """Mean correlation of the maps that both runtimes give; None where the other is not installed, or not needed.

    Args:
        loaded: the inserted model.
        feeds: inputs, by name in their order.
        outputs: what the model's own runtime gave for them, by name in their order, predictions first.
        saliency: the name of the map.

    Raises:
        CheckFailedError: the other runtime cannot read or run the model, or predicts something else.
        ModelFileError: as before.
    """
    runner = loaded.elsewhere()
    if runner is None:
        return None
    names = [*outputs[0]]
    numbered = [dict(zip(map(str, range(len(feed))), feed.values(), strict=True)) for feed in feeds]
    found = [dict(zip(names, runner.run(feed), strict=False)) for feed in numbered]
    _require_alike(outputs, found, names[: names.index(saliency)])
    return compared(*([item[saliency] for item in side] for side in (outputs, found)))[0]


def _require_alike(
    outputs: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]], names: Sequence[str]
) -> None:
    for a, b in zip(outputs, found, strict=True):
        for name in names:
            if (difference := relative_difference(a[name], b[name])) > _SAME_PREDICTIONS:
                raise CheckFailedError(f"the other runtime gives {name!r} with a difference of {difference:.1e}")


def require_same_elsewhere(
    loaded: LoadedModel, feeds: Mapping[str, Array], predictions: Sequence[str], outputs: Sequence[Array]
) -> None:
    """Refuse an inserted model of which another runtime gives another map; nothing is asked where there is none.

    Raises:
        CheckFailedError: it does, or cannot read the model.
    """
    try:
        named = dict(zip([*predictions, _MAP], outputs, strict=False))
        correlation = correlation_elsewhere(loaded, [feeds], [named], _MAP)
    except (CheckFailedError, ModelFileError) as err:
        raise CheckFailedError(f"{err}; nothing was written (leave out --check-in if it need not)") from err
    if correlation is not None and correlation < LEAST_BETWEEN_RUNTIMES:
        raise CheckFailedError(f"OpenVINO gives another map, correlation {correlation:.4f}; nothing was written")


def compared(wanted: Sequence[npt.NDArray[Any]], found: Sequence[npt.NDArray[Any]]) -> tuple[float, float]:
    """Mean correlation of the maps that vary, and the largest difference relative to the largest element.

    Args:
        wanted: arrays `[..., h, w]`.
        found: those to compare; of other shapes they correlate by 0 and differ without bound.
    """
    correlations: list[float] = []
    difference = 0.0
    for right, given in zip(wanted, found, strict=True):
        if right.shape != given.shape:
            return 0.0, float("inf")
        a, b = (np.asarray(item, np.float64).reshape(-1, *item.shape[-2:]) for item in (right, given))
        difference = max(difference, relative_difference(a, b))
        correlations += [_correlation(x, y) for x, y in zip(a, b, strict=True) if np.ptp(x) or np.ptp(y)]
    return float(np.mean(correlations)) if correlations else 1.0, difference


def _correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Of two maps; 0 where one of them is flat."""
    if not (np.ptp(one) and np.ptp(other)):
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
