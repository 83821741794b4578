"""Drawing saliency maps on images."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Span = tuple[float, float]
ColormapName = Literal["jet", "turbo", "viridis", "inferno", "magma", "hot", "gray"]
BlendName = Literal["value", "even"]
BackgroundName = Literal["photo", "gray"]

COLORMAPS: tuple[str, ...] = get_args(ColormapName)
BLENDS: tuple[str, ...] = get_args(BlendName)
BACKGROUNDS: tuple[str, ...] = get_args(BackgroundName)
OPACITY = 0.8


def overlay(
    image: Image,
    saliency_map: npt.NDArray[Any],
    opacity: float = OPACITY,
    colormap: ColormapName = "turbo",
    *,
    blend: BlendName = "value",
    background: BackgroundName = "photo",
    span: Span | None = None,
) -> Image:
    """Draw a saliency map over an image.

    Args:
        image: uint8 RGB `[H, W, 3]`, 0..255.
        saliency_map: uint8 `[h, w]`, 0..255, or float of any range, one class of one image; stretched to the image with
            cubic interpolation.
        opacity: weight of the map's colours, 0 (only the image) to 1 (only the map), where the map is at its highest.
        colormap: name of the colours, one of `COLORMAPS`.
        blend: `value` lays the colours on in proportion to the map, so that the image stays as it is where the map is
            low; `even` lays them on with the same weight everywhere.
        background: `photo` keeps the colours of the image, `gray` takes them away.
        span: the values of the map that get the first and the last colour; None takes 0 and 255 of a uint8 map, and the
            least and the greatest value of another.

    Returns:
        uint8 RGB `[H, W, 3]`.

    Raises:
        ValueError: an argument is of another shape, type or range.
    """
    _require(image, saliency_map)
    require_look(opacity, colormap, background, blend)
    if span is not None and not (np.shape(span) == (2,) and np.isfinite(span).all() and span[0] <= span[1]):
        raise ValueError(f"span must be two values, the lower one first, not {span!r}")
    if background == "gray":
        image = in_gray(image)
    height, width = image.shape[:2]
    large = stretch(to_bytes(saliency_map, span), width, height)
    colours, rest = _inks(colormap, opacity, blend)
    ink = cv2.merge([cv2.LUT(large, channel) for channel in colours])
    through = cv2.merge([cv2.LUT(large, rest)] * 3)
    return np.asarray(cv2.add(cv2.multiply(image, through, dst=through, scale=1 / 255), ink, dst=ink), np.uint8)


def in_gray(image: Image) -> Image:
    """An image without its colours, uint8 RGB `[H, W, 3]`."""
    return np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)


def stretch(saliency_map: Image, width: int, height: int) -> Image:
    """Enlarge a map smoothly: uint8 `[h, w]` to uint8 `[height, width]`, 0..255."""
    return np.asarray(cv2.resize(saliency_map, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def to_bytes(saliency_map: npt.NDArray[Any], span: Span | None = None) -> Image:
    """Scale one map `[h, w]` of any type to uint8 0..255 by `span`, or else by its own minimum and maximum.

    Without a span, bytes stay as they are.
    """
    if span is None and saliency_map.dtype == np.uint8:
        return saliency_map
    low, high = span or (float(saliency_map.min()), float(saliency_map.max()))
    if not high > low:
        return np.zeros(saliency_map.shape, np.uint8)
    scaled = (saliency_map.astype(np.float64) - low) * (255 / (high - low))
    return np.asarray((scaled + 1e-6).clip(0, 255), np.uint8)  # the greatest value is 255, however it is rounded


def require_look(opacity: Any, colormap: Any, background: Any, blend: Any) -> None:
    """Refuse what `overlay` could not draw with.

    Raises:
        ValueError: the first argument that is none of its values.
    """
    if not isinstance(opacity, (int, float, np.number)) or not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in 0..1, not {opacity!r}")
    choices = {
        "colormap": (colormap, COLORMAPS),
        "background": (background, BACKGROUNDS),
        "blend": (blend, BLENDS),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def _shown(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def is_image(image: Any) -> bool:
    """Whether it is uint8 `[H, W, 3]`."""
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        return False
    return image.dtype == np.uint8 and image.shape[2] == 3 and image.size > 0


def _is_map(saliency_map: Any) -> bool:
    if not isinstance(saliency_map, np.ndarray) or saliency_map.ndim != 2:
        return False
    return saliency_map.size > 0 and (saliency_map.dtype == np.uint8 or saliency_map.dtype.kind == "f")


def _require(image: Any, saliency_map: Any) -> None:
    if not is_image(image):
        raise ValueError(f"image must be uint8 [H, W, 3], not {_shown(image)}")
    if not _is_map(saliency_map):
        raise ValueError(
            f"saliency_map must be uint8 or float [h, w], not {_shown(saliency_map)}: "
            "pick one image and one class, saliency_map[image, class]"
        )
    if saliency_map.dtype != np.uint8 and not np.isfinite(saliency_map).all():
        raise ValueError("saliency_map holds values that are not finite")


@lru_cache
def _inks(name: str, opacity: float, blend: str) -> tuple[tuple[Image, Image, Image], Image]:
    """For the values 0..255 of a map, the colour that is laid on and what of the image shows through, `[256]` each."""
    ramp = np.arange(256) / 255 if blend == "value" else np.ones(256)
    alpha = opacity * ramp
    red, green, blue = (np.asarray(np.round(alpha * channel), np.uint8) for channel in palette(name))
    return (red, green, blue), np.asarray(np.round(255 * (1 - alpha)), np.uint8)


@lru_cache
def palette(name: str) -> tuple[Image, Image, Image]:
    """Red, green and blue of the values 0..255: uint8 `[256]` each; OpenCV looks up single channels faster."""
    ramp = np.arange(256, dtype=np.uint8)
    if name == "gray":
        return ramp, ramp, ramp
    colours = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name.upper()}")).reshape(256, 3)
    red, green, blue = (np.ascontiguousarray(colours[:, channel], np.uint8) for channel in (2, 1, 0))
    return red, green, blue
