"""Proof, before anything is written, that the cells of a map lie where in the image the map says.

The axes say which pixels a cell stands for. Here the plain model is asked: blocks of the image are changed one after
another, and the cells of the feature map that change most must be those at that block. Blocks at places that no
transpose, turn or mirror maps onto one another tell rows from columns and forwards from backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CheckFailedError, MisplacedMapError
from xai_insert.feeds import random_array
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.view import Value
from xai_insert.locate.inputs import image_axes
from xai_insert.locate.layout import FeatureMap

Proof = Literal["blocks", "axes"]
Floats = npt.NDArray[np.float64]
Cell = tuple[int, int]

_SEED = 1
_SIZE = 224  # where the model leaves it open
_BLOCKS = ((0.2, 0.4), (0.4, 0.85), (0.75, 0.15), (0.9, 0.6))  # rows and columns, in parts of the grid
_REACH = 1.5  # cells between the block and what changes most
_ENOUGH = 0.75
_CLEAR = 2.0  # the largest change over the median one, from which on blocks count
_SHARP = 6.0  # likewise, from which on they may contradict
_OWN = 3.0  # the change of a cell over that by any other block, from which on it is that block's answer


def check_place(loaded: LoadedModel, image: Value, feature: FeatureMap) -> Proof:
    """Ask the plain model where the cells of a feature map lie in the image.

    Args:
        loaded: the model before insertion.
        image: its image input.
        feature: the map that is explained.

    Returns:
        `blocks` where the changed cells are those of the changed blocks; `axes` where none stands out, as behind
        attention to the whole image, so that the axes alone say where the map lies.

    Raises:
        MisplacedMapError: the changed cells are clearly others.
    """
    if feature.frame.lines is None:
        return "axes"
    try:
        runner = loaded.between([], [feature.value.native])
        responses = _responses(runner, image, feature)
    except CheckFailedError:  # the value cannot be run to by itself
        return "axes"
    if not responses:
        return "axes"
    clear = [item for item in responses if item[2] >= _CLEAR]
    near = [item for item in clear if _distance(item[0], item[1]) <= _REACH]
    if clear and len(near) >= _ENOUGH * len(clear) and len(near) >= len(responses) / 2:
        return "blocks"
    sharp = [item for item in clear if item[2] >= _SHARP and item[3]]
    far = [item for item in sharp if _distance(item[0], item[1]) > _REACH]
    if len(sharp) == len(responses) and len(far) >= _ENOUGH * len(sharp):
        told = ", ".join(f"{expected} changed {found}" for expected, found, *_ in far)
        raise MisplacedMapError(
            f"the cells of {feature.value.describe()} do not lie where its axes say: changing the image at cell {told}"
            "; choose another layer with --target-layer"
        )
    return "axes"


def _distance(a: Cell, b: Cell) -> float:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


def _responses(runner: Runner, image: Value, feature: FeatureMap) -> list[tuple[Cell, Cell, float, bool]]:
    """For each block its cell, the cell that changes most, by how much more than the median one, and whether alone.

    A cell that answers several blocks alike (a gate on the whole image) says nothing of where it lies.
    """
    rng = np.random.default_rng(_SEED)
    feeds = {name: random_array(rng, shape, dtype, size=_SIZE) for name, dtype, shape in runner.inputs}
    alike = [name for name, dtype, shape in runner.inputs if shape == image.shape and dtype == image.dtype]
    name = image.name if image.name in feeds else next(iter(alike), "")
    if not name:
        return []
    plain = _cells(runner.run(feeds)[0], feature)
    differences: dict[Cell, Floats] = {}
    for fractions in _BLOCKS:
        cell = (_part(fractions[0], plain.shape[0]), _part(fractions[1], plain.shape[1]))
        changed = feeds[name].copy()
        if _change(changed, image, feature, cell, rng):
            differences[cell] = np.abs(_cells(runner.run({**feeds, name: changed})[0], feature) - plain).sum(axis=2)
    found = []
    for cell, difference in differences.items():
        top = np.unravel_index(int(difference.argmax()), difference.shape)
        median = float(np.median(difference))
        contrast = float(difference.max()) / median if median > 0 else _held(difference, top) * 2 * _SHARP
        peak = (int(top[0]), int(top[1]))
        nearer = min((peak, _middle(difference)), key=lambda other: _distance(cell, other))
        others = [array[peak] for other, array in differences.items() if other != cell]
        found.append((cell, nearer, contrast, difference[peak] >= _OWN * max(others, default=0.0)))
    return found


def _middle(difference: Floats) -> Cell:
    """The middle of the cells that change much: any of them may change most, where windows reach over several."""
    excess = np.maximum(difference - 0.25 * difference.max(), 0)
    rows, columns = (np.cumsum(excess.sum(axis=other)) for other in (1, 0))
    return int(np.searchsorted(rows, rows[-1] / 2)), int(np.searchsorted(columns, columns[-1] / 2))


def _held(difference: Floats, top: Sequence[Any]) -> float:
    """How much of all change lies around the cell that changes most, in 0..1; where most cells do not change at all."""
    rows, columns = (slice(max(int(index) - 2, 0), int(index) + 3) for index in top)
    total = float(difference.sum())
    return float(difference[rows, columns].sum()) / total if total > 0 else 0.0


def _part(fraction: float, size: int) -> int:
    return min(int(fraction * size), size - 1)


def _change(pixels: npt.NDArray[Any], image: Value, feature: FeatureMap, cell: Cell, rng: np.random.Generator) -> bool:
    """Write other pixels where a cell of the grid lies; whether it lies in the image."""
    axes = image_axes(image)[:: -1 if feature.frame.transposed else 1]
    window = [slice(None)] * pixels.ndim
    for index, (axis, (stride, offset)) in enumerate(zip(axes, feature.frame.lines or (), strict=True)):
        roll, size = feature.frame.rolled[index], feature.grid[index]
        place = cell[index] if not roll or size is None else (cell[index] + roll) % size
        centre, half = stride * place + offset, max(abs(stride) * 0.6, 1.0)
        low, high = max(int(np.ceil(centre - half)), 0), min(int(np.floor(centre + half)) + 1, pixels.shape[axis])
        if low >= high:
            return False
        window[axis] = slice(low, high)
    part = pixels[tuple(window)]
    if "float" in pixels.dtype.name:
        pixels[tuple(window)] = (3.0 * rng.standard_normal(part.shape)).astype(pixels.dtype)
    else:
        pixels[tuple(window)] = 255 - part
    return True


def _cells(value: npt.NDArray[Any], feature: FeatureMap) -> Floats:
    """A feature map of the first image as `[h, w, C]`."""
    first: Floats = value[0].astype(np.float64)
    axes = [axis - 1 for axis in feature.grid_axes]
    first = np.moveaxis(first, axes, range(len(axes)))
    if len(axes) == 1:
        height, width = (size or 1 for size in feature.grid)
        first = first[feature.prefix : feature.prefix + height * width].reshape(height, width, -1)
    return first.reshape(*first.shape[:2], -1)


def places_of(features: Sequence[FeatureMap], loaded: LoadedModel, image: Value) -> Proof:
    """The weakest proof of several maps."""
    proofs = [check_place(loaded, image, feature) for feature in features]
    return "axes" if "axes" in proofs else "blocks"
