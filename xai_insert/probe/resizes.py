"""What a resize is: the model's own runtime gives it line by line, so that every kind is met."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import fixed
from xai_insert.locate.layout import FeatureMap

Matrix = npt.NDArray[np.float32]


def resize_of(loaded: LoadedModel, before: FeatureMap, after: FeatureMap) -> tuple[Matrix, Matrix]:
    """The resize along rows `[H, h]` and along columns `[W, w]`: what the model's own runtime makes of single lines."""
    runner = loaded.between([before.value], [after.value.native])
    name, dtype, _ = runner.inputs[0]
    shape = fixed((before.shape[0] or 1, *before.shape[1:]))
    rest = {key: np.zeros([size or 1 for size in sizes], kind) for key, kind, sizes in runner.inputs[1:]}
    found = []
    for axis in (0, 1):
        columns = []
        for cell in range(shape[before.grid_axes[axis]]):
            line = np.zeros(shape, dtype)
            np.moveaxis(line, before.grid_axes[axis], 0)[cell] = 1
            made = runner.run({name: line, **rest})[0]
            along = after.grid_axes[axis]
            columns.append(np.moveaxis(made, along, 0).reshape(made.shape[along], -1)[:, 0])
        found.append(np.stack(columns, axis=1).astype(np.float32))
    return found[0], found[1]
