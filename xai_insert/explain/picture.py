"""The pictures written for people: image and map at a size that can be looked at, with a caption below."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from xai_insert.explain.draw import (
    OPACITY,
    BackgroundName,
    BlendName,
    ColormapName,
    Image,
    in_gray,
    overlay,
    require_look,
    stretch,
    to_bytes,
)
from xai_insert.explain.preprocessing import View
from xai_insert.explain.scale import Scaled

_LONGEST, _SHORTEST = 1024, 256
_DIM = 0.35
_FINE = 512  # cells to a side of the input, where a map lies in a part of it
_BACKGROUND, _INK, _PALE = (24, 26, 31), (255, 255, 255), (178, 184, 196)


@dataclass(frozen=True)
class Look:
    """How maps are drawn, see `overlay`.

    Attributes:
        opacity: weight of the map's colours where the map is at its highest, 0..1.
        colormap: colours of the map.
        background: whether the photo keeps its colours.
        blend: whether the weight of the map's colours follows the map.

    Raises:
        ValueError: one of them is none of its values.
    """

    opacity: float = OPACITY
    colormap: ColormapName = "turbo"
    background: BackgroundName = "photo"
    blend: BlendName = "value"

    def __post_init__(self) -> None:
        require_look(self.opacity, self.colormap, self.background, self.blend)


def canvas(image: Image) -> Image:
    """The image with its longer side within 256..1024 pixels."""
    side = max(image.shape[:2])
    if _SHORTEST <= side <= _LONGEST:
        return image
    ratio = min(max(side, _SHORTEST), _LONGEST) / side
    size = [max(1, round(length * ratio)) for length in image.shape[1::-1]]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC), np.uint8)


Rectangle = tuple[float, ...]
"""Top, left, bottom and right, as fractions of the model's input."""


def draw(image: Image, scaled: Scaled, view: View, look: Look, rectangle: Rectangle | None = None) -> Image:
    """Draw a map over the part of the image that the model saw; what it did not see is dimmed.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        scaled: the map over the whole input of the model, padding included.
        view: how image and input fit together.
        look: colours and opacity.
        rectangle: where the map lies in the input, top, left, bottom and right in parts of it; None is all of it.
    """
    if look.background == "gray":
        image = in_gray(image)
    pixels, is_seen = laid_out(to_bytes(scaled.values, scaled.span), image.shape[:2], view, rectangle)
    coloured = overlay(image, pixels, look.opacity * scaled.fade, look.colormap, blend=look.blend)
    if is_seen is not None:
        outside = ~is_seen
        coloured[outside] = np.asarray(image[outside] * _DIM, np.uint8)
    return coloured


def laid_out(
    saliency_map: Image, size: tuple[int, ...], view: View, rectangle: Rectangle | None = None
) -> tuple[Image, npt.NDArray[np.bool_] | None]:
    """Enlarge a map to an image, so that it lies where the model saw what it shows.

    Args:
        saliency_map: uint8 `[h, w]` over the whole input of the model, padding included.
        size: height and width of the image.
        view: how image and input fit together.
        rectangle: where the map lies in the input, see `draw`.

    Returns:
        uint8 `[H, W]`, 0 where the model did not look, and whether it did, bool `[H, W]`; None if everywhere.
    """
    height, width = size
    left, top, right, bottom = _pixels(view.in_image, width, height)
    seen = None
    if rectangle is not None:
        saliency_map, covered = _placed(saliency_map, rectangle)
        seen = _without_padding(covered, view, right - left, bottom - top) >= 128
    inner = _without_padding(saliency_map, view, right - left, bottom - top)
    if inner.shape == (height, width):
        return inner, seen
    whole, is_seen = np.zeros((height, width), np.uint8), np.zeros((height, width), np.bool_)
    whole[top:bottom, left:right] = inner
    is_seen[top:bottom, left:right] = True if seen is None else seen
    return whole, is_seen


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
def caption(width: int, title: str, value: str, most_lines: int = 3) -> Image:
    """A strip to go below a picture of that width: the title on its left, in lines, the value on its right."""
    size = min(max(width // 20, 12), 26)
    font = font_of(size)
    pen = ImageDraw.Draw(Pillow.new("L", (1, 1)))
    margin = size // 2
    title = title[: most_lines * width]  # a name may be of any length, and no more fits
    lines = _lines(pen, title, width - 3 * margin - round(pen.textlength(value, font)), font, most_lines)
    step = round(size * 1.3)
    strip = Pillow.new("RGB", (width, size * 2 + step * (len(lines) - 1)), _BACKGROUND)
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        pen.text((margin, size + step * number), line, _INK, font, anchor="lm")
    pen.text((width - margin, size), value, _PALE, font, anchor="rm")
    return np.asarray(strip, np.uint8)


def _lines(pen: ImageDraw.ImageDraw, title: str, space: int, font: Font, most: int) -> list[str]:
    """Break a title between words; what does not fit in the end is cut off."""
    lines: list[str] = []
    words = title.split()
    while words and len(lines) < most - 1 and pen.textlength(" ".join(words), font) > space:
        count = next((n for n in range(len(words), 0, -1) if pen.textlength(" ".join(words[:n]), font) <= space), 0)
        if not count:
            break
        lines.append(" ".join(words[:count]))
        del words[:count]
    return [*lines, _cut_off(pen, " ".join(words), space, font)]


def _cut_off(pen: ImageDraw.ImageDraw, text: str, space: int, font: Font) -> str:
    """As much of a text as there is space for."""
    if pen.textlength(text, font) <= space:
        return text
    while text and pen.textlength(f"{text}…", font) > space:
        text = text[:-1]
    return f"{text.rstrip()}…"


def legend(width: int, scaled: Scaled, look: Look) -> Image:
    """A strip to go below a caption of that width: the colours from the lowest value to the highest, over grey."""
    look = replace(look, opacity=round(look.opacity * scaled.fade, 3))
    return _legend(width, scaled.ends, scaled.text, look, is_cut=scaled.own is not None)


@lru_cache(maxsize=256)
def _legend(width: int, ends: tuple[str, str], text: str, look: Look, *, is_cut: bool) -> Image:
    size = min(max(width // 28, 11), 18)
    font, margin = font_of(size), max(size // 2, 6)
    strip = Pillow.new("RGB", (width, round(size * 1.9)), _BACKGROUND)
    pen = ImageDraw.Draw(strip)
    middle, left = size * 0.8, float(margin)
    texts = [ends[0], ends[1], text]
    lengths = [pen.textlength(item, font) for item in texts]
    room = width - 4 * margin - sum(lengths[:2])
    if lengths[2] + 3 * margin > room * 0.7:
        texts[2], lengths[2] = "", 0.0  # a narrow picture has room for the bar alone
    bar = max(round(min(room - (lengths[2] + margin if texts[2] else 0), 12 * size)), 8)
    pen.text((left, middle), texts[0], _PALE, font, anchor="lm")
    start = round(left + lengths[0] + margin)
    pen.text((start + bar + margin, middle), texts[1], _PALE, font, anchor="lm")
    pen.text((width - margin, middle), texts[2], _PALE, font, anchor="rm")
    drawn = np.array(strip, np.uint8)
    height = max(size // 2, 6)
    ramp = np.broadcast_to(np.linspace(0, 255, bar).astype(np.uint8), (height, bar))
    top, end = round(middle - height / 2), min(start + bar, width)
    colours = overlay(
        np.full((height, bar, 3), 128, np.uint8),
        np.ascontiguousarray(ramp),
        look.opacity,
        look.colormap,
        blend=look.blend,
    )
    drawn[top : top + height, start:end] = colours[:, : end - start]
    if is_cut:  # at the threshold, in the middle
        drawn[top - 2 : top + height + 2, start + bar // 2] = _INK
    return drawn


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache
def font_of(size: int) -> Font:
    """The font of all captions."""
    return ImageFont.load_default(size)
