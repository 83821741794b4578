"""Which values of the maps of one image get the first and the last colour, so that its classes can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from xai_insert.explain.draw import Span
from xai_insert.explain.outputs import Array

ScaleName = Literal["shared", "each"]

SCALES: tuple[str, ...] = get_args(ScaleName)
FAINTEST = 0.2


@dataclass(frozen=True)
class OwnScale:
    """A scale by what the model compares its map with.

    Attributes:
        threshold: it, which stands in the middle.
        low: what stands at the lower end; None if unknown.
    """

    threshold: float
    low: float | None = None


@dataclass(frozen=True, eq=False)
class Scaled:
    """One map and how it is coloured.

    Attributes:
        values: raw values `[h, w]`, or uint8 0..255 where the model scaled each map by itself.
        span: the values that get the first and the last colour.
        fade: weight on the opacity, 0..1.
        is_shared: whether the same colours mean the same differences in the other maps of the image.
        own: the scale where it is the model's own; None for other scales.
    """

    values: Array
    span: Span
    fade: float = 1.0
    is_shared: bool = False
    own: OwnScale | None = None

    @property
    def ends(self) -> tuple[str, str]:
        """What to write at the ends of the colour bar."""
        if self.own is not None and self.own.low is not None:
            return f"{self.own.low:.3g}", f"{2 * self.own.threshold - self.own.low:.3g}"
        if self.values.dtype == np.uint8:
            return "least", "most"
        return f"{self.span[0]:.3g}", f"{self.span[1]:.3g}"

    @property
    def text(self) -> str:
        """What the scale is, for people."""
        if self.own is not None:
            return f"threshold {self.own.threshold:.3g}"
        return f"{'one scale' if self.is_shared else 'own scale'}{'' if self.fade == 1 else ', fainter by score'}"


def scaled(
    maps: Sequence[Array], scores: Sequence[float | None], scale: ScaleName, full: float | None = None
) -> list[Scaled]:
    """Scale the maps of one image.

    Each map begins at its own minimum. With `shared`, one step of colour is the same difference in all maps, and a map
    is the fainter the lower its score is beside the best one: a class that nothing speaks for may still have a wide
    range, such as one that every place but the object supports. A score that is no number counts as the lowest. Of
    bytes, the model has stretched each map by itself, so that only their scores can tell them apart.

    Args:
        maps: `[h, w]` each, raw values or uint8.
        scores: of the class or object of each map; None if unknown.
        scale: `shared` or `each`.
        full: the score of a map that is not faint; None is the best one.
    """
    ranges = [_range(values) for values in maps]
    if scale == "each":
        return [Scaled(values, (low, low + reach)) for values, (low, reach) in zip(maps, ranges, strict=True)]
    best = max((score for score in scores if score is not None and np.isfinite(score)), default=0.0)
    return _shared(maps, ranges, scores, best if full is None else full)


def _shared(
    maps: Sequence[Array], ranges: Sequence[tuple[float, float]], scores: Sequence[float | None], full: float
) -> list[Scaled]:
    """Maps that show one step of colour for one difference, each as faint as its score is low."""
    widest = max((reach for _, reach in ranges), default=0.0)
    found = []
    for values, score, (low, reach) in zip(maps, scores, ranges, strict=True):
        is_raw = values.dtype != np.uint8
        span = (low, low + (widest if is_raw else reach))
        found.append(Scaled(values, span, _fade(score, full), is_raw and len(maps) > 1))
    return found


def _range(values: Array) -> tuple[float, float]:
    """The least value of a map, and how far the greatest lies above it."""
    if values.dtype == np.uint8:
        return 0.0, 255.0
    low = float(values.min())
    return low, float(values.max()) - low


def _fade(score: float | None, full: float) -> float:
    """Weight on the opacity of a map whose class has that score, beside one that is not faint."""
    if score is None or full <= 0:
        return 1.0
    return min(max(score / full, FAINTEST), 1.0) if np.isfinite(score) else FAINTEST


def raw_values(saliency: Array, ranges: Array | None) -> Array:
    """Undo a model's scaling of its maps `[..., h, w]`, where it says the range `[..., 2]` of each; float32 then."""
    if ranges is None or saliency.dtype != np.uint8:
        return saliency
    low, high = (ranges[..., index, None, None].astype(np.float32) for index in (0, 1))
    found: Array = low + saliency.astype(np.float32) * ((high - low) / 255)
    return found
