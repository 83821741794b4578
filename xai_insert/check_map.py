"""Proof, from the inserted model as it is written, that the cells of its map lie where in the image the map says.

Three blocks of the image are changed at once. In the map of each class every cell but those at and around the blocks
must be what it was, up to one factor and one offset, since a map is scaled to its own range; those at the blocks must
be something else. No transpose, turn, mirror or half roll puts the places, or cells beside them, onto one another.
It costs one run. Where all cells see all of the image and answer to all blocks, these are changed one by one, and each
must change the cells at it most, by far. What that leaves open, `xai_insert.check_place` asks the values behind the
map, for which the model has to be compiled once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.block_answers import Answer, answers_of, are_beside, are_enough
from xai_insert.check_place import BLOCKS
from xai_insert.errors import CheckFailedError
from xai_insert.formats.backend import Runner
from xai_insert.graph.view import Value
from xai_insert.image_blocks import (
    AT_ONCE,
    STIMULI,
    Block,
    Floats,
    Stimulus,
    Window,
    away_from,
    block_windows,
    cells_at,
    change_block,
    change_blocks,
    input_name,
    stand_out,
)
from xai_insert.locate.inputs import image_axes
from xai_insert.locate.layout import FeatureMap

Array = npt.NDArray[Any]
Maps = Callable[[Array], Floats]
"""The maps of an image of other pixels."""
_SEED = 1
_LOUD = Stimulus(1, 0, 10)  # between what images of 0 to 1 and of 0 to 255 hold
_PLAIN = STIMULI[1]
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

    def maps(pixels: Array) -> Floats:
        return _first(runner.run({**feeds, name: pixels})[index])

    try:
        scene = feeds[name], image, feature, maps, _first(outputs[index])
        return _at_once(*scene) or _one_by_one(*scene)
    except CheckFailedError:
        return False


def _at_once(pixels: Array, image: Value, feature: FeatureMap, maps: Maps, before: Floats) -> bool:
    """Whether the cells at each of three blocks changed more than all that are away from all blocks."""
    changed, grid = pixels.copy(), before.shape[1:]
    windows = change_blocks(changed, image, [feature], [grid], _LOUD, np.random.default_rng(_SEED))
    blocks = [cells_at(window, feature, grid) for window in windows]
    if len(windows) < len(AT_ONCE) or not away_from(blocks, grid).any():
        return False
    return stand_out(_change(before, maps(changed), blocks), blocks)


def _one_by_one(pixels: Array, image: Value, feature: FeatureMap, maps: Maps, before: Floats) -> bool:
    """Whether each of a few blocks, changed by itself, changed the cells at it most; given up where one did not."""
    rng, grid, given = np.random.default_rng(_SEED), before.shape[1:], list[Answer]()
    windows, changes = list[Window](), list[Floats]()
    for window in block_windows([feature], [grid], [pixels.shape[axis] for axis in image_axes(image)], BLOCKS):
        changed, blocks = pixels.copy(), [cells_at(window, feature, grid)]
        if not change_block(changed, image, window, _PLAIN, rng) or not away_from(blocks, grid).any():
            continue
        windows.append(window)
        changes.append(_change(before, maps(changed), blocks))
        given = answers_of(windows, changes, feature)
        if are_beside(given):
            return False
        if are_enough(given):
            return True
        if len(given) > 1 and not all(answer.is_near for answer in given):
            return False
    return False


def _first(maps: Array) -> Floats:
    """The maps of the first image, `[K, h, w]`; of very many or large ones some."""
    flat: Floats = maps[0].reshape(-1, *maps.shape[-2:])
    return flat[:: flat.size // _MOST_ELEMENTS + 1].astype(np.float64)


def _change(before: Floats, after: Floats, blocks: Sequence[Block]) -> Floats:
    """How much each cell changed, over all maps, but for each map's scale as seen away from the blocks."""
    away = away_from(blocks, before.shape[1:])
    x, y = before[:, away], after[:, away]
    x_mean, y_mean = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    spread = ((x - x_mean) ** 2).sum(axis=1, keepdims=True)
    factor = ((x - x_mean) * (y - y_mean)).sum(axis=1, keepdims=True) / np.where(spread > 0, spread, 1)
    expected = factor[..., None] * (before - x_mean[..., None]) + y_mean[..., None]
    change: Floats = np.abs(after - expected).sum(axis=0)
    return change
