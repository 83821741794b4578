"""Reading the outputs of an inserted model by name, whichever runtime gave them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SALIENCY_MAP = "saliency_map"
FEATURE_VECTOR = "feature_vector"
SALIENCY_CLASSES = "saliency_classes"
SALIENCY_MAP_PER_BOX = "saliency_map_per_box"
SALIENCY_RANGE = "saliency_range"
SALIENCY_SCORES = "saliency_scores"
OWN = (SALIENCY_MAP, FEATURE_VECTOR, SALIENCY_CLASSES, SALIENCY_MAP_PER_BOX, SALIENCY_RANGE, SALIENCY_SCORES)

OF_ANOTHER = "of another image: "
"""How the names begin of what says something about another image input than the one that is shown."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of one inference.

    Attributes:
        predictions: the model's own outputs by name, in their order.
        saliency_map: uint8 0..255 or float32, `[N, K, h, w]` per class or `[N, h, w]`; None if the model has none.
        feature_vector: float `[N, C]`; None if the model has none.
        saliency_classes: int64 `[N, K]`, the class of each map; None if map k is that of class k.
        saliency_map_per_box: uint8 0..255 or float32, `[N, M, h, w]`, a map of each of the M boxes that the model
            reports, in the order of its report; None if the model has none.
        saliency_range: float `[N, K, 2]`, the raw values that stand behind 0 and 255 of each uint8 map; None if the
            model has none.
        saliency_scores: float `[N, K]`, of embeddings the products that the maps explain; None if the model has none.
    """

    predictions: dict[str, Array]
    saliency_map: Array | None = None
    feature_vector: Array | None = None
    saliency_classes: Array | None = None
    saliency_map_per_box: Array | None = None
    saliency_range: Array | None = None
    saliency_scores: Array | None = None


def read_outputs(results: Any, names: Iterable[str] | None = None) -> Outputs:
    """Tell predictions from what was inserted.

    Args:
        results: what `compiled_model(...)` of OpenVINO returns, any mapping from name to array, or the list that
            `session.run(None, ...)` of onnxruntime returns.
        names: names of the outputs, needed for a list: `[item.name for item in session.get_outputs()]`.

    Raises:
        ValueError: `results` is a list and `names` does not fit it.

    Example:
        >>> outputs = read_outputs({"logits": np.zeros((1, 2)), "saliency_map": np.zeros((1, 2, 7, 7), np.uint8)})
        >>> list(outputs.predictions), outputs.saliency_map.shape
        (['logits'], (1, 2, 7, 7))
    """
    predictions, extra = {}, {}
    for index, (keys, array) in enumerate(_named(results, names)):
        special = next((key for key in keys if key in OWN), None)
        if special is not None:
            extra[special] = np.asarray(array)
        elif not any(key.startswith(OF_ANOTHER) for key in keys):
            predictions[keys[0] if keys else f"output_{index}"] = np.asarray(array)
    return Outputs(predictions, *(extra.get(key) for key in OWN))


def _named(results: Any, names: Iterable[str] | None) -> Iterator[tuple[list[str], Any]]:
    if isinstance(results, Mapping):
        for key, array in results.items():
            yield [key] if isinstance(key, str) else sorted(key.get_names()), array
        return
    arrays, listed = list(results), list(names or ())
    if len(arrays) != len(listed):
        raise ValueError(f"{len(arrays)} outputs came without their names: pass names=[...] with as many entries")
    yield from zip(([name] for name in listed), arrays, strict=True)
