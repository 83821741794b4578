"""Boxes and outlines of detected objects, drawn so that they are seen on any colours."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageDraw

from xai_insert.explain.detections import Floats
from xai_insert.explain.draw import Image
from xai_insert.explain.explained import Instance
from xai_insert.explain.picture import font_of
from xai_insert.explain.preprocessing import Box

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
    line = max(1, round(max(width, height) / 400))
    drawn = image.copy()
    boxes = [np.array(item.box).reshape(2, 2) * scale for item in instances]
    shapes = [
        np.round(part).clip(0, scale - 1).astype(np.int32)
        for item, box in zip(instances, boxes, strict=True)
        for part in [part * scale for part in item.outline] or [_corners(box)]
    ]
    for colour, thickness in ((_RIM, 3 * line), (_INK, line)):
        cv2.polylines(drawn, shapes, True, colour, thickness, cv2.LINE_AA)
    texts = [f"{item.label[:width]} {item.score:.2f}" for item in instances]  # no more fits
    return _with_texts(drawn, texts, boxes)


def _with_texts(image: Image, texts: Sequence[str], boxes: Sequence[npt.NDArray[np.float64]]) -> Image:
    """A text on a strip at each box, where it hides no other."""
    height, width = image.shape[:2]
    picture = Pillow.fromarray(image)
    pen = ImageDraw.Draw(picture)
    size = max(max(width, height) // 45, 12)
    font, margin = font_of(size), size // 4
    strips: list[Box] = []
    for text, ((left, top), (_, bottom)) in zip(texts, boxes, strict=True):
        sides = (pen.textlength(text, font) + 2 * margin, float(size + 2 * margin))
        strips.append(_place(strips, float(left), (float(top), float(bottom)), sides, (width, height)))
    for text, strip in reversed(list(zip(texts, strips, strict=True))):  # the best on top
        pen.rectangle(strip, _RIM)
        pen.text((strip[0] + margin, (strip[1] + strip[3]) / 2), text, _INK, font, anchor="lm")
    return np.asarray(picture, np.uint8)


def _corners(box: Floats) -> Floats:
    """The corners of a box `[2, 2]`, one after the other."""
    (x0, y0), (x1, y1) = box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _place(
    taken: Sequence[Box], left: float, edges: tuple[float, float], sides: tuple[float, float], size: tuple[int, int]
) -> Box:
    """Where the strip with a box's text lies: the first place that fits into the image and is free.

    Args:
        taken: strips of better objects.
        left: left edge of the box.
        edges: its upper and lower edge.
        sides: width and height of the strip.
        size: width and height of the image.

    Returns:
        Corners of the strip: above the box, below it, inside at its upper or lower edge; inside at the upper edge
        if all are taken.
    """
    (width, height), (top, bottom) = sides, edges
    left = max(0.0, min(left, size[0] - width))
    places = [(left, y, left + width, y + height) for y in (top - height, bottom, top, bottom - height)]
    inside = [place for place in places if place[1] >= 0 and place[3] <= size[1]]
    free = [place for place in inside if not any(_meet(place, other) for other in taken)]
    upper = max(0.0, min(top, size[1] - height))
    return next(iter(free), (left, upper, left + width, upper + height))


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
