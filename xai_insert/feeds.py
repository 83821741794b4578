"""Random model inputs for checks and probes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.graph.view import Shape


def random_array(
    rng: np.random.Generator, shape: Shape, dtype: str, *, batch: int = 1, size: int = 224
) -> npt.NDArray[Any]:
    """Random content: normal floats, small non-negative integers, whole bytes.

    Args:
        rng: source of randomness.
        shape: sizes; an unknown first size becomes `batch`, any other unknown one `size`.
        dtype: NumPy name of the element type.
        batch: stands for an unknown first size.
        size: stands for any other unknown size.
    """
    sizes = [(batch if axis == 0 else size) if dim is None else dim for axis, dim in enumerate(shape)]
    if "float" in dtype:
        return rng.standard_normal(sizes, dtype=np.float32).astype(dtype if dtype != "bfloat16" else np.float32)
    return rng.integers(0, 256 if dtype == "uint8" else 2, sizes).astype(dtype)
