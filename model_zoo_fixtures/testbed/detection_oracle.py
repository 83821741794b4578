"""DetClassProbabilityMap by its definition, from raw class scores, in NumPy; and the scores of a fixture, by name.

The definition is that of OpenVINO Training Extensions: maximum over anchors, bilinear resize to the grid of the middle
level, mean over levels, softmax over classes where there are several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as opset

from model_zoo_fixtures.testbed import oracle

Array = np.ndarray


def definition(levels: Sequence[Array], anchors: Sequence[int], classes: int) -> Array:
    """Probabilities `[B, K, h, w]`, or mean raw scores for one class.

    Args:
        levels: raw class scores `[B, A * K, h, w]`, from the finest level to the coarsest.
        anchors: `A` of each level.
        classes: `K`, a background included.
    """
    middle = levels[len(levels) // 2].shape[2:]
    total = np.zeros((len(levels[0]), classes, *middle))
    for level, count in zip(levels, anchors, strict=True):
        best = level.reshape(len(level), count, classes, *level.shape[2:]).max(axis=1)
        total += resized(best.astype(np.float64), middle)
    mean = total / len(levels)
    if classes == 1:
        return mean
    powers = np.exp(mean - mean.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def resized(maps: Array, grid: Sequence[int]) -> Array:
    """Bilinear, centres of the corner cells not aligned, edges repeated: `[B, K, h, w]` on another grid."""
    for axis, size in zip((2, 3), grid, strict=True):
        maps = np.moveaxis(np.tensordot(_weights(maps.shape[axis], size), maps, (1, axis)), 0, axis)
    return maps


def _weights(before: int, after: int) -> Array:
    places = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, before - 1)
    weights = np.zeros((after, before))
    np.add.at(weights, (np.arange(after), low), 1 - (places - low))
    np.add.at(weights, (np.arange(after), high), places - low)
    return weights


def share_within_one(ours: Array, theirs: Array) -> float:
    """Share of pixels of two byte maps that differ by at most one step."""
    return float((np.abs(ours.astype(int) - theirs.astype(int)) <= 1).mean())


def raw_scores(model: Path, names: Sequence[str], expected: Mapping[str, Any], image: Array) -> list[Array]:
    """Raw class scores of each level, `[B, A * K, h, w]`, of a fixture.

    Args:
        model: the plain model.
        names: its tensors with the scores.
        expected: what the manifest says of it.
        image: its input.
    """
    arrays = values(model, names, image)
    classes, grids, anchors = expected["classes"], expected["grids"], expected["anchors"]
    levels = []
    if len(arrays) == 1 and arrays[0].ndim < 4:
        rows = arrays[0].reshape(len(image), -1, classes)
        bounds = np.cumsum([count * h * w for count, (h, w) in zip(anchors, grids, strict=True)])[:-1]
        for part, count, (h, w) in zip(np.split(rows, bounds, axis=1), anchors, grids, strict=True):
            cells = part.reshape(len(image), h * w, count * classes)
            levels.append(cells.transpose(0, 2, 1).reshape(len(image), count * classes, h, w))
        return levels
    start = expected["row_offset"]
    for array, count in zip(arrays, anchors, strict=True):
        rows = array.reshape(len(array), count, expected["row"], *array.shape[2:])[:, :, start : start + classes]
        levels.append(rows.reshape(len(array), count * classes, *array.shape[2:]))
    return levels


def values(path: Path, names: Sequence[str], image: Array) -> list[Array]:
    """Tensors of a model by name: of values in ONNX, of layers in an IR; in float32."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        present = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in present)
        session = oracle.session(model)
        return list(session.run(list(names), {session.get_inputs()[0].name: image}))
    core = ov.Core()
    read = core.read_model(path)
    layers = {node.get_friendly_name(): node for node in read.get_ordered_ops()}
    count = len(read.outputs)
    read.add_results([opset.result(layers[name].output(0)) for name in names])
    results = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([image])
    return [np.array(results[count + index]) for index in range(len(names))]
