"""Maps of reported boxes by their definition, outside the tool: mask a feature of one region, run the head, lay it out.

The head is cut out of the plain model; which region a reported box comes from is told by its score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as opset
from onnx.utils import Extractor

from model_zoo_fixtures.testbed import oracle

Array = np.ndarray
Head = Callable[[Array], Array]


def region_head(model: Any, feature: str, logits: str) -> Head:
    """The part of a plain model that makes class scores `[P, K]` of features `[P, C, m, n]`."""
    if isinstance(model, onnx.ModelProto):
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        session = oracle.session(Extractor(inferred).extract_model([feature], [logits]))
        return lambda x: session.run(None, {feature: x})[0]
    nodes = {node.get_friendly_name(): node for node in model.clone().get_ordered_ops()}
    source = nodes[feature].output(0)
    entry = opset.parameter(source.get_partial_shape(), source.get_element_type())
    for reader in source.get_target_inputs():
        reader.replace_source_output(entry.output(0))
    compiled = oracle.compiled(ov.Model([opset.result(nodes[logits].output(0))], [entry]))
    return lambda x: np.array(compiled([x])[0])


def masked_logits(head: Head, feature: Array, label: int) -> Array:
    """`[m, n]`: the logit of a class with all but one position of a feature `[C, m, n]` set to zero."""
    places = [*np.ndindex(feature.shape[1:])]
    alone = np.zeros((len(places), *feature.shape), np.float32)
    for number, (row, column) in enumerate(places):
        alone[number, :, row, column] = feature[:, row, column]
    return head(alone)[:, label].reshape(feature.shape[1:]).astype(np.float64)


def region_of(scores: Array, score: float, label: int) -> int | None:
    """Number of the region whose class score `[P, K]` a reported one is; None if several are as near."""
    apart = np.abs(scores[:, label] - score)
    first, second = np.argsort(apart)[:2]
    return int(first) if apart[first] < 2e-6 and apart[second] > 4e-6 else None


def laid(raw: Array, region: Array, box: Array, grid: tuple[int, int]) -> Array:
    """A map `[m, n]` where its region is on the grid, 0 outside region and box; both by their sides in cells."""
    low, high = np.maximum(region[:2], box[:2]), np.minimum(region[2:], box[2:])
    down, across = (
        _shares(region[axis], region[axis + 2], grid[1 - axis], raw.shape[1 - axis], low[axis], high[axis])
        for axis in (1, 0)
    )
    return down @ (raw - raw.min()) @ across.T


def _shares(low, high, cells, size, start, end):
    """`[cells, size]`: how cells read `size` positions between `low` and `high`, of which `start` to `end` counts."""
    table = np.zeros((cells, size))
    step = (high - low) / size
    for cell in range(cells):
        covered = min(cell + 1, end) - max(cell, start)
        if covered <= 0:
            continue
        for position in range(size):
            apart = abs(cell + 0.5 - (low + (position + 0.5) * step))
            table[cell, position] = max(0, 1 - apart / max(step, 1))
        table[cell] *= covered / max(table[cell].sum(), 1e-6)
    return table
