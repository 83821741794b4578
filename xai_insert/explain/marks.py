"""Boxes and outlines of detected objects, drawn so that they are seen on any colours."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from xai_insert.explain.draw import Image
from xai_insert.explain.explained import Instance
from xai_insert.explain.picture import font_of

_INK, _RIM = (255, 255, 255), (20, 20, 24)


def draw_marks(image: Image, instances: Sequence[Instance]) -> Image:
    """Draw the outline of each object, or its box where it has none, with its class and score.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        instances: the objects.

    Returns:
        A new image of the same size.
    """
    if not instances:
        return image
    height, width = image.shape[:2]
    scale = np.array([width, height])
    line = max(1, round(min(width, height) / 250))
    drawn = image.copy()
    boxes = [np.array(item.box).reshape(2, 2) * scale for item in instances]
    shapes: list[np.ndarray[tuple[int, ...], np.dtype[np.int32]]] = []
    for item, box in zip(instances, boxes, strict=True):
        (x0, y0), (x1, y1) = box
        outline = [part * scale for part in item.outline] or [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])]
        shapes += [np.round(part).clip(0, scale - 1).astype(np.int32) for part in outline]
    for colour, thickness in ((_RIM, 3 * line), (_INK, line)):
        cv2.polylines(drawn, shapes, True, colour, thickness, cv2.LINE_AA)
    picture = Pillow.fromarray(drawn)
    pen = ImageDraw.Draw(picture)
    for item, box in reversed(list(zip(instances, boxes, strict=True))):  # the best on top
        _tag(pen, f"{item.label} {item.score:.2f}", box, (width, height))
    return np.asarray(picture, np.uint8)


def _tag(
    pen: ImageDraw.ImageDraw, text: str, box: np.ndarray[tuple[int, ...], np.dtype[np.float64]], size: tuple[int, int]
) -> None:
    """A strip with a text above the box, or below its upper edge where there is no room."""
    height = min(max(min(size) // 28, 11), 20)
    font = font_of(height)
    margin = height // 4
    width = pen.textlength(text, font) + 2 * margin
    left = max(0.0, min(float(box[0, 0]), size[0] - width))
    top = float(box[0, 1]) - height - 2 * margin
    top = top if top >= 0 else max(0.0, float(box[0, 1]))
    pen.rectangle((left, top, left + width, top + height + 2 * margin), _RIM)
    pen.text((left + margin, top + margin + height / 2), text, _INK, font, anchor="lm")
