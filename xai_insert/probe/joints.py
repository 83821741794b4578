"""Whether the rows of an output are in the order of the heat maps that they are read off, asked of the model."""

from __future__ import annotations

import numpy as np

from xai_insert.errors import UnsupportedTaskError
from xai_insert.feeds import feeds_of
from xai_insert.formats.backend import LoadedModel
from xai_insert.graph.view import Graph
from xai_insert.locate.keypoints import HeatMaps
from xai_insert.probe.heads import Array


def require_order_of_rows(loaded: LoadedModel, graph: Graph, found: HeatMaps) -> None:
    """Change one map at a time and see which row of each output moves.

    Raises:
        UnsupportedTaskError: it is the row of another key point.
    """
    feature, joints = found.feature, found.joints
    runner = loaded.between([feature.value], [value.native for value in graph.outputs])
    feeds = feeds_of(runner.inputs, np.random.default_rng(0))
    name = runner.inputs[0][0]
    before = runner.run(feeds)
    for joint in range(joints):
        maps = feeds[name].copy()
        own = np.moveaxis(maps, feature.channel_axis, 0)[joint]
        own[...] = np.flip(own, axis=tuple(range(1, own.ndim)))
        for output, one, other in zip(graph.output_names, before, runner.run({**feeds, name: maps}), strict=True):
            moved = _moved_rows(one, other, joints)
            if len(moved) == 1 and joint not in moved:
                raise UnsupportedTaskError(
                    f"row {moved.pop()} of output {output!r} is read off map {joint} of {feature.value.describe()}: "
                    "the model puts its key points into another order than their maps, which is not followed; insert "
                    "into the model without that"
                )


def _moved_rows(before: Array, after: Array, joints: int) -> set[int]:
    """The rows of key points, of the first image, that are others; empty if it has none."""
    if before.shape != after.shape or before.ndim < 2:
        return set()
    moved, sizes = before[0] != after[0], before.shape[1:]
    if joints in sizes[:-1]:
        places = np.nonzero(np.moveaxis(moved, sizes.index(joints), 0).reshape(joints, -1).any(axis=1))[0]
        return {int(place) for place in places}
    return set()
