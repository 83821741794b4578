"""Filling in removed pixels from their neighbours, so that the hole itself says nothing."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from xai_insert.explain.outputs import Array

NOISE = 0.01
_WEIGHTS = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]], np.float32) / 12
_SMALLEST = 8  # sides of an image that is not made smaller for a first guess
_MOST_STEPS = 2000
_TOLERANCE = 3e-4  # of the image's spread, far below the noise


def imputed(image: Array, removed: npt.NDArray[np.bool_], seed: int = 0, noise: float = NOISE) -> Array:
    """Noisy linear imputation (Rong et al., "ROAD", 2022, https://arxiv.org/abs/2202.00449).

    Each removed pixel becomes the weighted mean of its eight neighbours, removed ones among them: 1/6 each for those
    that share an edge, 1/12 for the others, over what lies inside the image. All these equations hold at once. Then
    noise is added, so that the smoothness does not give the place away.

    Args:
        image: `[C, H, W]`, any range.
        removed: bool `[H, W]`.
        seed: of the noise.
        noise: its standard deviation, in standard deviations of the image.

    Returns:
        float32 `[C, H, W]`; pixels that are not removed stay as they are. Without any, removed ones are the mean.
    """
    pixels = np.ascontiguousarray(np.moveaxis(image, 0, -1), np.float32)
    spread = float(pixels.std())
    filled = _solved(pixels, removed) if not removed.all() else np.broadcast_to(pixels.mean((0, 1)), pixels.shape)
    noisy = filled + np.random.default_rng(seed).normal(0, noise * spread, pixels.shape)
    return np.asarray(np.moveaxis(np.where(removed[..., None], noisy, pixels), -1, 0), np.float32)


def _solved(pixels: Array, removed: npt.NDArray[np.bool_]) -> Array:
    """Conjugate gradients: the weights are the same both ways, so the system is symmetric."""
    mask = removed[..., None].astype(np.float32)
    sums = _around(np.ones(removed.shape, np.float32))[..., None]
    known = pixels * (1 - mask)
    guess = _guess(pixels, removed) * mask
    rest = mask * (_around(known + guess) - sums * guess)
    direction, size = rest.copy(), (rest**2).sum((0, 1))
    least = (_TOLERANCE * pixels.std((0, 1)).max()) ** 2 * max(int(removed.sum()), 1)
    for _ in range(_MOST_STEPS):
        if size.max() <= least:
            break
        moved = mask * (sums * direction - _around(direction))
        step = size / np.maximum((direction * moved).sum((0, 1)), np.finfo(np.float32).tiny)
        guess += step * direction
        rest -= step * moved
        before, size = size, (rest**2).sum((0, 1))
        direction = rest + size / np.maximum(before, np.finfo(np.float32).tiny) * direction
    return np.asarray(known + guess, np.float32)


def _guess(pixels: Array, removed: npt.NDArray[np.bool_]) -> Array:
    """The solution of the image at half its size, where it is not small; it spares most of the steps."""
    height, width = removed.shape
    mean = pixels[~removed].mean(0)
    if min(height, width) < 2 * _SMALLEST:
        return np.broadcast_to(mean, pixels.shape).astype(np.float32)
    size = ((width + 1) // 2, (height + 1) // 2)
    share = cv2.resize((~removed).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    halved = _deep(cv2.resize(pixels * ~removed[..., None], size, interpolation=cv2.INTER_AREA))
    halved = np.where(share[..., None] > 0, halved / np.maximum(share, 1e-6)[..., None], mean).astype(np.float32)
    return _deep(cv2.resize(_solved(halved, share == 0), (width, height), interpolation=cv2.INTER_LINEAR))


def _around(pixels: Array) -> Array:
    """The weighted sum of the eight neighbours `[H, W, C]` inside the image."""
    found = cv2.filter2D(pixels, -1, _WEIGHTS, borderType=cv2.BORDER_CONSTANT)
    return found if found.ndim == pixels.ndim else found[..., None]


def _deep(pixels: Array) -> Array:
    """OpenCV drops an axis of one channel."""
    return pixels if pixels.ndim == 3 else pixels[..., None]
