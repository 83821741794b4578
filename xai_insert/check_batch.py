"""Proof that an image of a batch has the map that it has alone, whatever image stands beside it.

The image of the check is fed once more behind another one. What is added for it must be what was added for it alone,
and something else be added for the other. A fixed batch is turned by one. It is asked where the model itself predicts
for an image what it predicts for it alone: some join what stands in a batch, as frames of a clip, or put detections of
all in one list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.check import relative_difference
from xai_insert.errors import CheckFailedError
from xai_insert.formats.backend import LoadedModel, Runner
from xai_insert.graph.view import Graph, Value
from xai_insert.locate.inputs import image_inputs

Array = npt.NDArray[Any]
_OTHER_SEED = 3
_LOUDNESSES = (1.0, 64.0)  # of pixels above zero: models take them in units of their own
_SAME = 1e-4  # of predictions: sums of another order, in other kernels for another batch
_ALIKE = 1e-2  # of maps
_MIXED = (
    "in a batch of two images or more one does not have the map that it has alone; nothing was written (--input-shape "
    "fixes a batch of one)"
)
_LEVELS, _SHARE = 2, 0.99  # of maps in bytes: levels apart at most, on so many cells


def require_own_maps(
    loaded: LoadedModel, graph: Graph, runner: Runner, feeds: Mapping[str, Array], outputs: Sequence[Array]
) -> None:
    """Refuse an inserted model that gives an image the map of another one in its batch.

    Args:
        loaded: the inserted model.
        graph: the model before.
        runner: the inserted model, to be run.
        feeds: what it was run on, one image.
        outputs: what it gave, predictions first.

    Raises:
        CheckFailedError: it does, or runs on a batch no more, although its predictions do.
    """
    batches, count = {image.sizes[0] for image in image_inputs(graph)}, len(graph.outputs)
    if batches != {None}:
        if batches.isdisjoint((None, 1)) and len(batches) == 1:
            _require_turned(runner, feeds, outputs, count)
        return
    if _is_empty(outputs[count:]):  # nothing is found in noise around zero
        feeds, outputs = _louder(runner, feeds, count) or (feeds, outputs)
    both = _behind_another(runner, feeds)
    try:
        found = runner.run(both)
    except CheckFailedError as err:
        if _runs(loaded, graph.outputs, both):
            raise CheckFailedError(f"on a batch of two images the inserted model does not run: {err}") from err
        return
    if all(_is_same(before, after) for before, after in zip(outputs[:count], found[:count], strict=True)):
        _require_own(outputs, found, count)


def _require_own(outputs: Sequence[Array], found: Sequence[Array], count: int) -> None:
    """Refuse where what was added for an image is not what it gets beside another one."""
    differ = any(not np.array_equal(pair[0], pair[1]) for pair in found[:count])
    for alone, pair in zip(outputs[count:], found[count:], strict=True):
        if len(alone) == 1 and not (_is_own(alone, pair) and not (differ and _are_of_one(pair))):
            raise CheckFailedError(_MIXED)


def _require_turned(runner: Runner, feeds: Mapping[str, Array], outputs: Sequence[Array], count: int) -> None:
    """Of a fixed batch: the maps of its images in another order are its maps in that order."""
    batch = next(len(array) for array in outputs[count:])
    turned = {name: _turned(array, batch) for name, array in feeds.items()}
    found, wanted = runner.run(turned), [np.roll(array, 1, axis=0) for array in outputs]
    if any(relative_difference(a, b) > _SAME for a, b in zip(wanted[:count], found[:count], strict=True)):
        return  # the images are not answered apart
    differ = any(not np.array_equal(array[0], array[1]) for array in found[:count])
    for a, b in zip(wanted[count:], found[count:], strict=True):
        if a.shape != b.shape or not _are_alike(a, b) or (differ and _are_of_one(b)):
            raise CheckFailedError(_MIXED)


def _turned(array: Array, batch: int) -> Array:
    """Images of a batch in another order; another input as it is."""
    return np.roll(array, 1, axis=0) if len(array) == batch and array.ndim > 3 else array


def _is_empty(added: Sequence[Array]) -> bool:
    return all(not np.ptp(array) for array in added if array.ndim > 2 and array.size)


def _louder(runner: Runner, feeds: Mapping[str, Array], count: int) -> tuple[dict[str, Array], list[Array]] | None:
    """An image in which something is found, and what the model gives for it; None if there is none."""
    for loudness in _LOUDNESSES:
        loud = {
            name: (np.abs(array) * loudness).astype(array.dtype) if array.ndim > 3 else array
            for name, array in feeds.items()
        }
        outputs = runner.run(loud)
        if not _is_empty(outputs[count:]):
            return loud, outputs
    return None


def _behind_another(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds with another image before that which is fed; texts stay what they are."""
    rng, others = np.random.default_rng(_OTHER_SEED), dict[str, Array]()
    for name, array in feeds.items():  # the same pixels in another order: as loud, and in the same range
        others[name] = rng.permutation(array.ravel()).reshape(array.shape) if array.ndim > 3 else array
    is_open = {name: shape[0] is None for name, _, shape in runner.inputs if shape}
    return {
        name: np.concatenate([others[name], array]) if is_open.get(name) and array.dtype.kind != "i" else array
        for name, array in feeds.items()
    }


def _runs(loaded: LoadedModel, outputs: Sequence[Value], feeds: Mapping[str, Array]) -> bool:
    """Whether the predictions alone are made of them."""
    runner = loaded.between([], [value.native for value in outputs])
    try:
        runner.run({name: feeds[name] for name, _, _ in runner.inputs})
    except CheckFailedError:
        return False
    return True


def _is_same(alone: Array, pair: Array) -> bool:
    """Whether a prediction has a row for each image, and that of the last is as it is alone."""
    if alone.ndim == 0 or pair.shape != (2, *alone.shape[1:]) or len(alone) != 1:
        return False
    return relative_difference(alone[0], pair[1]) <= _SAME


def _is_own(alone: Array, pair: Array) -> bool:
    """Whether the last of two maps is as it is alone."""
    return pair.shape == (2, *alone.shape[1:]) and _are_alike(alone[0], pair[1])


def _are_of_one(pair: Array) -> bool:
    """Whether both maps are the very same, and not constant."""
    return pair.ndim > 2 and np.array_equal(pair[0], pair[1]) and bool(np.ptp(pair) > 0)


def _are_alike(a: Array, b: Array) -> bool:
    if a.dtype == np.uint8:
        return bool(np.mean(np.abs(a.astype(np.int16) - b) <= _LEVELS) >= _SHARE)
    return relative_difference(a, b) <= _ALIKE
