"""Proof, before anything is written, that the cells of a map lie where in the image the map says.

The axes say which pixels a cell stands for. Here the plain model is asked: blocks of the image are changed, three at
once and, where that does not tell, one after another, and the cells of each feature map, or of the class scores of each
level, that change most must be those at that block. What changes with every block alike, as behind a pool that scales
the whole map, is divided out. Blocks at places that no transpose, turn or mirror maps onto one another tell rows from
columns and forwards from backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Any, Literal

import numpy as np

from xai_insert.block_answers import (
    CLEAR,
    ENOUGH,
    FEWEST_BLOCKS,
    Answer,
    answers_of,
    are_beside,
    are_deaf,
    are_enough,
    clear_ones,
    hold_for_most,
)
from xai_insert.check_cover import require_cover
from xai_insert.errors import CheckFailedError, MisplacedMapError
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.operators import Window as Kernel
from xai_insert.graph.pattern import layer_of
from xai_insert.graph.view import Value
from xai_insert.image_blocks import (
    AT_ONCE,
    INSIDE,
    STIMULI,
    WIDE,
    Cell,
    Floats,
    Scene,
    Scenes,
    Stimulus,
    Window,
    block_windows,
    cells_at,
    change_block,
    change_blocks,
    stand_out,
)
from xai_insert.locate.inputs import image_axes
from xai_insert.locate.layout import FeatureMap

Proof = Literal["blocks", "axes"]
Move = tuple[bool, tuple[bool, bool], tuple[bool, bool]]

BLOCKS = ((0.2, 0.4), (0.4, 0.85), (0.75, 0.15), (0.55, 0.5), (0.9, 0.6))  # rows and columns, in parts of the grid
_LEAST_CHANGE = 1e-3  # likewise: less is none
_FINE = 16  # cells along a side from which on blocks that are changed at once are well apart
_DRAWS = 4  # of other pixels for a block where a map has one channel, which may stay what it was by chance
_MARGIN = 0.05  # between the logarithms of two changes
_AS_SAID: Move = (False, (False, False), (False, False))
_MOVES: list[Move] = [(turn, (down, right), (False, False)) for turn, down, right in product((False, True), repeat=3)]
_MOVES += [(False, (False, False), rolls) for rolls in ((True, False), (False, True), (True, True))]
_SMALL = 25  # cells of a map below which most blocks must change most what a move puts there
_FEW = 9  # cells below which a move is told by one block more
_FEWEST_FAR = 2  # of the blocks that a transpose, a mirror, a turn or half a roll of the map moves
_SAME = 0.6  # of the blocks that change the same cells another time


@dataclass
class _Told:
    """What is known of one map.

    Attributes:
        proof: whether the changed cells are at the changed blocks.
        doubts: what blocks changed each time that it was clearly elsewhere.
        given: what they changed each time.
        is_clear: whether loud blocks raised a doubt.
        is_favoured: whether some blocks changed the cells at most of them sharply, if not at enough for a proof.
    """

    proof: bool = False
    doubts: list[Sequence[Answer]] = field(default_factory=list)
    given: list[Sequence[Answer]] = field(default_factory=list)
    is_clear: bool = False
    is_favoured: bool = False

    def hear(self, given: Sequence[Answer], *, is_loud: bool) -> None:
        """Take in what blocks changed, those of a loud stimulus or of another."""
        # What changes most is elsewhere again: the cells at the blocks see them too, as those beside a mixer.
        self.proof = _is_proof(given) and not any(_agree(doubt, given) for doubt in self.doubts)
        self.given.append(given)
        self.is_favoured |= sum(answer.is_sure for answer in given) >= max(_SAME * len(given), 1)
        if not self.proof and _is_doubt(given):
            self.doubts.append(given)
            self.is_clear |= is_loud

    @property
    def is_refuted(self) -> bool:
        """Whether its changed cells are elsewhere, clearly, or clearly once and the same ones another time."""
        if self.recurs:
            return True
        if self.proof:
            return False
        is_plain = self.is_clear and not self.is_favoured
        return is_plain or any(
            _agree(doubt, other) for doubt, other in product(self.doubts, self.given) if doubt is not other
        )

    @property
    def recurs(self) -> bool:
        """Whether blocks changed the same cells elsewhere two times: no other image makes up for that."""
        return any(_agree(*pair) for pair in combinations(self.doubts, 2))


def places_of(features: Sequence[FeatureMap], loaded: LoadedModel, image: Value, number: int = 0) -> Proof:
    """Ask the plain model where the cells of feature maps lie in the image.

    Args:
        features: the maps that are explained, or class scores of several levels.
        loaded: the model before insertion.
        image: its image input.
        number: of that among the inputs of its size and type.

    Returns:
        `blocks` where the changed cells of every map are those of the changed blocks; `axes` where none stands out, as
        behind attention to the whole image, so that the axes alone say where a map lies.

    Raises:
        MisplacedMapError: the changed cells of a map are clearly others, and the same ones whatever is changed.
    """
    placed = [feature for feature in features if feature.positions != 1]  # a single cell can lie nowhere else
    asked = [feature for feature in placed if feature.frame.lines is not None]
    if not asked:
        return "axes"
    try:
        told = _told(loaded.between([], _natives(asked)), image, asked, number)
    except CheckFailedError:  # the values cannot be run to by themselves
        return "axes"
    if any(item.is_refuted for item in told):
        # A network in eight bits may turn any change into noise far away; without its rounding it may not.
        with suppress(CheckFailedError):
            told = _told(loaded.between([], _natives(asked), is_rounded=False), image, asked, number)
    if any(item.is_refuted and _read_apart(feature) for feature, item in zip(asked, told, strict=True)):
        told = _before_layers(loaded, image, asked, told, number)
    _require_placed(asked, told)
    return "blocks" if len(asked) == len(placed) and all(item.proof for item in told) else "axes"


def _before_layers(
    loaded: LoadedModel, image: Value, features: Sequence[FeatureMap], told: Sequence[_Told], number: int
) -> list[_Told]:
    """Without the doubts of maps of a layer whose cells look at others apart, if what it reads is at the blocks."""
    known = list(told)
    for index, (feature, item) in enumerate(zip(features, told, strict=True)):
        if not item.is_refuted or (read := _read_apart(feature)) is None:
            continue
        with suppress(CheckFailedError):
            (seen,) = _told(loaded.between([], [read.value.native]), image, [read], number)
            known[index] = _Told() if seen.proof and not seen.is_refuted else item
    return known


def _read_apart(feature: FeatureMap) -> FeatureMap | None:
    """What a dilated layer makes a map of that has the same cells; None if there is none.

    Each of its cells looks as much at others some cells away as at its own, so that a block may change those most.
    """
    layer = layer_of(feature.value)
    kind = None if layer is None else layer.kind
    if layer is None or not isinstance(kind, Kernel) or kind.transposed or kind.kernel is None:
        return None
    reach = [step * (size - 1) for step, size in zip(kind.dilations, kind.kernel, strict=True)]
    is_centred = kind.pads_begin == kind.pads_end and reach == [2 * pad for pad in kind.pads_end]
    is_alike = max(kind.dilations) > 1 == max(kind.strides) and layer.read(0).rank == feature.value.rank
    return replace(feature, value=layer.read(0)) if is_centred and is_alike else None


def _require_placed(features: Sequence[FeatureMap], told: Sequence[_Told]) -> None:
    for feature, item in zip(features, told, strict=True):
        if item.is_refuted:
            found = ", ".join(str(answer) for answer in item.doubts[0] if not answer.is_near)
            raise MisplacedMapError(
                f"the cells of {feature.value.describe()} do not lie where its axes say: changing the image at cell "
                f"{found}; choose another layer with --target-layer"
            )


def _told(runner: Runner, image: Value, features: Sequence[FeatureMap], number: int) -> list[_Told]:
    """What all ways of changing blocks say of each map, until all are proved."""
    scenes = Scenes(runner, image, features, number)
    if not scenes.name:
        return [_Told() for _ in features]
    told = [_Told(is_proved) for is_proved in _at_once(scenes)]
    for stimulus in STIMULI:
        if all(item.proof for item in told):
            break
        for item, given in zip(told, _answers(scenes, stimulus, told), strict=True):
            if not item.proof:
                item.hear(given, is_loud=stimulus.is_loud)
    return told


def _at_once(scenes: Scenes) -> list[bool]:
    """Whether three blocks that are changed at once show the place of each map, of all its cells together."""
    features = scenes.features
    if any((side or 0) < _FINE for feature in features for side in feature.grid):
        return [False] * len(features)
    scene = scenes.of(STIMULI[0])
    pixels, grids = scene.pixels.copy(), [array.shape[:2] for array in scene.maps]
    windows = change_blocks(pixels, scenes.image, features, grids, STIMULI[0], scene.rng)
    if len(windows) < len(AT_ONCE):
        return [False] * len(features)
    after = scenes.maps_of(pixels)
    return [
        stand_out(np.abs(b - a).sum(axis=2), [cells_at(window, feature, grid) for window in windows])
        for feature, grid, a, b in zip(features, grids, scene.maps, after, strict=True)
    ]


def _natives(features: Sequence[FeatureMap]) -> list[Any]:
    """The values of maps, each once."""
    return [value.native for value in dict.fromkeys(item.value for item in features)]


def _is_proof(given: Sequence[Answer]) -> bool:
    """Whether what changed is at the blocks."""
    if len(given) >= FEWEST_BLOCKS - 1 and all(answer.is_sure for answer in given):
        return True
    if hold_for_most(given, lambda answer: answer.is_near):
        return True
    return _match(given, _AS_SAID) and not (_is_elsewhere(given) or are_deaf(given))


def _is_doubt(given: Sequence[Answer]) -> bool:
    """Whether what changed is clearly elsewhere; rounding to a few levels alone can look so, another time otherwise."""
    moves = [move for move in _MOVES if move != _AS_SAID]
    return are_deaf(given) or _is_elsewhere(given) or any(_is_moved(given, move) for move in moves)


def _is_moved(given: Sequence[Answer], move: Move) -> bool:
    """Whether each block changes the cells where a move puts it; among few cells some move does so by chance."""
    cells = given[0].change.size if given else 0
    if not _match(given, move, FEWEST_BLOCKS + (cells < _FEW)):
        return False
    return cells >= _SMALL or sum(_is_near(answer, move) for answer in given) >= ENOUGH * len(given)


def _is_elsewhere(given: Sequence[Answer]) -> bool:
    """Whether what changed most is far from most blocks, or where one and the same move puts them all."""
    clear = clear_ones(given)
    if not clear:
        return False
    far = [answer for answer in clear if answer.is_far]
    if len(far) >= _FEWEST_FAR and any(all(_is_near(answer, move) for answer in clear) for move in _MOVES):
        return True
    return len(far) >= ENOUGH * len(clear) and len({answer.found for answer in far}) == len(far)


def _is_near(answer: Answer, move: Move) -> bool:
    """Whether what changed most is where a move puts the block; one on the axis of a mirror stays where it is."""
    row, column = _moved(answer, move)
    rows, columns = ((high - low) // 2 for low, high in answer.block)
    moved = replace(answer, block=((row - rows, row + rows), (column - columns, column + columns)))
    return moved.is_near


def _agree(a: Sequence[Answer], b: Sequence[Answer]) -> bool:
    """Whether two ways of changing the same blocks changed the same cells."""
    same = [one.finds_as(two) for one, two in zip(a, b, strict=False) if one.block == two.block]
    return len(same) >= FEWEST_BLOCKS - 1 and sum(same) >= _SAME * len(same)


def _match(given: Sequence[Answer], move: Move, fewest: int = FEWEST_BLOCKS) -> bool:
    """Whether each block changes the cells at it, moved, more than other blocks do, and than it changes other cells.

    That is asked of the cells at blocks alone, each change as compared with all of its cell and of its block: behind
    a wide view of the image all cells change, and those in the middle, or the strongest ones, always most.
    """
    cells = [_moved(answer, move) for answer in given]
    kept = [index for index, cell in enumerate(cells) if cell not in cells[:index]]
    if len(kept) < fewest:
        return False
    changes = np.log([[given[block].change[cells[cell]] + _LEAST_CHANGE for cell in kept] for block in kept])
    changes -= changes.mean(axis=0)
    changes -= changes.mean(axis=1, keepdims=True)
    own = np.diagonal(changes)
    rest = np.where(np.eye(len(kept), dtype=bool), -np.inf, changes)
    return bool((own > rest.max(axis=0) + _MARGIN).all() and (own > rest.max(axis=1) + _MARGIN).all())


def _moved(answer: Answer, move: Move) -> Cell:
    """The cell in the middle of a block, or the one that a transpose, a mirror, a turn or half a roll puts there."""
    is_transposed, flips, rolls = move
    grid = answer.change.shape
    parts = [((low + high) / 2 + 0.5) / size for (low, high), size in zip(answer.block, grid, strict=True)]
    parts = parts[::-1] if is_transposed else parts
    parts = [1 - part if flip else part for part, flip in zip(parts, flips, strict=True)]
    row, column = (int((part + roll / 2) % 1 * size) for part, roll, size in zip(parts, rolls, grid, strict=True))
    return row, column


def _answers(scenes: Scenes, stimulus: Stimulus, told: Sequence[_Told]) -> list[list[Answer]]:
    """For each map what each block changes in it; by blocks inside of cells where its cells are deaf to these."""
    found = answers(scenes, stimulus)
    if not any(are_beside(given) for item, given in zip(told, found, strict=True) if not item.proof):
        return found
    pairs = zip(found, answers(scenes, stimulus, INSIDE), strict=True)
    return [inside if are_beside(given) and are_deaf(inside) else given for given, inside in pairs]


def answers(scenes: Scenes, stimulus: Stimulus, reach: float = WIDE) -> list[list[Answer]]:
    """For each map what each block of the image changes in it; no more blocks than it takes where all is plain."""
    scene, features, image = scenes.of(stimulus), scenes.features, scenes.image
    sides, grids = [scene.pixels.shape[axis] for axis in image_axes(image)], [array.shape[:2] for array in scene.maps]
    require_cover(features, grids, sides)
    windows, changes = list[Window](), list[list[Floats]]()
    found: list[list[Answer]] = [[] for _ in features]
    draws = _DRAWS if any(feature.channels == 1 for feature in features) else 1
    for window in block_windows(features, grids, sides, BLOCKS, reach):
        drawn = list(filter(None, (_changed(scenes, scene, window, stimulus) for _ in range(draws))))
        if not drawn:
            continue
        windows.append(window)
        changes.append([np.sum(change, axis=0) for change in zip(*drawn, strict=True)])
        by_map = zip(features, zip(*changes, strict=True), strict=True)
        found = [answers_of(windows, changed, feature) for feature, changed in by_map]
        if all(are_enough(given) or _tell_nothing(given) for given in found):
            break
    return found


def _changed(scenes: Scenes, scene: Scene, window: Window, stimulus: Stimulus) -> list[Floats]:
    """What other pixels in a block change in each map; nothing if the block does not lie in the image."""
    pixels = scene.pixels.copy()
    if not change_block(pixels, scenes.image, window, stimulus, scene.rng):
        return []
    return _changes(scene.maps, scenes.maps_of(pixels))


def _changes(before: Sequence[Floats], after: Sequence[Floats]) -> list[Floats]:
    """How much each cell of each map changed, over all channels."""
    with np.errstate(invalid="ignore"):  # of scores without bounds, which prove nothing
        return [np.abs(a - b).sum(axis=2) for a, b in zip(after, before, strict=True)]


def _tell_nothing(given: Sequence[Answer]) -> bool:
    """Whether the first blocks changed all cells much alike, and none most those at it or where a move puts it."""
    first = given[: FEWEST_BLOCKS - 1]
    are_dull = len(first) == FEWEST_BLOCKS - 1 and all(answer.contrast < CLEAR for answer in first)
    return are_dull and not any(_match(first, move, len(first)) for move in _MOVES)
