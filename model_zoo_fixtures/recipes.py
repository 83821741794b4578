"""Recipes for tensors: what is kept of a weight, and how a stand-in is made from it.

A recipe holds a tensor's moments and limits, so that its stand-in has the scale of the original and activations keep
theirs all through the network. Stand-ins are drawn from a seeded generator and are equal on every run. (NumPy may
change its streams between releases; nothing in the zoo depends on particular values.)
"""

import lzma
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Row = tuple[float, float, float, float, float, int, bool]

SMALL = 64
"""Tensors of at most this many elements are kept as they are."""

_FEW_DISTINCT = 1024
_STRUCTURED_RATIO = 0.5
_STRUCTURED_BYTES = 3_072
_SAMPLE = 16_384
_CENTRED_FROM = 8


@dataclass(frozen=True)
class Recipe:
    """How to make a stand-in for a tensor.

    Attributes:
        mean: Mean of the elements, or of their logarithms.
        deviation: Standard deviation of the elements, or of their logarithms.
        low: Smallest element.
        high: Largest element.
        impulse: What the middle tap of depthwise filters has more than the other taps, on average.
        centred_axis: Axis along which the elements sum to zero; -1 if there is none.
        logarithmic: Whether the moments are those of the logarithms; so for tensors of positive elements only.
    """

    mean: float
    deviation: float
    low: float
    high: float
    impulse: float = 0.0
    centred_axis: int = -1
    logarithmic: bool = False

    def scaled(self, gain: float) -> "Recipe":
        """Give the recipe for ``gain`` times the tensor; recipes of logarithms stay as they are."""
        if self.logarithmic:
            return self
        moments = (self.mean, self.deviation, self.low, self.high, self.impulse)
        return Recipe(*(gain * moment for moment in moments), centred_axis=self.centred_axis)

    def to_row(self) -> Row:
        """Give the fields in order, rounded to four digits, to be stored as JSON."""
        moments = (self.mean, self.deviation, self.low, self.high, self.impulse)
        rounded = [float(f"{value:.4g}") for value in moments]
        return (*rounded, self.centred_axis, self.logarithmic)  # type: ignore[return-value]

    @classmethod
    def from_row(cls, row: Row | list[Any]) -> "Recipe":
        """Undo ``to_row``."""
        *moments, centred_axis, logarithmic = row
        return cls(*(float(moment) for moment in moments), int(centred_axis), bool(logarithmic))


def make_recipe(tensor: Array) -> Recipe | None:
    """Decide whether a tensor can be left out, and describe it if so.

    Args:
        tensor: Any shape and dtype.

    Returns:
        A recipe, or None where the tensor must be kept: small, of integers wider than a byte, with elements that are
        not finite, or structured (masks, grids, tables), which shows in few distinct values or in a good compression.
    """
    if tensor.size <= SMALL or not _is_weight_type(tensor.dtype):
        return None
    values = tensor.astype(np.float32, copy=False)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)) or _is_structured(tensor):
        return None
    if low > 0:
        logarithms = np.log(values)
        mean, deviation = float(logarithms.mean(dtype=np.float64)), float(logarithms.std(dtype=np.float64))
        return Recipe(mean, deviation, low, high, logarithmic=True)
    impulse = 0.0
    if _is_depthwise(values.shape):
        taps = values.reshape(values.shape[0], -1)
        middle = taps.shape[1] // 2
        others = np.delete(taps, middle, axis=1)
        impulse = float(taps[:, middle].mean()) - float(others.mean())
        values = others
    mean, deviation = float(values.mean(dtype=np.float64)), _typical_deviation(values)
    return Recipe(mean, deviation, low, high, impulse, _find_centred_axis(values, deviation))


def cook(recipe: Recipe, shape: tuple[int, ...], dtype: np.dtype[Any], seed: int, index: int) -> Array:
    """Make the stand-in of a tensor.

    Args:
        recipe: Its recipe.
        shape: Its shape.
        dtype: Its dtype: floating, or integers of one byte.
        seed: Seed of the graph.
        index: Number of the tensor in the graph.

    Returns:
        An array of the given shape and dtype, the same on every call.
    """
    values = np.random.default_rng([seed, index]).standard_normal(shape, dtype=np.float32)
    axis = recipe.centred_axis
    deviation = recipe.deviation
    if axis >= 0:
        values -= values.mean(axis=axis, keepdims=True)
        deviation *= math.sqrt(shape[axis] / (shape[axis] - 1))
    values *= np.float32(deviation)
    if recipe.mean:
        values += np.float32(recipe.mean)
    if recipe.impulse:
        values[..., shape[-2] // 2, shape[-1] // 2] += np.float32(recipe.impulse)
    if recipe.logarithmic:
        np.exp(values, out=values)
    np.clip(values, np.float32(recipe.low), np.float32(recipe.high), out=values)
    if dtype.kind in "iu":
        np.rint(values, out=values)
    return values.astype(dtype, copy=False)


def _is_weight_type(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or (dtype.kind in "iu" and dtype.itemsize == 1)


def _is_depthwise(shape: tuple[int, ...]) -> bool:
    """Tell whether filters are depthwise and have a middle tap: ``[C, 1, kh, kw]`` or ``[C, 1, 1, kh, kw]``."""
    odd = len(shape) >= 4 and shape[-1] % 2 == 1 and shape[-2] % 2 == 1 and shape[-1] * shape[-2] > 1
    return odd and all(size == 1 for size in shape[1:-2])


def _is_structured(tensor: Array) -> bool:
    flat = np.ascontiguousarray(tensor).reshape(-1)
    start = max(0, (flat.size - _SAMPLE) // 2)
    sample = flat[start : start + _SAMPLE]
    few_distinct = flat.dtype.kind == "f" and np.unique(sample).size <= min(_FEW_DISTINCT, sample.size // 4)
    if not few_distinct and _compressed_size(sample) > _STRUCTURED_RATIO * sample.nbytes:
        return False
    return _compressed_size(flat) <= _STRUCTURED_BYTES


def _compressed_size(flat: Array) -> int:
    if flat.nbytes <= 4 * _SAMPLE:
        planes = np.ascontiguousarray(flat.view(np.uint8).reshape(flat.size, flat.itemsize).T)
        return min(len(zlib.compress(flat.tobytes(), 6)), len(zlib.compress(planes.tobytes(), 6)))
    return len(lzma.compress(flat.tobytes(), preset=1))


def _typical_deviation(values: Array) -> float:
    """Estimate the deviation of the bulk of the elements.

    Where normalisation was folded into a weight, a few channels have huge factors that only make up for weak inputs. A
    stand-in pairs them with other inputs, so they must not set the scale.
    """
    deviation = float(values.std(dtype=np.float64))
    flat = values.reshape(-1)
    low, high = np.quantile(flat[:: max(1, flat.size // 65_536)], (0.16, 0.84))
    bulk = float(high - low) / 2
    return bulk if 0.1 * deviation < bulk < deviation else deviation


def _find_centred_axis(values: Array, deviation: float) -> int:
    if values.ndim < 2 or deviation == 0:
        return -1
    for axis, size in enumerate(values.shape):
        if size >= _CENTRED_FROM and float(np.abs(values.mean(axis=axis, dtype=np.float32)).max()) < 2e-3 * deviation:
            return axis
    return -1
