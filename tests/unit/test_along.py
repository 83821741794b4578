"""What slices keep of an axis, in the words of either format."""

import numpy as np
import pytest

from xai_insert.graph.along import along, sliced, stretch
from xai_insert.graph.operators import Cut, Joined, Picked, Reduction, Slices, Softmax, Unknown

OPEN = 1 << 62


@pytest.mark.parametrize(
    ("sizes", "starts", "ends", "kept"),
    [
        ((2, 7), [0, 1], [OPEN, OPEN], Cut(1, 1, 1, 7)),
        ((2, 7), [0, -3], [2, -1], Cut(1, 4, 1, 6)),
        ((2, 7), [1, 1], [2, 3], None),  # of two axes
        ((2, 7), [0, 0], [2, OPEN], Cut(0, 0, 1, 2)),  # whole
        ((2, None), [0, 1], [2, OPEN], Cut(1, 1)),
        ((2, None), [0, 1], [2, -1], None),  # counted from an end that is not known
        ((2, None), [0, -1], [2, OPEN], None),
    ],
)
def test_the_one_axis_that_is_cut(sizes, starts, ends, kept):
    found = sliced(sizes, range(2), starts, ends)
    assert stretch(found) == kept
    assert along(found) == (None if kept is None else kept.axis)
    if None not in sizes:
        slices = tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))
        cuts = {cut.axis: slice(cut.start, cut.end) for cut in found.cuts}
        own = tuple(cuts.get(axis, slice(None)) for axis in range(2))
        whole = np.arange(14).reshape(sizes)
        assert np.array_equal(whole[slices], whole[own])


def test_a_slice_in_steps_or_to_a_computed_end_is_no_stretch():
    assert stretch(sliced((8,), [0], [0], [8], [2])) is None
    assert sliced((8,), [0], [3], None) == Slices((Cut(0, 3),))


@pytest.mark.parametrize(
    ("kind", "axis"),
    [
        (Softmax((2,)), 2),
        (Softmax((1, 2)), None),
        (Reduction((3,), "max"), 3),
        (Joined(1), 1),
        (Picked(1, (4,), 0), 1),
        (Unknown(), None),
    ],
)
def test_the_axis_along_which_an_operator_works(kind, axis):
    assert along(kind) == axis


def test_one_index_is_a_stretch_of_one():
    assert stretch(Picked(1, (4,), 0)) == Cut(1, 4, 1, 5)
    assert stretch(Picked(1, (4, 5), 1)) is stretch(Picked(1, None, 1)) is None
