"""Proof, from the inserted model as it is written, that the cells of its map lie where in the image the map says.

Three blocks of the image are changed at once. In the map of each class every cell but those at and around the blocks
must be what it was, up to one factor and one offset, since a map is scaled to its own range; those at the blocks must
be something else. No transpose, turn, mirror or half roll puts the places, or cells beside them, onto one another.
It costs one run; what it leaves open, `xai_insert.check_place` asks the plain model with more of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CheckFailedError
from xai_insert.formats.backend import Runner
from xai_insert.graph.view import Value
from xai_insert.image_blocks import (
    AT_ONCE,
    Block,
    Floats,
    Stimulus,
    away_from,
    cells_at,
    change_blocks,
    input_name,
    stand_out,
)
from xai_insert.locate.layout import FeatureMap

Array = npt.NDArray[Any]
_SEED = 1
_LOUD = Stimulus(1, 0, 10)  # between what images of 0 to 1 and of 0 to 255 hold
_MOST_ELEMENTS = 1 << 20


def map_shows_place(
    feature: FeatureMap,
    image: Value,
    runner: Runner,
    feeds: Mapping[str, Array],
    outputs: Sequence[Array],
    index: int,
    number: int = 0,
) -> bool:
    """Whether changed blocks of the image change the cells of a map that lie at them, each of those and no others.

    Args:
        feature: what the map explains; its cells are those of the map.
        image: the image input.
        runner: the inserted model.
        feeds: what it was run on: noise.
        outputs: what it gave.
        index: which of them is the map, `[B, K, h, w]` or `[B, h, w]`.
        number: of the image among the inputs of its size and type.
    """
    name, grid = input_name(runner, image, number), outputs[index].shape[-2:]
    if not name or feature.frame.lines is None or not feature.frame.is_upright or grid != feature.grid:
        return False
    changed = feeds[name].copy()
    windows = change_blocks(changed, image, [feature], [grid], _LOUD, np.random.default_rng(_SEED))
    if len(windows) < len(AT_ONCE):
        return False
    try:
        after = runner.run({**feeds, name: changed})[index]
    except CheckFailedError:
        return False
    blocks = [cells_at(window, feature, grid) for window in windows]
    return _stand_out(_first(outputs[index]), _first(after), blocks)


def _first(maps: Array) -> Floats:
    """The maps of the first image, `[K, h, w]`; of very many or large ones some."""
    flat: Floats = maps[0].reshape(-1, *maps.shape[-2:])
    return flat[:: flat.size // _MOST_ELEMENTS + 1].astype(np.float64)


def _stand_out(before: Floats, after: Floats, blocks: Sequence[Block]) -> bool:
    """Whether the cells at every block changed more than all that are away from all blocks, up to each map's scale."""
    away = away_from(blocks, before.shape[1:])
    if not away.any():
        return False
    x, y = before[:, away], after[:, away]
    x_mean, y_mean = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    spread = ((x - x_mean) ** 2).sum(axis=1, keepdims=True)
    factor = ((x - x_mean) * (y - y_mean)).sum(axis=1, keepdims=True) / np.where(spread > 0, spread, 1)
    expected = factor[..., None] * (before - x_mean[..., None]) + y_mean[..., None]
    return stand_out(np.abs(after - expected).sum(axis=0), blocks)
