"""Rules of the pullback for what moves, takes and writes elements, against central differences in float64."""

import numpy as np
import pytest

from model_zoo_fixtures.testbed.gradient_oracle import MAP, VECTOR, assert_is_derivative, f32, one
from model_zoo_fixtures.testbed.models import FORMATS

KINDS = pytest.mark.parametrize("kind", FORMATS)
SHAPES = {
    "Reshape": one("Reshape", np.array([2, 2, -1])),
    "Flatten": one("Flatten", axis=2),
    "Unsqueeze": one("Unsqueeze", np.array([1])),
    "Squeeze": one("Squeeze", np.array([0])),
    "Transpose": one("Transpose", perm=[0, 3, 1, 2]),
    "Slice": one("Slice", np.array([1, 2]), np.array([3, 7]), np.array([1, 3])),
    "every other": one("Slice", np.array([1]), np.array([6]), np.array([2]), np.array([2])),
    "backwards": one("Slice", np.array([-1]), np.array([-9]), np.array([3]), np.array([-1])),
    "one part of three": lambda b: b.node("Split", "image", b.const(np.array([1, 2, 1])), axis=1, outputs=3)[1],
    "swapped parts": lambda b: b.node("Concat", *b.node("Split", "image", axis=1, outputs=2)[::-1], axis=1),
    "joined": lambda b: b.node("Concat", "image", b.node("Exp", "image"), b.const(f32(1, 4, 6, 2)), axis=3),
    "Gather": one("Gather", np.array(2), axis=1),
    "Gather in order": one("Gather", np.array([1, 2, 3]), axis=2),
    "Gather twice": one("Gather", np.array([3, 1, 3, 3]), axis=3),
    "Gather of a grid": one("Gather", np.array([[0, 2], [2, 5]]), axis=2),
    "Expand": lambda b: b.node(
        "Expand", b.node("ReduceMax", "image", axes=[0, 2], keepdims=1), b.const(np.array([3, 4, 5, 7]))
    ),
    "Tile": one("Tile", np.array([2, 1, 1, 3])),
    "Pad": one("Pad", np.array([0, 0, 1, 2, 0, 1, 0, 3])),
    "Pad by reflection": one("Pad", np.array([0, 0, 2, 3, 0, 0, 1, 2]), mode="reflect"),
    "Pad by the edge": one("Pad", np.array([0, 0, 2, 0, 0, 0, 1, 2]), mode="edge"),
    "DepthToSpace": one("DepthToSpace", blocksize=2),
    "DepthToSpace, depth first": one("DepthToSpace", blocksize=2, mode="CRD"),
    "SpaceToDepth": lambda b: b.node(
        "SpaceToDepth", b.node("Pad", "image", b.const(np.eye(8)[7].astype(int))), blocksize=2
    ),
}


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_movements(name, together, kind):
    assert_is_derivative(SHAPES[name], MAP, kind, together=together)


@KINDS
@pytest.mark.parametrize("together", [False, True])
def test_blocks_laid_side_by_side(together, kind):
    """As MobileViTV2 ends its blocks of attention."""

    def network(b):
        blocks = b.node("Reshape", "image", b.const(np.array([1, 12, 14])))
        return b.node("Col2Im", blocks, b.const(np.array([4, 21])), b.const(np.array([2, 3])), strides=[2, 3])

    assert_is_derivative(network, MAP, kind, opset=18, together=together)


@KINDS
def test_negative_pads_cut_off(kind):
    both = one("Pad", np.array([0, 0, -1, 2, 0, 0, -2, 0]))

    def reference(b):
        x = b.node("Slice", "image", b.const(np.array([1])), b.const(np.array([4])), b.const(np.array([2])))
        return b.node("Pad", x, b.const(np.array([0, 0, 0, 2, 0, 0, 0, 0])))

    assert_is_derivative(both, MAP, kind, reference=reference)


def places_named(b):
    """Elements of the first two axes, one of them twice."""
    return b.node("GatherND", b.node("Exp", "image"), b.const(np.array([[[0, 2], [2, 1]], [[2, -1], [1, 1]]])))


def stored_elements(b):
    places = np.random.default_rng(3).integers(-3, 3, (3, 4, 5))
    return b.node("GatherElements", b.node("Exp", "image"), b.const(places), axis=1)


def ordered_elements(b):
    """In the order of other elements, as tokens are sorted by their attention."""
    order = b.node("TopK", b.node("Mul", "image", b.const(f32(5))), b.const(np.array([2])), axis=1, outputs=2)[1]
    return b.node("GatherElements", b.node("Exp", "image"), order, axis=1)


def computed_rows(b):
    best = b.node("ArgMax", b.node("ReduceMean", "image", axes=[0, 1], keepdims=0), axis=0, keepdims=1)
    return b.node("Gather", b.node("Exp", "image"), best, axis=2)


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("network", [places_named, stored_elements, ordered_elements, computed_rows])
def test_what_is_taken(network, together, kind):
    assert_is_derivative(network, (3, 3, 5), kind, together=together)


def rows_written(b):
    """The first two rows, squared, over the third and the first."""
    first = b.node("Slice", "image", *(b.const(np.array([number])) for number in (0, 2, 0)))
    return b.node("ScatterND", "image", b.const(np.array([[2], [0]])), b.node("Mul", first, first))


def places_written(b):
    """A row of the exponentials over two single places of them each."""
    x = b.node("Exp", "image")
    picked = b.node("Gather", x, b.const(np.array(1)), axis=0)
    row = b.node("Slice", picked, *(b.const(np.array([number])) for number in (0, 2, 0)))
    return b.node("ScatterND", x, b.const(np.array([[0, 2], [2, 1]])), row)


def all_written(b):
    """Everything anew, as a sum in place is exported (MViTv2's relative positions)."""
    x = b.node("Exp", "image")
    return b.node("ScatterND", x, b.const(np.moveaxis(np.indices((3, 3, 5)), 0, -1)), b.node("Mul", x, "image"))


@KINDS
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("network", [rows_written, places_written, all_written])
def test_what_is_written_over(network, together, kind):
    assert_is_derivative(network, (3, 3, 5), kind, together=together)


@KINDS
def test_elements_written_over(kind):
    def network(b):
        x = b.node("Slice", "image", *(b.const(np.array([number])) for number in (1, 3, 1)))
        places = np.array([[[0, 2, 1, 2, 0], [1, 0, 2, 0, 2]]] * 3)
        return b.node("ScatterElements", "image", b.const(places), x, axis=1)

    assert_is_derivative(network, (3, 3, 5), kind, together=True)


@KINDS
@pytest.mark.parametrize("largest", [0, 1])
def test_the_largest(largest, kind):
    network = lambda b: b.node("TopK", "image", b.const(np.array([3])), largest=largest, outputs=2)[0]  # noqa: E731
    assert_is_derivative(network, VECTOR, kind, together=largest == 0)


@KINDS
@pytest.mark.parametrize("batch", [None, "N"])
def test_bounds_that_are_computed_from_known_sizes(batch, kind):
    def network(b):  # as exporters cut channels in halves where the batch is free
        channels = b.node("Gather", b.node("Shape", "image"), b.const(np.array(1)), axis=0)
        half = b.node("Div", b.node("Add", channels, b.const(np.array(1))), b.const(np.array(2)))
        zero, one = b.const(np.array([0])), b.const(np.array([1]))
        ends = [b.node("Unsqueeze", end, zero) for end in (half, channels)]
        first, second = b.node("Slice", "image", zero, ends[0], one), b.node("Slice", "image", *ends, one)
        return b.node("Concat", b.node("Exp", second), b.node("Sin", first), axis=1)

    assert_is_derivative(network, (2, 5, 2, 2), kind, batch=batch)
