"""Proof that a map made of derivatives is what its formula says of the true ones.

The inserted model is cut at the target and run on the features of a random image, moved a little. First the map must be
the formula of features and derivatives. Then the derivatives must tell how the plain model's own scores change: where a
random part of the features grows by a small share, a score grows by the sum of derivative times feature over that part.
Nothing that the branch computes enters the second measurement.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CheckFailedError, DefinitionError
from xai_insert.feeds import feeds_of, random_array
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.view import Shape, Value
from xai_insert.tasks.plan import Derivative

Array = npt.NDArray[Any]
_SEED, _BATCH = 0, 2
_SHARES, _FINEST = (3e-3, 1e-2, 1e-3, 3e-4, 1e-4), 1e-4
"""Growth of the features: the first that does, or the best; a large one leaves the tangent, a small one drowns.

The finest is tried only where no other does: of a network with many corners (ReLU6) before the scores.
"""
_PARTS = 3
_LEAST = 1e-5  # of what a map would be if nothing in it cancelled
_MOVED = 0.1
_ROUNDING = 3e-7  # of a float32 score, relative to the largest, see `xai_insert.check`
_FORMULA_TOLERANCE, _SLOPE_TOLERANCE, _GOOD = 1e-4, 2e-2, 2e-3


def check_derivative(model: LoadedModel, derivative: Derivative, classes: Any) -> float:
    """Compare derivatives with differences of the plain model's scores, and the map with its formula.

    Args:
        model: the inserted model.
        derivative: what the branch computed from.
        classes: handle of the numbers `[B, k]` of the classes.

    Returns:
        The largest difference of a slope, relative to the slope and the size of its parts.

    Raises:
        CheckFailedError: every derivative is zero.
        DefinitionError: the map is not its formula, or a derivative not the slope.
    """
    runner = model.between(
        [derivative.target],
        [derivative.raw, derivative.scores, classes, derivative.gradient, *derivative.beside],
        is_rounded=False,
    )
    rng = np.random.default_rng(_SEED)
    name, _, sizes = runner.inputs[0]
    rest = feeds_of(runner.inputs[1:], rng, batch=_BATCH)
    own = _features(model, derivative.target, sizes, rest, rng)
    feature = _without_zeros(own, rng) if derivative.target.producer is not None else own
    maps, scores, chosen, gradient, *beside = runner.run({name: feature, **rest})
    if not np.isfinite(scores).all():  # distances below zero, of which no logarithm is
        feature = own
        maps, _, chosen, gradient, *beside = runner.run({name: feature, **rest})
    gradient = gradient.astype(np.float64).reshape(-1, *feature.shape)
    _check_formula(derivative, maps, feature, gradient, beside)
    worst = excess = 0.0
    for _ in range(_PARTS):
        change = feature * (rng.random(feature.shape) < 0.5)
        parts = np.moveaxis(gradient * change, 1 + derivative.batch_axis, 1).reshape(len(gradient), len(chosen), -1)
        slopes = parts.sum(axis=-1)
        size = np.abs(slopes) + np.sqrt((parts**2).sum(axis=-1)) + np.finfo(np.float32).tiny
        best = sure = np.inf
        for share in _SHARES:
            if best <= (_SLOPE_TOLERANCE if share == _FINEST else _GOOD):
                break
            slope, noise = _slope(runner, name, feature, change, share, rest, chosen)
            miss = float((np.abs(slope - slopes) / size).max())
            best, sure = min(best, miss), min(sure, miss - noise / float(size.min()))
        worst, excess = max(worst, best), max(excess, sure)
    if not excess <= _SLOPE_TOLERANCE:
        raise DefinitionError(
            f"the derivatives differ by {worst:.1e} from the slope of the model's own scores; nothing was written"
        )
    return worst


def _check_formula(derivative: Derivative, maps: Array, feature: Array, gradient: Array, beside: list[Array]) -> None:
    """Whether a map is the formula of its derivatives, and more than rounding."""
    uncancelled = derivative.formula(*map(np.abs, (feature, gradient, *beside)))
    if not uncancelled.any():
        raise CheckFailedError(
            f"the scores do not change with the grid of {derivative.target.describe()}, so a map of their derivatives "
            "shows nothing; choose another layer with --target-layer; nothing was written"
        )
    wanted = derivative.formula(*(item.astype(np.float64) for item in (feature, gradient, *beside)))
    if 0 < float(np.abs(wanted).max()) < _LEAST * float(uncancelled.max()):
        raise CheckFailedError(
            f"the derivatives are at right angles to {derivative.target.describe()}, as where a norm alone reads it, "
            "so the map is rounding; choose another layer with --target-layer, or another --method; nothing was written"
        )
    maps = np.moveaxis(maps.reshape(*maps.shape[:2], -1), 1, 0)
    scale = float(np.abs(gradient * feature).max()) or 1.0
    off = float(np.abs(maps - wanted).max()) / max(float(np.abs(wanted).max()), scale)
    if not off <= _FORMULA_TOLERANCE:
        raise DefinitionError(
            f"the map differs from its formula by {off:.1e} of its largest value; nothing was written"
        )


def _features(
    model: LoadedModel, target: Value, sizes: Shape, rest: dict[str, Array], rng: np.random.Generator
) -> Array:
    """What the model gives at the target for noise."""
    if target.producer is None:
        return random_array(rng, sizes, target.dtype, batch=_BATCH)
    runner = model.between([], [target.native])
    given = {name: rest.get(name) for name, _, _ in runner.inputs}
    feeds = {
        name: random_array(rng, shape, dtype, batch=_BATCH) if (known := given[name]) is None else known
        for name, dtype, shape in runner.inputs
    }
    (feature,) = runner.run(feeds)
    return feature


def _without_zeros(feature: Array, rng: np.random.Generator) -> Array:
    """Features moved a little: at exact zeros many functions have no derivative."""
    size = float(np.sqrt((feature.astype(np.float64) ** 2).mean()))
    moved: Array = (feature + _MOVED * size * np.abs(rng.standard_normal(feature.shape))).astype(feature.dtype)
    return moved


def _slope(
    runner: Runner, name: str, feature: Array, change: Array, share: float, rest: dict[str, Array], classes: Array
) -> tuple[Array, float]:
    """Central difference of the scores of the chosen classes, `[k, B]`, and by how much rounding moves it."""
    both = []
    for sign in (1, -1):
        moved = (feature + sign * share * change).astype(feature.dtype)
        scores = runner.run({name: moved, **rest})[1].astype(np.float64)
        both.append(np.take_along_axis(scores.reshape(len(classes), -1), classes.astype(np.int64), axis=1))
    noise = float(np.abs(both[0]).max()) * _ROUNDING / share
    return ((both[0] - both[1]) / (2 * share)).T, noise
