"""Random model inputs for checks and probes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.graph.shape import Shape, holds_pixels

DEFAULT_SIZE = 224
"""What stands for an open size that is not the batch."""
_WORDS = 8


def random_array(
    rng: np.random.Generator, shape: Shape, dtype: str, *, batch: int = 1, size: int = DEFAULT_SIZE
) -> npt.NDArray[Any]:
    """Random content: normal floats, bytes for pixels in whole numbers, ones for other integers.

    Ones are tokens that any vocabulary has, positions that no mask hides, sizes that divide nothing by zero.

    Args:
        rng: source of randomness.
        shape: sizes; an unknown first size becomes `batch`, any other unknown one `size`.
        dtype: NumPy name of the element type.
        batch: stands for an unknown first size.
        size: stands for any other unknown size; of integers, which are text, no more than a few.
    """
    is_image = "float" in dtype or holds_pixels(shape, dtype)
    other = size if is_image else min(size, _WORDS)
    sizes = [(batch if axis == 0 else other) if dim is None else dim for axis, dim in enumerate(shape)]
    if "float" in dtype:
        return rng.standard_normal(sizes, dtype=np.float32).astype(dtype if dtype != "bfloat16" else np.float32)
    return rng.integers(0, 256, sizes).astype(dtype) if is_image else np.ones(sizes, dtype)


def feeds_of(
    inputs: Iterable[tuple[str, str, Shape]], rng: np.random.Generator, **sizes: int
) -> dict[str, npt.NDArray[Any]]:
    """Random content for each input of a runner, by its name; see `random_array`."""
    return {name: random_array(rng, shape, dtype, **sizes) for name, dtype, shape in inputs}
