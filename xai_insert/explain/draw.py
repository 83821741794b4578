"""Drawing saliency maps on images."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
ColormapName = Literal["jet", "turbo", "viridis", "inferno", "magma", "hot", "gray"]

COLORMAPS: tuple[str, ...] = get_args(ColormapName)


def overlay(image: Image, saliency_map: Image, opacity: float = 0.5, colormap: ColormapName = "jet") -> Image:
    """Draw a saliency map over an image.

    Args:
        image: uint8 RGB `[H, W, 3]`, 0..255.
        saliency_map: uint8 `[h, w]`, 0..255, one class of one image; stretched to the image with cubic interpolation.
        opacity: weight of the map's colours, 0 (only the image) to 1 (only the map).
        colormap: name of the colours, one of `COLORMAPS`.

    Returns:
        uint8 RGB `[H, W, 3]`.

    Raises:
        ValueError: an argument is of another shape, type or range.
    """
    _require(image, saliency_map)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in 0..1, not {opacity}")
    height, width = image.shape[:2]
    large = stretch(saliency_map, width, height)
    colours = cv2.merge([cv2.LUT(large, channel) for channel in _palette(colormap)])
    return np.asarray(cv2.addWeighted(image, 1 - opacity, colours, opacity, 0, dst=colours), np.uint8)


def stretch(saliency_map: Image, width: int, height: int) -> Image:
    """Enlarge a map smoothly: uint8 `[h, w]` to uint8 `[height, width]`, 0..255."""
    return np.asarray(cv2.resize(saliency_map, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def to_bytes(saliency_map: npt.NDArray[Any]) -> Image:
    """Scale one map `[h, w]` of any type to uint8 0..255 by its own minimum and maximum; bytes stay as they are."""
    if saliency_map.dtype == np.uint8:
        return saliency_map
    low, high = float(saliency_map.min()), float(saliency_map.max())
    if not high > low:
        return np.zeros(saliency_map.shape, np.uint8)
    return np.asarray((saliency_map.astype(np.float64) - low) * (255 / (high - low)), np.uint8)


def _require(image: Image, saliency_map: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    if saliency_map.ndim != 2 or saliency_map.dtype != np.uint8:
        raise ValueError(
            f"saliency_map must be uint8 [h, w], not {saliency_map.dtype} {list(saliency_map.shape)}: "
            "pick one image and one class, saliency_map[image, class]"
        )


@lru_cache
def _palette(name: str) -> tuple[Image, Image, Image]:
    """Red, green and blue of the values 0..255: uint8 `[256]` each; OpenCV looks up single channels faster."""
    if name not in COLORMAPS:
        raise ValueError(f"colormap must be one of {', '.join(COLORMAPS)}, not {name!r}")
    ramp = np.arange(256, dtype=np.uint8)
    if name == "gray":
        return ramp, ramp, ramp
    blue, green, red = cv2.split(cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name.upper()}")))
    return np.asarray(red, np.uint8), np.asarray(green, np.uint8), np.asarray(blue, np.uint8)
