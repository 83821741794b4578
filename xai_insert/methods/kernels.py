"""What a masked sample of ViT Recipro-CAM keeps: a patch alone, or the 3x3 patches around it, weighed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from xai_insert.locate.layout import FeatureMap

Kernel = Literal["gaussian", "point"]
Floats = npt.NDArray[np.float32]
WEIGHTS = {"gaussian": (0.25, 0.125, 0.0625), "point": ()}
_ROWS = {"gaussian": (1.0, 2.0, 1.0), "point": (0.0, 4.0, 0.0)}


def kernel_factor(side: int, kernel: Kernel) -> Floats:
    """One axis of the kernel as a matrix `[side, side]`: the weights are the product of both axes' factors."""
    left, middle, right = (weight / 4 for weight in _ROWS[kernel])
    factor: Floats = np.zeros((side, side), np.float32)
    for offset, weight in ((-1, left), (0, middle), (1, right)):
        factor += weight * np.eye(side, k=offset, dtype=np.float32)
    return factor


def kernel_factors(grid: Sequence[int], kernel: Kernel, *, times_last: bool = False) -> tuple[Floats, Floats]:
    """The kernel's factors of rows and of columns; of a clip, one of them has the times as well.

    A masked sample keeps patches of one time alone: the kernel is that of images, in the plane of rows and columns.
    """
    if times_last:
        return kernel_factor(grid[0], kernel), np.kron(
            kernel_factor(grid[1], kernel), np.eye(grid[2], dtype=np.float32)
        )
    *times, height, width = grid
    rows = np.kron(np.eye(math.prod(times), dtype=np.float32), kernel_factor(height, kernel))
    return rows, kernel_factor(width, kernel)


def patch_weights(
    grid: Sequence[int], prefix: int, kernel: Kernel, tokens: int | None = None, *, times_last: bool = False
) -> Floats:
    """Mask `[N, T]`: 1 for the tokens before and behind, the kernel around patch i for the patches, row-major."""
    patches = np.kron(*kernel_factors(grid, kernel, times_last=times_last))
    behind = 0 if tokens is None else tokens - prefix - len(patches)
    parts = [np.ones((len(patches), prefix), np.float32), patches, np.ones((len(patches), behind), np.float32)]
    return np.concatenate(parts, axis=1)


def position_mask(shape: Sequence[int], target: FeatureMap, position: int) -> npt.NDArray[np.float32]:
    """A mask that keeps one position (row-major in the grid) and other tokens, of sizes 1 on the other axes."""
    sizes = [shape[axis] if axis in target.grid_axes else 1 for axis in range(len(shape))]
    mask = np.zeros(int(np.prod(sizes)), np.float32)
    if len(target.grid_axes) == 1 and target.positions is not None:
        mask[: target.prefix] = mask[target.prefix + target.positions :] = 1.0
    mask[target.prefix + position] = 1.0
    return mask.reshape(sizes)
