"""Whether scores change in steps, as those of decision trees do, so that one cell of a map may move none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.check import fed_features, is_varied, random_feeds, require_varied
from xai_insert.errors import CheckFailedError
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.shape import holds_pixels
from xai_insert.tasks.plan import Branch, Masking

Array = npt.NDArray[Any]
_LOUDNESSES = [sign * 4.0**power for power in range(-4, 2) for sign in (1, -1)]
_DRAWS = 4  # of features, at each loudness
_NEARBY = 1 + 1e-4
IN_STEPS = "the scores change in steps: the map of a class is constant where no cell alone passes a threshold"
"""What reports say then."""
_LOUDER = (16, 64)  # than noise: images of 0 to 255 are


def require_shown(maps: Array, loaded: LoadedModel, definition: Masking | None, branch: Branch) -> bool:
    """Refuse maps `[..., h, w]` of which each has one value only, and say so where the scores are steps.

    Returns:
        Whether the scores are steps, and maps vary in louder images alone.

    Raises:
        CheckFailedError: all are constant, or have a single cell.
    """
    try:
        require_varied(maps)
    except CheckFailedError:
        if maps.shape[-2:] == (1, 1) or definition is None or not are_steps(loaded, definition, branch.scores):
            raise
        if not _varies_where_loud(loaded, branch.raw):
            raise CheckFailedError(
                "every map is constant, since the scores change in steps, as those of decision trees and of nearest "
                "neighbours do: one cell alone passes no threshold; take --method activation-map, which shows the "
                "features and no class, or insert into an export whose classifier is a linear layer or a network; "
                "nothing was written"
            ) from None
        return True
    return False


def _varies_where_loud(loaded: LoadedModel, raw: Any) -> bool:
    """Whether the map of a louder image has several values."""
    runner = loaded.between([], [raw])
    feeds = random_feeds(runner)
    images = [name for name, dtype, shape in runner.inputs if len(shape) > 3 and not holds_pixels(shape, dtype)]
    for loud in _LOUDER:
        louder = {name: feeds[name] * feeds[name].dtype.type(loud) for name in images}
        maps = runner.run({**feeds, **louder})[0]
        if is_varied(maps.reshape(*maps.shape[:2], 1, -1)):
            return True
    return False


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
