"""The pictures written for people: image and map at a size that can be looked at, with a caption below."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from xai_insert.explain.draw import ColormapName, Image, overlay, stretch
from xai_insert.explain.preprocessing import View

_LONGEST, _SHORTEST = 1024, 256
_DIM = 0.35
_FINE = 512  # cells to a side of the input, where a map lies in a part of it
_BACKGROUND, _INK, _PALE = (24, 26, 31), (255, 255, 255), (178, 184, 196)


def canvas(image: Image) -> Image:
    """The image with its longer side within 256..1024 pixels."""
    side = max(image.shape[:2])
    if _SHORTEST <= side <= _LONGEST:
        return image
    ratio = min(max(side, _SHORTEST), _LONGEST) / side
    size = [max(1, round(length * ratio)) for length in image.shape[1::-1]]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC), np.uint8)


Rectangle = tuple[float, float, float, float]


def draw(
    image: Image,
    saliency_map: Image,
    view: View,
    opacity: float,
    colormap: ColormapName,
    rectangle: Rectangle | None = None,
) -> Image:
    """Draw a map over the part of the image that the model saw; what it did not see is dimmed.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        saliency_map: uint8 `[h, w]` over the whole input of the model, padding included.
        view: how image and input fit together.
        opacity: see `overlay`.
        colormap: see `overlay`.
        rectangle: where the map lies in the input, top, left, bottom and right in parts of it; None is all of it.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = _pixels(view.in_image, width, height)
    seen = np.ascontiguousarray(image[top:bottom, left:right])
    covered = None
    if rectangle is not None:
        saliency_map, covered = _placed(saliency_map, rectangle)
    coloured = overlay(seen, _without_padding(saliency_map, view, right - left, bottom - top), opacity, colormap)
    if covered is not None:
        is_outside = _without_padding(covered, view, right - left, bottom - top) < 128
        coloured[is_outside] = np.asarray(seen[is_outside] * _DIM, np.uint8)
    if coloured.shape == image.shape:
        return coloured
    result = np.asarray(image * _DIM, np.uint8)
    result[top:bottom, left:right] = coloured
    return result


def _placed(saliency_map: Image, rectangle: Rectangle) -> tuple[Image, Image]:
    """A map over the whole input of one that lies in a part of it, or beyond, and 255 where it does."""
    rows, columns = (_cells(rectangle[axis], rectangle[2 + axis]) for axis in (0, 1))
    large = stretch(saliency_map, columns[1] - columns[0], rows[1] - rows[0])
    whole, covered = np.zeros((2, _FINE, _FINE), np.uint8)
    down, across = (slice(max(low, 0), min(high, _FINE)) for low, high in (rows, columns))
    whole[down, across] = large[
        down.start - rows[0] : down.stop - rows[0], across.start - columns[0] : across.stop - columns[0]
    ]
    covered[down, across] = 255
    return whole, covered


def _cells(low: float, high: float) -> tuple[int, int]:
    start = round(low * _FINE)
    return start, max(round(high * _FINE), start + 1)


def _without_padding(saliency_map: Image, view: View, width: int, height: int) -> Image:
    """Enlarge the map until its part inside the padding is `width` x `height`, and cut that part out."""
    x0, y0, x1, y1 = view.in_input
    full_width, full_height = round(width / (x1 - x0)), round(height / (y1 - y0))
    full = stretch(saliency_map, full_width, full_height)
    left, top = min(round(x0 * full_width), full_width - width), min(round(y0 * full_height), full_height - height)
    return np.ascontiguousarray(full[top : top + height, left : left + width])


def _pixels(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(part * side) for part, side in zip(box, (width, height) * 2, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)


@lru_cache(maxsize=256)  # the same class comes again and again
def caption(width: int, title: str, value: str) -> Image:
    """A strip to go below a picture of that width: the title on its left, the value on its right."""
    size = min(max(width // 20, 14), 26)
    font = font_of(size)
    strip = Pillow.new("RGB", (width, size * 2), _BACKGROUND)
    pen = ImageDraw.Draw(strip)
    margin = size // 2
    space = width - 3 * margin - round(pen.textlength(value, font))
    if pen.textlength(title, font) > space:
        while title and pen.textlength(f"{title}…", font) > space:
            title = title[:-1]
        title = f"{title.rstrip()}…"
    pen.text((margin, size), title, _INK, font, anchor="lm")
    pen.text((width - margin, size), value, _PALE, font, anchor="rm")
    return np.asarray(strip, np.uint8)


@lru_cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all captions."""
    return ImageFont.load_default(size)
