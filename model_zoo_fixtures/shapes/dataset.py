"""Deterministic generator of small images with geometric shapes.

A seed fully determines an image and what is in it, so the fixtures need no stored data set: the class, the box and
the mask of every shape are known exactly, which is what a test of a saliency map needs. Only NumPy and OpenCV are
used.

* :func:`classification_scene` draws one shape of a known class among distractors that belong to no class.
* :func:`multi_object_scene` draws several shapes, for detectors and segmenters.

Fill colours, sizes, rotations, and backgrounds are independent of the class. Seeds below :data:`HELD_OUT_SEED` are
for training, the others for measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "arrow")
IMAGE_SIZE = 96
DETECTOR_SIZE = 128
HELD_OUT_SEED = 1_000_000

# Extent of a shape: distance of its outermost point from its centre, as a fraction of the image side.
MIN_RADIUS = 0.125
MAX_RADIUS = 0.26
# Least Euclidean distance in RGB (0..255 each) of a fill colour to the mean colour behind it. Below that, some shapes
# would be invisible to people, too.
MIN_CONTRAST = 90.0
# Fixed-point bits of the polygon rasteriser: vertices are placed at 1/16 pixel.
_SUBPIXEL_BITS = 4

Contours = list[NDArray[np.float64]]


@dataclass(frozen=True)
class ShapeObject:
    """One shape in an image.

    Attributes:
        class_id: Index into :data:`CLASS_NAMES`.
        box: ``(x_min, y_min, x_max, y_max)`` in pixels, half-open; the tightest box around the mask.
        mask: bool ``[H, W]``, true where the shape covers at least half a pixel.
    """

    class_id: int
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]

    def contains(self, x: float, y: float) -> bool:
        """Tell whether the point ``(x, y)`` in pixels lies in the box."""
        x_min, y_min, x_max, y_max = self.box
        return x_min <= x < x_max and y_min <= y < y_max


@dataclass(frozen=True)
class Scene:
    """An image with its ground truth.

    Attributes:
        image: uint8 RGB ``[H, W, 3]``.
        objects: The shapes that belong to a class; distractors are not listed.
    """

    image: NDArray[np.uint8]
    objects: tuple[ShapeObject, ...]

    @property
    def target(self) -> ShapeObject:
        """The first shape: in a classification scene, the one that defines the label."""
        return self.objects[0]

    def model_input(self) -> NDArray[np.float32]:
        """Return the image as the fixture models take it: float32 RGB ``[1, 3, H, W]``, values 0..255."""
        return np.ascontiguousarray(self.image.transpose(2, 0, 1)[None], dtype=np.float32)


def classification_scene(seed: int, size: int = IMAGE_SIZE) -> Scene:
    """Draw one shape whose class is the label, together with distractors of no class.

    Args:
        seed: Non-negative seed; the class is ``seed % 8``, so any eight successive seeds are balanced.
        size: Image side in pixels.

    Returns:
        A scene with exactly one object.
    """
    rng = np.random.default_rng([seed, 0])
    return _draw_scene(rng, size, [seed % len(CLASS_NAMES)], n_distractors=int(rng.integers(2, 6)))


def multi_object_scene(seed: int, size: int = DETECTOR_SIZE, max_objects: int = 4) -> Scene:
    """Draw several shapes with disjoint boxes, plus a few distractors.

    Args:
        seed: Non-negative seed.
        size: Image side in pixels.
        max_objects: Greatest number of shapes. A shape for which no free place is found is left out, but there is
            always at least one.

    Returns:
        A scene with 1 to ``max_objects`` objects, in drawing order.
    """
    rng = np.random.default_rng([seed, 1])
    n_objects = int(rng.integers(1, max_objects + 1))
    class_ids = [int(class_id) for class_id in rng.integers(0, len(CLASS_NAMES), n_objects)]
    return _draw_scene(rng, size, class_ids, n_distractors=int(rng.integers(0, 4)))


def overlapping_scene(seed: int, size: int = DETECTOR_SIZE, overlap: tuple[float, float] = (0.1, 0.35)) -> Scene:
    """Draw two shapes of one class, the second over a part of the first.

    Args:
        seed: Non-negative seed.
        size: Image side in pixels.
        overlap: Least and greatest intersection over union of their boxes.

    Returns:
        A scene with two objects; the first one's mask is that of the whole shape, the covered part included.
    """
    rng = np.random.default_rng([seed, 2])
    class_id = int(rng.integers(0, len(CLASS_NAMES)))
    while True:
        covered = [
            _place(rng, size, np.zeros((size, size), dtype=bool), _CONTOURS[class_id], (MIN_RADIUS, MAX_RADIUS))
            for _ in range(2)
        ]
        shapes = [_shape_object(class_id, coverage) for coverage in covered if coverage is not None]
        if len(shapes) == 2 and overlap[0] <= _box_overlap(shapes[0].box, shapes[1].box) <= overlap[1]:
            break
    canvas = _background(rng, size)
    for coverage in covered:
        if coverage is not None:
            _paint(rng, canvas, coverage)
    return Scene(_finish(rng, canvas), tuple(shapes))


def _box_overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def classification_batch(seeds: Iterable[int], size: int = IMAGE_SIZE) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw many classification scenes.

    Args:
        seeds: One seed per image.
        size: Image side in pixels.

    Returns:
        Images, uint8 RGB ``[N, 3, size, size]`` (0..255), and labels, int64 ``[N]``.
    """
    scenes = [classification_scene(seed, size) for seed in seeds]
    images = np.stack([scene.image for scene in scenes]).transpose(0, 3, 1, 2)
    labels = np.array([scene.target.class_id for scene in scenes], dtype=np.int64)
    return np.ascontiguousarray(images), labels


def _draw_scene(rng: np.random.Generator, size: int, class_ids: list[int], n_distractors: int) -> Scene:
    """Paint the background, place the shapes, then fit distractors into the remaining space."""
    canvas = _background(rng, size)
    taken = np.zeros((size, size), dtype=bool)
    placed: list[tuple[int, NDArray[np.float32]]] = []
    for class_id in class_ids:
        coverage = _place(rng, size, taken, _CONTOURS[class_id], (MIN_RADIUS, MAX_RADIUS))
        if coverage is not None:
            placed.append((class_id, coverage))
    # Distractors are painted first, in case anti-aliased borders touch, but were placed last: a shape is never cut.
    for _ in range(n_distractors):
        contours = _DISTRACTORS[int(rng.integers(len(_DISTRACTORS)))]
        coverage = _place(rng, size, taken, contours, (0.08, 0.2))
        if coverage is not None:
            _paint(rng, canvas, coverage)
    for _, coverage in placed:
        _paint(rng, canvas, coverage)
    objects = tuple(_shape_object(class_id, coverage) for class_id, coverage in placed)
    return Scene(_finish(rng, canvas), objects)


def _shape_object(class_id: int, coverage: NDArray[np.float32]) -> ShapeObject:
    """Derive mask and box from the fraction of each pixel (0..1, ``[H, W]``) that a shape covers."""
    mask = coverage >= 0.5
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return ShapeObject(class_id, box, mask)


def _place(
    rng: np.random.Generator,
    size: int,
    taken: NDArray[np.bool_],
    make_contours: Callable[[np.random.Generator], Contours],
    radius_range: tuple[float, float],
    *,
    attempts: int = 40,
) -> NDArray[np.float32] | None:
    """Find a free place for a shape and mark its box as taken.

    Args:
        rng: Random generator.
        size: Image side in pixels.
        taken: bool ``[size, size]``, updated in place.
        make_contours: Returns outlines in the unit disc.
        radius_range: Least and greatest extent as a fraction of ``size``.
        attempts: How many places to try.

    Returns:
        Coverage of each pixel, float32 ``[size, size]`` in 0..1, or None when no place was free.
    """
    for _ in range(attempts):
        radius = size * rng.uniform(*radius_range)
        angle = rng.uniform(0.0, 2.0 * np.pi)
        centre = rng.uniform(radius + 1.0, size - radius - 1.0, 2)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = [contour @ rotation.T * radius + centre for contour in make_contours(rng)]
        every = np.concatenate(points)
        # One pixel of margin keeps neighbours from touching.
        x_min, y_min = np.maximum(np.floor(every.min(axis=0)).astype(int) - 1, 0)
        x_max, y_max = np.ceil(every.max(axis=0)).astype(int) + 2
        if taken[y_min:y_max, x_min:x_max].any():
            continue
        taken[y_min:y_max, x_min:x_max] = True
        image = np.zeros((size, size), dtype=np.uint8)
        fixed_point = [np.round(contour * 2**_SUBPIXEL_BITS).astype(np.int32) for contour in points]
        cv2.fillPoly(image, fixed_point, 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
        return np.asarray(image / 255.0, dtype=np.float32)
    return None


def _paint(rng: np.random.Generator, canvas: NDArray[np.float32], coverage: NDArray[np.float32]) -> None:
    """Blend a textured fill into ``canvas`` (float32 RGB ``[H, W, 3]``, 0..255), in place."""
    behind = canvas[coverage > 0].mean(axis=0)
    colour = rng.uniform(0.0, 255.0, 3)
    while np.linalg.norm(colour - behind) < MIN_CONTRAST:
        colour = rng.uniform(0.0, 255.0, 3)
    fill = colour + rng.uniform(0.0, 22.0) * _smooth_noise(rng, canvas.shape[0], cells=int(rng.integers(3, 12)))
    canvas += coverage[..., None] * (fill.astype(np.float32) - canvas)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float32]:
    """Return band-limited noise, float32 ``[size, size, 1]`` with unit variance at its ``cells x cells`` nodes."""
    nodes = rng.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(nodes, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.float32)[..., None]


def _background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return a colour gradient with blotches and sometimes stripes, float32 RGB ``[size, size, 3]``."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle = rng.uniform(0.0, 2.0 * np.pi)
    along = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))[..., None]
    colour = rng.uniform(30.0, 225.0, 3)
    canvas = colour + along * rng.uniform(-60.0, 60.0, 3)
    for cells in (4, 12):
        canvas = canvas + _smooth_noise(rng, size, cells) * rng.uniform(-14.0, 14.0, 3)
    if rng.random() < 0.4:
        frequency, phase = rng.uniform(4.0, 14.0), rng.uniform(0.0, 2.0 * np.pi)
        stripes = np.sin(2.0 * np.pi * frequency * along + phase)
        canvas = canvas + stripes * rng.uniform(-14.0, 14.0, 3)
    return np.asarray(canvas, dtype=np.float32)


def _finish(rng: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Add sensor-like noise, blur half of the images slightly, and round to uint8."""
    if rng.random() < 0.5:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9)), dtype=np.float32)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 9.0))
    return np.asarray(np.clip(np.round(canvas + noise), 0, 255), dtype=np.uint8)


def _ellipse(n_points: int = 40, radius: float = 1.0) -> NDArray[np.float64]:
    angles = np.linspace(0.0, 2.0 * np.pi, n_points, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _circle(rng: np.random.Generator) -> Contours:
    return [_ellipse()]


def _square(rng: np.random.Generator) -> Contours:
    return [_ellipse(4)]


def _triangle(rng: np.random.Generator) -> Contours:
    return [_ellipse(3)]


def _star(rng: np.random.Generator) -> Contours:
    points = _ellipse(10)
    points[1::2] *= rng.uniform(0.36, 0.46)
    return [points]


def _cross(rng: np.random.Generator) -> Contours:
    arm = rng.uniform(0.24, 0.34)
    corner = [(1.0, -arm), (1.0, arm), (arm, arm)]
    quarter_turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    points = np.array(corner) / np.hypot(1.0, arm)
    return [np.concatenate([points @ np.linalg.matrix_power(quarter_turn, k).T for k in range(4)])]


def _ring(rng: np.random.Generator) -> Contours:
    # Two contours: the even-odd rule of the rasteriser leaves the inner disc empty.
    return [_ellipse(), _ellipse(radius=rng.uniform(0.5, 0.66))]


def _crescent(rng: np.random.Generator) -> Contours:
    # Bounded by two arcs through the tips (0, -1) and (0, 1): half of the unit circle, and a flatter one.
    depth = rng.uniform(0.3, 0.5)
    angles = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 24)
    outer = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    inner = np.stack([depth * np.cos(angles), np.sin(angles)], axis=1)[::-1]
    return [np.concatenate([outer, inner[1:-1]])]


def _arrow(rng: np.random.Generator) -> Contours:
    shaft, neck = rng.uniform(0.16, 0.24), rng.uniform(-0.1, 0.15)
    half = [(1.0, 0.0), (neck, 0.68), (neck, shaft), (-0.97, shaft)]
    return [np.array(half + [(x, -y) for x, y in half[:0:-1]])]


def _blob(rng: np.random.Generator) -> Contours:
    """Draw an irregular smooth outline; its strong low harmonics keep it away from a circle."""
    angles = np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)
    radius = np.ones_like(angles)
    for harmonic in (2, 3, 5):
        radius += rng.uniform(0.18, 0.38) * np.cos(harmonic * angles + rng.uniform(0.0, 2.0 * np.pi))
    radius = np.maximum(radius, 0.15)
    return [_ellipse(48) * (radius / radius.max())[:, None]]


def _shard(rng: np.random.Generator) -> Contours:
    """Draw an irregular polygon; its two deep notches keep it away from squares and triangles."""
    n_corners = int(rng.integers(6, 9))
    steps = rng.uniform(0.6, 1.4, n_corners)
    angles = np.cumsum(steps) / steps.sum() * 2.0 * np.pi
    radius = rng.uniform(0.65, 1.0, n_corners)
    radius[[0, int(rng.integers(2, n_corners - 1))]] = rng.uniform(0.1, 0.35, 2)
    return [np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1) / radius.max()]


def _stroke(rng: np.random.Generator) -> Contours:
    """Draw a thin bent line: a ribbon around a parabola."""
    along = np.linspace(-1.0, 1.0, 12)
    spine = np.stack([along, rng.uniform(-0.5, 0.5) * (along**2 - 0.5)], axis=1)
    tangent = np.gradient(spine, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / np.linalg.norm(tangent, axis=1, keepdims=True)
    half_width = rng.uniform(0.06, 0.14)
    ribbon = np.concatenate([spine + half_width * normal, (spine - half_width * normal)[::-1]])
    return [ribbon / np.linalg.norm(ribbon, axis=1).max()]


_CONTOURS: tuple[Callable[[np.random.Generator], Contours], ...] = (
    _circle,
    _square,
    _triangle,
    _star,
    _cross,
    _ring,
    _crescent,
    _arrow,
)
_DISTRACTORS: tuple[Callable[[np.random.Generator], Contours], ...] = (_blob, _shard, _stroke)
