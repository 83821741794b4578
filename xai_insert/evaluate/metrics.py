"""How faithful a saliency map is to the model: measured by changing the image where the map points.

A scorer takes images `[N, C, H, W]` as the model does and returns the score 0..1 of the explained class, `[N]`.
A map is float `[H, W]`, scaled to 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import cv2
import numpy as np
import numpy.typing as npt

from xai_insert.evaluate.imputation import imputed

Array = npt.NDArray[np.float32]
Scorer = Callable[[Array], Array]
Explainer = Callable[[Array], Array]
Rectangle = tuple[float, float, float, float]

SHARES = (0.2, 0.4, 0.6, 0.8)
"""Shares of the pixels that ROAD removes."""
_AT_ONCE = 8


def scaled(raw: npt.NDArray[np.generic], size: tuple[int, int]) -> Array:
    """A raw map `[h, w]` at the image's size, in 0..1; a constant map gives zeros."""
    values = np.asarray(raw, np.float32)
    low, high = float(values.min()), float(values.max())
    unit = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.asarray(cv2.resize(unit, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def curves(image: Array, saliency: Array, score: Scorer, steps: int) -> tuple[float, float]:
    """Insertion and Deletion (Petsiuk et al., "RISE", 2018, https://arxiv.org/abs/1806.07421).

    Pixels, the most salient first, appear in a blurred image, or vanish from the image in its mean colour.

    Args:
        image: `[1, C, H, W]`.
        saliency: see the module.
        score: see the module.
        steps: parts in which the pixels come or go.

    Returns:
        Area under the score of the class over the share of changed pixels, 0..1 each; insertion wants it high,
        deletion low.
    """
    order = np.argsort(-saliency.ravel(), kind="stable")
    side = max(image.shape[2:]) // 10 * 2 + 1
    blurred = np.stack([cv2.GaussianBlur(channel, (side, side), side / 4) for channel in image[0]])[None]
    empty = np.broadcast_to(image.mean((2, 3), keepdims=True), image.shape)
    areas = []
    for start, end in ((blurred, image), (image, empty)):

        def states(start: Array = start, end: Array = end) -> Iterator[Array]:
            for step in range(steps + 1):
                state = start.reshape(start.shape[1], -1).copy()
                chosen = order[: round(step * order.size / steps)]
                state[:, chosen] = end.reshape(end.shape[1], -1)[:, chosen]
                yield state.reshape(image.shape[1:])

        scores = _scores(states(), score)
        areas.append(float((scores[:-1] + scores[1:]).mean() / 2))
    return areas[0], areas[1]


def road(image: Array, saliency: Array, score: Scorer, shares: Sequence[float] = SHARES) -> float:
    """ROAD (Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", 2022).

    The most salient pixels are removed, and the least salient, and filled in from their neighbours, see `imputed`;
    https://arxiv.org/abs/2202.00449. The paper takes the model's accuracy on a data set; of one image it is the score,
    and both orders are joined as in ARCC, see `arcc`.

    Args:
        image: `[1, C, H, W]`.
        saliency: see the module.
        score: see the module.
        shares: of the pixels that are removed.

    Returns:
        Half of how far the score is higher without the least salient pixels than without the most salient ones, mean
        over the shares: -0.5..0.5, higher is better.
    """
    order = np.argsort(-saliency.ravel(), kind="stable")

    def states() -> Iterator[Array]:
        for ranked in (order[::-1], order):
            for number, share in enumerate(shares):
                removed = np.zeros(order.size, np.bool_)
                removed[ranked[: round(share * order.size)]] = True
                yield imputed(image[0], removed.reshape(saliency.shape), number)

    without_least, without_most = np.split(_scores(states(), score), 2)
    return float((without_least.mean() - without_most.mean()) / 2)


def average_drop(image: Array, saliency: Array, score: Scorer, baseline: Array | float) -> float:
    """Share of the class's score that is lost when only what the map shows is left, 0..1; lower is better.

    Chattopadhay et al., "Grad-CAM++", 2018, https://arxiv.org/abs/1710.11063.
    """
    before, after = score(np.concatenate([image, shown(image, saliency, baseline)]))
    return float(max(0.0, before - after) / before) if before > 0 else 0.0


def coherency(image: Array, saliency: Array, explain: Explainer, baseline: Array | float) -> float:
    """Whether the map of what the map shows is the same map, 0..1: their correlation, moved from -1..1."""
    again = explain(shown(image, saliency, baseline))
    return (1 + (correlation(saliency, again) or 0.0)) / 2 if np.ptp(saliency) and np.ptp(again) else 0.0


def complexity(saliency: Array) -> float:
    """Mean of the map, 0..1; lower is better."""
    return float(saliency.mean())


def adcc(drop: float, coherent: float, complex_: float) -> float:
    """Harmonic mean of coherency, 1 - complexity and 1 - drop, 0..1.

    Poppi et al., "Revisiting the evaluation of class activation mapping", 2021, https://arxiv.org/abs/2104.10252.
    """
    return _harmonic(coherent, 1 - complex_, 1 - drop)


def arcc(removal: float, coherent: float, complex_: float) -> float:
    """ADCC with ROAD in place of the average drop, 0..1: ROAD doubled, and 0 where it is negative.

    Domeniconi et al., "How to Evaluate and Refine your CAM", 2026, https://arxiv.org/abs/2605.14641.
    """
    return _harmonic(coherent, 1 - complex_, min(max(2 * removal, 0.0), 1.0))


def is_hit(saliency: Array, boxes: Iterable[Rectangle]) -> bool:
    """The pointing game: whether the middle of the map's highest pixel lies in one of the boxes.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016, https://arxiv.org/abs/1608.00507; without
    their tolerance of 15 pixels.

    Args:
        saliency: see the module.
        boxes: left, top, right, bottom in pixels of the map.
    """
    row, column = np.unravel_index(int(saliency.argmax()), saliency.shape)
    x, y = float(column) + 0.5, float(row) + 0.5
    return any(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes)


def energy(saliency: Array, boxes: Iterable[Rectangle]) -> float:
    """Share of the map that lies in the boxes, 0..1; 0 for a map of zeros.

    Wang et al., "Score-CAM", 2020, https://arxiv.org/abs/1910.01279 (energy-based pointing game). A pixel counts by the
    part of it that a box covers.

    Args:
        saliency: see the module.
        boxes: see `is_hit`.
    """
    height, width = saliency.shape
    covered = np.zeros(saliency.shape)
    for left, top, right, bottom in boxes:
        across = np.clip(np.minimum(np.arange(width) + 1, right) - np.maximum(np.arange(width), left), 0, 1)
        down = np.clip(np.minimum(np.arange(height) + 1, bottom) - np.maximum(np.arange(height), top), 0, 1)
        covered = np.maximum(covered, down[:, None] * across)
    total = float(saliency.sum(dtype=np.float64))
    return float((saliency * covered).sum() / total) if total > 0 else 0.0


def correlation(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> float | None:
    """Pearson's, of two maps of one size; None where one of them is constant."""
    first, second = (np.asarray(item, np.float64).ravel() for item in (one, other))
    if not (np.ptp(first) and np.ptp(second)):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def peak_distance(one: Array, other: Array) -> float:
    """How far the highest pixels of two maps of one size lie apart, in parts of the image's diagonal, 0..1."""
    places = [np.array(np.unravel_index(int(item.argmax()), item.shape)) for item in (one, other)]
    return float(np.linalg.norm(places[0] - places[1]) / np.linalg.norm(one.shape))


def shown(image: Array, saliency: Array, baseline: Array | float) -> Array:
    """The image where the map is 1, the baseline (a black image, as the model sees it) where it is 0."""
    return np.asarray(baseline + (image - baseline) * saliency, np.float32)


def _harmonic(*parts: float) -> float:
    return 0.0 if min(parts) <= 0 else len(parts) / sum(1 / part for part in parts)


def _scores(states: Iterator[Array], score: Scorer) -> Array:
    """Score many images, a few in memory at a time."""
    found = []
    while group := list(islice(states, _AT_ONCE)):
        found.append(score(np.stack(group)))
    return np.concatenate(found)
