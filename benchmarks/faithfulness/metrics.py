"""How faithful a saliency map is to the model: measured by changing the image where the map points.

A scorer takes images `[N, C, H, W]` as the model does and returns the probability 0..1 of the explained class, `[N]`.
A map is float `[H, W]`, scaled to 0..1.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Scorer = Callable[[Array], Array]
Explainer = Callable[[Array], Array]


def scaled(raw: Array, size: tuple[int, int]) -> Array:
    """A raw map `[h, w]` at the image's size, in 0..1; a constant map gives zeros."""
    low, high = float(raw.min()), float(raw.max())
    unit = (raw - low) / (high - low) if high > low else np.zeros_like(raw)
    return np.asarray(cv2.resize(unit.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


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
        states = []
        for step in range(steps + 1):
            state = start.reshape(start.shape[1], -1).copy()
            chosen = order[: round(step * order.size / steps)]
            state[:, chosen] = end.reshape(end.shape[1], -1)[:, chosen]
            states.append(state.reshape(image.shape[1:]))
        scores = score(np.stack(states))
        areas.append(float((scores[:-1] + scores[1:]).mean() / 2))
    return areas[0], areas[1]


def average_drop(image: Array, saliency: Array, score: Scorer, baseline: Array | float) -> float:
    """Share of the class's score that is lost when only what the map shows is left, 0..1; lower is better.

    Chattopadhay et al., "Grad-CAM++", 2018, https://arxiv.org/abs/1710.11063.
    """
    before, after = score(np.concatenate([image, shown(image, saliency, baseline)]))
    return float(max(0.0, before - after) / before)


def coherency(image: Array, saliency: Array, explain: Explainer, baseline: Array | float) -> float:
    """Whether the map of what the map shows is the same map, 0..1: their correlation, moved from -1..1."""
    again = explain(shown(image, saliency, baseline))
    if np.ptp(saliency) == 0 or np.ptp(again) == 0:
        return 0.0
    return float((1 + np.corrcoef(saliency.ravel(), again.ravel())[0, 1]) / 2)


def complexity(saliency: Array) -> float:
    """Mean of the map, 0..1; lower is better."""
    return float(saliency.mean())


def adcc(drop: float, coherent: float, complex_: float) -> float:
    """Harmonic mean of coherency, 1 - complexity and 1 - drop, 0..1.

    Poppi et al., "Revisiting the evaluation of class activation mapping", 2021, https://arxiv.org/abs/2104.10252.
    """
    parts = (coherent, 1 - complex_, 1 - drop)
    return 0.0 if min(parts) <= 0 else 3 / sum(1 / part for part in parts)


def shown(image: Array, saliency: Array, baseline: Array | float) -> Array:
    """The image where the map is 1, the baseline (a black image, as the model sees it) where it is 0."""
    return np.asarray(baseline + (image - baseline) * saliency, np.float32)
