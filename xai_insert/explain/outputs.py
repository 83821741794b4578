"""Reading the outputs of an inserted model by name, whichever runtime gave them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xai_insert.errors import UnsupportedTaskError
from xai_insert.explain.errors import RunError
from xai_insert.layouts.record import Layout

Array = npt.NDArray[Any]

SALIENCY_MAP = "saliency_map"
FEATURE_VECTOR = "feature_vector"
SALIENCY_CLASSES = "saliency_classes"
SALIENCY_MAP_PER_BOX = "saliency_map_per_box"
SALIENCY_RANGE = "saliency_range"
SALIENCY_SCORES = "saliency_scores"
OWN = (SALIENCY_MAP, FEATURE_VECTOR, SALIENCY_CLASSES, SALIENCY_MAP_PER_BOX, SALIENCY_RANGE, SALIENCY_SCORES)

_PREFIX = "xai_insert."
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
        layout: what the predictions mean, as far as the insertion found it and `read_outputs` was given the metadata;
            it counts them in their order.
        others: what the model says of each other image that is fed and has maps of its own, when `xai-explain` runs it.
    """

    predictions: dict[str, Array]
    saliency_map: Array | None = None
    feature_vector: Array | None = None
    saliency_classes: Array | None = None
    saliency_map_per_box: Array | None = None
    saliency_range: Array | None = None
    saliency_scores: Array | None = None
    layout: Layout = field(default_factory=Layout, kw_only=True)
    others: Sequence[OtherImage] = field(default=(), kw_only=True)


@dataclass(frozen=True, eq=False)
class OtherImage:
    """An image that is fed, the same for every image that is explained.

    Attributes:
        input: name of its input.
        fed: the array `[N, C, H, W]` or `[N, H, W, C]`.
        outputs: as if it was the one that is explained: its maps, and the same predictions.
        rectangle: where its maps lie in it; None if they cover all of it.
    """

    input: str
    fed: Array
    outputs: Outputs
    rectangle: tuple[float, ...] | None = None


def map_of(outputs: Outputs) -> Array:
    """The map of the first image.

    Raises:
        UnsupportedTaskError: the model has none.
    """
    if outputs.saliency_map is None:
        raise UnsupportedTaskError(f"the model has no output {SALIENCY_MAP!r}")
    own: Array = outputs.saliency_map[0]
    return own


def part_of(outputs: Outputs, index: int, batch: int) -> Outputs:
    """The outputs of one image; those that are not of the batch stay whole.

    Raises:
        RunError: the maps are not as many as the images.
    """
    if batch == 1:
        return outputs
    if outputs.saliency_map is not None and len(outputs.saliency_map) != batch:
        raise RunError(f"{len(outputs.saliency_map)} maps came for {batch} images: try batch_size=1")

    def own(array: Array | None) -> Any:
        return array[index : index + 1] if array is not None and array.shape[:1] == (batch,) else array

    predictions = {name: own(array) for name, array in outputs.predictions.items()}
    others = [replace(item, fed=own(item.fed), outputs=part_of(item.outputs, index, batch)) for item in outputs.others]
    parts = {name: own(getattr(outputs, name)) for name in OWN}
    return replace(outputs, predictions=predictions, **parts, others=others)


def of_first(array: Array | None) -> Array | None:
    """What an output says of the first image; None if the model has no such output."""
    return None if array is None else array[0]


def read_outputs(
    results: Any, names: Iterable[str] | None = None, metadata: Mapping[str, Any] | None = None
) -> Outputs:
    """Tell predictions from what was inserted.

    Args:
        results: what `compiled_model(...)` of OpenVINO returns, any mapping from name to array, or the list that
            `session.run(None, ...)` of onnxruntime returns.
        names: names of the outputs, needed for a list: `[item.name for item in session.get_outputs()]`.
        metadata: what was written into the model: `model.get_rt_info(["xai_insert"]).value` of an `ov.Model`, or
            `session.get_modelmeta().custom_metadata_map` of onnxruntime.

    Raises:
        ValueError: `results` is a list and `names` does not fit it.
        ModelFileError: `metadata` are not as an insertion writes them.

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
    layout = Layout.read(_written(metadata or {}), len(predictions))
    return Outputs(predictions, *(extra.get(key) for key in OWN), layout=layout)


def _written(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The entries of an insertion, without the prefix that they have in ONNX beside those of others."""
    prefixed = {key: text for key, text in metadata.items() if key.startswith(_PREFIX)}
    return {key.removeprefix(_PREFIX): str(text) for key, text in (prefixed or metadata).items()}


def _named(results: Any, names: Iterable[str] | None) -> Iterator[tuple[list[str], Any]]:
    if isinstance(results, Mapping):
        for key, array in results.items():
            yield [key] if isinstance(key, str) else sorted(key.get_names()), array
        return
    arrays, listed = list(results), list(names or ())
    if len(arrays) != len(listed):
        raise ValueError(f"{len(arrays)} outputs came without their names: pass names=[...] with as many entries")
    yield from zip(([name] for name in listed), arrays, strict=True)
