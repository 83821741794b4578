"""What OpenVINO's slices keep, masks of every kind among them, beside what OpenVINO computes."""

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest

from xai_insert.formats.openvino.view import build_view
from xai_insert.graph.operators import Regroup, Slices
from xai_insert.graph.view import Op

SIZES = (2, 5, 6, 3)
WHOLE = np.arange(np.prod(SIZES), dtype=np.float32).reshape(SIZES)
NAMES = ("begin_mask", "end_mask", "new_axis_mask", "shrink_axis_mask", "ellipsis_mask")


def strided(starts, ends, steps=None, *, batch=2, **masks):
    """Node of a slice in the view, and what OpenVINO makes of `WHOLE`."""
    image = opset.parameter([batch, *SIZES[1:]], np.float32, name="image")
    bounds = [np.array(bound, np.int64) for bound in (starts, ends, steps or [1] * len(starts))]
    given = [[*masks.get(name, []), *[0] * len(starts)][: len(starts)] for name in NAMES]
    made = opset.strided_slice(image, *bounds, *given)
    model = ov.Model([made], [image])
    (node,) = build_view(model).nodes
    return node, ov.Core().compile_model(model, "CPU")(WHOLE)[0]


def kept(kind):
    """What a record says is kept of `WHOLE`."""
    index = [slice(None)] * len(SIZES)
    for cut in kind.cuts:
        stop = None if cut.step < 0 else cut.end
        index[cut.axis] = cut.start if cut.axis in kind.dropped else slice(cut.start, stop, cut.step)
    return WHOLE[tuple(index)]


@pytest.mark.parametrize("batch", [2, -1])
@pytest.mark.parametrize(
    ("slices", "count"),
    [
        ({"starts": [0, 1, 2, 0], "ends": [2**31 - 1, 4, 5, 3]}, 2),
        ({"starts": [0, 1, 2, 0], "ends": [0, 4, -1, 0], "begin_mask": [1, 0, 0, 1], "end_mask": [1, 0, 0, 1]}, 2),
        ({"starts": [0, 1], "ends": [0, 3], "ellipsis_mask": [1]}, 1),
        ({"starts": [0, 1, 0, 1], "ends": [2**31 - 1, 3, 0, 3], "ellipsis_mask": [0, 0, 1]}, 2),
        ({"starts": [0, 2], "ends": [0, 0], "ellipsis_mask": [1], "shrink_axis_mask": [0, 1]}, 1),
        ({"starts": [0, -1], "ends": [0, 0], "ellipsis_mask": [1], "shrink_axis_mask": [0, 1]}, 1),
        ({"starts": [0, 0], "ends": [0, 0], "steps": [1, -1], "begin_mask": [1, 1], "end_mask": [1, 1]}, 1),
        ({"starts": [0, 0], "ends": [0, 0], "steps": [1, -1], "end_mask": [1, 1], "begin_mask": [1, 1],
          "ellipsis_mask": [1]}, 1),
        ({"starts": [0, 0, 0, 0], "ends": [0] * 4, "begin_mask": [1] * 4, "end_mask": [1] * 4}, 0),
    ],
)  # fmt: skip
def test_what_a_slice_keeps(slices, count, batch):
    """Axes of which nothing is left out have no cut: an open batch stays one."""
    node, given = strided(**slices, batch=batch)
    assert node.op in (Op.SLICE, Op.GATHER)
    assert len(node.kind.cuts) == count
    np.testing.assert_array_equal(kept(node.kind), given)


@pytest.mark.parametrize(
    ("slices", "axes"),
    [
        ({"starts": [0, 0], "ends": [1, 1], "begin_mask": [1], "end_mask": [1], "new_axis_mask": [0, 1]}, (1,)),
        ({"starts": [0, 0], "ends": [1, 1], "ellipsis_mask": [1], "new_axis_mask": [0, 1]}, (4,)),
        ({"starts": [0, 0, 0], "ends": [1, 1, 1], "ellipsis_mask": [0, 1], "new_axis_mask": [1, 0, 1]}, (0, 5)),
    ],
)
def test_new_axes_alone_are_a_reshape(slices, axes):
    node, given = strided(**slices)
    assert (node.op, node.kind) == (Op.RESHAPE, Regroup(axes))
    np.testing.assert_array_equal(np.expand_dims(WHOLE, axes), given)


def test_new_axes_beside_a_cut_are_not_known():
    node, _ = strided([1, 0], [2, 1], new_axis_mask=[0, 1])
    assert node.kind == Slices(None)
