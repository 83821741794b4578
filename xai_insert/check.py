"""Proof, before anything is written, that the predictions did not move and that the map is what its definition says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import CheckFailedError, DefinitionError, TimeLimitError
from xai_insert.feeds import DEFAULT_SIZE, feeds_of
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.proportion import most_bytes
from xai_insert.graph.view import Graph, Shape, Value, format_grid
from xai_insert.locate.inputs import image_inputs
from xai_insert.tasks.plan import Masking

Array = npt.NDArray[Any]
_SEED = 0
_MOST_POSITIONS, _MANY_POSITIONS, _IMAGE_RANKS = 4, 64, (4, 5)
_MOST_SECONDS, _BYTES_PER_SECOND = 12.0, 1 << 28
_BATCH = 2  # where the model leaves it open
_LOUD = 64  # features of scores that change in steps
# Another order of summation moves a float32 logit by some 1e-6 of the largest; half precision rounds at 1e-3.
_OUTPUT_TOLERANCE = 1e-5
_MAP_TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}
_DEFAULT_MAP_TOLERANCE = 1e-4
_SMALLEST = 1e-2  # of what a map varies beside the scores: less drowns in their rounding


@dataclass(frozen=True)
class CheckResult:
    """What the check measured.

    Attributes:
        output_difference: largest difference of an original output, relative to its largest element; 0 is identical.
        map_difference: largest difference of the raw map from its definition, relative to the largest score; None if
            the method has no definition by masking.
        place: how it was proved where the map lies: `blocks` (the model's own answer to changed blocks of the image) or
            `axes` (the rows and columns followed through the graph alone); None if the map's task has no such proof.
        in_steps: whether the scores change in steps, so that maps were constant on noise.
    """

    output_difference: float
    map_difference: float | None
    place: str | None = None
    in_steps: bool = False


def random_feeds(runner: Runner, size: int = DEFAULT_SIZE) -> dict[str, Array]:
    """One random input, the same on every call; `size` stands for open sides."""
    rng = np.random.default_rng(_SEED)
    return feeds_of(runner.inputs, rng, size=size)


@dataclass(frozen=True)
class Plain:
    """What the model gives before anything is inserted.

    Attributes:
        outputs: its outputs for one random input.
        size: what stands for the open sides of that.
    """

    outputs: Sequence[Array]
    size: int


def run_plain(loaded: LoadedModel, graph: Graph, size: int) -> Plain:
    """Run the model on one random input; `size` stands for open sides, if the model takes it.

    Raises:
        CheckFailedError: the model does not run.
        TimeLimitError: it does not finish; a damaged or hostile one may loop for ever.
    """
    try:
        runner = loaded.runner()
    except CheckFailedError as err:
        raise CheckFailedError(f"{err}; --no-check inserts without running it") from err
    if size != DEFAULT_SIZE:
        with suppress(CheckFailedError):
            return Plain(runner.run(random_feeds(runner, size), _MOST_SECONDS), size)
    try:
        outputs = runner.run(random_feeds(runner), _MOST_SECONDS + most_bytes(graph) / _BYTES_PER_SECOND)
    except TimeLimitError:
        raise
    except CheckFailedError as err:
        raise CheckFailedError(f"{err}{_about_open_sides(graph)}") from err
    return Plain(outputs, DEFAULT_SIZE)


def _about_open_sides(graph: Graph) -> str:
    """What to do where a model with open sides does not run with the sizes that the check takes for them."""
    image = next((image for image in image_inputs(graph) if None in image.sizes[1:]), None)
    if image is None:
        return ""
    sizes = ",".join("SIZE" if size is None else str(size) for size in (image.sizes[0] or 1, *image.sizes[1:]))
    return (
        f"; {DEFAULT_SIZE} was taken for the open sizes of {image.describe()}: give those that the model takes, "
        f"--input-shape {image.name}:{sizes}"
    )


def _is_finite(array: Array) -> bool:
    return array.dtype.kind not in "biuf" or bool(np.isfinite(array.astype(np.float64)).all())


def check_outputs(graph: Graph, plain: Sequence[Array], inserted: Sequence[Array], declared: Sequence[Shape]) -> float:
    """Largest relative difference of the original outputs.

    Args:
        graph: the model before insertion.
        plain: its outputs for the random input.
        inserted: those of the inserted model, the map behind them.
        declared: the sizes that were written for what was added, in the order of the outputs.

    Raises:
        CheckFailedError: an output moved, or a map is not finite, not one per image, or not of the size it declares.
    """
    worst = max([0.0, *(_moved(*item) for item in zip(graph.output_names, plain, inserted, strict=False))])
    added = inserted[len(plain) :]
    if not all(map(_is_finite, added)):
        own = [name for name, array in zip(graph.output_names, plain, strict=False) if not _is_finite(array)]
        of_model = f", as the model's own output {own[0]!r} is not" if own else ""
        raise CheckFailedError(f"the saliency map is not finite on a random input{of_model}; nothing was written")
    _require_one_each(image_inputs(graph)[0], len(added[0]))
    for sizes, extra in zip(declared, added, strict=False):
        _require_sizes(sizes, extra.shape)
    return worst


def _moved(name: str, before: Array, after: Array) -> float:
    """How far an output moved; refuses what is more than another order of sums."""
    difference = relative_difference(before, after)
    if difference > _OUTPUT_TOLERANCE:
        raise CheckFailedError(
            f"output {name!r} would move by {difference:.1e} of its largest element; nothing was written "
            "(--no-check writes anyway)"
        )
    return difference


def _require_one_each(image: Value, maps: int) -> None:
    images = image.sizes[0] or 1
    if image.rank in _IMAGE_RANKS and maps != images:
        several, together = "as for scores of several positions each", "which have their answer together, as frames"
        why = several if maps > images else together
        raise CheckFailedError(f"there are {maps} maps for {images} images, {why}; nothing was written")


def _require_sizes(declared: Shape, found: Shape) -> None:
    if len(declared) != len(found) or any(a not in (None, b) for a, b in zip(declared, found, strict=True)):
        raise CheckFailedError(
            f"an added output declares the sizes {format_grid(declared)} and has {format_grid(found)}; "
            "nothing was written"
        )


def require_varied(maps: Array) -> None:
    """Refuse maps `[..., h, w]` of which each has one value only.

    Raises:
        CheckFailedError: all are constant, or have a single cell.
    """
    if maps.shape[-2:] == (1, 1):
        raise CheckFailedError(
            "the map has a single cell, so it shows nothing: a pool has taken all of the grid; choose an earlier layer "
            "with --target-layer; nothing was written"
        )
    if not is_varied(maps):
        raise CheckFailedError(
            "every map is constant on a random input, so it shows nothing (a maximum over values that are never above "
            "zero, or an untrained head of zeros); try --method hirescam, or another layer with --target-layer; "
            "nothing was written"
        )


def is_varied(maps: Array) -> bool:
    """Whether one of the maps `[..., h, w]` has several values."""
    flat = maps.reshape(*maps.shape[:-2], -1)
    return bool((flat.max(axis=-1) != flat.min(axis=-1)).any())


def relative_difference(expected: Array, actual: Array) -> float:
    """Largest absolute difference over the largest absolute element of `expected`; infinite for other shapes."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if expected.size == 0 or np.array_equal(expected, actual, equal_nan="float" in expected.dtype.name):
        return 0.0
    if expected.dtype.kind not in "biuf":  # names of classes
        return float("inf")
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    scale = float(np.abs(a[finite]).max(initial=0.0)) or 1.0
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale


def _fed_sizes(
    model: LoadedModel,
    features: Sequence[Value],
    feeds: dict[str, Array],
    sizes: Sequence[Shape],
    known: Sequence[Shape],
    size: int,
) -> list[Shape]:
    """The sizes of features that follow what else is fed: known ones, or as the model makes them, the rest random."""
    if not any(None in shape[1:] for shape in sizes):
        return [*sizes]
    if known and all(None not in shape[1:] for shape in known):
        return [(shape[0], *closed[1:]) for shape, closed in zip(sizes, known, strict=True)]
    runner = model.between([], [value.native for value in features])
    rng = np.random.default_rng(_SEED)
    made = feeds_of(runner.inputs, rng, batch=_BATCH, size=size)
    return [array.shape for array in runner.run({name: feeds.get(name, array) for name, array in made.items()})]


def _masked(features: Mapping[str, Array], definition: Masking, position: int) -> dict[str, Array]:
    """The features with all hidden but one position."""
    return {
        name: feature * definition.mask(feature.shape, position).astype(feature.dtype)
        for name, feature in features.items()
    }


def check_definition(
    model: LoadedModel,
    definition: Masking,
    raw_map: Any,
    logits: Any,
    classes: Any = None,
    known: Sequence[Shape] = (),
    size: int = DEFAULT_SIZE,
    *,
    in_steps: bool = False,
) -> float:
    """Compare the raw map with masked runs of the model's own head, at a few positions of random features.

    Args:
        model: the inserted model.
        definition: what is masked and how.
        raw_map: handle of the unscaled map `[B, K, h, w]`.
        logits: handle of the class scores.
        classes: handle of the numbers of the classes that have a map; None if all have.
        known: sizes of the features at the size of the image that the model has, where the branch was made for any.
        size: what stands for open sides of an image that the head reads too.
        in_steps: whether the scores change in steps: features are so loud then that a mean of one cell moves them.

    Raises:
        CheckFailedError: the map differs from the definition.
    """
    runner = model.between(definition.features, [raw_map, logits, *([] if classes is None else [classes])])
    rng = np.random.default_rng(_SEED)
    features, rest = fed_features(model, definition, runner, known, rng, size)
    if in_steps:
        features = {name: feature * feature.dtype.type(_LOUD) for name, feature in features.items()}
    maps, scores, *chosen = runner.run({**features, **rest})
    if not np.isfinite(scores.astype(np.float64)).all():
        features = {name: np.abs(feature) for name, feature in features.items()}  # some heads want rectified features
        maps, scores, *chosen = runner.run({**features, **rest})
    maps = maps.reshape(*maps.shape[:2], -1)
    count, dtype = maps.shape[2], runner.inputs[0][1]
    if count > _MANY_POSITIONS:  # what masks are run for are the scores; maps of many positions take longer than they
        runner, place = model.between(definition.features, [logits]), 0
    else:
        place = 1
    scale, worst = float(np.abs(definition.read(scores, scores)).max()), 0.0
    for position in rng.choice(count, min(count, _MOST_POSITIONS), replace=False):
        kept = _masked(features, definition, int(position))
        expected = definition.read(runner.run({**kept, **rest})[place], scores)
        expected = expected.reshape(maps.shape[0], -1).astype(np.float64)
        scale = max(scale, float(np.abs(expected).max()))
        wanted = np.take_along_axis(expected, chosen[0].astype(np.int64), axis=1) if chosen else expected
        worst = max(worst, float(np.abs(maps[:, :, position] - wanted).max()))
    difference, tolerance = worst / (scale or 1.0), _MAP_TOLERANCE.get(dtype, _DEFAULT_MAP_TOLERANCE)
    if definition.is_small and np.isfinite(maps).all():
        tolerance *= min(1.0, max(float(np.ptp(maps, axis=2).max()) / (scale or 1.0), _SMALLEST))
    if not difference <= tolerance:
        raise DefinitionError(
            f"the map differs from its definition by {difference:.1e} of the largest score; nothing was written"
        )
    return difference


def fed_features(
    model: LoadedModel,
    definition: Masking,
    runner: Runner,
    known: Sequence[Shape],
    rng: np.random.Generator,
    size: int = DEFAULT_SIZE,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Random features, and what else the head reads."""
    count = len(definition.features)
    masked, others = runner.inputs[:count], runner.inputs[count:]
    rest = feeds_of(others, rng, batch=_BATCH, size=size)
    sizes = [shape for _, _, shape in masked]
    if others:
        sizes = _fed_sizes(model, definition.features, rest, sizes, known, size)
    shaped = [(name, dtype, shape) for (name, dtype, _), shape in zip(masked, sizes, strict=True)]
    return feeds_of(shaped, rng, batch=_BATCH, size=5), rest
