"""Whether scores change in steps, as those of decision trees do, so that one cell of a map moves none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.check import fed_features, require_varied
from xai_insert.errors import CheckFailedError
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.tasks.plan import Masking

Array = npt.NDArray[Any]
_LOUDNESSES = [sign * 4.0**power for power in range(-4, 2) for sign in (1, -1)]
_DRAWS = 4  # of features, at each loudness
_NEARBY = 1 + 1e-4


def require_shown(maps: Array, loaded: LoadedModel, definition: Masking | None, scores: Any) -> None:
    """Refuse maps `[..., h, w]` of which each has one value only, and say so where the scores are steps.

    Raises:
        CheckFailedError: all are constant, or have a single cell.
    """
    try:
        require_varied(maps)
    except CheckFailedError:
        if maps.shape[-2:] != (1, 1) and definition is not None and are_steps(loaded, definition, scores):
            raise CheckFailedError(
                "every map is constant, since the scores change in steps, as those of decision trees and of nearest "
                "neighbours do: one cell alone passes no threshold; take --method activation-map, which shows the "
                "features and no class, or insert into an export whose classifier is a linear layer or a network; "
                "nothing was written"
            ) from None
        raise


def are_steps(loaded: LoadedModel, definition: Masking, scores: Any) -> bool:
    """Whether features that differ a little give the very same scores, wherever other features give others."""
    runner, rng = loaded.between(definition.features, [scores]), np.random.default_rng(0)
    seen = set[bytes]()
    for _ in range(_DRAWS):
        features, rest = fed_features(loaded, definition, runner, (), rng)
        for loudness in _LOUDNESSES:
            here, nearby = (_scores(runner, features, rest, loudness * by) for by in (1, _NEARBY))
            if not np.array_equal(here, nearby):
                return False
            seen.add(here.tobytes())
    return len(seen) > 1


def _scores(runner: Runner, features: Mapping[str, Array], rest: Mapping[str, Array], loudness: float) -> Array:
    loud = {name: (feature * loudness).astype(feature.dtype) for name, feature in features.items()}
    return runner.run({**loud, **rest})[0]
