"""All measures of one map, and the maps that know nothing of the model, which show what a figure is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xai_insert.evaluate import metrics
from xai_insert.evaluate.metrics import Array, Explainer, Rectangle, Scorer

STEPS = 32
GAUSSIAN, RANDOM = "centred Gaussian", "random"
BLIND = (GAUSSIAN, RANDOM)


@dataclass(frozen=True)
class Measure:
    """What a figure is called, and whether more of it is better."""

    name: str
    is_better_high: bool

    @property
    def title(self) -> str:
        """The name with an arrow to the better side."""
        return f"{self.name} {'↑' if self.is_better_high else '↓'}"


MEASURES = {
    "insertion": Measure("insertion", True),
    "deletion": Measure("deletion", False),
    "road": Measure("ROAD", True),
    "average_drop": Measure("average drop", False),
    "coherency": Measure("coherency", True),
    "complexity": Measure("complexity", False),
    "adcc": Measure("ADCC", True),
    "arcc": Measure("ARCC", True),
    "pointing": Measure("pointing", True),
    "energy": Measure("energy in box", True),
}


def faithfulness(
    image: Array, saliency: Array, score: Scorer, explain: Explainer, black: Array | float, steps: int = STEPS
) -> dict[str, float]:
    """What can be measured without annotations, by the keys of `MEASURES`.

    Args:
        image: `[1, C, H, W]`, as the model takes it.
        saliency: see `metrics`.
        score: see `metrics`.
        explain: the map of another image, as `saliency`.
        black: a black image as the model sees it.
        steps: of insertion and deletion.
    """
    insertion, deletion = metrics.curves(image, saliency, score, steps)
    removal = metrics.road(image, saliency, score)
    drop = metrics.average_drop(image, saliency, score, black)
    coherent = metrics.coherency(image, saliency, explain, black)
    spread = metrics.complexity(saliency)
    return {
        "insertion": insertion,
        "deletion": deletion,
        "road": removal,
        "average_drop": drop,
        "coherency": coherent,
        "complexity": spread,
        "adcc": metrics.adcc(drop, coherent, spread),
        "arcc": metrics.arcc(removal, coherent, spread),
    }


def localisation(saliency: Array, boxes: Sequence[Rectangle]) -> dict[str, float]:
    """What can be measured with the boxes of the map's class, see `metrics.is_hit`."""
    return {"pointing": float(metrics.is_hit(saliency, boxes)), "energy": metrics.energy(saliency, boxes)}


def blind_map(kind: str, grid: tuple[int, int], rng: np.random.Generator) -> Array:
    """A map `[h, w]` that is made without the model: a Gaussian in the middle, or noise."""
    if kind == RANDOM:
        return rng.random(grid, dtype=np.float32)
    y, x = np.mgrid[-1 : 1 : grid[0] * 1j, -1 : 1 : grid[1] * 1j]
    return np.asarray(np.exp(-(x**2 + y**2) * 2), np.float32)
